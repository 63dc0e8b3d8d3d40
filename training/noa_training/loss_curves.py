"""The training losses of finished jobs, as their events tell them, and how far two backends are apart.

A point is the mean loss of the steps since the point before it (`training.log_every_steps`), so two jobs of one recipe
have points at the same steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from noa.errors import InvalidInputError, NotFoundError
from noa_training.events import Step, parse_event

EVENTS_FILE = "events.jsonl"
EARLY_STEPS = 10
"""Rounding has not grown yet: up to here the backends must agree (to 1e-6, with batch normalisation to 2e-4)."""
_LEVELS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCurve:
    """`losses[i]` is the mean training loss of the steps up to `steps[i]`, since the point before."""

    name: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveComparison:
    """Curves over the same steps. `differences` are |second - first| / |first| at each of `steps`, the common ones."""

    curves: tuple[LossCurve, ...]
    steps: tuple[int, ...]
    differences: tuple[float, ...]

    @property
    def early(self) -> float | None:
        """Largest difference in the first `EARLY_STEPS` steps; None where no point lies there."""
        found = [value for step, value in zip(self.steps, self.differences, strict=True) if step <= EARLY_STEPS]
        return max(found, default=None)

    @property
    def largest(self) -> tuple[int, float]:
        """The step at which they are furthest apart, and how far."""
        value, step = max(zip(self.differences, self.steps, strict=True))
        return step, value

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        step, value = self.largest
        return {
            "curves": {curve.name: {"steps": list(curve.steps), "losses": list(curve.losses)} for curve in self.curves},
            "steps": list(self.steps),
            "relative_differences": list(self.differences),
            "early_difference": self.early,
            "largest_difference": value,
            "largest_difference_step": step,
        }


def read_loss_curve(folder: Path, *, name: str) -> LossCurve:
    """Return the curve of a job's folder. Steps that were done again after a resume count as they were done last.

    Raises:
        NotFoundError: the job has left no events.
    """
    path = folder / EVENTS_FILE
    points: dict[int, float] = {}
    last = -1
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                event = _event(line)
                if event is None:
                    continue
                if event.step <= last:  # after a resume the steps behind its checkpoint come again
                    points = {step: loss for step, loss in points.items() if step < event.step}
                points[event.step] = event.loss
                last = event.step
    except OSError as exc:
        raise NotFoundError("the job has left no events", where=str(folder), expected=EVENTS_FILE) from exc
    return LossCurve(name=name, steps=tuple(points), losses=tuple(points.values()))


def compare_curves(curves: Sequence[LossCurve]) -> CurveComparison:
    """Compare the first two curves at the steps that both have.

    Raises:
        InvalidInputError: there are fewer than two, or they have no step in common.
    """
    if len(curves) < 2:
        raise InvalidInputError("loss curves are compared in pairs", expected="two curves", received=str(len(curves)))
    first, second = (dict(zip(curve.steps, curve.losses, strict=True)) for curve in curves[:2])
    steps = tuple(step for step in first if step in second)
    if not steps:
        raise InvalidInputError(
            "the jobs recorded no loss at the same step",
            expected="at least one step in common",
            received=", ".join(f"{curve.name}: {len(curve.steps)} points" for curve in curves),
        )
    floor = math.ulp(0.0)
    differences = tuple(abs(second[step] - first[step]) / max(abs(first[step]), floor) for step in steps)
    return CurveComparison(curves=tuple(curves), steps=steps, differences=differences)


def sparkline(values: Sequence[float], *, width: int, lowest: float, highest: float) -> str:
    """Return at most `width` blocks whose heights show the values between `lowest` and `highest`.

    Where there are more values than blocks, a block is the mean of those that fall to it.
    """
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(place * len(values) / count) for place in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    span = highest - lowest
    shares = [(mean - lowest) / span if span > 0 else 0.0 for mean in means]
    return "".join(_LEVELS[min(int(max(share, 0.0) * len(_LEVELS)), len(_LEVELS) - 1)] for share in shares)


def _event(line: str) -> Step | None:
    try:
        event = parse_event(line)
    except InvalidInputError:  # a line that a kill or a full disk cut
        return None
    return event if isinstance(event, Step) else None
