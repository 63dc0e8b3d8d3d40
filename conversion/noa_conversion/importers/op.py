"""`Op`: what a handler sees of the node it computes, and how it refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, overload

import numpy as np

from noa.errors import ConversionError
from noa_conversion.importers.target import Size, Target, Value
from noa_conversion.onnx_graph.model import Attribute, OnnxGraph, OnnxNode, OnnxValue
from noa_conversion.onnx_graph.symbols import number_of

_T = TypeVar("_T")
_MISSING: Any = object()
_INT64 = np.dtype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """The node that a handler computes: its attributes, its outputs, and the target it is computed in."""

    node: OnnxNode
    target: Target
    inside: str
    """Where the node is, for errors: the operator whose expansion or subgraph holds it, or nothing."""
    walk: Callable[[OnnxGraph, Sequence[Value]], list[Value]]
    names: dict[int, str]
    """Names of graph inputs by the identity of their tensors, so that a refusal can name what to bind."""
    declared: Callable[[str], OnnxValue | None]

    @property
    def kind(self) -> str:
        """The operator: `Conv`."""
        return self.node.kind

    @property
    def domain(self) -> str:
        """The operator's domain; the standard one is the empty text."""
        return self.node.domain

    @property
    def version(self) -> int:
        """The opset of the domain where the node was written."""
        return self.node.version

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name

    @property
    def num_outputs(self) -> int:
        """How many outputs the node names, the left out ones between them included."""
        return len(self.node.outputs)

    def wants(self, index: int) -> bool:
        """Tell whether the output at `index` is named."""
        return index < len(self.node.outputs) and self.node.outputs[index] != ""

    def output(self, index: int = 0) -> OnnxValue | None:
        """Return what the file declares about an output, if it does."""
        return self.declared(self.node.outputs[index]) if self.wants(index) else None

    @overload
    def attribute(self, name: str) -> Any: ...
    @overload
    def attribute(self, name: str, default: _T) -> _T: ...
    def attribute(self, name: str, default: Any = _MISSING) -> Any:
        """Return an attribute; one that is missing and has no default is refused."""
        value: Attribute | None = self.node.attributes.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            self.refuse(f"the attribute `{name}` is missing")
        return default

    def has(self, name: str) -> bool:
        """Tell whether the node has an attribute."""
        return name in self.node.attributes

    def shape(self, value: Value) -> tuple[Size, ...]:
        """Return the sizes of a tensor or array; symbols where an axis is free."""
        if isinstance(value, np.ndarray):
            return value.shape
        self._check_tensor(value)
        return self.target.shape(value)

    def rank(self, value: Value) -> int:
        """Return the number of axes."""
        return len(self.shape(value))

    def dtype(self, value: Value) -> np.dtype:
        """Return the element type of a tensor or array."""
        if isinstance(value, np.ndarray):
            return number_of(value)
        self._check_tensor(value)
        return self.target.dtype(value)

    def axis(self, axis: int, rank: int) -> int:
        """Return an axis counted from the front; one outside the rank is refused."""
        if not -rank <= axis < rank:
            self.refuse(f"the axis {axis} is outside a tensor of {rank} axes")
        return axis % rank if rank else 0

    def integers(self, value: Value, what: str) -> list[Size]:
        """Return the whole numbers that a value must be known as, symbols among them; `what` names it in errors."""
        array = self.known(value, what)
        if array.dtype != object and array.dtype.kind not in "iub":
            self.refuse(f"`{what}` must hold whole numbers and holds {array.dtype}")
        flat = array.ravel()
        return list(flat) if array.dtype == object else [int(element) for element in flat]

    def integer(self, value: Value, what: str) -> Size:
        """Return the one whole number that a value must be known as."""
        numbers = self.integers(value, what)
        if len(numbers) != 1:
            self.refuse(f"`{what}` must hold one number and holds {len(numbers)}")
        return numbers[0]

    def known(self, value: Value, what: str) -> np.ndarray:
        """Return the array that a value must be known as at import; a runtime tensor is refused."""
        if isinstance(value, np.ndarray):
            return value
        if value is None:
            self.refuse(f"the input `{what}` is missing")
        self._check_tensor(value)
        source = self.names.get(id(value))
        remedy = f'Give it: bind={{"{source}": array}}' if source else "Give the input it is computed from in `bind`"
        return self.refuse(f"`{what}` decides shapes and is known only at run time", remedy=remedy)

    def is_known(self, value: Value) -> bool:
        """Tell whether a value is known as numbers, symbols not counted."""
        return isinstance(value, np.ndarray) and value.dtype != object

    def tensor(self, value: Value) -> Any:
        """Return a value as a tensor of the target: known numbers become a constant."""
        if not isinstance(value, np.ndarray):
            self._check_tensor(value)
            return value
        if value.dtype != object:
            try:
                return self.target.constant(value)
            except ConversionError as exc:
                raise self.refusal(exc.what, remedy=exc.remedy) from exc
        tensor = self.target.from_symbols(value)
        number = number_of(value)
        return tensor if number == _INT64 else self._cast(tensor, number)

    def refuse(self, reason: str, *, remedy: str | None = None, is_misfit: bool = False) -> NoReturn:
        """Refuse this node; a misfit is one that no framework computes, as its inputs have the wrong shapes for it.

        Raises:
            ConversionError: always; names operator, node, domain, opset, target and reason.
        """
        raise self.refusal(reason, remedy=remedy, is_misfit=is_misfit)

    def refusal(self, reason: str, *, remedy: str | None = None, is_misfit: bool = False) -> ConversionError:
        """Return the error that refuses this node, to be raised from another one."""
        in_words: Callable[[str], str] = getattr(self.target, "in_words", str)  # a target without symbols has none
        reason, remedy = in_words(reason), None if remedy is None else in_words(remedy)
        domain = self.domain or "ai.onnx"
        place = f", in {self.inside}" if self.inside else ""
        return ConversionError(
            f"operator `{self.kind}` cannot be imported to {self.target.name}: {reason}",
            where=f"node `{self.name}`, domain {domain}, opset {self.version}{place}",
            remedy=remedy,
            op=self.kind,
            node=self.name,
            domain=self.domain,
            opset=self.version,
            target=self.target.name,
            reason=reason,
            is_misfit=is_misfit,
        )

    def run(self, graph: OnnxGraph, inputs: Sequence[Value]) -> list[Value]:
        """Walk a subgraph (of `If`, `Loop`, `Scan`, `SequenceMap`), which sees the values around this node."""
        if len(inputs) != len(graph.inputs):
            self.refuse(f"its graph `{graph.name}` takes {len(graph.inputs)} inputs and gets {len(inputs)}")
        return self.walk(graph, inputs)

    def _check_tensor(self, value: Value) -> None:
        if value is None:
            self.refuse("an input that it needs is left out")
        if isinstance(value, (list, tuple)):
            self.refuse("a tensor is needed where the file has a sequence")

    def _cast(self, tensor: Any, number: np.dtype) -> Any:
        entry = self.target.handlers.find("", "Cast")
        if entry is None:
            self.refuse(f"a size is needed as {number}")
        code = {"int32": 6, "int16": 5, "int8": 3, "uint8": 2, "uint16": 4, "uint32": 12, "uint64": 13, "bool": 9}
        node = OnnxNode(
            kind="Cast",
            version=13,
            name=self.name,
            inputs=("value",),
            outputs=("cast",),
            attributes={"to": code[number.name]},
        )
        op = Op(
            node=node, target=self.target, inside=self.inside, walk=self.walk, names=self.names, declared=self.declared
        )
        return entry.handler(op, tensor)
