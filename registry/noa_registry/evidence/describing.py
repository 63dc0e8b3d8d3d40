"""Facts in a line for people: what matters of each kind, with its numbers."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Final, cast

from noa.digests import short_digest
from noa.errors import InvalidInputError
from noa_registry.evidence.calibration import CalibrationEvidence
from noa_registry.evidence.compatibility import CompatibilityEvidence
from noa_registry.evidence.facts import (
    CALIBRATION,
    COMPATIBILITY,
    GATE,
    LATENCY,
    METRICS,
    PREDICTIONS,
    SCAN,
    SIZE,
    Evidence,
)
from noa_registry.evidence.metrics import MetricsEvidence
from noa_registry.evidence.performance import LatencyEvidence, SizeEvidence
from noa_registry.evidence.predictions import PredictionsEvidence
from noa_registry.evidence.scan import ScanEvidence


def describe_evidence(evidence: Evidence) -> str:
    """Return one line; a fact of a kind that noa does not know, or cannot read, shows its plain values."""
    describe = _DESCRIBERS.get(evidence.kind, _plain)
    try:
        return describe(evidence)
    except (InvalidInputError, KeyError, TypeError):
        return _plain(evidence)


def _metrics(evidence: Evidence) -> str:
    found = MetricsEvidence.from_evidence(evidence)
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in found.metrics.items())
    rows = "" if found.rows is None else f" on {found.rows} rows"
    slices = f"; {len(found.slices)} slices" if found.slices else ""
    return f"{numbers}{rows} of {found.split} {_digest(found.dataset_digest)}{slices}"


def _predictions(evidence: Evidence) -> str:
    found = PredictionsEvidence.from_evidence(evidence)
    kept = f"{found.rows} rows" if found.sample_seed is None else f"a sample of {found.rows} of {found.total_rows} rows"
    return f"`{found.output}` for {kept} of {found.split} {_digest(found.dataset_digest)}"


def _calibration(evidence: Evidence) -> str:
    found = CalibrationEvidence.from_evidence(evidence)
    return f"ECE {found.ece:.4g}, Brier {found.brier:.4g} on {found.rows} rows; {found.binning}"


def _latency(evidence: Evidence) -> str:
    found = LatencyEvidence.from_evidence(evidence)
    times = "; ".join(
        f"{row.batch} rows: p50 {row.p50_ms:.3g} ms, p99 {row.p99_ms:.3g} ms, {row.describe()}" for row in found.batches
    )
    return (
        f"{times.replace('1 rows:', '1 row:', 1) if times.startswith('1 ') else times} on {found.hardware.describe()}"
    )


def _size(evidence: Evidence) -> str:
    found = SizeEvidence.from_evidence(evidence)
    return f"{found.size_bytes} bytes in {found.files} file{'' if found.files == 1 else 's'}"


def _scan(evidence: Evidence) -> str:
    found = ScanEvidence.from_evidence(evidence)
    findings = "; ".join(f"{entry.file}: {entry.what}" for entry in found.findings) or "nothing found"
    allowed = "" if found.allowed_by is None else f", allowed by {found.allowed_by}"
    return f"{found.scanner} {found.version}, {found.files} files: {findings}{allowed}"


def _compatibility(evidence: Evidence) -> str:
    found = CompatibilityEvidence.from_evidence(evidence)
    return f"{found.level} with {found.holder}" + (f": {'; '.join(found.differences)}" if found.differences else "")


def _gate(evidence: Evidence) -> str:
    verdicts = cast("list[dict[str, object]]", evidence.values["verdicts"])
    refused = ", ".join(str(row["rule"]) for row in verdicts if row["passed"] is not True)
    return f"for @{evidence.values['alias']}: {len(verdicts)} rules" + (f", refused by {refused}" if refused else "")


def _plain(evidence: Evidence) -> str:
    parts: list[str] = []
    for key, value in evidence.values.items():
        if isinstance(value, bool | int):
            parts.append(f"{key}={value}")
        elif isinstance(value, float):
            parts.append(f"{key}={value:.4g}")
        elif isinstance(value, str):
            parts.append(f"{key}={_digest(value)}")
    return ", ".join(parts)


def _digest(text: str) -> str:
    return short_digest(text) if text.startswith("sha256:") else text


_DESCRIBERS: Final = MappingProxyType[str, Callable[[Evidence], str]](
    {
        CALIBRATION: _calibration,
        COMPATIBILITY: _compatibility,
        GATE: _gate,
        LATENCY: _latency,
        METRICS: _metrics,
        PREDICTIONS: _predictions,
        SCAN: _scan,
        SIZE: _size,
    }
)
