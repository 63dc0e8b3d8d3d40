"""The walk over a graph that all targets share: what is known is computed here, the rest by the target's handlers.

Every value has one of the forms of `Value`. For each node, in order: a choice between graphs that is decided already is
taken; what is known and small is computed on numbers; else the target's handler computes it; else the operator is
expanded into the body that its schema (or `contrib.py`) gives and the body is walked in its place; else it is refused,
with the fact `is_misfit` where the shapes of its inputs are wrong for it whoever computes it.
A node that takes more than a value may (`sizes.py`) is refused before it is computed.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from noa.errors import ConversionError, NoaError
from noa_conversion.importers.op import Op
from noa_conversion.importers.registry import Registered
from noa_conversion.importers.sequences import SEQUENCES
from noa_conversion.importers.sizes import SizeJudge
from noa_conversion.importers.target import Target, Value
from noa_conversion.onnx_graph import integers
from noa_conversion.onnx_graph.functions import InputType, expand
from noa_conversion.onnx_graph.limits import allowed_bytes
from noa_conversion.onnx_graph.misfits import is_misfit
from noa_conversion.onnx_graph.model import OnnxGraph, OnnxNode, OnnxValue
from noa_conversion.onnx_graph.symbols import number_of, shape_array
from noa_conversion.work_limits import check_time

MAX_KNOWN_ELEMENTS = 4096
"""Largest result that is computed on numbers at import; what is larger is computed by the target."""
_MAX_STEPS = 250_000
_MAX_DEPTH = 64

Watch: TypeAlias = Callable[[OnnxNode, Sequence[Value]], None]


def run_graph(
    graph: OnnxGraph,
    target: Target,
    inputs: Sequence[Value],
    *,
    outer: Mapping[str, Value] | None = None,
    weights: Mapping[str, Value] | None = None,
    watch: Watch | None = None,
) -> list[Value]:
    """Compute a graph in a target and return its outputs in order.

    `inputs` are by position; one that the caller knows as numbers is a numpy array. `outer` holds the values around the
    graph. `weights` replaces initialisers, by name, of this graph and of all within it: the target's parameters; an
    initialiser that it does not name is its numpy array. `watch` is told each node of the file and its outputs.

    Raises:
        ConversionError: something in the graph cannot be computed in this target; names operator, node and reason.
    """
    walk = _Walk(target, weights or {}, watch, SizeJudge(target, allowed_bytes(graph)))
    for value, declared in zip(inputs, graph.inputs, strict=True):
        if value is not None and not isinstance(value, (np.ndarray, list)):
            walk.names[id(value)] = declared.name
    return walk.graph(graph, inputs, outer or {}, "")


class _Walk:
    """One run of `run_graph`: what stays the same through subgraphs and expansions."""

    def __init__(self, target: Target, weights: Mapping[str, Value], watch: Watch | None, sizes: SizeJudge) -> None:
        self.target = target
        self.weights = weights
        self.watch = watch
        self.names: dict[int, str] = {}
        self._sizes = sizes
        self._steps = 0
        self._depth = 0

    def graph(
        self,
        graph: OnnxGraph,
        inputs: Sequence[Value],
        outer: Mapping[str, Value],
        inside: str,
        *,
        watched: bool = True,
    ) -> list[Value]:
        """Walk one graph; `inside` tells where it is."""
        if self._depth >= _MAX_DEPTH:
            raise ConversionError(f"graphs are nested more than {_MAX_DEPTH} deep", where=inside or graph.name)
        self._depth += 1
        try:
            return self._walk(graph, inputs, outer, inside, watched=watched)
        finally:
            self._depth -= 1

    def _walk(
        self, graph: OnnxGraph, inputs: Sequence[Value], outer: Mapping[str, Value], inside: str, *, watched: bool
    ) -> list[Value]:
        values: dict[str, Value] = dict(graph.initialisers)
        values.update((name, self.weights[name]) for name in graph.initialisers if name in self.weights)
        values.update(zip((declared.name for declared in graph.inputs), inputs, strict=True))
        scope = ChainMap(values, outer) if outer else values  # pyright: ignore[reportArgumentType]  # it is only read
        for node in graph.nodes:
            results = self._node(node, graph, scope, inside, watched=watched)
            values.update(zip(node.outputs, results, strict=False))
            if watched and self.watch is not None:
                self.watch(node, results)
        return [self._lookup(scope, declared.name, inside or graph.name) for declared in graph.outputs]

    def _node(
        self, node: OnnxNode, graph: OnnxGraph, scope: Mapping[str, Value], inside: str, *, watched: bool
    ) -> Sequence[Value]:
        self._steps += 1
        where = _place(node, inside)
        if self._steps > _MAX_STEPS:
            raise ConversionError(f"the import takes more than {_MAX_STEPS} steps", where=where)
        check_time(where)
        inputs = [None if name == "" else self._lookup(scope, name, where) for name in node.inputs]
        while inputs and inputs[-1] is None and node.inputs[len(inputs) - 1] == "":
            inputs.pop()
        op = Op(
            node=node,
            target=self.target,
            inside=inside,
            walk=lambda inner, values: self.graph(inner, values, scope, where, watched=watched),
            names=self.names,
            declared=graph.values.get,
        )
        try:
            return self._computed(op, inputs)
        except ConversionError as error:
            if not error.facts.get("is_misfit") and is_misfit(node, [self._type(op, value) for value in inputs]):
                error.facts["is_misfit"] = True
            raise

    def _computed(self, op: Op, inputs: list[Value]) -> Sequence[Value]:
        results = self._known(op, inputs)
        if results is not None:
            self._sizes.count_known(op, results)
        else:
            self._sizes.check_before(op, inputs)
            results = self._handled(op, inputs)
        if results is None:
            results = self._expanded(op, inputs)
        if results is None:
            op.refuse("there is no handler for it and it has no function body")
        self._sizes.check_after(op, results)
        return self._complete(op, results)

    def _known(self, op: Op, inputs: list[Value]) -> Sequence[Value] | None:
        """Compute what needs no target."""
        if op.kind == "If" and op.domain == "" and len(inputs) == 1 and op.is_known(inputs[0]) and inputs[0].size == 1:
            branch = op.attribute("then_branch" if bool(inputs[0].reshape(())) else "else_branch")
            return op.run(branch, [])
        if op.kind in ("Shape", "Size") and op.domain == "" and len(inputs) == 1:
            inputs = [shape_array(op.shape(inputs[0]))]
        elif not all(isinstance(value, np.ndarray) for value in inputs):
            return None
        try:
            at_least = getattr(self.target, "at_least", None)
            results = integers.evaluate(op.node, inputs, limit=MAX_KNOWN_ELEMENTS, at_least=at_least)
        except Exception as exc:  # attributes and shapes of a file may be anything
            raise op.refusal(f"it cannot be computed: {_first_line(exc)}") from exc
        return results

    def _handled(self, op: Op, inputs: list[Value]) -> Sequence[Value] | None:
        entry = self.target.handlers.find(op.domain, op.kind) or SEQUENCES.find(op.domain, op.kind)
        if entry is None:
            return None
        self._check_count(op, entry, len(inputs))
        try:
            arguments = (
                [op.tensor(v) if isinstance(v, np.ndarray) else v for v in inputs] if entry.takes_tensors else inputs
            )
            results = entry.handler(op, *arguments)
        except NoaError:
            raise
        except Exception as exc:  # whatever a framework raises means: this node cannot be computed
            raise op.refusal(f"{self.target.name} refuses it: {_first_line(exc)}") from exc
        return results if isinstance(results, tuple) else (results,)

    def _expanded(self, op: Op, inputs: list[Value]) -> Sequence[Value] | None:
        types = [self._type(op, value) for value in inputs]
        try:
            body = expand(op.node, types)
        except NoaError:
            raise
        except Exception as exc:  # attributes or types that make no sense, found while its body is written
            raise op.refusal(f"its body cannot be made: {_first_line(exc)}") from exc
        if body is None:
            return None
        padded = [*inputs, *(None for _ in range(len(body.inputs) - len(inputs)))]
        if len(padded) > len(body.inputs):
            op.refuse(f"it takes at most {len(body.inputs)} inputs and gets {len(inputs)}")
        return self.graph(body, padded, {}, _place(op.node, op.inside), watched=False)

    def _type(self, op: Op, value: Value) -> InputType | None:
        if value is None or isinstance(value, (list, tuple)):
            return None
        return InputType(
            dtype=number_of(value) if isinstance(value, np.ndarray) else op.dtype(value),
            shape=tuple(size if isinstance(size, int) else None for size in op.shape(value)),
            array=value if isinstance(value, np.ndarray) and value.dtype != object else None,
        )

    def _complete(self, op: Op, results: Sequence[Value]) -> Sequence[Value]:
        if len(results) < len(op.node.outputs):
            op.refuse(f"{len(op.node.outputs)} outputs are asked for and {len(results)} are computed")
        return results

    def _check_count(self, op: Op, entry: Registered, count: int) -> None:
        if count < entry.min_inputs:
            op.refuse(f"it needs at least {entry.min_inputs} inputs and gets {count}")
        if entry.max_inputs is not None and count > entry.max_inputs:
            op.refuse(f"it takes at most {entry.max_inputs} inputs and gets {count}")

    def _lookup(self, scope: Mapping[str, Value], name: str, where: str) -> Any:
        try:
            return scope[name]
        except KeyError:
            raise ConversionError(f"the value `{name}` is used and nothing makes it", where=where) from None


def _place(node: OnnxNode, inside: str) -> str:
    return f"`{node.kind}` `{node.name}`" + (f" in {inside}" if inside else "")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


__all__ = ["MAX_KNOWN_ELEMENTS", "OnnxValue", "Watch", "run_graph"]
