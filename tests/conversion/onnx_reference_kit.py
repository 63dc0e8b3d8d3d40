"""A target that computes each operator with onnx's own reference implementation: the front end's tests run on it.

It is slow and framework-free. What it is for: graphs, functions, contrib bodies and shape arithmetic can be tested
without PyTorch or JAX, and a difference there is the front end's.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from noa_conversion.importers.interpreter import run_graph
from noa_conversion.importers.op import Op
from noa_conversion.importers.registry import Handlers
from noa_conversion.importers.sequences import SEQUENCES
from noa_conversion.onnx_graph.model import OnnxGraph, OnnxModel
from noa_conversion.onnx_graph.reading import read_model
from noa_conversion.onnx_graph.symbols import is_symbolic


@dataclass(frozen=True)
class Tensor:
    """A run-time value: its numbers are hidden from the interpreter."""

    array: np.ndarray


class ReferenceTarget:
    """onnx's reference implementation as a target."""

    name = "reference"

    def __init__(self, handlers: Handlers | None = None) -> None:
        self.handlers = handlers or all_handlers()

    def constant(self, array: np.ndarray) -> Tensor:
        assert not is_symbolic(array)
        return Tensor(np.asarray(array))

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        return tensor.array.shape

    def dtype(self, tensor: Tensor) -> np.dtype:
        return tensor.array.dtype

    def from_symbols(self, array: np.ndarray) -> Tensor:
        raise AssertionError("the reference target has no symbols")

    def at_least(self, left: Any, right: Any) -> bool | None:
        return bool(left >= right)


@functools.cache
def all_handlers() -> Handlers:
    """Handlers for all standard operators that the reference implements itself, not through a function body."""
    handlers = Handlers("reference")
    graphs = {"If": _if, "Loop": _loop, "Scan": _scan}
    kinds = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    for kind in kinds - {kind for _, kind in SEQUENCES.kinds()}:
        handlers.register(kind)(graphs.get(kind, reference))
    return handlers


def only(*kinds: str) -> Handlers:
    """Handlers for some operators, so that all others are expanded."""
    handlers = Handlers("reference")
    for kind in kinds:
        entry = all_handlers().find("", kind)
        assert entry is not None
        handlers.register(kind)(entry.handler)
    return handlers


def without(*kinds: str) -> Handlers:
    """Handlers for all operators but some."""
    return only(*(kind for _, kind in all_handlers().kinds() if kind not in kinds))


def compute(
    model: OnnxModel,
    inputs: Mapping[str, Any],
    *,
    bind: Sequence[str] = (),
    handlers: Handlers | None = None,
    weights_are_tensors: bool = False,
) -> list[Any]:
    """Run a model; inputs named in `bind` are known while it is walked."""
    graph = model.graph
    target = ReferenceTarget(handlers)
    given = [_wrap(inputs.get(value.name), known=value.name in bind) for value in graph.inputs]
    weights = {name: Tensor(array) for name, array in graph.all_initialisers().items()} if weights_are_tensors else {}
    return [_unwrap(value) for value in run_graph(graph, target, given, weights=weights)]


def reference(op: Op, *inputs: Any) -> Any:
    """Compute one node with onnx's reference implementation."""
    names = ["" if value is None else f"i{index}" for index, value in enumerate(inputs)]
    outputs = [name and f"o{index}" for index, name in enumerate(op.node.outputs)]
    node = helper.make_node(op.kind, names, outputs, domain=op.domain)
    schema = onnx.defs.get_schema(op.kind, op.version, op.domain)
    for name, value in op.node.attributes.items():
        if isinstance(value, OnnxGraph) or value is None:
            op.refuse("the reference target has no graphs as attributes")
        written = numpy_helper.from_array(np.array(value)) if isinstance(value, np.ndarray) else value
        kind = int(schema.attributes[name].type) if name in schema.attributes else None
        node.attribute.append(helper.make_attribute(name, written, attr_type=kind))
    unknown = onnx.TypeProto()
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_value_info(name, unknown) for name in names if name],
        [helper.make_value_info(name, unknown) for name in outputs if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(op.domain, op.version)])
    feed = {name: _unwrap(value) for name, value in zip(names, inputs, strict=True) if name}
    results = iter(ReferenceEvaluator(model).run(None, feed))
    return tuple(_wrap(next(results)) if name else None for name in outputs)


def _wrap(value: Any, *, known: bool = False) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        return [_wrap(entry) for entry in value]
    array = np.asarray(value)
    array = array.astype(np.dtypes.StringDType()) if array.dtype.kind in "OU" else array
    return array if known else Tensor(array)


def _unwrap(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.array
    if isinstance(value, list):
        return [_unwrap(entry) for entry in value]
    return value.astype(object) if isinstance(value, np.ndarray) and value.dtype.kind == "T" else value


def _if(op: Op, condition: Any) -> Any:
    taken = op.attribute("then_branch" if bool(_unwrap(condition).reshape(())) else "else_branch")
    return tuple(op.run(taken, []))


def _loop(op: Op, count: Any, condition: Any, *state: Any) -> Any:
    body = op.attribute("body")
    limit = int(_unwrap(count).reshape(())) if count is not None else 1 << 30
    going = bool(_unwrap(condition).reshape(())) if condition is not None else True
    turn, carried = 0, list(state)
    stacks: list[list[np.ndarray]] = [[] for _ in range(len(op.node.outputs) - len(state))]
    while going and turn < limit:
        results = op.run(body, [np.asarray(turn), np.asarray(True), *carried])
        going = bool(_unwrap(results[0]).reshape(()))
        carried = results[1 : 1 + len(state)]
        for stack, value in zip(stacks, results[1 + len(state) :], strict=True):
            stack.append(_unwrap(value))
        turn += 1
    return (*carried, *(Tensor(np.stack(stack)) for stack in stacks))


def _scan(op: Op, *inputs: Any) -> Any:
    body, num_scan = op.attribute("body"), op.attribute("num_scan_inputs")
    if op.version < 9 or any(op.has(name) for name in ("scan_input_axes", "scan_input_directions")):
        op.refuse("the reference target scans forward along the first axis only")
    carried = list(inputs[: len(inputs) - num_scan])
    scanned = [_unwrap(value) for value in inputs[len(inputs) - num_scan :]]
    stacks: list[list[np.ndarray]] = [[] for _ in range(len(op.node.outputs) - len(carried))]
    for turn in range(len(scanned[0])):
        results = op.run(body, [*carried, *(Tensor(array[turn]) for array in scanned)])
        for stack, value in zip(stacks, results[len(carried) :], strict=True):
            stack.append(_unwrap(value))
        carried = results[: len(carried)]
    return (*carried, *(Tensor(np.stack(stack)) for stack in stacks))


def one_node_model(
    kind: str,
    inputs: Sequence[np.ndarray | None],
    attributes: Mapping[str, Any],
    outputs: int,
    domain: str,
    **more: Any,
) -> onnx.ModelProto:
    """A model of one node; outputs are not typed, which onnxruntime infers."""
    names = ["" if array is None else f"x{index}" for index, array in enumerate(inputs)]
    results = [f"y{index}" for index in range(outputs)]
    for index in more.get("unwanted", ()):
        results[index] = ""
    node = helper.make_node(kind, names, results, name="node", domain=domain, **attributes)
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, inputs, strict=True)
        if array is not None
    ]
    asked = [onnx.ValueInfoProto(name=name) for name in results if name]
    graph = helper.make_graph([node], "one", given, asked)
    opsets = [helper.make_opsetid("", more.get("opset", 17)), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def run_onnxruntime(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run a model as it is, without onnxruntime's optimiser."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))


def check_against_onnxruntime(
    kind: str,
    inputs: Sequence[np.ndarray | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    outputs: int = 1,
    domain: str = "com.microsoft",
    known: Sequence[int] = (),
    atol: float = 1e-5,
    compared: Sequence[slice] | None = None,
    **more: Any,
) -> None:
    """Compare one contrib node through its body with onnxruntime's kernel."""
    model = one_node_model(kind, inputs, attributes or {}, outputs, domain, **more)
    feed = {f"x{index}": array for index, array in enumerate(inputs) if array is not None}
    expected = run_onnxruntime(model, feed)
    received = compute(read_model(model.SerializeToString()), feed, bind=[f"x{index}" for index in known])
    assert len(received) == len(expected)
    for got, want in zip(received, expected, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape, (got.dtype, got.shape, want.dtype, want.shape)
        if compared is not None:
            got, want = got[tuple(compared)], want[tuple(compared)]
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=1e-4, atol=atol)
