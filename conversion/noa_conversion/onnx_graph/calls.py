"""How large a model gets when its functions are inlined, known before anything is: calls may double at every level."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol

from noa_conversion.onnx_graph.scopes import subgraph_protos

if TYPE_CHECKING:
    import onnx

MAX_NODES = 200_000
"""Most nodes of a model after its functions are inlined."""
_MAX_COPIED_BYTES = 1 << 28
_MAX_CALLS = 32

FunctionKey = tuple[str, str, str]


class _Refuse(Protocol):
    def __call__(self, what: str) -> NoReturn: ...


@dataclass(frozen=True, slots=True)
class _Growth:
    nodes: int
    num_bytes: int


def plain_domain(domain: str) -> str:
    """Return a domain's one name: the standard one is the empty text."""
    return "" if domain == "ai.onnx" else domain


def key_of(node: onnx.NodeProto) -> FunctionKey:
    """Return the name under which a node's operator may be a function of the model."""
    return (plain_domain(node.domain), node.op_type, node.overload)


def functions_of(functions: Iterable[onnx.FunctionProto], refuse: _Refuse) -> dict[FunctionKey, onnx.FunctionProto]:
    """Return the functions of a model by what calls them.

    Raises:
        InvalidInputError: by `refuse`; one is defined twice.
    """
    found: dict[FunctionKey, onnx.FunctionProto] = {}
    for function in functions:
        key = (plain_domain(function.domain), function.name, function.overload)
        if key in found:
            refuse(f"the function `{function.name}` is defined twice")
        found[key] = function
    return found


def check_calls(
    nodes: Iterable[onnx.NodeProto], functions: Mapping[FunctionKey, onnx.FunctionProto], refuse: _Refuse
) -> None:
    """Refuse a model whose functions call themselves, are nested too deep, or make it too large when inlined.

    Raises:
        InvalidInputError: by `refuse`; names the function.
    """
    known: dict[FunctionKey, _Growth] = {}
    opened: list[FunctionKey] = []

    def measure(nodes: Iterable[onnx.NodeProto]) -> _Growth:
        count = num_bytes = 0
        for node in nodes:
            count += 1
            if opened:  # what the model itself holds is not copied
                num_bytes += sum(attribute.ByteSize() for attribute in node.attribute)
            inner = [measure(graph.node) for graph in subgraph_protos(node)]
            if (key := key_of(node)) in functions:
                inner.append(of_function(key))
            count += sum(growth.nodes for growth in inner)
            num_bytes += sum(growth.num_bytes for growth in inner)
        return _Growth(count, num_bytes)

    def of_function(key: FunctionKey) -> _Growth:
        if key in opened:
            refuse(f"the function `{key[1]}` calls itself")
        if len(opened) >= _MAX_CALLS:
            refuse(f"functions call each other more than {_MAX_CALLS} deep")
        if key not in known:
            opened.append(key)
            known[key] = measure(functions[key].node)
            opened.pop()
        return known[key]

    total = measure(nodes)
    if total.nodes > MAX_NODES:
        refuse(f"the model has more than {MAX_NODES} nodes when its functions are inlined")
    if total.num_bytes > _MAX_COPIED_BYTES:
        refuse(f"the constants of its functions take more than {_MAX_COPIED_BYTES} bytes when they are inlined")
