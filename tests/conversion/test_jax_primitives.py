"""Every primitive of the JAX exporter against JAX itself, at batch 1 and 5: a third of them in the suite."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax_export_kit import Case, abstract_inputs, check, model_of
from jax_number_cases import NUMBER_CASES
from jax_structure_cases import STRUCTURE_CASES
from jax_tensor_cases import TENSOR_CASES

from noa.errors import ConversionError
from noa.settings import ConversionSettings
from noa_conversion import convert, load_format
from noa_conversion.exporters.jax_to_onnx.walk import COMPLEX_HANDLERS, HANDLERS, KEY_HANDLERS
from samples import mostly, one_in

CASES = {**TENSOR_CASES, **STRUCTURE_CASES, **NUMBER_CASES}
# Only reached through rewrites inside JAX that these functions do not trigger; each is the twin of a tested one.
TWINS = {
    "copy": "copy_p",
    "copy_p": "copy_p",
    "stop_gradient": "copy_p",
    "name": "copy_p",
    "sharding_constraint": "copy_p",
}
TWINS |= {"pvary": "copy_p", "dim_as_value": "counting", "device_put": "copy_p", "platform_index": "solve"}


pytestmark = pytest.mark.usefixtures("unoptimised_jax")


@pytest.mark.parametrize("name", one_in(3, "conformance", CASES))
def test_the_graph_computes_what_jax_does(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path / "onnx")


OF_OPSETS = ("scan", "solve", "transforms", "pool SAME 2", "random floats", "segment sum")


@pytest.mark.parametrize(
    ("name", "opset"),
    mostly(
        "conformance",
        product(OF_OPSETS, (18, 23)),
        sample=[*zip(OF_OPSETS, cycle((18, 23)), strict=False)],  # each in one of them
    ),
)
def test_other_opsets_compute_the_same(name: str, opset: int, tmp_path: Path) -> None:
    check(CASES[name], tmp_path / "onnx", opset=opset)


def test_every_handler_is_reached_by_some_case() -> None:
    reached: set[str] = set()
    for case in CASES.values():
        params = model_of(case).params
        closed = jax.make_jaxpr(lambda *values: case.function(params, *values))(*abstract_inputs(case))  # noqa: B023
        _collect(closed.jaxpr, reached)
    handlers = {*HANDLERS, *COMPLEX_HANDLERS, *KEY_HANDLERS}
    assert handlers - reached - set(TWINS) == set()


def _collect(jaxpr: Any, reached: set[str]) -> None:
    for equation in jaxpr.eqns:
        reached.add(equation.primitive.name)
        for value in equation.params.values():
            for item in value if isinstance(value, tuple) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    _collect(inner, reached)


REFUSED: dict[str, tuple[str, Callable[..., Any]]] = {
    "unknown": ("eigh", lambda p, x: jnp.linalg.eigh(x.T @ x)[0]),
    "singular values": ("svd", lambda p, x: jnp.linalg.svd(x.T @ x)[1]),
    "next number": ("nextafter", lambda p, x: jnp.nextafter(x, x + 1)),
    "rounding to another format": ("reduce_precision", lambda p, x: lax.reduce_precision(x, 5, 10)),
    "complex functions": ("exp", lambda p, x: jnp.exp(lax.complex(x, x)).real),
    "another generator": (
        "rbg",
        lambda p, x: x + jax.random.normal(jax.random.key(jnp.int32(x.sum()), impl="rbg"), (3,)),
    ),
    "bits of the generator": (
        "rng_bit_generator",
        lambda p, x: x + lax.rng_bit_generator(jnp.uint32([1, 2, 3, 4]) + x[0, 0].astype("uint32"), (3,))[1][0],
    ),
    "numbers for a free axis": (
        "random_bits",
        lambda p, x: x + jax.random.normal(jax.random.key(jnp.int32(x[0, 0])), x.shape),
    ),
    "a callback": (
        "callback",
        lambda p, x: jax.pure_callback(lambda v: v, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
    ),
    "bits of half floats": ("bitcast", lambda p, x: lax.bitcast_convert_type(x.astype("float16"), "uint16")),
}


def test_a_convolution_may_cut_its_input(tmp_path: Path) -> None:
    """XLA reads outside of the array where the padding is negative, so the array is cut by hand for the comparison."""

    def function(params: Any, x: Any) -> Any:
        return lax.conv_general_dilated(
            x, params["w"], (1, 2), ((-1, 2), (0, -1)), dimension_numbers=("NCHW", "OIHW", "NCHW")
        )

    case = Case(function=function, shapes=(("batch", 2, 5, 6),), params={"w": (3, 2, 3, 3)})
    model = model_of(case)
    convert(model, tmp_path / "onnx", settings=ConversionSettings())
    x = np.random.default_rng(0).normal(size=(2, 2, 5, 6)).astype("f")
    expected = lax.conv_general_dilated(
        x[:, :, 1:, :-1], model.params["w"], (1, 2), ((0, 2), (0, 0)), dimension_numbers=("NCHW", "OIHW", "NCHW")
    )
    given = load_format("onnx", tmp_path / "onnx").run({"x0": x})["y0"]
    np.testing.assert_allclose(given, np.asarray(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(name: str, tmp_path: Path) -> None:
    primitive, function = REFUSED[name]
    model = model_of(Case(function=function))
    with pytest.raises(ConversionError, match=primitive):
        convert(model, tmp_path / "onnx", settings=ConversionSettings())
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_primitive_that_nothing_needs_is_left_out(tmp_path: Path) -> None:
    def function(params: Any, x: Any) -> Any:
        jnp.linalg.eigh(x.T @ x)
        return x * 2

    convert(model_of(Case(function=function)), tmp_path / "onnx", settings=ConversionSettings())
    outputs = load_format("onnx", tmp_path / "onnx").run({"x0": np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(outputs["y0"], np.full((2, 3), 2, np.float32))
