"""What evidence must look like before it is stored: the parts of every fact, and of each kind that noa knows."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Final

from noa.errors import InvalidInputError
from noa_registry.evidence.calibration import CalibrationEvidence
from noa_registry.evidence.compatibility import CompatibilityEvidence
from noa_registry.evidence.equivalence import check_equivalence
from noa_registry.evidence.facts import (
    CALIBRATION,
    COMPATIBILITY,
    EQUIVALENCE,
    LATENCY,
    MAX_ATTACHMENT_BYTES,
    METRICS,
    PREDICTIONS,
    SCAN,
    SIZE,
    Evidence,
    attachment_digests,
    plain_json,
)
from noa_registry.evidence.metrics import MetricsEvidence
from noa_registry.evidence.performance import LatencyEvidence, SizeEvidence
from noa_registry.evidence.predictions import PredictionsEvidence
from noa_registry.evidence.scan import ScanEvidence

_PARSERS: Final = MappingProxyType[str, Callable[[Evidence], object]](
    {
        CALIBRATION: CalibrationEvidence.from_evidence,
        COMPATIBILITY: CompatibilityEvidence.from_evidence,
        EQUIVALENCE: check_equivalence,
        LATENCY: LatencyEvidence.from_evidence,
        METRICS: MetricsEvidence.from_evidence,
        PREDICTIONS: PredictionsEvidence.from_evidence,
        SCAN: ScanEvidence.from_evidence,
        SIZE: SizeEvidence.from_evidence,
    }
)


def check_evidence(fact: Evidence) -> None:
    """Raise `InvalidInputError` if evidence cannot be stored: a part is missing, or its kind wants other values."""
    if not fact.kind or not fact.subject or not fact.digest.startswith("sha256:") or fact.created_at.tzinfo is None:
        raise InvalidInputError(
            "evidence is incomplete",
            expected="a kind, a subject, a digest `sha256:...` and a time with a zone",
            received=f"{fact.kind!r}, {fact.subject!r}, {fact.digest!r}, {fact.created_at}",
        )
    plain_json(fact.values)
    parse = _PARSERS.get(fact.kind)
    if parse is not None:
        parse(fact)
    check_attachments(fact)


def check_attachments(fact: Evidence) -> None:
    """Raise `InvalidInputError` if an attachment is too large to be kept in the database, or is not named."""
    for attachment in fact.attachments:
        if len(attachment.content) > MAX_ATTACHMENT_BYTES:
            raise InvalidInputError(
                f"an attachment of {fact.kind} evidence is too large",
                expected=f"at most {MAX_ATTACHMENT_BYTES} bytes",
                received=f"{len(attachment.content)} bytes",
                remedy="Attach a sample of it",
            )
        if attachment.digest not in attachment_digests(fact):
            raise InvalidInputError(
                f"{fact.kind} evidence carries an attachment that it does not name",
                expected="its digest under `attachment`",
                received=attachment.digest,
            )
