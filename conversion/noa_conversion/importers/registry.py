"""A target's table of handlers: which function computes which operator."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

Handler: TypeAlias = Callable[..., Any]
_F = TypeVar("_F", bound=Handler)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A handler with what the interpreter must know to call it."""

    handler: Handler
    takes_tensors: bool
    min_inputs: int
    max_inputs: int | None


class Handlers:
    """The operators of one target. Each target makes its own table and registers into it at import."""

    __slots__ = ("_table", "target")

    def __init__(self, target: str) -> None:
        self.target = target
        self._table: dict[tuple[str, str], Registered] = {}

    def register(self, *kinds: str, domain: str = "", tensors: bool = False) -> Callable[[_F], _F]:
        """Return a decorator that makes a function the handler of `kinds` (several names share one function).

        The function gets the `Op` and then the inputs by position, `None` for one that is left out. With `tensors`,
        inputs that are known numbers arrive as tensors of the target; without, as numpy arrays.
        """

        def decorate(function: _F) -> _F:
            lowest, highest = _count_inputs(function)
            entry = Registered(handler=function, takes_tensors=tensors, min_inputs=lowest, max_inputs=highest)
            for kind in kinds:
                if (domain, kind) in self._table:
                    raise ValueError(f"`{kind}` of domain `{domain}` has a handler for {self.target} already")
                self._table[domain, kind] = entry
            return function

        return decorate

    def find(self, domain: str, kind: str) -> Registered | None:
        """Return the handler of an operator, or None."""
        return self._table.get((domain, kind))

    def kinds(self) -> list[tuple[str, str]]:
        """Return all (domain, operator) that have a handler, sorted."""
        return sorted(self._table)


def _count_inputs(function: Handler) -> tuple[int, int | None]:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    lowest = sum(p.default is p.empty for p in positional)
    return lowest, None if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(positional)
