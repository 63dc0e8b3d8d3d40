"""Equivalence: a converted format computes what the native one computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from noa_registry.evidence.facts import EQUIVALENCE, Evidence, plain_json
from noa_registry.evidence.golden import check_golden
from noa_registry.evidence.plain_fact import plain_judgement
from noa_registry.evidence.reading import Reader


def equivalence_evidence(
    *,
    source: str,
    source_digest: str,
    target: str,
    target_digest: str,
    passed: bool,
    values: Mapping[str, object],
) -> Evidence:
    """Return the comparison of format `target` with format `source` on real samples."""
    comparison = cast("dict[str, object]", plain_json(dict(values)))
    return Evidence(
        kind=EQUIVALENCE,
        subject=target,
        digest=target_digest,
        passed=plain_judgement(passed),
        values={**comparison, "source": source, "source_digest": source_digest},
    )


def check_equivalence(evidence: Evidence) -> None:
    """Raise `InvalidInputError` if the fact does not say which bytes were compared, or has wrong golden requests."""
    reader = Reader.of(evidence, EQUIVALENCE)
    reader.text("source")
    reader.text("source_digest")
    check_golden(evidence)
