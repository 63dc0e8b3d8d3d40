"""Flax NNX and Equinox modules, bfloat16 weights and quantised graphs: names, values, and what is refused."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from flax import nnx
from onnx import TensorProto, helper, numpy_helper

from noa.errors import ConversionError, DependencyMissingError
from noa.settings import ConversionSettings
from noa.signatures import Signature, TensorSpec
from noa_conversion import JaxModel, convert, load_format
from noa_conversion.exporters.onnx_kernels import fit_kernels
from noa_conversion.exporters.onnx_model import write_model
from noa_conversion.formats.jax_format import flat_params

ROWS = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 3)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 2)),),
)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.dropout(self.norm(x))


def test_an_nnx_module_is_exported_in_evaluation_mode_with_dotted_names(tmp_path: Path) -> None:
    module = Net(nnx.Rngs(0))
    module.train()
    model = JaxModel.from_nnx(module, ROWS)
    names = {"layers.0.kernel", "layers.0.bias", "layers.1.kernel", "layers.1.bias"}
    names |= {f"norm.{name}" for name in ("scale", "bias", "mean", "var")}
    assert set(flat_params(model.params)) == names
    convert(model, tmp_path / "onnx", settings=ConversionSettings())
    stored = {tensor.name for tensor in onnx.load(tmp_path / "onnx" / "model.onnx").graph.initializer}
    assert names <= stored
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("f")
    given = load_format("onnx", tmp_path / "onnx").run({"x": x})["y"]
    assert module.dropout.deterministic is not True, "the module itself stays as it was"
    module.eval()
    np.testing.assert_allclose(given, np.asarray(module(jnp.asarray(x))), rtol=1e-5, atol=1e-6)


def test_an_equinox_module_is_mapped_over_samples_with_dotted_names(tmp_path: Path) -> None:
    module = equinox.nn.Sequential([equinox.nn.Linear(3, 2, key=jax.random.key(0)), equinox.nn.Dropout(0.5)])
    model = JaxModel.from_equinox(module, ROWS)
    assert set(flat_params(model.params)) == {"layers.0.weight", "layers.0.bias"}
    convert(model, tmp_path / "onnx", settings=ConversionSettings())
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("f")
    expected = jax.vmap(equinox.nn.inference_mode(module))(jnp.asarray(x))
    np.testing.assert_allclose(
        load_format("onnx", tmp_path / "onnx").run({"x": x})["y"], expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("package", ["flax", "equinox"])
def test_a_missing_library_of_modules_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    make = JaxModel.from_nnx if package == "flax" else JaxModel.from_equinox
    with pytest.raises(DependencyMissingError, match=package):
        make(None, ROWS)


def test_weights_of_bfloat16_stay_in_it(tmp_path: Path) -> None:
    weight = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.bfloat16)

    def apply(params: Any, x: Any) -> Any:
        return jnp.tanh(x.astype("bfloat16") @ params["dense"]["kernel"]).astype("float32")

    model = JaxModel(apply=apply, params={"dense": {"kernel": weight}}, signature=ROWS)
    convert(model, tmp_path / "onnx", settings=ConversionSettings())
    stored = {tensor.name: tensor for tensor in onnx.load(tmp_path / "onnx" / "model.onnx").graph.initializer}
    assert stored["dense.kernel"].data_type == TensorProto.BFLOAT16
    np.testing.assert_array_equal(numpy_helper.to_array(stored["dense.kernel"]).astype("f"), weight.astype("f"))
    x = np.random.default_rng(1).normal(size=(5, 3)).astype("f")
    given = load_format("onnx", tmp_path / "onnx").run({"x": x})["y"]
    np.testing.assert_allclose(given, np.asarray(jax.jit(apply)(model.params, x)), atol=1e-2)


def _brain_graph() -> onnx.ModelProto:
    """`If` with an addition in bfloat16 in one branch, which no runtime on a processor computes."""
    brain = TensorProto.BFLOAT16
    inner = helper.make_tensor_value_info("inner", brain, [2])
    other = helper.make_tensor_value_info("other", brain, [2])
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=brain),
        helper.make_node(
            "If",
            ["is_on"],
            ["chosen"],
            then_branch=helper.make_graph([helper.make_node("Add", ["narrow", "w"], ["inner"])], "then", [], [inner]),
            else_branch=helper.make_graph([helper.make_node("Identity", ["narrow"], ["other"])], "else", [], [other]),
        ),
        helper.make_node("Cast", ["chosen"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "brain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]), helper.make_tensor_value_info("is_on", 9, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [helper.make_tensor("w", brain, [2], np.float32([1, 2]))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_bfloat16_is_computed_in_32_bits_in_branches_too() -> None:
    import onnxruntime

    model = _brain_graph()
    assert fit_kernels(model) == 1
    assert fit_kernels(model) == 0, "what fits is left alone"
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (given,) = session.run(None, {"x": np.float32([0.1, 3]), "is_on": np.asarray(True)})
    np.testing.assert_allclose(np.asarray(given), [1.1, 5], rtol=1e-2)


def test_a_graph_of_another_opset_than_asked_for_is_refused(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(
            TensorSpec(name="x", dtype="float32", shape=(2,)),
            TensorSpec(name="is_on", dtype="bool", shape=()),
        ),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(2,)),),
    )
    with pytest.raises(ConversionError, match="opset"):
        write_model(_brain_graph(), tmp_path, signature=signature, source="test", settings=ConversionSettings(opset=18))
    assert list(tmp_path.iterdir()) == []
