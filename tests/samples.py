"""What `make test` leaves to the long suites: it runs a sample of each, and they run whole with a command of their own.

A case that is marked `conformance` or `chaos` runs with `make conformance` or `make chaos`; all others are the sample.
A file that is run by its path runs whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import product
from typing import Any, Literal, TypeVar

import pytest
from _pytest.mark.structures import ParameterSet  # pytest has no public name for what `pytest.param` returns

T = TypeVar("T")


def mostly(suite: Literal["conformance", "chaos"], cases: Iterable[T], *, sample: Collection[T]) -> list[ParameterSet]:
    """Give all cases to `pytest.mark.parametrize`, those outside of the sample marked for the long suite alone.

    A case is a value, a tuple of one value per argument, or a `pytest.param`.
    """
    found = list(cases)
    missing = [case for case in sample if case not in found]
    assert sample and not missing, f"the sample names what is no case: {missing}"
    mark = getattr(pytest.mark, suite)
    return [_param(case, () if case in sample else (mark,)) for case in found]


def one_in(number: int, suite: Literal["conformance", "chaos"], cases: Iterable[T]) -> list[ParameterSet]:
    """As `mostly`, of a table of cases that are of one kind: the sample is the first and every n-th after it."""
    found = list(cases)
    return mostly(suite, found, sample=found[::number])


def on_one_dialect(cases: Sequence[T]) -> list[ParameterSet]:
    """Give `dialect` and a fault: in the suite each fault on one database in turn, with `make chaos` on both."""
    dialects = ("sqlite", "postgresql")
    sample = [(dialects[number % 2], case) for number, case in enumerate(cases)]
    return mostly("chaos", product(dialects, cases), sample=sample)


def _param(case: Any, marks: Collection[pytest.MarkDecorator]) -> ParameterSet:
    if isinstance(case, ParameterSet):
        return pytest.param(*case.values, marks=(*case.marks, *marks), id=case.id)
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks)
