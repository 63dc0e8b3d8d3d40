"""What a gate says: one verdict per rule, with what was expected and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast

from noa.errors import IntegrityError
from noa_registry.evidence.facts import GATE, WHOLE_VERSION, Evidence, plain_json

VerdictState: TypeAlias = Literal["passed", "warning", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleVerdict:
    """What one rule found. `remedy` is what to do about a refusal; `measured` holds the numbers it was judged by.

    A `warning` tells what it passed without knowing. `recorded` says who recorded the facts that it used, and when.
    """

    rule: str
    passed: bool
    expected: str
    received: str
    remedy: str | None = None
    measured: Mapping[str, object] = field(default_factory=dict[str, object])
    warning: str | None = None
    recorded: tuple[str, ...] = ()

    @property
    def state(self) -> VerdictState:
        """The verdict in one word."""
        if not self.passed:
            return "refused"
        return "passed" if self.warning is None else "warning"

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        row: dict[str, object] = {
            "rule": self.rule,
            "passed": self.passed,
            "expected": self.expected,
            "received": self.received,
        }
        if self.remedy is not None:
            row["remedy"] = self.remedy
        if self.warning is not None:
            row["warning"] = self.warning
        if self.recorded:
            row["recorded"] = list(self.recorded)
        if self.measured:
            row["measured"] = plain_json(dict(self.measured))
        return row


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """The verdicts of all rules about one version for one alias; `passed` if every rule did."""

    reference: str
    alias: str
    passed: bool
    verdicts: tuple[RuleVerdict, ...]
    policy: str | None = None
    """Digest of the policy it was judged by, None if none guards the alias."""

    @property
    def refusals(self) -> tuple[RuleVerdict, ...]:
        """The verdicts that did not pass."""
        return tuple(verdict for verdict in self.verdicts if not verdict.passed)

    @property
    def warnings(self) -> tuple[RuleVerdict, ...]:
        """The verdicts that passed without knowing all."""
        return tuple(verdict for verdict in self.verdicts if verdict.state == "warning")

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values; `from_dict` reads them back."""
        values: dict[str, object] = {
            "reference": self.reference,
            "alias": self.alias,
            "passed": self.passed,
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
        }
        return values if self.policy is None else {**values, "policy": self.policy}

    def to_evidence(self, digest: str) -> Evidence:
        """Return the report as a fact about the version whose digest is `digest`."""
        return Evidence(kind=GATE, subject=WHOLE_VERSION, digest=digest, passed=self.passed, values=self.to_dict())

    @staticmethod
    def from_dict(value: Mapping[str, object]) -> GateReport:
        """Parse what `to_dict` wrote.

        Raises:
            IntegrityError: a part is missing.
        """
        try:
            rows = cast("list[dict[str, object]]", value["verdicts"])
            return GateReport(
                reference=str(value["reference"]),
                alias=str(value["alias"]),
                passed=value["passed"] is True,
                verdicts=tuple(
                    RuleVerdict(
                        rule=str(row["rule"]),
                        passed=row["passed"] is True,
                        expected=str(row["expected"]),
                        received=str(row["received"]),
                        remedy=cast("str | None", row.get("remedy")),
                        measured=cast("Mapping[str, object]", row.get("measured", {})),
                        warning=cast("str | None", row.get("warning")),
                        recorded=tuple(map(str, cast("list[object]", row.get("recorded", [])))),
                    )
                    for row in rows
                ),
                policy=cast("str | None", value.get("policy")),
            )
        except (KeyError, TypeError, AttributeError) as exc:
            raise IntegrityError("a gate's report is not readable", received=str(value)[:120]) from exc


def recorded_of(facts: Mapping[str, Evidence]) -> tuple[str, ...]:
    """Return who recorded the facts that a rule used, by whose they are; the key of the version itself is empty."""
    said = {side: fact.describe_recording() for side, fact in facts.items()}
    return tuple(f"{side}: {text}" if side else text for side, text in said.items())


def report_of(reference: str, alias: str, verdicts: Sequence[RuleVerdict], *, policy: str | None = None) -> GateReport:
    """Combine verdicts."""
    return GateReport(
        reference=reference,
        alias=alias,
        passed=all(v.passed for v in verdicts),
        verdicts=tuple(verdicts),
        policy=policy,
    )
