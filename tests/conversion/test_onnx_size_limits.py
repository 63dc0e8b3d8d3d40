"""Files of a few hundred bytes that ask for terabytes are refused by node, shape and setting; no memory is taken."""

from __future__ import annotations

import importlib
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from graph_kit import FLOAT, model, value
from onnx import helper, parser
from size_bombs import BOMBS

from noa.errors import ConversionError, InvalidInputError
from noa.settings import ConversionSettings
from noa_conversion.onnx_graph.growth import Operand, growth_of
from noa_conversion.onnx_graph.limits import value_limit
from noa_conversion.onnx_graph.model import OnnxNode
from noa_conversion.onnx_graph.reading import read_model

MAX_SECONDS, MAX_GROWTH_KIB = 10.0, 256 << 10
TARGETS = [pytest.param("torch", marks=pytest.mark.torch), pytest.param("jax", marks=pytest.mark.jax)]


@pytest.fixture(params=TARGETS)
def import_onnx(request: pytest.FixtureRequest) -> Callable[..., Any]:
    module = importlib.import_module(f"noa_conversion.importers.{request.param}")
    importlib.import_module(f"noa_conversion.importers.{request.param}.importer")  # not part of what is measured
    return getattr(module, f"import_onnx_to_{request.param}")


def test_a_file_that_asks_for_terabytes_is_refused_by_node_shape_and_setting(import_onnx: Callable[..., Any]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, bomb in BOMBS.items():
        start = time.process_time()
        with pytest.raises(ConversionError, match=r"shape .* takes .* [GTP]iB") as caught:
            import_onnx(bomb.model().SerializeToString())
        assert f"operator `{bomb.kind}`" in str(caught.value), name
        assert "conversion.max_value_bytes" in str(caught.value), name
        assert time.process_time() - start < MAX_SECONDS, name
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KIB


def test_what_is_large_for_one_limit_is_imported_under_another(import_onnx: Callable[..., Any]) -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 21]> g (float[1] x) => (float[300000] y) '
        "{ n = Constant <value_ints = [300000]> () y = Expand (x, n) }"
    )
    data = parser.parse_model(text).SerializeToString()
    with value_limit(1 << 20), pytest.raises(ConversionError, match=r"max_value_bytes.*`Expand_y`") as caught:
        import_onnx(data)
    assert "(300000,) takes 1.14 MiB, and `conversion.max_value_bytes` allows 1 MiB" in str(caught.value)
    assert import_onnx(data).run({"x": np.ones(1, np.float32)})["y"].shape == (300000,)


def test_a_free_axis_counts_as_the_least_that_it_can_be(import_onnx: Callable[..., Any]) -> None:
    """Nobody is refused for a size that nobody gave; what is large for every size is."""
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"])]
    square = model(nodes, [value("x", FLOAT, ["n", "n"])], [value("y", FLOAT, ["n", "n"])])
    with value_limit(64):
        import_onnx(square.SerializeToString())


def test_a_value_may_be_as_large_as_the_largest_weight(import_onnx: Callable[..., Any]) -> None:
    weights = {"w": np.ones((4, 300), np.float32)}
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    proto = model(nodes, [value("x", FLOAT, [1])], [value("y", FLOAT, [4, 300])], weights)
    with value_limit(64):
        imported = import_onnx(proto.SerializeToString())
    assert imported is not None


def test_an_input_whose_sizes_alone_are_beyond_the_limit_is_refused(import_onnx: Callable[..., Any]) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    shape = [1 << 31, "n", 1 << 31]
    proto = model(nodes, [value("x", FLOAT, shape)], [value("y", FLOAT, shape)])
    with pytest.raises(InvalidInputError, match=r"the input `x` takes 1.64e\+04 PiB.*max_value_bytes") as caught:
        import_onnx(proto.SerializeToString())
    assert caught.value.received == "the shape (2147483648, n, 2147483648)"


def test_the_default_is_that_of_the_settings() -> None:
    default = ConversionSettings.model_fields["max_value_bytes"].default
    nodes = [helper.make_node("Relu", ["x"], ["y"])]

    def of(elements: int) -> bytes:
        io = [value(name, FLOAT, [elements]) for name in ("x", "y")]
        return model(nodes, io[:1], io[1:]).SerializeToString()

    assert read_model(of(default // 4)).graph.inputs[0].shape == (default // 4,)
    with pytest.raises(InvalidInputError, match="max_value_bytes"):
        read_model(of(default // 4 + 1))
    with pytest.raises(InvalidInputError, match="1 or more"), value_limit(0):
        pass


def _node(kind: str, **attributes: Any) -> OnnxNode:
    return OnnxNode(kind=kind, version=21, name="n", inputs=(), outputs=("y",), attributes=attributes)


def test_a_node_that_makes_no_sense_grows_to_nothing() -> None:
    """Its operator refuses it by its own reason."""
    nothing = Operand(shape=())
    for kind in ("Conv", "Tile", "Einsum", "Resize", "Range", "DFT", "Pad", "Col2Im", "AffineGrid", "Gather"):
        for operands in ([], [nothing, nothing], [None, nothing]):
            for attributes in ({}, {"strides": [0], "kernel_shape": [1], "axis": 9, "equation": "a->", "pads": "x"}):
                assert all(each.elements <= 1 for each in growth_of(_node(kind, **attributes), operands)), kind


@pytest.mark.parametrize("case", ["conv", "pool", "resize", "concat", "one hot", "transposed"])
def test_the_growth_that_is_foreseen_is_what_onnx_infers(case: str) -> None:
    ints = np.asarray([2, 2], np.int64)
    nodes = {
        "conv": (_node("Conv", pads=[1, 2, 1, 0], strides=[2, 1], dilations=[1, 2]), [(1, 3, 9, 9), (5, 3, 3, 3)]),
        "pool": (_node("MaxPool", kernel_shape=[3, 2], strides=[2, 2]), [(1, 3, 9, 9)]),
        "resize": (_node("Resize", axes=[2, 3]), [(1, 3, 4, 4), None, None, ints]),
        "concat": (_node("Concat", axis=-1), [(2, 3), (2, 4)]),
        "one hot": (_node("OneHot"), [(3, 2), np.asarray(7), np.asarray([0.0, 1.0])]),
        "transposed": (
            _node("ConvTranspose", pads=[1, 0, 1, 2], strides=[2, 3], output_padding=[1, 0], group=2),
            [(1, 4, 5, 5), (4, 3, 3, 3)],
        ),
    }
    node, given = nodes[case]
    operands = [
        None if entry is None else Operand(shape=np.shape(entry), numbers=entry)
        if isinstance(entry, np.ndarray)
        else Operand(shape=entry)
        for entry in given
    ]  # fmt: skip
    names = ["" if entry is None else f"i{index}" for index, entry in enumerate(given)]
    attributes: dict[str, Any] = dict(node.attributes)
    proto = helper.make_node(node.kind, names, ["y"], **attributes)
    arrays = {name: e for name, e in zip(names, given, strict=True) if isinstance(e, np.ndarray)}
    inputs = [value(n, FLOAT, e) for n, e in zip(names, given, strict=True) if isinstance(e, tuple)]
    graph = helper.make_graph(
        [proto],
        "g",
        inputs,
        [onnx.ValueInfoProto(name="y")],
        [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    inferred = onnx.shape_inference.infer_shapes(whole, strict_mode=True, data_prop=True).graph.output[0]
    expected = tuple(dim.dim_value for dim in inferred.type.tensor_type.shape.dim)
    assert growth_of(node, operands)[-1].shape == expected


def test_what_is_computed_at_the_import_counts_together(import_onnx: Callable[..., Any]) -> None:
    """Each value is small; a file of some kilobytes could ask for any number of them."""
    nodes = [helper.make_node("ConstantOfShape", ["size"], ["c0"])]
    nodes += [helper.make_node("Add", [f"c{i}", "c0"], [f"c{i + 1}"], name=f"add{i}") for i in range(20)]
    nodes.append(helper.make_node("Add", ["x", "c20"], ["y"]))
    weights = {"size": np.asarray([1000])}
    data = model(nodes, [value("x", FLOAT, [1])], [value("y", FLOAT, [1000])], weights).SerializeToString()
    with value_limit(40_000), pytest.raises(ConversionError, match=r"computed at the import takes .*`add9`"):
        import_onnx(data)
    with value_limit(100_000):
        assert import_onnx(data) is not None
