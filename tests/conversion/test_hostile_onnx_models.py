"""ONNX files that lie about sizes, point outside their folder, or are broken: refused before a byte is allocated."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from noa.errors import InvalidInputError
from noa.signatures import Signature
from noa_conversion import load_format


def _weight(model: onnx.ModelProto) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == "hidden.weight")


def _external(location: str, **places: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = _weight(model)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **places}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value

    return change


def _huge_claim(model: onnx.ModelProto) -> None:
    _weight(model).dims[:] = [1 << 20, 1 << 20]


def _overflowing_claim(model: onnx.ModelProto) -> None:
    _weight(model).dims[:] = [1 << 62, 1 << 62]


def _negative_claim(model: onnx.ModelProto) -> None:
    _weight(model).dims[:] = [-1, 14]


def _short_data(model: onnx.ModelProto) -> None:
    _weight(model).raw_data = _weight(model).raw_data[:-4]


def _huge_fill(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([1 << 21, 1 << 21], np.int64), "claim"))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["claim"], ["filled"], name="balloon"))


def _foreign_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("evil.ops", 1))
    model.graph.node.append(helper.make_node("Run", [], ["ran"], name="intruder", domain="evil.ops"))


def _hidden_foreign_domain(model: onnx.ModelProto) -> None:
    """In a branch, in a function of the file."""
    run = helper.make_node("Run", [], ["ran"], name="intruder", domain="evil.ops")
    branch = helper.make_graph([run], "branch", [], [])
    choice = helper.make_node("If", ["a"], ["b"], then_branch=branch, else_branch=branch)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("evil.ops", 1)]
    model.functions.append(helper.make_function("own", "f", ["a"], ["b"], [choice], opsets))


def _circle(model: onnx.ModelProto) -> None:
    first, entry = model.graph.input[0].name, model.graph.node
    entry.append(helper.make_node("Add", [first, "late"], ["early"], name="sooner"))
    entry.append(helper.make_node("Relu", ["early"], ["late"], name="later"))


def _recursion(model: onnx.ModelProto) -> None:
    call = helper.make_node("f", ["a"], ["b"], domain="own")
    model.functions.append(helper.make_function("own", "f", ["a"], ["b"], [call], [helper.make_opsetid("own", 1)]))
    model.graph.node.append(helper.make_node("f", [model.graph.input[0].name], ["endless"], domain="own"))
    model.opset_import.append(helper.make_opsetid("own", 1))


def _hidden_constant(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1 << 20, 1 << 20])
    model.graph.node.append(helper.make_node("Constant", [], ["hidden_output"], value=tensor))


def _deep_graphs(model: onnx.ModelProto) -> None:
    graph = helper.make_graph([], "leaf", [], [])
    for depth in range(20):
        node = helper.make_node(
            "If", ["c"], [f"o{depth}"], then_branch=graph, else_branch=helper.make_graph([], "e", [], [])
        )
        graph = helper.make_graph([node], f"g{depth}", [], [])
    model.graph.node.append(graph.node[0])


def _renamed_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "other"


ATTACKS: dict[str, tuple[str, Callable[[onnx.ModelProto], None]]] = {
    "parent folder": (r"outside the folder, in `\.\./secret", _external("../secret")),
    "hidden parent": ("outside the folder", _external("data/../../secret")),
    "absolute path": ("outside the folder, in `/etc/passwd", _external("/etc/passwd")),
    "windows path": ("outside the folder", _external("C:\\secret")),
    "windows parent": ("outside the folder", _external("..\\secret")),
    "no location": ("outside the folder", _external("")),
    "missing data": ("which is missing", _external("gone.bin")),
    "link out of the folder": ("outside the folder", _external("link.bin")),
    "offset past the end": ("hidden.weight", _external("small.bin", offset="100000")),
    "length of another size": ("hidden.weight", _external("small.bin", length="4")),
    "negative offset": ("hidden.weight", _external("small.bin", offset="-8")),
    "unreadable offset": ("unreadable place", _external("small.bin", offset="ten")),
    "huge claim": ("hidden.weight.* claims", _huge_claim),
    "overflowing claim": ("hidden.weight.* claims", _overflowing_claim),
    "negative claim": ("negative size", _negative_claim),
    "short data": ("hidden.weight.* claims", _short_data),
    "huge fill": ("balloon", _huge_fill),
    "foreign domain": (r"node `intruder` .* operator `Run` of the domain `evil\.ops`", _foreign_domain),
    "hidden foreign domain": (r"node `intruder` .* `evil\.ops`", _hidden_foreign_domain),
    "circle": ("circle through node `sooner`, `later`", _circle),
    "recursion": ("the function `f` calls itself", _recursion),
    "constant in a node": ("`hidden` claims", _hidden_constant),
    "deep graphs": ("nested", _deep_graphs),
    "other outputs": ("tensors of its signature", _renamed_output),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_by_name_within_bounded_memory(name: str, zoo: Any, tmp_path: Path) -> None:
    message, change = ATTACKS[name]
    folder = zoo.copy(zoo.folder("torch", "rows", "onnx"), tmp_path / "evil")
    (tmp_path / "secret").write_bytes(b"s" * 448)
    (folder / "link.bin").symlink_to(tmp_path / "secret")
    (folder / "small.bin").write_bytes(b"\0" * 448)
    model = onnx.load(folder / "model.onnx")
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidInputError, match=message):
        load_format("onnx", folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # KiB


def test_data_beside_the_model_is_read(zoo: Any, tmp_path: Path) -> None:
    original = zoo.folder("torch", "rows", "onnx")
    folder = zoo.copy(original, tmp_path / "beside")
    model = onnx.load(folder / "model.onnx")
    (folder / "data").mkdir()
    (folder / "data" / "w.bin").write_bytes(b"\0" * 64 + _weight(model).raw_data)
    _external("data/w.bin", offset="64", length=str(len(_weight(model).raw_data)))(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    inputs = zoo.draw_inputs(Signature.load(folder), 3)
    expected = load_format("onnx", original).run(inputs)
    for name, value in load_format("onnx", folder).run(inputs).items():
        np.testing.assert_array_equal(value, expected[name])


def test_changed_bytes_never_end_in_anything_but_a_clear_error(zoo: Any, tmp_path: Path) -> None:
    folder = zoo.copy(zoo.folder("torch", "rows", "onnx"), tmp_path / "fuzzed")
    original = (folder / "model.onnx").read_bytes()
    refused = 0
    for place in range(0, len(original), max(len(original) // 150, 1)):
        data = bytearray(original)
        data[place] ^= 0x15
        (folder / "model.onnx").write_bytes(data)
        try:
            load_format("onnx", folder)
        except InvalidInputError as exc:
            refused += 1
            assert "model.onnx" in str(exc)
    assert refused > 0


def test_inputs_the_model_refuses_are_a_clear_error(zoo: Any) -> None:
    runnable = load_format("onnx", zoo.folder("torch", "rows", "onnx"))
    inputs = zoo.draw_inputs(runnable.signature, 2)
    with pytest.raises(InvalidInputError, match="numbers"):
        runnable.run({**inputs, "numbers": inputs["numbers"][:, :3]})
