"""The registry room: which model is it? Versions, manifests, aliases, evidence, gates and the ledger, on MLflow's
database.

`Registry` and `Tracker` stand on SQLAlchemy and MLflow and are loaded on first use; everything else is plain data.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from noa_registry.evidence import Evidence, equivalence_evidence, metrics_evidence
from noa_registry.gates import GateReport, RuleVerdict
from noa_registry.ledger import LedgerEntry
from noa_registry.versions import ModelSummary, ModelVersion, SealedFormat, VersionDraft

if TYPE_CHECKING:
    from noa_registry.mirror import Discrepancy
    from noa_registry.mlflow_tracking import MetricRow, Tracker, open_tracker
    from noa_registry.promotion import EXPECT_ANY, Expectation
    from noa_registry.registry import Registry

_LAZY = {
    "Discrepancy": "noa_registry.mirror",
    "EXPECT_ANY": "noa_registry.promotion",
    "Expectation": "noa_registry.promotion",
    "MetricRow": "noa_registry.mlflow_tracking",
    "Registry": "noa_registry.registry",
    "Tracker": "noa_registry.mlflow_tracking",
    "open_tracker": "noa_registry.mlflow_tracking",
}

__all__ = [
    "EXPECT_ANY",
    "Discrepancy",
    "Evidence",
    "Expectation",
    "GateReport",
    "LedgerEntry",
    "MetricRow",
    "ModelSummary",
    "ModelVersion",
    "Registry",
    "RuleVerdict",
    "SealedFormat",
    "Tracker",
    "VersionDraft",
    "equivalence_evidence",
    "metrics_evidence",
    "open_tracker",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module `noa_registry` has no attribute `{name}`")
