"""The conformance harness itself: a case that crashes, hangs or eats memory costs one verdict and nothing else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from benchmarks.conformance.comparison import find_difference
from benchmarks.conformance.pool import Limits, run_all
from benchmarks.conformance.records import count_peers, merge, read_expected, write_expected
from benchmarks.conformance.verdicts import Target, Verdict


def judge(name: str, target: Target) -> Verdict:
    if name == "crashes":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "exits":
        os._exit(3)
    elif name == "spins":
        while True:
            pass
    elif name == "eats":
        hoard: list[bytearray] = []
        while True:
            hoard.append(bytearray(b"x") * (1 << 20))
    return Verdict(case=name, target=target, category="pass")


def test_a_process_that_ends_or_is_ended_costs_its_case_only() -> None:
    names = ["first", "crashes", "second", "exits", "third", "spins", "fourth", "eats", "fifth"]
    limits = Limits(cpu_s=0.5, memory_bytes=1 << 30)
    verdicts = {verdict.case: verdict for verdict in run_all(names, "jax", jobs=2, limits=limits, judge_case=judge)}
    assert set(verdicts) == set(names)
    reasons = {name: verdict.reason for name, verdict in verdicts.items() if verdict.category == "error"}
    assert reasons["crashes"] == "the process was ended by SIGKILL"
    assert reasons["exits"] == "the process ended with status 3"
    assert reasons["spins"] == "took more than 0.5 s of CPU"
    assert reasons["eats"].startswith("took more than")
    assert set(reasons) == {"crashes", "exits", "spins", "eats"}


@pytest.mark.parametrize(
    ("expected", "given", "says"),
    [
        ([np.float32([1, 2])], [np.float64([1, 2])], "dtype float64, expected float32"),
        ([np.float32([1, 2])], [np.float32([[1, 2]])], "shape (1, 2), expected (2,)"),
        ([np.float32([1, np.nan])], [np.float32([1, 2])], "1 of 2 elements differ"),
        ([np.float32([1, np.inf])], [np.float32([1, -np.inf])], "1 of 2 elements differ"),
        ([np.float32([1.0])], [np.float32([1.01])], "1 of 1 elements differ"),
        ([np.zeros(2, ml_dtypes.int4)], [np.zeros(2, np.int8)], "dtype int8, expected int4"),
        ([[np.float32(1)]], [[np.float32(1), np.float32(2)]], "in the sequence, 2 outputs, expected 1"),
        ([None], [np.float32([1])], "ndarray, expected nothing"),
        ([np.float32([1])], [], "0 outputs, expected 1"),
    ],
)
def test_a_difference_is_found(expected: list[object], given: list[object], says: str) -> None:
    problem = find_difference(expected, given, rtol=1e-3, atol=1e-7)
    assert problem is not None and says in problem


@pytest.mark.parametrize(
    "value",
    [
        np.float32([1, np.nan, np.inf]),
        np.array([-1, 7], ml_dtypes.int4),
        np.array([1.5], ml_dtypes.bfloat16),
        np.array([1.5, np.nan], ml_dtypes.float8_e4m3fn),
        np.array(["a", "b"], dtype=object),
        [np.float32([1]), np.float32([2])],
        None,
    ],
)
def test_a_value_equals_itself(value: object) -> None:
    assert find_difference([value], [value], rtol=1e-3, atol=1e-7) is None


def test_the_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    first = Verdict(case="test_b", target="torch", category="refused", reason='no "b", sorry')
    second = Verdict(case="test_a", target="jax", category="pass")
    recorded = merge({}, [first, second])
    write_expected(recorded, tmp_path / "expected.csv")
    assert read_expected(tmp_path / "expected.csv") == recorded
    assert list(read_expected(tmp_path / "expected.csv")) == ["test_a", "test_b"]


def test_the_peers_did_the_same_cases() -> None:
    counts = count_peers(read_expected())
    assert {counter.total() for counter in counts.values()} == {len(read_expected())}
