"""A choice at run time of which one branch does not fit the shapes around it, in PyTorch: right wherever it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from graph_kit import FLOAT, model, value
from onnx import helper

from noa.errors import ConversionError, InvalidInputError
from noa.settings import ConversionSettings
from noa_conversion import import_onnx_to_torch, load_format
from noa_conversion.exporters.torch_to_onnx import export
from noa_conversion.formats.torch_format import save

BOOL = onnx.TensorProto.BOOL
WEIGHTS = {
    "axis": np.asarray([1], np.int64),
    "four": np.asarray([4], np.int64),
    "weight": np.asarray([2.0], np.float32),
    "kernel": np.ones((1, 1, 5), np.float32),
    "square": np.ones((7, 7), np.float32),
}
X = np.arange(6, dtype=np.float32).reshape(2, 3)
MISFITS = {
    "Squeeze": [helper.make_node("Squeeze", ["x", "axis"], ["bare"])],
    "Reshape": [helper.make_node("Reshape", ["x", "four"], ["bare"])],
    "MatMul": [
        helper.make_node("MatMul", ["x", "square"], ["product"]),
        helper.make_node("ReduceMean", ["product", "axis"], ["bare"], keepdims=0),
    ],
    "Conv": [
        helper.make_node("Unsqueeze", ["x", "axis"], ["deep"]),
        helper.make_node("Conv", ["deep", "kernel"], ["seen"]),
        helper.make_node("Squeeze", ["seen", "axis"], ["flat"]),
        helper.make_node("ReduceMean", ["flat", "axis"], ["bare"], keepdims=0),
    ],
}


def branch(name: str, nodes: list[onnx.NodeProto], result: str, output: str) -> onnx.GraphProto:
    last = helper.make_node("Mul", [result, "weight"], [output])
    return helper.make_graph([*nodes, last], name, [], [helper.make_tensor_value_info(output, FLOAT, None)])


def mean(output: str) -> onnx.GraphProto:
    return branch("mean", [helper.make_node("ReduceMean", ["x", "axis"], ["middle"], keepdims=0)], "middle", output)


def choice(kind: str, *, misfit_first: bool = True) -> bytes:
    """A choice between nodes that do not fit rows of 3, and the mean of each row."""
    odd, even = branch("odd", MISFITS[kind], "bare", "odd_y"), mean("mean_y")
    branches = (odd, even) if misfit_first else (even, odd)
    node = helper.make_node("If", ["is_first"], ["y"], then_branch=branches[0], else_branch=branches[1])
    inputs = [value("x", FLOAT, ["rows", "columns"]), value("is_first", BOOL, [])]
    return model([node], inputs, [value("y", FLOAT, ["rows"])], WEIGHTS).SerializeToString()


@pytest.mark.parametrize("misfit_first", [True, False])
@pytest.mark.parametrize("kind", ["Squeeze", "Reshape", "MatMul", "Conv"])
def test_the_branch_that_fits_is_computed_and_the_other_one_is_an_error(kind: str, misfit_first: bool) -> None:
    data = choice(kind, misfit_first=misfit_first)
    module = import_onnx_to_torch(data, sizes={"rows": 2, "columns": 3}).module
    session = onnxruntime.InferenceSession(data)
    expected: Any = session.run(None, {"x": X, "is_first": np.asarray(not misfit_first)})[0]
    x = torch.from_numpy(X).requires_grad_()
    y = module(x, torch.tensor(not misfit_first))
    np.testing.assert_allclose(y.detach(), expected)
    y.sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, np.full((2, 3), 2 / 3), rtol=1e-6)
    with pytest.raises(Exception, match=r"INVALID_ARGUMENT|RUNTIME_EXCEPTION|FAIL"):
        session.run(None, {"x": X, "is_first": np.asarray(misfit_first)})
    name = "then" if misfit_first else "else"
    with pytest.raises(RuntimeError, match=rf"`If` `\w+` takes its {name} branch.*do not fit.*`{kind}`"):
        module(x, torch.tensor(misfit_first))


def test_it_is_one_graph_under_torch_compile_and_torch_export() -> None:
    module = import_onnx_to_torch(choice("Squeeze"), sizes={"columns": 3}).module
    takes_second, takes_first = torch.tensor(False), torch.tensor(True)
    compiled: Any = torch.compile(module, fullgraph=True, backend="aot_eager")
    program = torch.export.export(module, (torch.ones(4, 3), takes_second)).module()
    for run, x in ((compiled, torch.from_numpy(X)), (program, torch.ones(4, 3))):
        np.testing.assert_allclose(run(x, takes_second).tolist(), module(x, takes_second).tolist())
        # Under `fullgraph` Dynamo (2.13) tries to trace how `torch.fx` reports an error, and raises that it cannot.
        with pytest.raises(Exception, match=r"do not fit|Attempt to trace generator"):
            run(x, takes_first)


def test_the_torch_format_and_onnx_keep_the_answer_and_the_error(tmp_path: Path) -> None:
    imported = import_onnx_to_torch(choice("Squeeze"), sizes={"columns": 3}).to_model()
    save(imported, tmp_path / "torch")
    export(imported, tmp_path / "onnx", ConversionSettings())
    for name in ("torch", "onnx"):
        loaded = load_format(name, tmp_path / name)
        assert loaded.run({"x": X, "is_first": np.asarray(False)})["y"].tolist() == [2.0, 8.0]
        with pytest.raises(InvalidInputError, match=r"do not fit|out of data bounds"):
            loaded.run({"x": X, "is_first": np.asarray(True)})


def test_a_choice_within_a_choice_asks_for_its_own_shapes_only() -> None:
    inner = helper.make_node(
        "If",
        ["is_first"],
        ["inner_y"],
        then_branch=branch("odd", MISFITS["Squeeze"], "bare", "odd_y"),
        else_branch=mean("mean_y"),
    )
    outer = helper.make_graph([inner], "outer", [], [helper.make_tensor_value_info("inner_y", FLOAT, None)])
    largest = [helper.make_node("ReduceMax", ["x", "axis"], ["top"], keepdims=0)]
    node = helper.make_node(
        "If", ["is_deep"], ["y"], then_branch=outer, else_branch=branch("largest", largest, "top", "top_y")
    )
    inputs = [value("x", FLOAT, ["rows", "columns"]), value("is_first", BOOL, []), value("is_deep", BOOL, [])]
    data = model([node], inputs, [value("y", FLOAT, ["rows"])], WEIGHTS).SerializeToString()
    module = import_onnx_to_torch(data, sizes={"columns": 3}).module
    x, yes, no = torch.from_numpy(X), torch.tensor(True), torch.tensor(False)
    assert "higher_order.cond" in module.code
    for run in (module, torch.compile(module, backend="aot_eager")):
        assert run(x, no, yes).tolist() == [2.0, 8.0]
        assert run(x, yes, no).tolist() == run(x, no, no).tolist() == [4.0, 10.0]
        with pytest.raises(RuntimeError, match="do not fit"):
            run(x, yes, yes)


def test_a_choice_of_which_no_branch_fits_is_refused_with_both_reasons() -> None:
    graphs = [branch(kind, MISFITS[kind], "bare", f"{kind}_y") for kind in ("Squeeze", "Reshape")]
    node = helper.make_node("If", ["is_first"], ["y"], then_branch=graphs[0], else_branch=graphs[1])
    inputs = [value("x", FLOAT, ["rows", "columns"]), value("is_first", BOOL, [])]
    data = model([node], inputs, [value("y", FLOAT, ["rows"])], WEIGHTS).SerializeToString()
    with pytest.raises(ConversionError, match=r"neither branch fits.*`Squeeze`.*`Reshape`"):
        import_onnx_to_torch(data, sizes={"rows": 2, "columns": 3})


def test_a_branch_that_is_not_supported_is_refused_as_before() -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"]),
        helper.make_node("ReduceMean", ["noise", "axis"], ["bare"], keepdims=0),
    ]
    node = helper.make_node(
        "If", ["is_first"], ["y"], then_branch=branch("noise", nodes, "bare", "n_y"), else_branch=mean("m_y")
    )
    inputs = [value("x", FLOAT, ["rows", 3]), value("is_first", BOOL, [])]
    data = model([node], inputs, [value("y", FLOAT, ["rows"])], WEIGHTS).SerializeToString()
    with pytest.raises(ConversionError, match="`RandomNormalLike` cannot be imported"):
        import_onnx_to_torch(data)
