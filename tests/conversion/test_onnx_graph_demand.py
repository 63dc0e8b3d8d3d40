"""Which inputs decide shapes, and under which attribute paths weights are kept."""

from __future__ import annotations

import keyword
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

from noa_conversion.onnx_graph.demand import demanded_initialisers, demanded_inputs
from noa_conversion.onnx_graph.names import attribute_paths
from noa_conversion.onnx_graph.reading import read_model


def demanded(inputs: str, body: str, *, opset: int = 21) -> set[str]:
    header = f'<ir_version: 10, opset_import: ["": {opset}]>'
    model = parser.parse_model(f"{header} g (float[2, 2] x, {inputs}) => (float[2] y) {{ {body} }}")
    return set(demanded_inputs(read_model(model.SerializeToString())))


CASES: dict[str, tuple[str, str, set[str]]] = {
    "a shape": ("int64[2] s", "y = Reshape (x, s)", {"s"}),
    "data": ("float[2, 2] s", "y = Add (x, s)", set()),
    "what a shape is computed from": (
        "int64[1] a, int64[1] b",
        "c = Add (a, b) d = Concat <axis = 0> (c, a) y = Reshape (x, d)",
        {"a", "b"},
    ),
    "only the shape of an input": (
        "float[2, 2] z",
        "s = Shape (z) h = Mul (s, s) y = Reshape (x, h)",
        set(),
    ),
    "a count": ("int64[1] k", "y, i = TopK (x, k)", {"k"}),
    "bounds of a slice": ("int64[1] s, int64[1] e", "y = Slice (x, s, e)", {"s", "e"}),
    "sizes, not the region": ("float[2] s", 'y = Resize <mode = "nearest"> (x, , s)', {"s"}),
    "what a branch returns as a shape": (
        "bool c, int64[2] s",
        (
            "t = If (c) <then_branch = a () => (int64[2] p) { p = Identity (s) }, "
            "else_branch = b () => (int64[2] q) { q = Add (s, s) } > y = Reshape (x, t)"
        ),
        {"c", "s"},
    ),
    "a shape within a branch": (
        "bool c, int64[2] s",
        (
            "y = If (c) <then_branch = a () => (float[2] p) { p = Reshape (x, s) }, "
            "else_branch = b () => (float[2] q) { q = Relu (x) } >"
        ),
        {"s"},
    ),
    "turns of a loop that stacks": (
        "int64 n, bool c",
        (
            "z, y = Loop (n, c, x) <body = b (int64 i, bool k, float[2, 2] v) => (bool k2, float v2, float o) "
            "{ k2 = Identity (k) v2 = Add (v, v) o = Identity (v) } >"
        ),
        {"n", "c"},
    ),
    "turns of a loop that only carries": (
        "int64 n, bool c",
        (
            "y = Loop (n, c, x) <body = b (int64 i, bool k, float[2, 2] v) => (bool k2, float v2) "
            "{ k2 = Identity (k) v2 = Add (v, v) } >"
        ),
        set(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_decides_shapes_is_demanded(name: str) -> None:
    inputs, body, expected = CASES[name]
    assert demanded(inputs, body) == expected


def test_initialisers_that_decide_shapes_are_numbers_and_no_weights() -> None:
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[1, 1, 2, 2] x) => (float[N] y) '
        "<float[4] scales = {1, 1, 2, 2}, float[1] w = {3}> "
        '{ r = Resize <mode = "nearest"> (x, , scales) y = Mul (r, w) }'
    )
    assert demanded_initialisers(read_model(model.SerializeToString())) == {"scales"}


def test_valid_paths_stay_and_others_become_valid() -> None:
    names = ["encoder.layer.0.weight", "/conv/Relu:0", "class", "a b", "5", "x::y", "a.b", "a"]
    paths = attribute_paths(names)
    assert paths["encoder.layer.0.weight"] == "encoder.layer.0.weight"
    assert paths["/conv/Relu:0"] == "conv.Relu_0"
    assert paths["class"] == "_class"
    assert paths["x::y"] == "x.y"
    assert paths["a.b"] == "a.b" and paths["a"] != "a", "a value cannot be the parent of another"


def test_many_names_that_look_alike_cost_no_search() -> None:
    names = [
        chr(0x4E00 + index) for index in range(8000)
    ]  # one valid path for all of them; minutes where each is tried
    start = time.process_time()
    assert len(set(attribute_paths(names).values())) == len(names)
    assert time.process_time() - start < 5


def test_reserved_parts_are_avoided_anywhere() -> None:
    paths = attribute_paths(["forward", "a.forward.b"], reserved=["forward"])
    assert paths == {"forward": "forward_", "a.forward.b": "a.forward_.b"}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab.:/ 0é_"), min_size=0, max_size=6), max_size=8))
def test_every_name_gets_a_path_of_its_own(names: list[str]) -> None:
    paths = attribute_paths(names)
    assert set(paths) == set(names)
    values = list(paths.values())
    assert len(set(values)) == len(values)
    for path in values:
        parts = path.split(".")
        assert all(part.isdigit() or (part.isidentifier() and not keyword.iskeyword(part)) for part in parts)
        assert not any(other != path and other.startswith(f"{path}.") for other in values)
