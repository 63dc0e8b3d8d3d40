"""Runs: what jobs and MLflow's own clients have tracked, read from MLflow's tables in SQL.

`open_runs` gives a `RunBook`: a list with filters, one run with all it holds, several side by side, curves of metrics.
It only reads; what jobs write is in `writing.py` and `files.py`. Nothing here imports MLflow, which costs seconds, and
importing this package loads no database toolkit.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noa_registry.runs.book import RunBook, open_runs
    from noa_registry.runs.comparison import MetricDifference, RunComparison, ValueDifference
    from noa_registry.runs.curves import Curve
    from noa_registry.runs.details import RunDataset, RunDetails, RunMetric
    from noa_registry.runs.listing import BestMetric, RunPage, RunSummary

_LAZY = {
    "BestMetric": "listing",
    "Curve": "curves",
    "MetricDifference": "comparison",
    "RunBook": "book",
    "RunComparison": "comparison",
    "RunDataset": "details",
    "RunDetails": "details",
    "RunMetric": "details",
    "RunPage": "listing",
    "RunSummary": "listing",
    "ValueDifference": "comparison",
    "open_runs": "book",
}

__all__ = [
    "BestMetric",
    "Curve",
    "MetricDifference",
    "RunBook",
    "RunComparison",
    "RunDataset",
    "RunDetails",
    "RunMetric",
    "RunPage",
    "RunSummary",
    "ValueDifference",
    "open_runs",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(f"noa_registry.runs.{_LAZY[name]}"), name)
    raise AttributeError(f"module `noa_registry.runs` has no attribute `{name}`")
