"""What evidence must look like before it is stored: the parts of every fact, and of each kind that noa knows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import Final

from noa.digests import canonical_json
from noa.errors import InvalidInputError
from noa_registry.evidence.calibration import CalibrationEvidence
from noa_registry.evidence.compatibility import CompatibilityEvidence
from noa_registry.evidence.equivalence import check_equivalence
from noa_registry.evidence.facts import (
    CALIBRATION,
    COMPATIBILITY,
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
    Evidence,
    attachment_digests,
    plain_json,
)
from noa_registry.evidence.measurable import check_measurable
from noa_registry.evidence.metrics import MetricsEvidence, check_possible
from noa_registry.evidence.performance import LatencyEvidence, SizeEvidence
from noa_registry.evidence.plain_fact import plain_fact, plain_text
from noa_registry.evidence.predictions import PredictionsEvidence
from noa_registry.evidence.recording import RECORDING_KEY
from noa_registry.evidence.scan import ScanEvidence

MAX_VALUES_BYTES: Final = 1 << 20
RESERVED: Final = MappingProxyType(
    {
        GATE: "`Registry.check` keeps a verdict",
        ORIGIN: "An import of an archive keeps where a version came from",
        HISTORY: "An import of an archive keeps where a version came from",
    }
)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_MEDIA_TYPE: Final = re.compile(r"[\x20-\x7e]{1,128}")
_SHOWN: Final = 80
_PARSERS: Final = MappingProxyType[str, Callable[[Evidence], object]](
    {
        CALIBRATION: CalibrationEvidence.from_evidence,
        COMPATIBILITY: CompatibilityEvidence.from_evidence,
        EQUIVALENCE: check_equivalence,
        LATENCY: LatencyEvidence.from_evidence,
        METRICS: lambda fact: check_possible(MetricsEvidence.from_evidence(fact)),
        PREDICTIONS: PredictionsEvidence.from_evidence,
        SCAN: ScanEvidence.from_evidence,
        SIZE: SizeEvidence.from_evidence,
    }
)


def check_evidence(fact: Evidence) -> Evidence:
    """Return evidence as it is read back later (`plain_fact`).

    Raises:
        InvalidInputError: it cannot be stored: a part is missing, or its kind wants other values.
    """
    fact = plain_fact(fact)
    for part, text in (("kind", fact.kind), ("subject", fact.subject)):
        if not _NAME.fullmatch(text):
            raise InvalidInputError(
                f"evidence has a {part} that is no name",
                expected="1 to 64 letters, digits, `.`, `_` or `-`, the first a letter or digit",
                received=repr(text)[:_SHOWN],
                field=part,
            )
    if not _DIGEST.fullmatch(fact.digest):
        raise InvalidInputError(
            f"{fact.kind} evidence does not name the bytes that were measured",
            expected="a digest `sha256:` with 64 hex digits",
            received=repr(fact.digest[:_SHOWN]),
            field="digest",
        )
    size = values_bytes(fact)
    if size > MAX_VALUES_BYTES:
        raise InvalidInputError(
            f"the values of {fact.kind} evidence are too large",
            expected=f"at most {MAX_VALUES_BYTES} bytes",
            received=f"{size} bytes",
            remedy="Keep what is large in an attachment",
        )
    if RECORDING_KEY in fact.values:
        raise InvalidInputError(
            f"{fact.kind} evidence says itself who recorded it",
            expected=f"values without `{RECORDING_KEY}`, which noa writes",
            received=f"`{RECORDING_KEY}`",
        )
    parse = _PARSERS.get(fact.kind)
    if parse is not None:
        parse(fact)
        check_measurable(fact)
    check_attachments(fact)
    return fact


def refuse_reserved(facts: Iterable[Evidence]) -> None:
    """Raise `InvalidInputError` if a fact is of a kind that only noa itself writes: it would be believed."""
    for fact in facts:
        kind = plain_text(fact.kind, "kind")
        if kind in RESERVED:
            raise InvalidInputError(
                f"evidence of kind `{kind}` is written by noa alone",
                expected=f"a kind other than {', '.join(f'`{name}`' for name in sorted(RESERVED))}",
                received=f"`{kind}`",
                remedy=RESERVED[kind],
            )


def values_bytes(fact: Evidence) -> int:
    """Return how many bytes the values of a fact take in the database.

    Raises:
        InvalidInputError: something in them has no JSON form.
    """
    try:
        return len(canonical_json(plain_json(fact.values)))
    except (RecursionError, UnicodeEncodeError) as exc:
        raise InvalidInputError(
            f"the values of {fact.kind} evidence cannot be stored",
            expected="JSON of moderate depth, and texts that are Unicode",
            received=str(exc)[:_SHOWN],
        ) from exc


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
        if not _MEDIA_TYPE.fullmatch(attachment.media_type):
            raise InvalidInputError(
                f"an attachment of {fact.kind} evidence has no media type",
                expected="e.g. `text/plain`, up to 128 characters",
                received=repr(attachment.media_type)[:_SHOWN],
            )
        if attachment.digest not in attachment_digests(fact):
            raise InvalidInputError(
                f"{fact.kind} evidence carries an attachment that it does not name",
                expected="its digest under `attachment`",
                received=attachment.digest,
            )
