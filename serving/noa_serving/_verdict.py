"""The verdict about a shadow: a sequential test that may be looked at after every request.

Each question is about the mean of values in [0, 1], one for each request: the share of its items that agree, whether
the arm failed, whether it took too long. For a mean p and a sum s of n such values

    M(p) = B(a + s, b + n - s) / B(a, b) / (p**s * (1 - p)**(n - s))

is a mixture of likelihood ratios, and for the true p never larger than 1 in expectation: exactly for zeros and ones
(Robbins 1970, "Statistical methods related to the law of the iterated logarithm", Ann. Math. Statist. 41(5)), and for
any values in [0, 1] because the exponential of a convex combination is at most the combination of exponentials
(Hoeffding 1963, theorem 1; Howard, Ramdas, McAuliffe and Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic
confidence sequences", Ann. Statist. 49(2), section 4). By Ville's inequality M(true p) exceeds 1/error at *any* time
with a probability of at most `error`. So the p with M(p) < 1/error are an interval that covers the true one at all
times at once, and who looks after every request errs no more often than who looks once. a = b = 1/2.

What is assumed: that requests are draws with this mean, whatever came before. A request of many items counts once.

Promoting needs every question answered yes, so each is asked with `error`. Rolling back needs one no, so the error is
divided among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from noa.settings import VerdictSettings
    from noa_serving._comparing import Comparison

Decision = Literal["go on", "promote", "roll back"]
Answer = Literal["yes", "no", "open"]

MOST_DEATHS = 2
"""So many workers may end while an arm computes before it is taken for the reason."""

TEST = "Beta(1/2, 1/2) mixture martingale for means in [0, 1] (Robbins 1970; Ville's inequality)"

_PRIOR = 0.5
_STEPS = 40
_MOST_TO_COME = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One thing that is asked. `low` to `high` holds the true value with the error that a promotion allows.

    `value` is None before anything was seen. `more` is how many more requests an answer takes if they go on like this,
    None where that cannot be said.
    """

    name: str
    value: float | None
    low: float
    high: float
    limit: float
    count: int
    answer: Answer
    more: int | None = None

    def describe(self) -> str:
        """Say it in a line."""
        value = "-" if self.value is None else f"{self.value:.4g}"
        relation = "at least" if self.name == "agreement" else "at most"
        return f"{self.name} {value} ({self.low:.4g} to {self.high:.4g} of {self.count}), {relation} {self.limit:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows from what was counted, and why; `waits_for` says what is missing while it goes on."""

    decision: Decision
    reason: str
    questions: tuple[Question, ...]
    waits_for: str = ""

    def to_json(self) -> dict[str, object]:
        """Return everything, as JSON values."""
        rows = [{name: getattr(one, name) for name in _QUESTION} for one in self.questions]
        return {"decision": self.decision, "reason": self.reason, "waits_for": self.waits_for, "questions": rows}

    @classmethod
    def from_json(cls, table: Mapping[str, object]) -> Verdict:
        """Return what `to_json` gave."""
        rows = cast("Sequence[Mapping[str, object]]", table["questions"])
        return cls(
            decision=cast("Decision", table["decision"]),
            reason=str(table["reason"]),
            waits_for=str(table["waits_for"]),
            questions=tuple(Question(**dict(row)) for row in rows),  # pyright: ignore[reportArgumentType]  # as written
        )


_QUESTION = ("name", "value", "low", "high", "limit", "count", "answer", "more")


def judge(counts: Comparison, settings: VerdictSettings) -> Verdict:
    """Return what is to be done with an arm after what was counted so far."""
    questions = _questions(counts, settings)
    if counts.hangs:
        return Verdict(decision="roll back", reason=f"it hung: {counts.problem}", questions=questions)
    if counts.deaths >= MOST_DEATHS:
        reason = f"{counts.deaths} workers ended while it computed"
        return Verdict(decision="roll back", reason=reason, questions=questions)
    failed = [one for one in questions if one.answer == "no"]
    if failed:
        reason = "; ".join(one.describe() for one in failed)
        if counts.problem and any(one.name == "extra errors" for one in failed):
            reason += f"; the last error: {counts.problem}"
        return Verdict(decision="roll back", reason=reason, questions=questions)
    waits_for = _waits_for(counts, settings, questions)
    if waits_for:
        return Verdict(decision="go on", reason="not enough was seen", questions=questions, waits_for=waits_for)
    reason = "; ".join(one.describe() for one in questions)
    return Verdict(decision="promote", reason=reason, questions=questions)


def mean_interval(total: float, count: int, error: float) -> tuple[float, float]:
    """Return the means in [0, 1] that `count` values with this sum leave possible, at all times at once.

    `error` is the probability that the true mean is ever outside. Without values everything is possible.
    """
    if count <= 0:
        return 0.0, 1.0
    most = -math.log(error)
    mean = min(max(total / count, 0.0), 1.0)
    low = 0.0 if total <= 0.0 else _edge(lambda p: log_mixture(total, count, p) < most, mean, 0.0)
    high = 1.0 if total >= count else _edge(lambda p: log_mixture(total, count, p) < most, mean, 1.0)
    return low, high


def log_mixture(total: float, count: int, mean: float) -> float:
    """Return the logarithm of M(mean), see above; infinite where such a sum cannot be."""
    rest = count - total
    evidence = _log_beta(_PRIOR + total, _PRIOR + rest) - _log_beta(_PRIOR, _PRIOR)
    for amount, chance in ((total, mean), (rest, 1.0 - mean)):
        if amount > 0.0:
            if chance <= 0.0:
                return math.inf
            evidence -= amount * math.log(chance)
    return evidence


def _questions(counts: Comparison, settings: VerdictSettings) -> tuple[Question, ...]:
    asked = [("agreement", counts.agreed, counts.compared, settings.min_agreement, False)]
    asked.append(("extra errors", float(counts.failed), counts.tried, settings.max_extra_errors, True))
    if settings.max_latency_ratio:
        # The median of a ratio is at most a limit if no more than half of the ratios are above it.
        asked.append(("slower requests", float(counts.slower), counts.timed, 0.5, True))
    errors = settings.error, settings.error / len(asked)
    return tuple(_ask(name, total, count, limit, errors, is_most=most) for name, total, count, limit, most in asked)


def _ask(name: str, total: float, count: int, limit: float, errors: tuple[float, float], *, is_most: bool) -> Question:
    error, shared_error = errors
    low, high = mean_interval(total, count, error)
    sure_low, sure_high = mean_interval(total, count, shared_error)
    answer: Answer = "open"
    if (high <= limit) if is_most else (low >= limit):
        answer = "yes"
    elif (sure_low > limit) if is_most else (sure_high < limit):
        answer = "no"
    value = total / count if count else None
    more = None if answer != "open" or value is None else _more(value, count, limit, error, is_most=is_most)
    return Question(name=name, value=value, low=low, high=high, limit=limit, count=count, answer=answer, more=more)


def _more(value: float, count: int, limit: float, error: float, *, is_most: bool) -> int | None:
    """Return how many more values like those so far it takes to say yes; None: with these it is never said."""
    if (value >= limit) if is_most else (value <= limit):
        return None

    def is_enough(total: int) -> bool:
        low, high = mean_interval(value * total, total, error)
        return high <= limit if is_most else low >= limit

    most = max(count, 1)
    while not is_enough(most):
        most *= 2
        if most > _MOST_TO_COME:
            return None
    least = count
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if is_enough(middle) else (middle, most)
    return most - count


def _waits_for(counts: Comparison, settings: VerdictSettings, questions: Sequence[Question]) -> str:
    texts: list[str] = []
    for one in questions:
        if one.answer == "open":
            more = "more requests" if one.more is None else f"about {one.more} more requests like these"
            texts.append(f"{one.name}: {more}")
    if counts.compared < settings.min_requests:
        texts.append(f"{settings.min_requests - counts.compared} more requests to the least number")
    return "; ".join(texts)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _edge(is_inside: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return the end of an interval towards `outside`; errs to the outside."""
    if is_inside(outside):
        return outside
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        if is_inside(middle):
            inside = middle
        else:
            outside = middle
    return outside
