"""One case of the JAX exporter's tests: a function, what it takes, and how its graph is compared with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import SymbolicScope, symbolic_shape

from noa.settings import ConversionSettings
from noa.signatures import Signature, TensorSpec
from noa_conversion import JaxModel, convert, load_format

B = "batch"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A function of params and inputs. Outputs must have the free axis by its own name, or none."""

    function: Callable[..., Any]
    shapes: tuple[tuple[Any, ...], ...] = ((B, 3),)
    dtypes: tuple[str, ...] = ()
    params: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tolerance: float = 1e-5
    batches: tuple[int, ...] = (1, 5)
    draw: Callable[[np.random.Generator, int], list[np.ndarray]] | None = None
    """Draws the inputs where any numbers will not do."""

    @property
    def types(self) -> tuple[str, ...]:
        return self.dtypes or ("float32",) * len(self.shapes)


def abstract_inputs(case: Case) -> list[jax.ShapeDtypeStruct]:
    scope = SymbolicScope()
    return [
        jax.ShapeDtypeStruct(symbolic_shape(", ".join(map(str, shape)), scope=scope) if B in shape else shape, dtype)
        for dtype, shape in zip(case.types, case.shapes, strict=True)
    ]


def model_of(case: Case) -> JaxModel:
    rng = np.random.default_rng(7)
    params = {name: jnp.asarray(rng.normal(size=shape).astype("f")) for name, shape in case.params.items()}
    inputs = tuple(
        TensorSpec(name=f"x{index}", dtype=dtype, shape=shape)  # pyright: ignore[reportArgumentType]
        for index, (dtype, shape) in enumerate(zip(case.types, case.shapes, strict=True))
    )
    outputs = jax.eval_shape(lambda *values: as_tuple(case.function(params, *values)), *abstract_inputs(case))
    specs = tuple(
        TensorSpec(
            name=f"y{index}",
            dtype=str(output.dtype),  # pyright: ignore[reportArgumentType]
            shape=tuple(size if isinstance(size, int) else str(size) for size in output.shape),
        )
        for index, output in enumerate(outputs)
    )
    return JaxModel(apply=case.function, params=params, signature=Signature(inputs=inputs, outputs=specs))


def as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def draw_inputs(case: Case, batch: int) -> list[np.ndarray]:
    rng = np.random.default_rng(batch)
    if case.draw is not None:
        return case.draw(rng, batch)
    drawn: list[np.ndarray] = []
    for dtype, shape in zip(case.types, case.shapes, strict=True):
        sizes = [batch if size == B else size for size in shape]
        if dtype.startswith("float"):
            drawn.append(rng.normal(size=sizes).astype(dtype))
        else:
            drawn.append(rng.integers(0, 2 if dtype == "bool" else 5, sizes).astype(dtype))
    return drawn


def check(case: Case, folder: Path, *, opset: int | None = None) -> None:
    """Export, run, and compare every output with JAX at several batch sizes."""
    model = model_of(case)
    convert(model, folder, settings=ConversionSettings() if opset is None else ConversionSettings(opset=opset))
    runnable = load_format("onnx", folder, threads=1)
    expected_of = jax.jit(lambda *values: as_tuple(case.function(model.params, *values)))
    for batch in case.batches:
        inputs = draw_inputs(case, batch)
        outputs = runnable.run({spec.name: value for spec, value in zip(model.signature.inputs, inputs, strict=True)})
        for spec, value in zip(model.signature.outputs, expected_of(*inputs), strict=True):
            assert outputs[spec.name].dtype == value.dtype, spec
            assert outputs[spec.name].shape == value.shape, spec
            close = {"rtol": 1e-4, "atol": case.tolerance} if value.dtype.kind == "f" else {"rtol": 0, "atol": 0}
            np.testing.assert_allclose(outputs[spec.name], np.asarray(value), err_msg=f"{spec} at {batch}", **close)
