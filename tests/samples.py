"""What `make test` leaves to the long suites: it runs a sample of each, and they run whole with a command of their own.

A case that is marked `conformance` or `chaos` runs with `make conformance` or `make chaos`; all others are the sample.
A file that is run by its path runs whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pytest

if TYPE_CHECKING:
    from _pytest.mark.structures import ParameterSet

T = TypeVar("T")


def mostly(suite: Literal["conformance", "chaos"], cases: Iterable[T], *, sample: Collection[T]) -> list[ParameterSet]:
    """Give all cases to `pytest.mark.parametrize`, those outside of the sample marked for the long suite alone.

    A case is a value, or a tuple of one value per argument.
    """
    found = list(cases)
    missing = [case for case in sample if case not in found]
    assert sample and not missing, f"the sample names what is no case: {missing}"
    mark = getattr(pytest.mark, suite)
    return [_param(case, () if case in sample else (mark,)) for case in found]


def on_one_dialect(cases: Sequence[T]) -> list[ParameterSet]:
    """Give `dialect` and a fault: in the suite each fault on one database in turn, with `make chaos` on both."""
    dialects = ("sqlite", "postgresql")
    sample = [(dialects[number % 2], case) for number, case in enumerate(cases)]
    return mostly("chaos", product(dialects, cases), sample=sample)


def _param(case: Any, marks: Collection[pytest.MarkDecorator]) -> ParameterSet:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks)
