"""The registry room: which model is it? Versions, manifests, aliases, evidence, gates and the ledger, on MLflow's
database.

`Registry` and `Tracker` stand on SQLAlchemy and MLflow and are loaded on first use; everything else is plain data.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from noa_registry.evidence import (
    Attachment,
    BatchLatency,
    CalibrationEvidence,
    CompatibilityEvidence,
    Evidence,
    Hardware,
    LatencyEvidence,
    MetricsEvidence,
    Predictions,
    PredictionsEvidence,
    ReliabilityBin,
    ScanEvidence,
    ScanFinding,
    SizeEvidence,
    SliceMetrics,
    attachment_digests,
    compare_signatures,
    equivalence_evidence,
    metrics_evidence,
    predictions_evidence,
)
from noa_registry.gates import BootstrapPlan, GateReport, PolicyView, RuleVerdict
from noa_registry.ledger import LedgerEntry, LedgerProblem
from noa_registry.versions import ModelSummary, ModelVersion, SealedFormat, VersionDraft

if TYPE_CHECKING:
    from noa_registry.approvals.desk import ApprovalDesk
    from noa_registry.approvals.keys import KeyPair, new_key_pair
    from noa_registry.approvals.values import Approval
    from noa_registry.archives import WrittenArchive
    from noa_registry.cards import Card
    from noa_registry.comparison import Comparison
    from noa_registry.endpoints import EndpointGeneration, Endpoints, Refusal, Replica
    from noa_registry.events.delivery_state import DeadLetter, DeadLetters
    from noa_registry.events.heartbeat import heartbeat_file
    from noa_registry.events.log import Consumer, Event, EventLog, EventPage
    from noa_registry.file_repair import FileRepair
    from noa_registry.ledger_anchors import LedgerHead, read_anchors
    from noa_registry.ledger_book import LedgerBook, LedgerReport
    from noa_registry.lineage.graph import LineageEdge, LineageGraph, LineageNode
    from noa_registry.mirror_findings import Discrepancy
    from noa_registry.mlflow_runs import MetricRow
    from noa_registry.mlflow_tracking import Tracker, open_tracker
    from noa_registry.promotion import EXPECT_ANY, Expectation
    from noa_registry.registry import Registry
    from noa_registry.retention.collect import GcReport
    from noa_registry.retention.keeper import Retention
    from noa_registry.retention.plan import GcItem, GcPlan
    from noa_registry.retention.policy import Proposal, RetentionPolicy
    from noa_registry.retention.reach import Hold
    from noa_registry.retention.trash import TrashedVersion
    from noa_registry.search.pages import SearchHit, SearchPage
    from noa_registry.signing import check_signing

_LAZY = {
    "Card": "noa_registry.cards",
    "WrittenArchive": "noa_registry.archives",
    "FileRepair": "noa_registry.file_repair",
    "Approval": "noa_registry.approvals.values",
    "ApprovalDesk": "noa_registry.approvals.desk",
    "Comparison": "noa_registry.comparison",
    "Consumer": "noa_registry.events.log",
    "DeadLetter": "noa_registry.events.delivery_state",
    "DeadLetters": "noa_registry.events.delivery_state",
    "Discrepancy": "noa_registry.mirror_findings",
    "EXPECT_ANY": "noa_registry.promotion",
    "EndpointGeneration": "noa_registry.endpoints",
    "Endpoints": "noa_registry.endpoints",
    "Event": "noa_registry.events.log",
    "EventLog": "noa_registry.events.log",
    "EventPage": "noa_registry.events.log",
    "Expectation": "noa_registry.promotion",
    "GcItem": "noa_registry.retention.plan",
    "GcPlan": "noa_registry.retention.plan",
    "GcReport": "noa_registry.retention.collect",
    "Hold": "noa_registry.retention.reach",
    "KeyPair": "noa_registry.approvals.keys",
    "LedgerBook": "noa_registry.ledger_book",
    "LedgerHead": "noa_registry.ledger_anchors",
    "LedgerReport": "noa_registry.ledger_book",
    "LineageEdge": "noa_registry.lineage.graph",
    "LineageGraph": "noa_registry.lineage.graph",
    "LineageNode": "noa_registry.lineage.graph",
    "MetricRow": "noa_registry.mlflow_runs",
    "Proposal": "noa_registry.retention.policy",
    "Registry": "noa_registry.registry",
    "Refusal": "noa_registry.endpoints",
    "Replica": "noa_registry.endpoints",
    "Retention": "noa_registry.retention.keeper",
    "RetentionPolicy": "noa_registry.retention.policy",
    "SearchHit": "noa_registry.search.pages",
    "SearchPage": "noa_registry.search.pages",
    "Tracker": "noa_registry.mlflow_tracking",
    "TrashedVersion": "noa_registry.retention.trash",
    "heartbeat_file": "noa_registry.events.heartbeat",
    "check_signing": "noa_registry.signing",
    "new_key_pair": "noa_registry.approvals.keys",
    "open_tracker": "noa_registry.mlflow_tracking",
    "read_anchors": "noa_registry.ledger_anchors",
}

__all__ = [
    "EXPECT_ANY",
    "Approval",
    "ApprovalDesk",
    "Attachment",
    "BatchLatency",
    "BootstrapPlan",
    "CalibrationEvidence",
    "Card",
    "Comparison",
    "CompatibilityEvidence",
    "Consumer",
    "DeadLetter",
    "DeadLetters",
    "Discrepancy",
    "EndpointGeneration",
    "Endpoints",
    "Event",
    "EventLog",
    "EventPage",
    "Evidence",
    "Expectation",
    "FileRepair",
    "GateReport",
    "GcItem",
    "GcPlan",
    "GcReport",
    "Hardware",
    "Hold",
    "KeyPair",
    "LatencyEvidence",
    "LedgerBook",
    "LedgerEntry",
    "LedgerHead",
    "LedgerProblem",
    "LedgerReport",
    "LineageEdge",
    "LineageGraph",
    "LineageNode",
    "MetricRow",
    "MetricsEvidence",
    "ModelSummary",
    "ModelVersion",
    "PolicyView",
    "Predictions",
    "PredictionsEvidence",
    "Proposal",
    "Registry",
    "ReliabilityBin",
    "Refusal",
    "Replica",
    "Retention",
    "RetentionPolicy",
    "RuleVerdict",
    "ScanEvidence",
    "ScanFinding",
    "SealedFormat",
    "SearchHit",
    "SearchPage",
    "SizeEvidence",
    "SliceMetrics",
    "Tracker",
    "TrashedVersion",
    "VersionDraft",
    "WrittenArchive",
    "attachment_digests",
    "check_signing",
    "compare_signatures",
    "equivalence_evidence",
    "heartbeat_file",
    "metrics_evidence",
    "new_key_pair",
    "open_tracker",
    "predictions_evidence",
    "read_anchors",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module `noa_registry` has no attribute `{name}`")
