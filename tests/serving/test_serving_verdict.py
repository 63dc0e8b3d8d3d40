"""The verdict about a shadow: how often it errs when it is looked at after every request, and what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noa.settings import VerdictSettings
from noa_serving._comparing import Comparison
from noa_serving._verdict import Verdict, judge, log_mixture, mean_interval

_PATHS = 200
_LOOKS = 600
_ERROR = 0.05


def _ever_excludes(values: np.ndarray, mean: float) -> float:
    """Return in how many rows the true mean is outside of the interval at any look."""
    sums = values.cumsum(axis=1)
    bound = -math.log(_ERROR)
    wrong = 0
    for row in sums:
        wrong += any(log_mixture(float(total), count, mean) >= bound for count, total in enumerate(row, start=1))
    return wrong / len(sums)


def _most(error: float) -> float:
    """Return what a share of `_PATHS` with this probability exceeds once in a thousand runs."""
    return error + 3.1 * math.sqrt(error * (1 - error) / _PATHS)


@pytest.mark.parametrize("mean", [0.5, 0.9, 0.99])
def test_who_looks_after_every_request_errs_no_more_often_than_agreed(mean: float) -> None:
    draws = np.random.default_rng(7).random((_PATHS, _LOOKS)) < mean
    assert _ever_excludes(draws.astype(float), mean) <= _most(_ERROR)


def test_requests_of_several_items_are_tested_as_safely_as_single_ones() -> None:
    draws = np.random.default_rng(8).beta(9.0, 1.0, (_PATHS, _LOOKS))
    assert _ever_excludes(draws, 0.9) <= _most(_ERROR)


def test_an_interval_for_one_look_would_err_far_more_often() -> None:
    """What the sequential one is for: the simulation sees the inflation that it avoids."""
    draws = np.random.default_rng(7).random((_PATHS, _LOOKS)) < 0.9
    counts = np.arange(1, _LOOKS + 1)
    shares = draws.cumsum(axis=1) / counts
    half = 1.96 * np.sqrt(shares * (1 - shares) / counts)
    outside = (np.abs(shares - 0.9) > half)[:, 30:]
    assert outside.any(axis=1).mean() > 4 * _ERROR


@pytest.mark.parametrize(("agreement", "wrong"), [(0.95, "promote"), (0.995, "roll back")])
def test_a_verdict_is_wrong_no_more_often_than_its_error(agreement: float, wrong: str) -> None:
    settings = VerdictSettings(min_agreement=0.98, error=_ERROR, min_requests=1, max_latency_ratio=0.0)
    random = np.random.default_rng(9)
    decisions: list[str] = []
    for _ in range(_PATHS):
        counts, verdict = Comparison(), "go on"
        draws = random.random(4000) < agreement
        for start in range(0, len(draws), 100):
            counts.compared += 100
            counts.agreed += float(draws[start : start + 100].sum())
            verdict = judge(counts, settings).decision
            if verdict != "go on":
                break
        decisions.append(verdict)
    assert decisions.count(wrong) / _PATHS <= _most(_ERROR)
    right = "promote" if wrong == "roll back" else "roll back"
    assert decisions.count(right) / _PATHS > 0.8


@given(
    count=st.integers(1, 10_000),
    share=st.floats(0.0, 1.0),
    error=st.floats(1e-6, 0.2),
)
def test_an_interval_holds_what_was_seen_and_narrows(count: int, share: float, error: float) -> None:
    low, high = mean_interval(share * count, count, error)
    assert 0.0 <= low <= share <= high <= 1.0
    wider_low, wider_high = mean_interval(share * count, count, error / 10)
    assert wider_low <= low
    assert high <= wider_high
    longer_low, longer_high = mean_interval(share * count * 100, count * 100, error)
    assert longer_high - longer_low <= high - low + 1e-9


def test_without_requests_everything_is_possible_and_the_verdict_waits() -> None:
    assert mean_interval(0.0, 0, 0.01) == (0.0, 1.0)
    verdict = judge(Comparison(), VerdictSettings())
    assert verdict.decision == "go on"
    assert "500 more requests" in verdict.waits_for


def test_a_shadow_that_always_agrees_is_promoted_after_as_many_requests_as_were_foretold() -> None:
    settings = VerdictSettings(max_latency_ratio=0.0)
    counts = Comparison(offered=300, compared=300, agreed=300.0)
    first = judge(counts, settings)
    assert first.decision == "go on"
    more = first.questions[0].more
    assert more is not None
    for question in first.questions:
        more = max(more, question.more or 0)
    counts.compared += more
    counts.agreed += more
    verdict = judge(counts, settings)
    assert verdict.decision == "promote"
    assert counts.compared < 1500
    counts.compared -= 2
    counts.agreed -= 2
    assert judge(counts, settings).decision == "go on"


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        (Comparison(compared=200, agreed=100.0), "agreement 0.5"),
        (Comparison(compared=900, agreed=900.0, failed=100, problem="ValueError: no"), "last error: ValueError: no"),
        (Comparison(compared=900, agreed=900.0, timed=90, slower=80), "slower requests"),
        (Comparison(hangs=1, problem="no answer within 30 s"), "hung: no answer within 30 s"),
        (Comparison(deaths=2), "2 workers ended while it computed"),
    ],
)
def test_each_no_rolls_back_and_says_why(counts: Comparison, reason: str) -> None:
    verdict = judge(counts, VerdictSettings())
    assert verdict.decision == "roll back"
    assert reason in verdict.reason


def test_one_worker_that_ended_is_no_reason() -> None:
    assert judge(Comparison(deaths=1), VerdictSettings()).decision == "go on"


def test_a_promotion_waits_until_every_question_is_answered() -> None:
    counts = Comparison(compared=5000, agreed=5000.0, timed=3, slower=0)
    verdict = judge(counts, VerdictSettings())
    assert verdict.decision == "go on"
    assert verdict.waits_for.startswith("slower requests: about ")
    counts.timed = 100
    assert judge(counts, VerdictSettings()).decision == "promote"


def test_a_verdict_is_read_as_it_was_written() -> None:
    verdict = judge(Comparison(compared=200, agreed=199.0), VerdictSettings())
    assert Verdict.from_json(verdict.to_json()) == verdict
