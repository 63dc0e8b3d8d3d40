"""Evidence: measured facts about the bytes of a version.

A fact names the digest of the bytes it was measured on. The gate counts it for exactly these bytes, so evidence cannot
be moved from one version to another, and a fact about a file that was changed later proves nothing. Facts are appended,
never changed; of several facts of one kind about the same bytes the newest counts.

Numbers that JSON cannot hold (NaN, infinities) are kept as the texts `nan`, `inf` and `-inf`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, cast

from noa.errors import InvalidInputError

METRICS: Final = "metrics"
EQUIVALENCE: Final = "equivalence"
ENVIRONMENT: Final = "environment"
WHOLE_VERSION: Final = "version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One measured fact.

    `subject` is the format that was measured, or `"version"`; `digest` names the measured bytes; `passed` is None where
    the fact is a number and not a judgement; `values` are plain JSON values.
    """

    kind: str
    subject: str
    digest: str
    passed: bool | None = None
    values: Mapping[str, object] = field(default_factory=dict[str, object])
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


def metrics_evidence(
    *,
    format: str,  # our word
    digest: str,
    dataset_digest: str,
    split: str,
    values: Mapping[str, float],
) -> Evidence:
    """Return the metrics of `format` (whose bytes are `digest`) on one split of a dataset."""
    return Evidence(
        kind=METRICS,
        subject=format,
        digest=digest,
        values={"dataset_digest": dataset_digest, "split": split, "metrics": plain_json(dict(values))},
    )


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
        passed=bool(passed),
        values={**comparison, "source": source, "source_digest": source_digest},
    )


def plain_json(value: object) -> object:
    """Return `value` as plain JSON values; NumPy numbers become numbers, NaN and infinities become texts.

    Raises:
        InvalidInputError: something in it has no JSON form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        table = cast("Mapping[object, object]", value)
        return {str(key): plain_json(entry) for key, entry in table.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain_json(entry) for entry in cast("Sequence[object]", value)]
    for method in ("item", "tolist"):  # NumPy scalars and arrays, without importing NumPy
        convert = getattr(value, method, None)
        if callable(convert) and (method == "tolist" or getattr(value, "ndim", None) == 0):
            return plain_json(convert())
    raise InvalidInputError(
        "a value cannot be stored", expected="JSON values", received=f"{type(value).__name__}: {str(value)[:80]}"
    )
