"""What a measurement can be at all: checked when a fact comes in, by hand, from a program or in an archive.

Facts that are here already stay readable, so none of this is asked of them when they are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from noa.errors import InvalidInputError
from noa.metric_bounds import is_fraction
from noa_registry.evidence.facts import (
    CALIBRATION,
    EQUIVALENCE,
    LATENCY,
    METRICS,
    PREDICTIONS,
    SIZE,
    WHOLE_VERSION,
    Evidence,
)
from noa_registry.evidence.reading import Reader

MEASURED: Final = frozenset({CALIBRATION, LATENCY, METRICS, PREDICTIONS, SIZE})
"""Kinds that tell something of the bytes of one format, which the version then has."""
_ON_ROWS: Final = frozenset({CALIBRATION, METRICS, PREDICTIONS})
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_SHOWN: Final = 80


def check_measurable(fact: Evidence) -> None:
    """Raise `InvalidInputError` if nothing that was measured can be so; the fact can be read already.

    A metric may be NaN, and one that has no bounds infinite: that is what training that diverged gives.
    """
    reader = Reader(fact.values, f"{fact.kind} evidence of `{fact.subject}`")
    if fact.kind in _ON_ROWS and not _DIGEST.fullmatch(digest := reader.text("dataset_digest")):
        remedy = "Give the digest of the rows that were measured"
        raise _impossible(reader, "dataset_digest", "`sha256:` with 64 hex digits", ascii(digest)[:_SHOWN], remedy)
    if fact.kind == METRICS:
        _check_metrics(reader)
    elif fact.kind == LATENCY:
        _check_latency(reader)
    elif fact.kind == EQUIVALENCE:
        _check_comparison(reader, passed=fact.passed is True)


def check_measured_bytes(fact: Evidence, formats: Mapping[str, str], version: str, *, reference: str) -> None:
    """Raise `InvalidInputError` if a measurement is of no format of the version.

    `formats` holds the digests of the version's formats by name, `version` is its own digest.
    """
    if fact.kind not in MEASURED:
        return
    where = f"{fact.kind} evidence of `{fact.subject}`"
    listed = ", ".join(f"`{name}`" for name in sorted(formats))
    if fact.subject == WHOLE_VERSION:
        allowed = {version, *formats.values()}
    elif fact.subject in formats:
        allowed = {formats[fact.subject]}
    else:
        raise InvalidInputError(
            f"`{reference}` has no format `{fact.subject}` that could have been measured",
            where=where,
            expected=listed,
            received=f"`{fact.subject}`",
            remedy="Name the format that was measured; one that is new is added together with its evidence",
            field="subject",
        )
    if fact.digest not in allowed:
        raise InvalidInputError(
            f"the bytes that were measured are none of `{reference}`",
            where=where,
            expected=formats.get(fact.subject, version),
            received=fact.digest,
            remedy="Attach it to the version whose bytes were measured, or measure this one",
            field="digest",
        )


def _check_metrics(reader: Reader) -> None:
    if reader.values.get("rows") is not None and reader.integer("rows") < 1:
        raise _impossible(reader, "rows", "at least 1", "0", "Leave it out where nobody knows how many rows there were")
    _check_names(reader.table("metrics"))
    slices, rows = reader.table("slices"), reader.optional_integer("rows")
    for name in slices.values:
        _check_name(slices, name, "a slice")
        part = slices.table(name)
        if rows is not None and part.integer("rows") > rows:
            raise _impossible(part, "rows", f"at most the {rows} of all", str(part.integer("rows")), "Count anew")
        _check_names(part.table("metrics"))


def _check_names(metrics: Reader) -> None:
    for name, value in metrics.numbers().items():
        _check_name(metrics, name, "a metric")
        if name != name.strip():
            wanted = "the name of a metric without blanks at its ends"
            raise _impossible(metrics, name, wanted, ascii(name)[:_SHOWN], "Name it without them")
        if math.isinf(value) and is_fraction(name):
            raise _impossible(metrics, name, "a number from 0 to 1, or NaN", str(value), "Measure it anew")


def _check_name(reader: Reader, name: str, what: str) -> None:
    if not name.strip() or not name.isprintable():
        raise _impossible(
            reader, name, f"the name of {what}: printable text that is not empty", ascii(name)[:_SHOWN], "Name it anew"
        )


def _check_latency(reader: Reader) -> None:
    batches = reader.rows("batches")
    if not batches:
        raise _impossible(reader, "batches", "at least one batch size", "none", "Measure at least one batch size")
    sizes: set[int] = set()
    for row in batches:
        if (size := row.integer("batch")) in sizes:
            raise _impossible(row, "batch", "each batch size once", f"{size} again", "Give one measurement of each")
        sizes.add(size)
        p50, p99 = row.finite("p50_ms"), row.finite("p99_ms")
        for key, value in (("p50_ms", p50), ("p99_ms", p99)):
            if value <= 0:
                raise _impossible(row, key, "more than 0 ms", f"{value:g}", "Measure with a clock of finer ticks")
        if p99 < p50:
            raise _impossible(row, "p99_ms", f"at least `p50_ms`, {p50:g}", f"{p99:g}", "Give both in the right order")
        if row.values.get("max_ms") is not None and (slowest := row.finite("max_ms")) < p99:
            wanted = f"at least `p99_ms`, {p99:g}"
            raise _impossible(row, "max_ms", wanted, f"{slowest:g}", "Give the slowest of all runs")


def _check_comparison(reader: Reader, *, passed: bool) -> None:
    """A comparison that failed may have found NaN or an infinity where a number should be; no other can."""
    if reader.values.get("max_abs_error") is not None:
        error = reader.number("max_abs_error")
        if error < 0 or (passed and not math.isfinite(error)):
            wanted = "a finite number of at least 0" if passed else "a number of at least 0, or NaN"
            raise _impossible(reader, "max_abs_error", wanted, f"{error:g}", "Compare the formats anew")
    if reader.values.get("argmax_agreement") is not None:
        agreement = reader.number("argmax_agreement")
        if not 0 <= agreement <= 1 and not (math.isnan(agreement) and not passed):
            wanted = "a share from 0 to 1"
            raise _impossible(reader, "argmax_agreement", wanted, f"{agreement:g}", "Compare the formats anew")


def _impossible(reader: Reader, key: str, expected: str, received: str, remedy: str) -> InvalidInputError:
    return InvalidInputError(
        f"`{ascii(key)[1:-1][:_SHOWN]}` cannot be measured so",
        where=reader.where,
        expected=expected,
        received=received,
        remedy=remedy,
        field=key,
    )
