"""What a comparison of MLflow's rows with noa's finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from noa_registry.events.outbox import WHOLE_REGISTRY

MirrorField: TypeAlias = Literal[
    "row",
    "stage",
    "source",
    "run_id",
    "description",
    "tag",
    "alias",
    "model",
    "guard",
    "moved",
    "experiment",
    "run",
    "metric",
    "foreign",
    "record",
    "index",
    "undone",
]
_WITH_FIELD: Final = ("row", "stage", "source", "run_id", "description", "tag")


@dataclass(frozen=True, slots=True, kw_only=True)
class Discrepancy:
    """One place where MLflow's rows differ from noa's.

    `subject` is e.g. `alias champion` or `version 3`, `field` what of it differs; `key` is the tag, alias or trigger.
    `experiment` and `run` are those of noa's jobs and versions, `metric` a number that was logged over a version's run.
    `foreign` is a version that somebody else made inside a model of noa's: only they know whether it may go.
    `record` is a version whose own record was changed: nothing of it is written into MLflow's rows. `index` is a row of
    the index of search that the record (with a `number`) or the evidence (without) does not bear out. `undone` is a
    comparison that stopped at a spoilt cell.
    `moved` is one finding for all files that are recorded below another folder: `expected` and `received` are the two.
    """

    name: str
    subject: str
    expected: str
    received: str
    field: MirrorField
    number: int | None = None
    key: str = ""

    @property
    def is_repairable(self) -> bool:
        """Whether a repair undoes it."""
        return self.field not in ("foreign", "record", "undone")

    def __str__(self) -> str:
        what = self.field if self.field in _WITH_FIELD else ""
        place = " ".join(part for part in (self.name, self.subject) if part != WHOLE_REGISTRY)
        detail = f", {what}{f' {self.key}' if self.field == 'tag' else ''}" if what else ""
        return f"{place}{detail}: expected {self.expected}; received {self.received}"
