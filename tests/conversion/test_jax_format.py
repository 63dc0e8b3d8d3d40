"""The stored JAX program: what it may call, how params are named, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from safetensors.numpy import load_file

from noa.digests import sha256_bytes
from noa.errors import ConversionError, InvalidInputError
from noa.signatures import Signature, TensorSpec
from noa_conversion import JaxModel, load_format, save_native

ROW = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 3)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 3)),),
)
FIXED = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(2, 3)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(2, 3)),),
)


def _model(apply: Any, params: Any = None, signature: Signature = ROW) -> JaxModel:
    return JaxModel(apply=apply, params={"w": jnp.ones(3)} if params is None else params, signature=signature)


def test_weights_have_their_dotted_names(zoo: Any) -> None:
    weights = load_file(zoo.folder("jax", "rows", "jax") / "weights.safetensors")
    assert set(weights) == {"kinds", "hidden.weight", "hidden.bias", "hidden.scale", "out.weight"}


def test_stock_jax_reads_the_program(zoo: Any) -> None:
    folder = zoo.folder("jax", "rows", "jax")
    program = export.deserialize(bytearray((folder / "program.stablehlo").read_bytes()))
    weights = load_file(folder / "weights.safetensors")
    order = json.loads((folder / "program.json").read_text())["weights"]
    inputs = zoo.draw_inputs(Signature.load(folder), 3)
    score, *_ = program.call(tuple(weights[name] for name in order), tuple(inputs.values()))
    np.testing.assert_allclose(score, load_format("jax", folder).run(inputs)["score"], rtol=1e-5)


def test_a_program_with_a_python_callback_cannot_be_saved(tmp_path: Path) -> None:
    def apply(params: Any, x: Any) -> Any:
        return jax.pure_callback(lambda v: v, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    with pytest.raises(ConversionError, match=r"callback|custom call"):
        save_native(_model(apply, signature=FIXED), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_stored_custom_call_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    save_native(_model(lambda params, x: x * params["w"], signature=FIXED), folder)
    row = jax.ShapeDtypeStruct((2, 3), jnp.float32)

    def function(weights: Any, inputs: Any) -> Any:
        return (jax.ffi.ffi_call("xla_ffi_python_cpu_callback", row)(inputs[0] * weights[0]),)

    checks = [export.DisabledSafetyCheck.custom_call("xla_ffi_python_cpu_callback")]
    exporter = export.export(jax.jit(function), platforms=("cpu",), disabled_checks=checks)
    data = bytes(exporter((jax.ShapeDtypeStruct((3,), jnp.float32),), (row,)).serialize())
    (folder / "program.stablehlo").write_bytes(data)
    layout = json.loads((folder / "program.json").read_text())
    (folder / "program.json").write_text(json.dumps({**layout, "program": sha256_bytes(data)}))
    with pytest.raises(InvalidInputError, match="xla_ffi_python_cpu_callback"):
        load_format("jax", folder)


def test_changed_bytes_are_noticed_before_the_parser_sees_them(zoo: Any, tmp_path: Path) -> None:
    folder = zoo.copy(zoo.folder("jax", "rows", "jax"), tmp_path / "changed")
    program = folder / "program.stablehlo"
    original = program.read_bytes()
    for place in range(0, len(original), max(len(original) // 40, 1)):
        data = bytearray(original)
        data[place] ^= 0x15
        program.write_bytes(data)
        with pytest.raises(InvalidInputError, match="not the program"):
            load_format("jax", folder)


def test_weights_of_another_shape_are_refused(zoo: Any, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = zoo.copy(zoo.folder("jax", "rows", "jax"), tmp_path / "other")
    weights = load_file(folder / "weights.safetensors")
    save_file({**weights, "hidden.bias": np.zeros(9, np.float32)}, folder / "weights.safetensors")
    with pytest.raises(InvalidInputError, match="weight does not fit"):
        load_format("jax", folder)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": [1.0, 2.0]}, "`w` is no array"),
        ({"a": {"b": jnp.ones(3)}, "a.b": jnp.ones(3)}, r"two params have the name `a\.b`"),
        ({1: jnp.ones(3)}, "text keys"),
        ({"w": np.ones(3, np.float64)}, "`w` has the dtype float64"),
        ({"w": jnp.ones(3, jnp.bfloat16)}, "`w` has the dtype bfloat16"),
    ],
)
def test_params_that_cannot_be_stored_are_refused_by_name(params: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        save_native(_model(lambda params, x: x, params), tmp_path / "out")


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda p, x: (x, x), "another number of outputs"),
        (lambda p, x: x.astype("int32"), "`y`"),
        (lambda p, x: x[:, :2], "`y`"),
        (lambda p, x: x if x.shape[0] > 4 else -x, "cannot be traced"),
        (lambda p, x: x if x.sum() > 0 else -x, "cannot be traced"),
    ],
)
def test_a_function_that_does_something_else_is_refused(apply: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        save_native(_model(apply), tmp_path / "out")


def test_two_free_axes_are_free_together(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(
            TensorSpec(name="left", dtype="float32", shape=("batch", "seq", 2)),
            TensorSpec(name="right", dtype="float32", shape=("batch", 2)),
        ),
        outputs=(TensorSpec(name="dot", dtype="float32", shape=("batch", "seq")),),
    )
    model = _model(lambda p, a, b: jnp.einsum("bsi,bi->bs", a * p["s"], b), {"s": jnp.float32(2)}, signature)
    save_native(model, tmp_path / "jax")
    runnable = load_format("jax", tmp_path / "jax")
    for batch, seq in ((1, 1), (2, 5), (3, 1)):
        left, right = np.ones((batch, seq, 2), np.float32), np.ones((batch, 2), np.float32)
        np.testing.assert_array_equal(runnable.run({"left": left, "right": right})["dot"], np.full((batch, seq), 4.0))
