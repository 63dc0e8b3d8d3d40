"""ONNX in PyTorch: what a caller can rely on, whatever the operators are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from graph_kit import FLOAT, INT64, model, value
from hypothesis import example, given, settings, strategies
from onnx import helper
from torch.nn import functional

from noa.errors import ConversionError, InvalidInputError
from noa.settings import ConversionSettings
from noa_conversion import import_onnx_to_torch, load_format
from noa_conversion.formats.torch_format import save
from noa_conversion.importers.torch import convert_onnx_to_torch

BOOL = onnx.TensorProto.BOOL


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed + sum(shape)).standard_normal(shape) * 0.3).astype(np.float32)


WEIGHTS = {
    "stem.conv.weight": draw(6, 3, 3, 3),
    "stem.norm.weight": draw(6) + 1,
    "stem.norm.bias": draw(6),
    "head/dense:0": draw(6, 5),
    "head/bias:0": draw(5),
}
STATISTICS = {"stem.norm.running_mean": draw(6), "stem.norm.running_var": np.abs(draw(6)) + 1}


def image_model() -> bytes:
    """A convolution network whose batch, height and width are free; its reshape reads the batch from a shape."""
    nodes = [
        helper.make_node("Conv", ["image", "stem.conv.weight"], ["seen"], pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization",
            ["seen", "stem.norm.weight", "stem.norm.bias", "stem.norm.running_mean", "stem.norm.running_var"],
            ["normal"],
        ),
        helper.make_node("Relu", ["normal"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Shape", ["image"], ["batch"], end=1),
        helper.make_node("Concat", ["batch", "rest"], ["flat"], axis=0),
        helper.make_node("Reshape", ["pooled", "flat"], ["features"]),
        helper.make_node("MatMul", ["features", "head/dense:0"], ["product"]),
        helper.make_node("Add", ["product", "head/bias:0"], ["scores"]),
    ]
    weights = {**WEIGHTS, **STATISTICS, "rest": np.asarray([-1], np.int64)}
    inputs = [value("image", FLOAT, ["batch", 3, "height", "width"])]
    return model(nodes, inputs, [value("scores", FLOAT, ["batch", 5])], weights).SerializeToString()


def native(params: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    seen = functional.conv2d(image, params["stem.conv.weight"], padding=1)
    mean, var = (torch.from_numpy(STATISTICS[f"stem.norm.running_{part}"]) for part in ("mean", "var"))
    normal = functional.batch_norm(seen, mean, var, params["stem.norm.weight"], params["stem.norm.bias"])
    return functional.relu(normal).mean((2, 3)) @ params["head/dense:0"] + params["head/bias:0"]


def one_node(kind: str, inputs: list[Any], outputs: list[Any], weights: Any = None, **attributes: Any) -> bytes:
    names = [each.name for each in inputs] + list(weights or {})
    node = helper.make_node(kind, names, [each.name for each in outputs], **attributes)
    return model([node], inputs, outputs, weights).SerializeToString()


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 3, 8, 9), (5, 3, 11, 4)])
def test_the_module_computes_what_onnxruntime_does(shape: tuple[int, ...]) -> None:
    data, image = image_model(), draw(*shape)
    (expected,) = onnxruntime.InferenceSession(data).run(None, {"image": image})
    imported = import_onnx_to_torch(data)
    np.testing.assert_allclose(imported.module(torch.from_numpy(image)).detach(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(imported.run({"image": image})["scores"], expected, rtol=1e-4, atol=1e-5)


def test_all_weights_are_found_by_their_names() -> None:
    imported = import_onnx_to_torch(image_model())
    assert imported.names.keys() == {*WEIGHTS, *STATISTICS}
    assert imported.names["stem.conv.weight"] == "stem.conv.weight"
    parameters, buffers = dict(imported.module.named_parameters()), dict(imported.module.named_buffers())
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(parameters[imported.names[name]].detach(), array)
        assert parameters[imported.names[name]].requires_grad
    for name, array in STATISTICS.items():
        np.testing.assert_array_equal(buffers[imported.names[name]], array)


def test_the_graph_calls_aten_only_and_has_layers_in_one_piece() -> None:
    graph = import_onnx_to_torch(image_model()).module.graph
    calls = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert all(call.startswith(("aten.", "<built-in function")) for call in calls), calls
    assert "aten.linear.default" in calls
    assert "aten.add.Tensor" not in calls


def test_gradients_are_those_of_the_network_written_in_torch() -> None:
    imported, image = import_onnx_to_torch(image_model()), torch.from_numpy(draw(3, 3, 8, 9))
    (imported.module(image) ** 2).sum().backward()
    params = {name: torch.from_numpy(array.copy()).requires_grad_() for name, array in WEIGHTS.items()}
    (native(params, image) ** 2).sum().backward()
    received = dict(imported.module.named_parameters())
    for name, expected in params.items():
        np.testing.assert_allclose(received[imported.names[name]].grad, expected.grad, rtol=1e-4, atol=1e-5)


def test_training_changes_the_module_and_not_the_file() -> None:
    data = image_model()
    before = bytes(data)
    module = import_onnx_to_torch(data).module
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    image = torch.from_numpy(draw(4, 3, 6, 6))
    losses: list[float] = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = (module(image) - 1).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert data == before


def test_the_module_is_compiled_as_one_graph() -> None:
    module, image = import_onnx_to_torch(image_model()).module, torch.from_numpy(draw(2, 3, 8, 8))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    np.testing.assert_allclose(compiled(image).detach(), module(image).detach(), rtol=1e-5, atol=1e-6)


def test_the_module_is_exported_again_with_free_axes() -> None:
    module, image = import_onnx_to_torch(image_model()).module, torch.from_numpy(draw(2, 3, 8, 9))
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    program = torch.export.export(module, (image,), dynamic_shapes=(sizes,))
    other = torch.from_numpy(draw(4, 3, 5, 7))
    np.testing.assert_allclose(program.module()(other).detach(), module(other).detach(), rtol=1e-5, atol=1e-6)


def test_the_torch_format_is_written_from_a_folder_of_onnx(tmp_path: Path) -> None:
    source, folder = tmp_path / "onnx", tmp_path / "torch"
    source.mkdir()
    folder.mkdir()
    (source / "model.onnx").write_bytes(image_model())
    convert_onnx_to_torch(source, folder, ConversionSettings())
    image = draw(3, 3, 8, 8)
    (expected,) = onnxruntime.InferenceSession(source / "model.onnx").run(None, {"image": image})
    given = load_format("torch", folder).run({"image": image})["scores"]
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


def test_the_signature_names_free_axes_and_is_computed_not_believed() -> None:
    inputs = [value("x", FLOAT, [None, "the size", 4])]
    outputs = [value("y", FLOAT, [None, None, None])]
    signature = import_onnx_to_torch(one_node("Relu", inputs, outputs)).signature
    assert [spec.describe() for spec in signature.inputs] == ["float32(batch, the_size, 4)"]
    assert [spec.describe() for spec in signature.outputs] == ["float32(batch, the_size, 4)"]


def test_free_axes_can_be_fixed_by_name() -> None:
    data = image_model()
    fixed = import_onnx_to_torch(data, sizes={"batch": 2})
    assert fixed.signature.inputs[0].describe() == "float32(2, 3, height, width)"
    static = import_onnx_to_torch(data, sizes={"height": 8, "width": 8}, dynamic=False)
    assert static.signature.inputs[0].describe() == "float32(1, 3, 8, 8)"
    assert not any("sym_size" in str(node.target) for node in static.module.graph.nodes)


def test_a_graph_that_fits_one_size_only_says_so() -> None:
    inputs = [value("x", FLOAT, ["batch", 4])]
    weights = {"shape": np.asarray([2, 6], np.int64)}
    data = one_node("Reshape", inputs, [value("y", FLOAT, [2, 6])], weights)
    with pytest.raises(ConversionError, match=r"batch|invalid for input"):
        import_onnx_to_torch(data)
    given = import_onnx_to_torch(data, sizes={"batch": 3}).module(torch.ones(3, 4))
    assert tuple(given.shape) == (2, 6)


def test_an_input_that_decides_shapes_is_asked_for_by_name_and_bound() -> None:
    inputs = [value("x", FLOAT, [2, 6]), value("shape", INT64, [2])]
    data = one_node("Reshape", inputs, [value("y", FLOAT, [None, None])])
    with pytest.raises(ConversionError, match=r'Reshape.*bind=\{"shape": array\}'):
        import_onnx_to_torch(data)
    imported = import_onnx_to_torch(data, bind={"shape": np.asarray([3, 4])})
    assert [each.name for each in imported.inputs] == ["x"]
    assert tuple(imported.module(torch.ones(2, 6)).shape) == (3, 4)
    with pytest.raises(ConversionError, match="which is no input"):
        import_onnx_to_torch(data, bind={"shapes": np.asarray([3, 4])})


# No name of a weight or input may become source text, hide a part of the module, or cost a weight.
HOSTILE_PARTS = (
    *("self", "training", "forward", "T_destination", "_parameters", "_modules", "__class__", "state_dict", "graph"),
    *(
        "constants",
        "c0",
        "class",
        "None",
        "torch",
        "getattr",
        "input",
        "mul",
        "mul_1",
        "add",
        "0",
        "a",
        "b",
        "é",
        "x;y",
    ),
)
HOSTILE_NAMES = strategies.lists(
    strategies.lists(strategies.sampled_from(HOSTILE_PARTS), min_size=1, max_size=3).flatmap(
        lambda parts: strategies.sampled_from("./:").map(lambda joint: joint.join(parts))
    )
    | strategies.text(strategies.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=4),
    min_size=3,
    max_size=6,
    unique=True,
)


@settings(max_examples=25, deadline=None)
@given(names=HOSTILE_NAMES)
@example(names=["self", "torch", "self.weight"])
@example(names=["mul", "mul_1", "a", "a.b", "a.b.c"])
@example(names=["training", "forward", "self", "0"])
@example(names=["x", "y", "getattr", "0", "torch", "inf"])
@example(names=["class", "None", ".", "/", "training", "T_destination"])
@example(names=["input", "input_1", "constants.c0", "_parameters.x", "é", "è"])
def test_whatever_names_are_called_all_weights_are_kept_and_numbers_are_right(names: list[str]) -> None:
    inputs, weights = names[:2], {name: draw(3, seed=place) for place, name in enumerate(names[2:])}
    unique = iter(f"{place} of {names}" for place in range(len(names)))
    last, nodes = inputs[0], list[onnx.NodeProto]()
    for place, name in enumerate([inputs[1], *weights]):
        nodes.append(helper.make_node("Add" if place % 2 else "Mul", [last, name], [next(unique)]))
        last = nodes[-1].output[0]
    declared = [value(name, FLOAT, ["n", 3]) for name in inputs]
    imported = import_onnx_to_torch(model(nodes, declared, [value(last, FLOAT, ["n", 3])], weights).SerializeToString())
    given = {name: draw(2, 3, seed=place) for place, name in enumerate(inputs)}
    expected = given[inputs[0]]
    for place, array in enumerate([given[inputs[1]], *weights.values()]):
        expected = expected + array if place % 2 else expected * array
    np.testing.assert_allclose(imported.run(given)[last], expected, rtol=1e-5, atol=1e-6)
    state = imported.module.state_dict()
    assert imported.names.keys() == weights.keys()
    assert len(set(imported.names.values())) == len(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(state[imported.names[name]], array)


def test_axes_of_two_names_that_do_not_broadcast_are_named() -> None:
    inputs = [value("x", FLOAT, ["rows", 3]), value("other", FLOAT, ["lines", 3])]
    data = one_node("Add", inputs, [value("y", FLOAT, [None, 3])])
    with pytest.raises(ConversionError, match=r"rows.*lines"):
        import_onnx_to_torch(data)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (1, 3)), "axis `rows` has two sizes: 2 in input `x`, 1 in input `other`"),
        (((2, 1), (2, 3)), "axis 1 of input `x` is fixed in the model"),
        (((2, 3), (3,)), "input `other` has another number of axes"),
    ],
)
def test_an_input_that_the_graph_was_not_recorded_for_is_refused_by_name(shapes: Any, message: str) -> None:
    inputs = [value("x", FLOAT, ["rows", 3]), value("other", FLOAT, ["rows", 3])]
    module = import_onnx_to_torch(one_node("Add", inputs, [value("y", FLOAT, ["rows", 3])])).module
    assert tuple(module(torch.ones(1, 3), torch.ones(1, 3)).shape) == (1, 3)
    with pytest.raises(InvalidInputError, match=message):
        module(*(torch.ones(shape) for shape in shapes))


def test_a_question_mark_names_no_axis() -> None:
    """PaddlePaddle writes `?` for every size that it does not know: two of them need not be equal."""
    data = one_node("Relu", [value("x", FLOAT, ["?", 3, "?", "?"])], [value("y", FLOAT, ["?", 3, "?", "?"])])
    imported = import_onnx_to_torch(data)
    array = draw(2, 3, 4, 6)
    np.testing.assert_array_equal(imported.run({"x": array})["y"], np.maximum(array, 0))


def test_what_pytorch_lacks_is_refused_with_operator_node_and_opset() -> None:
    data = one_node("RandomNormalLike", [value("x", FLOAT, [2])], [value("y", FLOAT, [2])])
    with pytest.raises(ConversionError, match=r"`RandomNormalLike` cannot be imported to torch.*opset 20"):
        import_onnx_to_torch(data)


def test_settings_are_numbers_in_the_graph_and_weights_without_training() -> None:
    nodes = [
        helper.make_node("Pow", ["x", "exponent"], ["square"]),
        helper.make_node("Mul", ["square", "scale"], ["y"]),
    ]
    weights = {"exponent": np.asarray(2.0, np.float32), "scale": np.asarray(3.0, np.float32)}
    data = model(nodes, [value("x", FLOAT, [3])], [value("y", FLOAT, [3])], weights).SerializeToString()
    module = import_onnx_to_torch(data).module
    parameters = dict(module.named_parameters())
    assert not parameters["exponent"].requires_grad
    module(torch.tensor([-1.0, 2.0, 3.0])).sum().backward()
    assert float(parameters["scale"].grad) == 14.0


def test_indices_whose_number_is_known_at_run_time_only_are_computed() -> None:
    data = one_node("NonZero", [value("x", FLOAT, ["n", 3])], [value("y", INT64, [2, None])])
    module = import_onnx_to_torch(data).module
    for x in (np.zeros((2, 3), np.float32), np.eye(3, dtype=np.float32), np.ones((4, 3), np.float32)):
        np.testing.assert_array_equal(module(torch.from_numpy(x)), np.stack(np.nonzero(x)))


def branch(name: str, kind: str, other: str) -> onnx.GraphProto:
    node = helper.make_node(kind, ["x", other], [f"{name}_y"])
    return helper.make_graph([node], name, [], [value(f"{name}_y", FLOAT, ["n"])])


def test_a_choice_at_run_time_is_a_choice_in_the_module_and_trains() -> None:
    choice = helper.make_node(
        "If",
        ["is_sum"],
        ["y"],
        then_branch=branch("plus", "Add", "weight"),
        else_branch=branch("times", "Mul", "weight"),
    )
    inputs = [value("x", FLOAT, ["n"]), value("is_sum", BOOL, [])]
    data = model([choice], inputs, [value("y", FLOAT, ["n"])], {"weight": np.asarray([2.0], np.float32)})
    module = import_onnx_to_torch(data.SerializeToString()).module
    x = torch.tensor([1.0, 5.0, 3.0])
    assert module(x, torch.tensor(True)).tolist() == [3.0, 7.0, 5.0]
    y = module(x, torch.tensor(False))
    assert y.tolist() == [2.0, 10.0, 6.0]
    y.sum().backward()
    assert float(dict(module.named_parameters())["weight"].grad) == 9.0


def test_a_choice_at_run_time_is_refused_by_the_torch_format_with_a_way_out(tmp_path: Path) -> None:
    choice = helper.make_node(
        "If",
        ["is_sum"],
        ["y"],
        then_branch=branch("plus", "Add", "weight"),
        else_branch=branch("times", "Mul", "weight"),
    )
    inputs = [value("x", FLOAT, ["n"]), value("is_sum", BOOL, [])]
    data = model([choice], inputs, [value("y", FLOAT, ["n"])], {"weight": np.asarray([2.0], np.float32)})
    with pytest.raises(ConversionError, match=r"decides at run time.*cond.*Keep the format `onnx`.*bind="):
        save(import_onnx_to_torch(data.SerializeToString()).to_model(), tmp_path)
    assert not list(tmp_path.iterdir())
    bound = import_onnx_to_torch(data.SerializeToString(), bind={"is_sum": np.asarray(True)})
    save(bound.to_model(), tmp_path)
    assert load_format("torch", tmp_path).run({"x": np.ones(3, np.float32)})["y"].tolist() == [3.0, 3.0, 3.0]


def test_a_loop_whose_end_is_known_at_run_time_only_goes_on_until_then() -> None:
    body = helper.make_graph(
        [
            helper.make_node("Add", ["total", "step"], ["next"]),
            helper.make_node("Less", ["next", "limit"], ["goes_on"]),
        ],
        "body",
        [value("index", INT64, []), value("before", BOOL, []), value("total", FLOAT, [])],
        [value("goes_on", BOOL, []), value("next", FLOAT, [])],
    )
    loop = helper.make_node("Loop", ["", "yes", "start"], ["y"], body=body)
    inputs = [value("start", FLOAT, []), value("limit", FLOAT, [])]
    weights = {"step": np.asarray(1.5, np.float32), "yes": np.asarray(True)}
    module = import_onnx_to_torch(model([loop], inputs, [value("y", FLOAT, [])], weights).SerializeToString()).module
    with torch.no_grad():
        for limit, expected in ((1.0, 1.5), (4.0, 4.5), (10.0, 10.5)):
            assert float(module(torch.tensor(0.0), torch.tensor(limit))) == expected


def test_importing_leaves_the_gradient_mode_and_the_threads_alone() -> None:
    before = (torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype())
    with torch.no_grad():
        module = import_onnx_to_torch(image_model()).module
        assert not torch.is_grad_enabled()
        module(torch.ones(1, 3, 4, 4))
        assert not torch.is_grad_enabled()
    assert (torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype()) == before
