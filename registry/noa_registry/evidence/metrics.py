"""Metrics of a format on one split of a dataset, as a whole and per slice of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from noa.errors import InvalidInputError
from noa.metric_bounds import is_possible
from noa_registry.evidence.facts import METRICS, Evidence, described, plain_json
from noa_registry.evidence.reading import Reader, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceMetrics:
    """Metrics of those rows that belong to a slice, e.g. to one class, and how many rows these are."""

    rows: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsEvidence:
    """Metrics of format `subject`, whose bytes are `digest`. `dataset_digest` names the rows of the split."""

    subject: str
    digest: str
    dataset_digest: str
    split: str
    metrics: Mapping[str, float]
    rows: int | None = None
    slices: Mapping[str, SliceMetrics] = field(default_factory=dict[str, SliceMetrics])

    def to_evidence(self) -> Evidence:
        """Return it as a fact to attach.

        Raises:
            InvalidInputError: the name of a metric is no text, or its value no number, or none that it can have, as
                its name says.
        """
        _check_table("", self.metrics)
        for part_name, part in self.slices.items():
            _check_table(f" of slice `{part_name}`", part.metrics)
        check_possible(self)
        values: dict[str, object] = {
            "dataset_digest": self.dataset_digest,
            "split": self.split,
            "metrics": plain_json(dict(self.metrics)),
        }
        if self.rows is not None:
            values["rows"] = self.rows
        if self.slices:
            values["slices"] = {
                name: {"rows": part.rows, "metrics": plain_json(dict(part.metrics))}
                for name, part in self.slices.items()
            }
        return Evidence(kind=METRICS, subject=self.subject, digest=self.digest, values=values)

    @staticmethod
    def from_evidence(evidence: Evidence) -> MetricsEvidence:
        """Read a fact back.

        Raises:
            InvalidInputError: it is of another kind, or a part is missing or of the wrong type.
        """
        reader = Reader.of(evidence, METRICS)
        slices = reader.table("slices")
        parts = {name: slices.table(name) for name in slices.values}
        return MetricsEvidence(
            subject=evidence.subject,
            digest=evidence.digest,
            dataset_digest=reader.text("dataset_digest"),
            split=reader.text("split"),
            metrics=reader.table("metrics").numbers(),
            rows=reader.optional_integer("rows"),
            slices={
                name: SliceMetrics(rows=part.integer("rows", minimum=1), metrics=part.table("metrics").numbers())
                for name, part in parts.items()
            },
        )


def check_possible(measured: MetricsEvidence) -> None:
    """Raise `InvalidInputError` if a metric has a value that none of its name can have, e.g. an accuracy of 3."""
    parts = [("", measured.metrics), *((f" of slice `{name}`", part.metrics) for name, part in measured.slices.items())]
    for where, metrics in parts:
        for name, value in metrics.items():
            if not is_possible(name, value):
                raise InvalidInputError(
                    f"`{name}`{where} cannot have this value",
                    expected="a number from 0 to 1",
                    received=f"{value:g}",
                    remedy=f"Record it as a fraction, or under a name that says what it is, e.g. `{name}_percent`",
                    field=name,
                )


def _check_table(where: str, metrics: object) -> None:
    if not isinstance(metrics, Mapping):
        raise InvalidInputError(
            f"the metrics{where} are no table",
            expected="names with their numbers, e.g. {'accuracy': 0.9}",
            received=described(metrics),
            field="metrics",
        )
    for name, value in cast("Mapping[object, object]", metrics).items():
        if not isinstance(name, str):
            raise InvalidInputError(
                f"a metric{where} has a name that is no text",
                expected="a text, e.g. 'accuracy'",
                received=described(name),
                field="metrics",
            )
        _check_number(name, where, value)


def _check_number(name: str, where: str, value: object) -> None:
    """Raise `InvalidInputError` if the value of a metric is no number that a float can hold."""
    try:
        plain = None if isinstance(value, str) or _holds_text(value) else plain_json(value)
    except (InvalidInputError, RecursionError):
        plain = None
    if isinstance(plain, bool) or not isinstance(plain, int | float | str):  # a text is how NaN and infinities are kept
        raise InvalidInputError(
            f"`{name}`{where} has a value that is no number",
            expected="a number that a float can hold",
            received=f"{type(value).__name__}: {shown(value)}",
            field=name,
        )


def _holds_text(value: object) -> bool:
    return getattr(getattr(value, "dtype", None), "kind", None) in ("U", "S", "T")


def metrics_evidence(
    *,
    format: str,  # our word
    digest: str,
    dataset_digest: str,
    split: str,
    values: Mapping[str, float],
) -> Evidence:
    """Return the metrics of `format` (whose bytes are `digest`) on one split of a dataset.

    Raises:
        InvalidInputError: `values` is no table of names with numbers; the error names what was given.
    """
    measured = MetricsEvidence(
        subject=format, digest=digest, dataset_digest=dataset_digest, split=split, metrics=values
    )
    return measured.to_evidence()
