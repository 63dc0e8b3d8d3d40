"""Channels last on the inside: the order that XLA's convolutions compute in, while the graph speaks of channels first.

A convolution computes in (batch, space, channels), gives its result turned back, and remembers both forms. An operator
that works by element or by window takes the remembered form and goes on in it; any other takes the turned one. What
nobody takes is dead code, which XLA drops. So a chain of convolutions is turned at its ends and not at every link
(measured on CPU: 1.1 to 1.35 times faster at batch 1). Only while JAX traces: eagerly, both forms would be computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
from jax import lax

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op


class Layouts:
    """The channels-last forms of tensors, by identity, for one walk over a graph."""

    __slots__ = ("_forms",)

    def __init__(self) -> None:
        self._forms: dict[int, tuple[Any, Any]] = {}

    def find(self, tensor: Any) -> Any:
        """Return the channels-last form of a tensor, or None."""
        entry = self._forms.get(id(tensor))
        return None if entry is None else entry[1]

    def remember(self, tensor: Any, last: Any) -> None:
        """Keep both forms; holding the tensor keeps its identity from being used again."""
        self._forms[id(tensor)] = (tensor, last)


def _layouts(op: Op) -> Layouts | None:
    return getattr(op.target, "layouts", None)


def find_last(op: Op, x: Any) -> Any:
    """Return the channels-last form of x if it is remembered, or None."""
    layouts = _layouts(op)
    return None if layouts is None else layouts.find(x)


def to_last(op: Op, x: Any) -> Any:
    """Return x in the order (batch, space, channels)."""
    last = find_last(op, x)
    if last is None:
        last = lax.transpose(x, (0, *range(2, x.ndim), 1))
        layouts = _layouts(op)
        if layouts is not None and isinstance(last, jax.core.Tracer):
            layouts.remember(x, last)
    return last


def from_last(op: Op, last: Any) -> Any:
    """Return a channels-last result in the order (batch, channels, space), and remember both."""
    y = lax.transpose(last, (0, last.ndim - 1, *range(1, last.ndim - 1)))
    layouts = _layouts(op)
    if layouts is not None and isinstance(y, jax.core.Tracer):
        layouts.remember(y, last)
    return y


def prefers_last(op: Op, x: Any) -> bool:
    """Tell whether a convolution over x should compute channels last: while tracing, over some axis of space."""
    return _layouts(op) is not None and isinstance(x, jax.core.Tracer) and x.ndim >= 3


def by_element(op: Op, function: Callable[..., Any], *values: Any) -> Any:
    """Compute a function of elements in the order that its values are remembered in."""
    layouts = _layouts(op)
    if layouts is None:
        return function(*values)
    forms = [layouts.find(value) for value in values]
    rank = max((form.ndim for form in forms if form is not None), default=0)
    if rank == 0:
        return function(*values)
    lasts = [
        value_last if value_last is not None else _small(value, rank)
        for value, value_last in zip(values, forms, strict=True)
    ]
    if any(last is None or last.ndim > rank for last in lasts):
        return function(*values)
    return from_last(op, function(*lasts))


def _small(value: Any, rank: int) -> Any:
    """Turn a value that broadcasts over space; None for one that does not, for turning it would cost."""
    if value.ndim == 0:
        return value
    shape = (1,) * (rank - value.ndim) + tuple(value.shape)
    if len(shape) != rank or any(size != 1 for size in shape[2:]):
        return None
    return lax.transpose(value.reshape(shape), (0, *range(2, rank), 1))
