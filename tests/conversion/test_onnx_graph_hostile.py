"""Hostile ONNX files end in an error that names what is wrong, in bounded time and memory."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser
from onnx_reference_kit import compute

from noa.errors import ConversionError, InvalidInputError, NoaError, NotFoundError
from noa_conversion.formats.onnx_check import parse_model
from noa_conversion.onnx_graph.reading import read_model

HEADER = '<ir_version: 10, opset_import: ["": 21, "own": 1]>'
MAX_SECONDS, MAX_GROWTH_KIB = 5.0, 256 << 10


def text(body: str, *functions: str, inputs: str = "float[2] x") -> onnx.ModelProto:
    return parser.parse_model(f"{HEADER} g ({inputs}) => (float[2] y) {{ {body} }} {' '.join(functions)}")


def function(name: str, body: str) -> str:
    return f'<domain: "own", opset_import: ["": 21, "own": 1]> {name} (a) => (b) {{ {body} }}'


def tensor(name: str, dims: list[int], kind: int = onnx.TensorProto.FLOAT, **fields: Any) -> onnx.TensorProto:
    return onnx.TensorProto(name=name, dims=dims, data_type=kind, **fields)


def with_initialiser(value: onnx.TensorProto) -> onnx.ModelProto:
    model = text("y = Relu (x)")
    model.graph.initializer.append(value)
    return model


def cycle() -> onnx.ModelProto:
    return text("p = Add (x, q) q = Relu (p) y = Relu (q)")


def nested() -> onnx.ModelProto:
    model = text("y = Relu (x)")
    graph = onnx.GraphProto(name="innermost")
    for depth in range(25):
        outer = onnx.GraphProto(name=f"level {depth}")
        node = outer.node.add(op_type="If", output=["z"], input=["x"])
        node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(graph)
        graph = outer
    model.graph.node.add(op_type="If", input=["x"], output=["w"]).attribute.add(
        name="then_branch", type=onnx.AttributeProto.GRAPH
    ).g.CopyFrom(graph)
    return model


def bomb() -> onnx.ModelProto:
    doubling = [function(f"f{i}", f"c = own.f{i + 1} (a) b = own.f{i + 1} (c)") for i in range(30)]
    return text("y = own.f0 (x)", *doubling, function("f30", "b = Relu (a)"))


def heavy_bomb() -> onnx.ModelProto:
    doubling = [function(f"f{i}", f"c = own.f{i + 1} (a) b = own.f{i + 1} (c)") for i in range(12)]
    model = text("y = own.f0 (x)", *doubling, function("f12", "b = Relu (a)"))
    constant = model.functions[-1].node.add(op_type="Constant", output=["unused"])
    constant.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1 << 17, np.float32))))
    return model


def sparse() -> onnx.ModelProto:
    model = text("y = Relu (x)")
    model.graph.sparse_initializer.add(
        values=tensor("s", [1], float_data=[1.0]),
        indices=tensor("i", [1], onnx.TensorProto.INT64, int64_data=[0]),
        dims=[1 << 20, 1 << 20],
    )
    return model


def sparse_outside() -> onnx.ModelProto:
    model = text("y = Relu (x)")
    model.graph.sparse_initializer.add(
        values=tensor("s", [1], float_data=[1.0]),
        indices=tensor("i", [1], onnx.TensorProto.INT64, int64_data=[9]),
        dims=[2],
    )
    return model


def outside() -> onnx.ModelProto:
    value = tensor("w", [2], data_location=onnx.TensorProto.EXTERNAL)
    value.external_data.add(key="location", value="../secret")
    return with_initialiser(value)


def not_text() -> bytes:
    return text("y = Relu (x)").SerializeToString().replace(b"Relu", b"\xff\xfe\xfd\xfc")


def two_functions() -> onnx.ModelProto:
    return text("y = own.f (x)", function("f", "b = Relu (a)"), function("f", "b = Tanh (a)"))


def endless_names() -> onnx.ModelProto:
    return text("y = Relu (x) y = Tanh (x)")


def flood() -> bytes:
    """A graph of many empty nodes, two bytes each."""
    nodes = b"\x0a\x00" * 4_000_000
    size, length = len(nodes), b""
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return text("y = Relu (x)").SerializeToString() + b"\x3a" + length + bytes([size]) + nodes


ATTACKS: dict[str, tuple[str, Callable[[], onnx.ModelProto | bytes]]] = {
    "cycle": ("circle through node `Add`, `Relu`: each needs", cycle),
    "itself": ("circle", lambda: text("y = Relu (y)")),
    "undefined": ("`nowhere` is used by node `Add`", lambda: text("y = Add (x, nowhere)")),
    "undefined output": ("nothing makes the output `y`", lambda: text("z = Relu (x)")),
    "defined twice": ("`y` is defined twice", endless_names),
    "input made again": ("`x` is defined twice", lambda: text("x = Relu (x) y = Relu (x)")),
    "recursion": ("`f` calls itself", lambda: text("y = own.f (x)", function("f", "b = own.f (a)"))),
    "mutual recursion": (
        "calls itself",
        lambda: text("y = own.f (x)", function("f", "b = own.g (a)"), function("g", "b = own.f (a)")),
    ),
    "function defined twice": ("`f` is defined twice", two_functions),
    "function without output": (
        "nothing makes the output `b`",
        lambda: text("y = own.f (x)", function("f", "c = Relu (a)")),
    ),
    "too many arguments": ("more inputs", lambda: text("y = own.f (x, x)", function("f", "b = Relu (a)"))),
    "function bomb": ("more than 200000 nodes", bomb),
    "bomb of constants": ("constants of its functions", heavy_bomb),
    "deep graphs": ("nested too deeply", nested),
    "huge sparse tensor": ("`s` claims the dense shape", sparse),
    "sparse index outside": ("`s` has an index outside", sparse_outside),
    "huge claim": ("`w` claims", lambda: with_initialiser(tensor("w", [1 << 40, 1 << 20], raw_data=b"1234"))),
    "negative size": ("`w` claims a negative size", lambda: with_initialiser(tensor("w", [-1], raw_data=b"1234"))),
    "too little data": ("`w` claims", lambda: with_initialiser(tensor("w", [1 << 20], raw_data=b"1234"))),
    "unknown type": ("`w`", lambda: with_initialiser(tensor("w", [4], 77, raw_data=b"1234"))),
    "no name": ("has no name", lambda: with_initialiser(tensor("", [1], raw_data=b"1234"))),
    "data in another file": ("outside the folder", outside),
    "names that are no text": ("is no text|not a whole", not_text),
    "flood": ("more than 1000000 parts", flood),
    "truncated": ("not a whole ONNX model|no ONNX graph", lambda: text("y = Relu (x)").SerializeToString()[:-40]),
    "empty": ("no ONNX graph", lambda: b""),
    "noise": ("not a whole ONNX model", lambda: bytes(range(256)) * 4),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_file_is_refused_by_name_in_bounded_time_and_memory(name: str) -> None:
    message, make = ATTACKS[name]
    made = make()
    data = made if isinstance(made, bytes) else made.SerializeToString()
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(InvalidInputError, match=message):
        read_model(data)
    assert time.process_time() - start < MAX_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KIB


def test_an_attribute_that_refers_nowhere_is_missing_not_invented() -> None:
    body = function("f", "c = Constant <value_float: float = @lost> () b = Mul (a, c)")
    model = read_model(text("y = own.f (x)", body).SerializeToString())
    with pytest.raises(ConversionError, match="holds no value"):
        compute(model, {"x": np.ones(2, np.float32)})


@pytest.mark.parametrize(
    "body",
    [
        "n = Constant <value_ints = [1000000000000]> () z = ConstantOfShape (n) y = Add (x, z)",
        "o = Constant <value_int = 1> () n = Constant <value_int = 900000000000> () r = Range (o, n, o) y = Add (x, x)",
        "n = Constant <value_ints = [1000000000]> () y0 = Tile (n, n) y = Add (x, x)",
    ],
)
def test_a_number_that_claims_much_memory_is_left_to_the_target(body: str) -> None:
    """The evaluator must not make it; here the target is one that makes nothing."""
    from test_onnx_graph_fuzz import Nothing, _Tensor

    from noa_conversion.importers.interpreter import run_graph

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(NoaError):
        run_graph(read_model(text(body).SerializeToString()).graph, Nothing(), [_Tensor()])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KIB


def test_what_is_no_model_at_all_is_told_by_its_beginning(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"
    (tmp_path / "model.onnx").write_bytes(pointer)
    with pytest.raises(InvalidInputError) as refused:
        read_model(tmp_path / "model.onnx")
    assert refused.value.received == f"{len(pointer)} bytes that begin with b'version http'"
    assert "Git LFS" in (refused.value.remedy or "")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"gone\.onnx"):
        read_model(tmp_path / "gone.onnx")
    with pytest.raises(InvalidInputError, match="is a folder"):
        read_model(tmp_path)


def test_bytes_have_no_files_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.bin").write_bytes(b"\0" * 8)
    value = tensor("w", [2], data_location=onnx.TensorProto.EXTERNAL)
    value.external_data.add(key="location", value="w.bin")
    with pytest.raises(InvalidInputError, match="other files"):
        read_model(with_initialiser(value).SerializeToString())


def test_no_file_can_point_into_the_bytes_that_were_read() -> None:
    """Tensors that stay in the bytes are marked by a name that differs per process and no file can know."""
    value = tensor("w", [2], data_location=onnx.TensorProto.EXTERNAL)
    value.external_data.add(key="location", value="embedded:")
    value.external_data.add(key="offset", value="0")
    with pytest.raises(InvalidInputError, match="`w`"):
        read_model(with_initialiser(value).SerializeToString())


@pytest.mark.parametrize(
    ("node", "size", "received"),
    [
        ("Expand (x, n)", 1 << 33, None),
        ("Expand (x, n)", (1 << 33) + 1, "68719476744 bytes, 8 for each element"),
        ("ConstantOfShape (n)", 1 << 34, None),
        ("ConstantOfShape (n)", (1 << 34) + 1, "68719476740 bytes, 4 for each element"),
        ("ConstantOfShape <value = int8[1] {1}> (n)", 1 << 36, None),
        ("ConstantOfShape <value = int8[1] {1}> (n)", (1 << 36) + 1, "68719476737 bytes, 1 for each element"),
    ],
)
def test_a_tensor_of_exactly_the_limit_is_not_refused_for_it_and_a_larger_one_says_how_large_it_is(
    node: str, size: int, received: str | None
) -> None:
    source = f'<ir_version: 10, opset_import: ["": 21]> g (float[1] x) => (float[2] y) <int64[1] n = {{{size}}}> '
    data = parser.parse_model(f"{source} {{ y = {node} }}").SerializeToString()
    if received is None:
        parse_model(data, Path("model.onnx"))
        return
    with pytest.raises(InvalidInputError, match="makes a tensor of shape") as caught:
        parse_model(data, Path("model.onnx"))
    assert (caught.value.expected, caught.value.received) == ("at most 68719476736 bytes", received)
