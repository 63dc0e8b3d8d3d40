"""Real files with changed bytes and changed structure: only an error of noa may come out, in bounded time and memory.

More rounds than in the tests: `NOA_FUZZ_ROUNDS=20000 pytest tests/conversion/test_onnx_graph_fuzz.py`.
"""

from __future__ import annotations

import functools
import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from noa.errors import NoaError
from noa_conversion.importers.interpreter import run_graph
from noa_conversion.importers.op import Op
from noa_conversion.importers.registry import Handlers
from noa_conversion.onnx_graph.demand import demanded_inputs
from noa_conversion.onnx_graph.names import attribute_paths
from noa_conversion.onnx_graph.reading import read_model

ROUNDS = int(os.environ.get("NOA_FUZZ_ROUNDS", "300"))
MAX_SECONDS = 5.0
MAX_GROWTH_KIB = 512 << 10
KINDS = sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
NUMBERS = (-(2**63), -(2**31), -1, 0, 1, 2, 7, 2**31 - 1, 2**40, 2**63 - 1)

FUNCTIONS = """
<ir_version: 10, opset_import: ["": 21, "own": 1]>
g (float[N, 4] x, bool flag) => (float[N, 4] y)
<float[2, 2] w = {1, 2, 3, 4}>
{
    s = Shape (x)
    two = Constant <value_ints: ints = [2, -1]> ()
    r = Reshape (x, two)
    h = own.outer <alpha = 0.5> (x)
    y = If (flag) <then_branch = a () => (float[N, 4] t) { t = Relu (h) }, else_branch = b () => (float[N, 4] e) {
        e = own.inner <alpha = 2.0> (h) } >
}
<domain: "own", opset_import: ["": 21, "own": 1]>
outer <alpha> (a) => (c) { b = own.inner <alpha: float = @alpha> (a)  c = Gelu (b) }
<domain: "own", opset_import: ["": 21]>
inner <alpha> (a) => (c) { k = Constant <value_float: float = @alpha> ()  c = Mul (a, k) }
"""


class Nothing:
    """A target that computes nothing: every handler returns a tensor of the same shape."""

    name = "nothing"

    def __init__(self) -> None:
        self.handlers = _handlers()

    def constant(self, array: np.ndarray) -> object:
        return _Tensor()

    def shape(self, tensor: object) -> tuple[int, ...]:
        return (2, 3)

    def dtype(self, tensor: object) -> np.dtype:
        return np.dtype(np.float32)

    def from_symbols(self, array: np.ndarray) -> object:
        return _Tensor()

    def at_least(self, left: Any, right: Any) -> bool | None:
        return bool(left >= right)


class _Tensor:
    pass


@functools.cache
def _handlers() -> Handlers:
    handlers = Handlers("nothing")

    def compute(op: Op, *inputs: object) -> object:
        results = [op.run(graph, [_Tensor() for _ in graph.inputs]) for graph in op.node.subgraphs()]
        return tuple(_Tensor() for _ in op.node.outputs) if not results else tuple(results[0] or [None])

    expanded = {"Clip", "Gelu", "LayerNormalization", "Attention", "Softplus", "CenterCropPad"}
    for kind in KINDS:
        if kind not in expanded:
            handlers.register(kind)(compute)
    return handlers


@functools.cache
def corpus() -> list[bytes]:
    """Real files of the onnx package, and models with functions, subgraphs, sequences and quantised weights."""
    data = Path(onnx.__file__).parent / "backend" / "test" / "data"
    files = [*sorted((data / "light").glob("*.onnx"))[:4], *sorted((data / "simple").glob("*/model.onnx"))]
    models = [path.read_bytes() for path in files if "gradient" not in str(path) and "string" not in str(path)]
    assert len(models) > 8
    models.append(parser.parse_model(FUNCTIONS).SerializeToString())
    models.append(_quantised().SerializeToString())
    return models


def _quantised() -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.arange(64, dtype=np.uint8).reshape(2, 2, 16), "w")
    nodes = [
        helper.make_node(
            "MatMulNBits", ["x", "w", "s"], ["h"], domain="com.microsoft", K=64, N=2, bits=4, block_size=32
        ),
        helper.make_node("Attention", ["h", "p"], ["y"], domain="com.microsoft", num_heads=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 3, 64])],
        [onnx.ValueInfoProto(name="y")],
        [
            weights,
            numpy_helper.from_array(np.ones((2, 2), np.float32), "s"),
            numpy_helper.from_array(np.ones((2, 6), np.float32), "p"),
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets)


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed)) if changed else 0
        length = rng.choice((1, 2, 8, 64))
        match rng.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = rng.randbytes(length)
            case 3:
                del changed[at:]
            case _:
                source = rng.randrange(len(changed) + 1)
                changed[at:at] = changed[source : source + length]
    return bytes(changed)


def change_structure(data: bytes, rng: random.Random) -> bytes:
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        rng.choice(CHANGES)(model, rng)
    return model.SerializeToString()


def _graphs(model: onnx.ModelProto) -> list[Any]:
    found: list[Any] = [model.graph]
    for graph in found:
        for node in graph.node:
            for attribute in node.attribute:
                found.extend([attribute.g] if attribute.HasField("g") else [])
    return found


def _node(model: onnx.ModelProto, rng: random.Random) -> Any:
    nodes = [node for graph in (*_graphs(model), *model.functions) for node in graph.node]
    return rng.choice(nodes) if nodes else onnx.NodeProto()


def _rename(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    names = rng.choice((node.input, node.output))
    others = [*_node(model, rng).output, *_node(model, rng).input, "", "nowhere"]
    if names:
        names[rng.randrange(len(names))] = rng.choice(others)


def _retype(model: onnx.ModelProto, rng: random.Random) -> None:
    _node(model, rng).op_type = rng.choice(KINDS)


def _repeat(model: onnx.ModelProto, rng: random.Random) -> None:
    copy = onnx.NodeProto()
    copy.CopyFrom(_node(model, rng))  # first: the node may hold the graph that it is added to
    rng.choice(_graphs(model)).node.append(copy)


def _drop(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = rng.choice([graph for graph in (*_graphs(model), *model.functions) if graph.node] or [model.graph])
    if graph.node:
        del graph.node[rng.randrange(len(graph.node))]


def _shuffle(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = rng.choice(_graphs(model))
    nodes = list(graph.node)
    rng.shuffle(nodes)
    del graph.node[:]
    graph.node.extend(nodes)


def _renumber(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    for attribute in node.attribute:
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
        attribute.i = rng.choice(NUMBERS)
        if attribute.HasField("t"):
            _spoil_tensor(attribute.t, rng)


def _respoil(model: onnx.ModelProto, rng: random.Random) -> None:
    tensors = [tensor for graph in _graphs(model) for tensor in graph.initializer]
    if tensors:
        _spoil_tensor(rng.choice(tensors), rng)


def _spoil_tensor(tensor: onnx.TensorProto, rng: random.Random) -> None:
    match rng.randrange(5):
        case 0:
            tensor.data_type = rng.randrange(30)
        case 1:
            tensor.dims.append(rng.choice(NUMBERS))
        case 2:
            if tensor.dims:
                tensor.dims[0] = rng.choice(NUMBERS)
        case 3:
            tensor.raw_data = rng.randbytes(rng.randrange(32))
        case _:
            array = np.asarray([rng.choice(NUMBERS) for _ in range(rng.randrange(4))], np.int64)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _reversion(model: onnx.ModelProto, rng: random.Random) -> None:
    for entry in model.opset_import:
        entry.version = rng.choice((*range(1, 27), -1, 2**40))


def _call(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if model.functions:
        function = rng.choice(model.functions)
        node.domain, node.op_type = function.domain, function.name


def _nest(model: onnx.ModelProto, rng: random.Random) -> None:
    graph, node = rng.choice(_graphs(model)), _node(model, rng)
    copy = onnx.GraphProto()
    copy.CopyFrom(graph)
    if copy.ByteSize() < 1 << 16:
        node.attribute.add(name=rng.choice(("body", "then_branch")), type=onnx.AttributeProto.GRAPH).g.CopyFrom(copy)


CHANGES: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    _rename,
    _retype,
    _repeat,
    _drop,
    _shuffle,
    _renumber,
    _respoil,
    _reversion,
    _call,
    _nest,
)


def import_all(data: bytes) -> None:
    """All that the front end does with a file."""
    model = read_model(data)
    demanded = demanded_inputs(model)
    paths = attribute_paths(model.graph.all_initialisers())
    assert len(set(paths.values())) == len(paths)
    inputs: list[object] = [
        np.asarray([2, 3], np.int64) if value.name in demanded else _Tensor() for value in model.graph.inputs
    ]
    run_graph(model.graph, Nothing(), inputs)


def test_the_files_are_imported_as_they_are() -> None:
    for data in corpus():
        import_all(data)


@pytest.mark.parametrize("change", [change_bytes, change_structure])
def test_a_changed_file_gives_an_error_of_noa_or_none_in_bounded_time_and_memory(
    change: Callable[[bytes, random.Random], bytes],
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for seed in range(ROUNDS):
        rng = random.Random(seed)
        data = change(rng.choice(corpus()), rng)
        start = time.process_time()
        try:
            import_all(data)
        except NoaError:
            refused += 1
        except BaseException as exc:
            raise AssertionError(f"seed {seed} of {change.__name__}: {exc!r}") from exc
        assert time.process_time() - start < MAX_SECONDS, f"seed {seed} of {change.__name__} takes too long"
    assert refused > ROUNDS / 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KIB
