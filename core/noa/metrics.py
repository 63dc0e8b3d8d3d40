"""The interface of a metric that can be computed anew from predictions, by name and without importing its room.

Metrics are found through the entry point group `noa.metrics`. The training room offers its own; a plug-in adds one by
adding an entry point, and gates and comparisons then know it by that name.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from noa.errors import NotFoundError

if TYPE_CHECKING:
    import numpy as np

ENTRY_POINT_GROUP = "noa.metrics"


@runtime_checkable
class MetricAdapter(Protocol):
    """A metric of a model's raw outputs (rows, ...) and targets (rows, ...). `objective` says how outputs are read."""

    @property
    def larger_is_better(self) -> bool:
        """The direction."""
        ...

    def row_values(self, outputs: np.ndarray, targets: np.ndarray, *, objective: str) -> np.ndarray | None:
        """Return one number per row, float64, whose mean is the metric; None if it is no mean over rows.

        Raises:
            InvalidInputError: the metric is not defined for the objective, or the outputs do not fit the targets.
        """
        ...

    def weighted(self, outputs: np.ndarray, targets: np.ndarray, counts: np.ndarray, *, objective: str) -> np.ndarray:
        """Return the metric (draws,) where row i counts `counts[draw, i]` times; counts are integers (draws, rows).

        Raises:
            InvalidInputError: the metric is not defined for the objective, or the outputs do not fit the targets.
        """
        ...


@lru_cache(maxsize=1)
def _points() -> dict[str, EntryPoint]:
    """Return the entry points by name; reading the metadata of all distributions takes milliseconds."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def metric_names() -> tuple[str, ...]:
    """Return the names of all installed metrics, sorted."""
    return tuple(sorted(_points()))


def find_metric(name: str) -> MetricAdapter:
    """Return a metric by name.

    Raises:
        NotFoundError: no installed distribution offers it.
    """
    if name in _points():
        return cast("MetricAdapter", _points()[name].load())
    raise NotFoundError(
        f"no metric `{name}` can be computed from predictions",
        expected=", ".join(metric_names()) or "an entry point of the group `noa.metrics`",
        received=name,
        remedy="Offer it as an entry point of the group `noa.metrics`, or judge it without `confidence`",
    )
