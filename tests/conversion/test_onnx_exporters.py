"""What both exporters to ONNX promise: names, opset, free axes, a valid graph, and silence."""

from __future__ import annotations

import logging
import threading
import warnings
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from noa.digests import build_manifest
from noa.errors import ConversionError
from noa.settings import ConversionSettings
from noa.signatures import Signature, TensorSpec
from noa_conversion import TorchModel, convert, load_format
from samples import mostly

BOTH = pytest.mark.parametrize("backend", ["torch", "jax"])


@BOTH
@pytest.mark.parametrize("name", ["image", "rows"])
def test_inputs_outputs_and_free_axes_have_the_names_of_the_signature(backend: str, name: str, zoo: Any) -> None:
    signature = zoo.live(backend, name).signature
    model = onnx.load(zoo.folder(backend, name, "onnx") / "model.onnx")
    for values, specs in ((model.graph.input, signature.inputs), (model.graph.output, signature.outputs)):
        found = [
            (value.name, tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim))
            for value in values
        ]
        assert found == [(spec.name, spec.shape) for spec in specs]


@pytest.mark.parametrize("name", ["image", "rows"])
def test_all_weights_of_a_module_keep_their_names_and_values(name: str, zoo: Any) -> None:
    module = zoo.torch_model(name).module
    stored = _initialisers(zoo.folder("torch", name, "onnx"))
    for key, value in module.named_parameters():
        np.testing.assert_array_equal(stored[key], value.detach().numpy())


@pytest.mark.parametrize("name", ["image", "rows", "tokens"])
def test_all_params_of_a_function_keep_their_dotted_names_and_values(name: str, zoo: Any) -> None:
    from noa_conversion.formats.jax_format import flat_params

    stored = _initialisers(zoo.folder("jax", name, "onnx"))
    for key, value in flat_params(zoo.jax_model(name).params).items():
        np.testing.assert_array_equal(stored[key], value)


@pytest.mark.parametrize("name", ["rows", "tokens"])  # the other walks over its params, and computes in their order
def test_params_give_the_same_bytes_in_whatever_order_they_come(name: str, zoo: Any, tmp_path: Path) -> None:
    model = zoo.jax_model(name)
    turned = replace(model, params=_turned(model.params))
    assert str(turned.params) != str(model.params)
    convert(turned, tmp_path / "onnx", settings=ConversionSettings())
    assert build_manifest(tmp_path / "onnx").digest == build_manifest(zoo.folder("jax", name, "onnx")).digest


@pytest.mark.parametrize(
    ("backend", "opset"),
    mostly(
        "conformance",
        product(("torch", "jax"), (18, 20, 23)),
        sample=[("torch", 18), ("jax", 20), ("torch", 23)],
    ),
)
def test_the_graph_has_the_opset_asked_for(backend: str, opset: int, zoo: Any, tmp_path: Path) -> None:
    model = zoo.live(backend, "rows")
    convert(model, tmp_path / "onnx", settings=ConversionSettings(opset=opset))
    proto = onnx.load(tmp_path / "onnx" / "model.onnx")
    assert {entry.domain: entry.version for entry in proto.opset_import}[""] == opset
    inputs = zoo.draw_inputs(model.signature, 3)
    expected = zoo.live_outputs(model, inputs)
    for key, value in load_format("onnx", tmp_path / "onnx").run(inputs).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-4, atol=1e-5)


@BOTH
def test_the_file_says_where_it_comes_from(backend: str, zoo: Any) -> None:
    model = onnx.load(zoo.folder(backend, "rows", "onnx") / "model.onnx")
    assert model.producer_name == "noa"
    assert {entry.key: entry.value for entry in model.metadata_props}["noa.source"] == backend


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_transformer_block_computes_the_same(batch: int, zoo: Any) -> None:
    model = zoo.jax_model("tokens")
    inputs = zoo.draw_inputs(model.signature, batch)
    given = load_format("onnx", zoo.folder("jax", "tokens", "onnx")).run(inputs)["logits"]
    np.testing.assert_allclose(given, zoo.live_outputs(model, inputs)["logits"], rtol=1e-4, atol=1e-5)


def test_exporting_is_silent_and_leaves_warnings_and_logging_as_they_were(
    zoo: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = (list(warnings.filters), list(logger.filters), torch.get_num_threads(), torch.is_grad_enabled())
    convert(zoo.torch_model("rows"), tmp_path / "onnx", settings=zoo.settings)
    assert (list(warnings.filters), list(logger.filters), torch.get_num_threads(), torch.is_grad_enabled()) == before
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_two_threads_export_at_once(zoo: Any, tmp_path: Path) -> None:
    failures: list[BaseException] = []
    models = [zoo.torch_model("rows") for _ in range(2)]

    def run(index: int) -> None:
        try:
            convert(models[index], tmp_path / str(index), settings=zoo.settings)
        except BaseException as exc:  # noqa: BLE001  # reported by the test
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert (tmp_path / "0" / "model.onnx").read_bytes() == (tmp_path / "1" / "model.onnx").read_bytes()


class _Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (x * self.scale + 1) * 3, x - 1


@pytest.mark.parametrize(
    ("given", "first", "second"), [("mul", "add", "mul_1"), ("sub", "mul", "add"), ("x", "y", "z")]
)
def test_inputs_and_outputs_may_be_called_as_inner_values_are(
    given: str, first: str, second: str, tmp_path: Path
) -> None:
    spec = {"dtype": "float32", "shape": ("batch", 2)}
    signature = Signature(
        inputs=(TensorSpec(name=given, **spec),),  # pyright: ignore[reportArgumentType]  # one for all three
        outputs=(TensorSpec(name=first, **spec), TensorSpec(name=second, **spec)),  # pyright: ignore[reportArgumentType]
    )
    convert(TorchModel(module=_Scaled().eval(), signature=signature), tmp_path / "onnx", settings=ConversionSettings())
    assert "scale" in _initialisers(tmp_path / "onnx")
    results = load_format("onnx", tmp_path / "onnx").run({given: np.asarray([[1.0, 2.0]], np.float32)})
    assert {name: array.tolist() for name, array in results.items()} == {first: [[9.0, 21.0]], second: [[0.0, 1.0]]}


def test_a_tensor_that_is_called_as_a_weight_is_refused_by_name(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 2)),),
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=("batch", 2)) for name in ("scale", "rest")),
    )
    with pytest.raises(ConversionError, match="output `scale` has the name of a weight"):
        convert(TorchModel(module=_Scaled(), signature=signature), tmp_path / "onnx", settings=ConversionSettings())


class _Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(20, 16)
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.out = torch.nn.Linear(16, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = torch.triu(torch.full((tokens.shape[1], tokens.shape[1]), float("-inf")), 1)
        return self.out(self.layer(self.embed(tokens), src_mask=mask, is_causal=True).mean(1))


@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_a_transformer_encoder_is_free_in_batch_and_length(target: str, tmp_path: Path) -> None:
    """PyTorch's fused inference path of this layer, which no format has, must not be exported."""
    torch.manual_seed(0)
    signature = Signature(
        inputs=(TensorSpec(name="tokens", dtype="int64", shape=("batch", "seq")),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 4)),),
    )
    module = _Encoder().eval().requires_grad_(False)
    convert(TorchModel(module=module, signature=signature), tmp_path / target, to=target, settings=ConversionSettings())
    assert not any(weight.requires_grad for weight in module.parameters())
    runnable = load_format(target, tmp_path / target)
    for batch, seq in ((1, 1), (2, 6), (5, 3)):
        tokens = np.random.default_rng(batch).integers(0, 20, (batch, seq))
        with torch.no_grad():
            expected = module(torch.from_numpy(tokens)).numpy()
        np.testing.assert_allclose(runnable.run({"tokens": tokens})["logits"], expected, rtol=1e-4, atol=1e-5)


class _Unsupported(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.cholesky(x @ x.transpose(1, 2) + torch.eye(2))


def test_an_operation_without_onnx_form_is_refused_by_name(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 2, 2)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 2, 2)),),
    )
    with pytest.raises(ConversionError, match="cholesky"):
        convert(TorchModel(module=_Unsupported(), signature=signature), tmp_path / "out", settings=ConversionSettings())
    assert list(tmp_path.iterdir()) == []


def test_integer_and_boolean_inputs_keep_their_width(tmp_path: Path) -> None:
    class Lookup(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(4, 2)

        def forward(self, index: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.table(index) * keep[:, None], index + 2**40

    signature = Signature(
        inputs=(
            TensorSpec(name="index", dtype="int64", shape=("batch",)),
            TensorSpec(name="keep", dtype="bool", shape=("batch",)),
        ),
        outputs=(
            TensorSpec(name="rows", dtype="float32", shape=("batch", 2)),
            TensorSpec(name="moved", dtype="int64", shape=("batch",)),
        ),
    )
    model = TorchModel(module=Lookup().eval(), signature=signature)
    inputs = {"index": np.array([0, 3, 1]), "keep": np.array([True, False, True])}
    for target in ("torch", "onnx"):
        convert(model, tmp_path / target, to=target, settings=ConversionSettings())
        outputs = load_format(target, tmp_path / target).run(inputs)
        np.testing.assert_array_equal(outputs["moved"], inputs["index"] + 2**40)
        assert (outputs["rows"][1] == 0).all() and (outputs["rows"][0] != 0).any()


def _turned(params: dict[str, Any]) -> dict[str, Any]:
    return {key: _turned(value) if isinstance(value, dict) else value for key, value in reversed(params.items())}


def _initialisers(folder: Path) -> dict[str, np.ndarray]:
    model = onnx.load(folder / "model.onnx")
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


class Rounded(torch.nn.Module):
    """Divides whole numbers by a number and by a tensor, rounding in both ways."""

    def forward(self, x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        parts = [torch.div(x, other, rounding_mode=mode) for other in (7, by) for mode in ("trunc", "floor")]
        return torch.stack(parts, 1)


@pytest.mark.parametrize("dtype", mostly("conformance", ["int32", "int64", "int8"], sample=["int64"]))
def test_whole_numbers_are_divided_in_whole_numbers(dtype: Any, tmp_path: Path) -> None:
    """Beyond 2**24 a float of 32 bits has not all of them."""
    info = np.iinfo(dtype)
    signature = Signature(
        inputs=tuple(TensorSpec(name=name, dtype=dtype, shape=("batch", 5)) for name in ("x", "by")),
        outputs=(TensorSpec(name="y", dtype=dtype, shape=("batch", 4, 5)),),
    )
    x = np.asarray([[info.max, info.min, info.max // 3, -7, 20]], dtype)
    by = np.asarray([[7, -3, 3, 2, -6]], dtype)
    convert(TorchModel(module=Rounded(), signature=signature), tmp_path / "onnx", settings=ConversionSettings())
    given = load_format("onnx", tmp_path / "onnx").run({"x": x, "by": by})["y"]
    np.testing.assert_array_equal(given, Rounded()(torch.from_numpy(x), torch.from_numpy(by)).numpy())


class _Giving(torch.nn.Module):
    """Gives its input, one tensor twice, a parameter, a buffer and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(5.0))
        self.register_buffer("counts", torch.arange(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x * self.weight
        return x, y, y, self.weight, self.get_buffer("counts"), torch.tensor([1.0, 2.0])


@pytest.mark.torch
def test_an_output_may_be_an_input_a_weight_a_constant_or_another_output(tmp_path: Path) -> None:
    module = _Giving()
    shapes = [("float32", ("batch", 5))] * 3 + [("float32", (5,)), ("int64", (3,)), ("float32", (2,))]
    outputs = tuple(
        TensorSpec(name=f"y{at}", dtype=dtype, shape=shape)  # pyright: ignore[reportArgumentType]
        for at, (dtype, shape) in enumerate(shapes)
    )
    signature = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 5)),), outputs=outputs)
    convert(TorchModel(module=module, signature=signature), tmp_path / "onnx", settings=ConversionSettings())
    stored = load_format("onnx", tmp_path / "onnx")
    for batch in (1, 3, 0):
        x = np.arange(5.0 * batch, dtype="f").reshape(batch, 5)
        received = stored.run({"x": x})
        for at, expected in enumerate(module(torch.from_numpy(x))):
            np.testing.assert_array_equal(received[f"y{at}"], expected.detach().numpy())
    assert {"weight", "counts"} <= {tensor.name for tensor in onnx.load(tmp_path / "onnx/model.onnx").graph.initializer}


def test_weights_may_be_called_as_the_exporter_calls_values_between_nodes(tmp_path: Path) -> None:
    """A graph that the exporter wrote has weights `val_0`, ..., which it counts again on the way back."""

    class Counted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for index in range(12):
                self.register_parameter(f"val_{index}", torch.nn.Parameter(torch.full((3,), index + 1.0)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for index in range(12):
                x = torch.nn.functional.gelu(x * getattr(self, f"val_{index}")) + x.shape[0]
            return x.reshape(x.shape[0], -1, 3).mean(1)

    module = Counted().eval()
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 3)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 3)),),
    )
    convert(TorchModel(module=module, signature=signature), tmp_path / "onnx", settings=ConversionSettings())
    assert {f"val_{index}" for index in range(12)} <= _initialisers(tmp_path / "onnx").keys()
    for batch in (1, 5):
        x = np.random.default_rng(0).normal(size=(batch, 3)).astype(np.float32) / 1e6
        expected = module(torch.from_numpy(x)).detach().numpy()
        answer = load_format("onnx", tmp_path / "onnx").run({"x": x})["y"]
        np.testing.assert_allclose(answer, expected, rtol=1e-3)
