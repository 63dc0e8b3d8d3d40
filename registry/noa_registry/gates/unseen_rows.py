"""What the rows that were drawn cannot tell: how an interval stays honest where two models seldom differ.

A bootstrap draws from the differences that were seen. Where few rows differ, or none, it has hardly any width, although
rows in which the version is worse may only not have come up. So its interval is widened to one that counts them:

- rows that are right or wrong: the score interval for the difference of paired proportions (Tango 1998);
- other means over rows: Wald's interval with one row more that is worse and one that is better, by as much as a row can
  differ (Bonett and Price 2012, eq. 7, who say it of proportions; there that is 1);
- all other metrics: the share of rows that differ may be as large as its Wilson bound (Wilson 1927), and as many rows
  more can move the metric by their share among the rows of the rarest class, at most by 1.

Sources: Tango, Statistics in Medicine 17 (1998) 891-908, eqs. 6-8; Bonett and Price, J. Educational and Behavioral
Statistics 37 (2012) 479-488; Wilson, JASA 22 (1927) 209-212. Z is of the same two-sided confidence as the bootstrap's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np

_ENOUGH: Final = 30
"""Of fewer rows that differ nobody can tell how far a row may: then it is by the whole range of values."""
_STEPS: Final = 60  # halvings of a distance of at most 2: below a float's precision


def normal_quantile(confidence: float) -> float:
    """Return z of a two-sided confidence."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def interval_of_rows(left: np.ndarray, right: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the interval of mean(right) - mean(left) that counts rows that did not come up."""
    import numpy as np

    differences = right - left
    if bool(np.isin(left, (0.0, 1.0)).all() and np.isin(right, (0.0, 1.0)).all()):
        better, worse = int(np.count_nonzero(differences > 0)), int(np.count_nonzero(differences < 0))
        return score_interval(better, worse, len(differences), confidence)
    reach = float(np.abs(differences).max())
    if np.count_nonzero(differences) < _ENOUGH:
        reach = float(max(left.max(), right.max()) - min(left.min(), right.min()))
    rows = len(differences) + 2
    mean = float(differences.sum()) / rows
    variance = (float((differences**2).sum()) + 2 * reach**2) / rows - mean**2
    half = normal_quantile(confidence) * math.sqrt(max(variance, 0.0) / rows)
    return mean - half, mean + half


def score_interval(better: int, worse: int, rows: int, confidence: float) -> tuple[float, float]:
    """Return Tango's interval of (better - worse) / rows, of so many rows in which only one of two is right."""
    z = normal_quantile(confidence)
    found = (better - worse) / rows

    def is_inside(delta: float) -> bool:
        return abs(_score(better, worse, rows, delta)) <= z

    return _end(is_inside, found, -1.0), _end(is_inside, found, 1.0)


def margin_of_metric(differing: int, targets: np.ndarray, confidence: float) -> float:
    """Return by how much a metric that is no mean over rows may change by rows that differ and did not come up."""
    import numpy as np

    rows, z = len(targets), normal_quantile(confidence)
    if differing >= rows:
        return 0.0
    share = differing / rows
    spread = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    upper = (share + z * z / (2 * rows) + spread) / (1 + z * z / rows)
    rarest = int(np.unique(targets, return_counts=True)[1].min())
    return min(1.0, max(0.0, upper - share) * rows / rarest)


def _score(better: int, worse: int, rows: int, delta: float) -> float:
    a = 2 * rows
    b = -better - worse + (2 * rows - better + worse) * delta
    c = -worse * delta * (1 - delta)
    rarer = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = rows * (2 * rarer + delta * (1 - delta))
    distance = better - worse - rows * delta
    if variance <= 0:
        return 0.0 if abs(distance) < 1e-12 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _end(is_inside: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return the last value on the way out that is still inside."""
    if is_inside(outside):
        return outside
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
    return inside
