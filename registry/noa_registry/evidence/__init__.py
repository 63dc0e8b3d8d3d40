"""Evidence: measured facts about the bytes of a version.

A fact names the digest of the bytes it was measured on. The gate counts it for exactly these bytes, so evidence cannot
be moved from one version to another, and a fact about a file that was changed later proves nothing. Facts are appended,
never changed, and a later one replaces no earlier one: of several that tell of the same thing the worst counts
(`same_thing.py`).

Each kind has a type of its own with `to_evidence` and `from_evidence`. Numbers that JSON cannot hold (NaN, infinities)
are kept as the texts `nan`, `inf` and `-inf`.
"""

from noa_registry.evidence.calibration import CalibrationEvidence, ReliabilityBin, worst_calibration
from noa_registry.evidence.compatibility import (
    Compatibility,
    CompatibilityEvidence,
    SignatureComparison,
    compare_signatures,
)
from noa_registry.evidence.equivalence import equivalence_evidence
from noa_registry.evidence.facts import (
    CALIBRATION,
    COMPATIBILITY,
    ENVIRONMENT,
    EQUIVALENCE,
    GATE,
    HISTORY,
    LATENCY,
    MAX_ATTACHMENT_BYTES,
    METRICS,
    ORIGIN,
    PREDICTIONS,
    SCAN,
    SIZE,
    WHOLE_VERSION,
    Attachment,
    Evidence,
    attachment_digests,
    plain_json,
)
from noa_registry.evidence.golden import (
    AllowedDifference,
    GoldenRequest,
    GoldenRequests,
    decode_golden,
    find_golden,
    golden_that_fit,
    with_golden,
)
from noa_registry.evidence.kinds import (
    MAX_VALUES_BYTES,
    check_attachments,
    check_evidence,
    refuse_reserved,
    values_bytes,
)
from noa_registry.evidence.measurable import check_measured_bytes
from noa_registry.evidence.metrics import MetricsEvidence, SliceMetrics, metrics_evidence
from noa_registry.evidence.performance import (
    ENOUGH_RUNS,
    FEWEST_RUNS,
    BatchLatency,
    Hardware,
    LatencyEvidence,
    SizeEvidence,
)
from noa_registry.evidence.plain_fact import plain_fact
from noa_registry.evidence.predictions import (
    Predictions,
    PredictionsEvidence,
    decode_predictions,
    predictions_evidence,
)
from noa_registry.evidence.recording import RECORDING_KEY, Recording, Way
from noa_registry.evidence.same_thing import by_thing, measurements_of, thing_of, worst_judgement
from noa_registry.evidence.scan import ScanEvidence, ScanFinding

__all__ = [
    "CALIBRATION",
    "COMPATIBILITY",
    "ENOUGH_RUNS",
    "ENVIRONMENT",
    "EQUIVALENCE",
    "FEWEST_RUNS",
    "GATE",
    "HISTORY",
    "LATENCY",
    "MAX_ATTACHMENT_BYTES",
    "MAX_VALUES_BYTES",
    "METRICS",
    "ORIGIN",
    "PREDICTIONS",
    "RECORDING_KEY",
    "SCAN",
    "SIZE",
    "WHOLE_VERSION",
    "AllowedDifference",
    "Attachment",
    "BatchLatency",
    "CalibrationEvidence",
    "Compatibility",
    "CompatibilityEvidence",
    "Evidence",
    "GoldenRequest",
    "GoldenRequests",
    "Hardware",
    "LatencyEvidence",
    "MetricsEvidence",
    "Predictions",
    "PredictionsEvidence",
    "Recording",
    "ReliabilityBin",
    "ScanEvidence",
    "ScanFinding",
    "SignatureComparison",
    "SizeEvidence",
    "SliceMetrics",
    "Way",
    "attachment_digests",
    "by_thing",
    "check_attachments",
    "check_evidence",
    "check_measured_bytes",
    "compare_signatures",
    "decode_golden",
    "decode_predictions",
    "equivalence_evidence",
    "find_golden",
    "golden_that_fit",
    "measurements_of",
    "metrics_evidence",
    "plain_fact",
    "plain_json",
    "predictions_evidence",
    "refuse_reserved",
    "thing_of",
    "values_bytes",
    "with_golden",
    "worst_calibration",
    "worst_judgement",
]
