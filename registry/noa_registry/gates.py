"""Gates: may this version become the holder of this alias?

`evaluate` is a pure function of what was measured. Three rules always hold: the bytes on disk are the sealed ones,
every format that is not native has passed evidence of equivalence for exactly these bytes, and the model's own limits
(`GateSettings`) are met on the test split. Each rule gives one verdict with what was expected and what was found, also
when it passed, so that the ledger tells later why a version went live.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from noa.errors import IntegrityError
from noa_registry.evidence import EQUIVALENCE, METRICS, Evidence

if TYPE_CHECKING:
    from noa.settings import GateSettings

TEST_SPLIT = "test"
_PREFERRED_FORMAT = "onnx"
_LOWER_IS_BETTER = ("loss", "error", "mse", "rmse", "mae", "mape", "brier", "perplexity", "nll")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleVerdict:
    """What one rule found."""

    rule: str
    passed: bool
    expected: str
    received: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """The verdicts of all rules about one version for one alias; `passed` if every rule did."""

    reference: str
    alias: str
    passed: bool
    verdicts: tuple[RuleVerdict, ...]

    @property
    def refusals(self) -> tuple[RuleVerdict, ...]:
        """The verdicts that did not pass."""
        return tuple(verdict for verdict in self.verdicts if not verdict.passed)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values; `from_dict` reads them back."""
        return {
            "reference": self.reference,
            "alias": self.alias,
            "passed": self.passed,
            "verdicts": [
                {"rule": v.rule, "passed": v.passed, "expected": v.expected, "received": v.received}
                for v in self.verdicts
            ],
        }

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
                passed=bool(value["passed"]),
                verdicts=tuple(
                    RuleVerdict(
                        rule=str(row["rule"]),
                        passed=bool(row["passed"]),
                        expected=str(row["expected"]),
                        received=str(row["received"]),
                    )
                    for row in rows
                ),
            )
        except (KeyError, TypeError) as exc:
            raise IntegrityError("a gate's report is not readable", received=str(value)[:120]) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What a gate looks at: a version's formats (name -> digest) and its evidence, oldest first."""

    reference: str
    native: str
    formats: Mapping[str, str]
    evidence: Sequence[Evidence]

    def newest(self, kind: str, subject: str) -> Evidence | None:
        """Return the newest evidence of `kind` that was measured on the sealed bytes of format `subject`."""
        digest = self.formats.get(subject)
        matches = (e for e in reversed(self.evidence) if e.kind == kind and e.subject == subject)
        return next((e for e in matches if e.digest == digest), None)

    def test_metrics(self, dataset_digest: str | None = None) -> Evidence | None:
        """Return the newest test metrics of the sealed bytes, of `onnx` if it has any, else of the native format."""
        for subject in (_PREFERRED_FORMAT, self.native):
            for evidence in reversed(self.evidence):
                if (
                    evidence.kind == METRICS
                    and evidence.subject == subject
                    and evidence.digest == self.formats.get(subject)
                    and evidence.values.get("split") == TEST_SPLIT
                    and dataset_digest in (None, evidence.values.get("dataset_digest"))
                ):
                    return evidence
        return None


def evaluate(
    candidate: Candidate,
    *,
    alias: str,
    bytes_problem: str | None,
    policy: GateSettings | None,
    holder: Candidate | None,
) -> GateReport:
    """Apply all rules. `bytes_problem` tells what re-hashing found (None: all files are what was sealed)."""
    verdicts = [bytes_verdict(bytes_problem), *_equivalence_verdicts(candidate)]
    if policy is not None and (not policy.aliases or alias in policy.aliases):
        verdicts += _metric_verdicts(candidate, policy)
        verdicts += _regression_verdicts(candidate, policy, holder)
    return report_of(candidate.reference, alias, verdicts)


def evaluate_rollback(candidate: Candidate, *, alias: str, bytes_problem: str | None) -> GateReport:
    """Apply the rules that no emergency suspends: the bytes, and that all formats compute the same."""
    return report_of(candidate.reference, alias, [bytes_verdict(bytes_problem), *_equivalence_verdicts(candidate)])


def report_of(reference: str, alias: str, verdicts: Sequence[RuleVerdict]) -> GateReport:
    """Combine verdicts."""
    return GateReport(
        reference=reference, alias=alias, passed=all(v.passed for v in verdicts), verdicts=tuple(verdicts)
    )


def bytes_verdict(problem: str | None) -> RuleVerdict:
    """Return the verdict about the files on disk."""
    return RuleVerdict(
        rule="bytes",
        passed=problem is None,
        expected="every file has the digest it was sealed with",
        received=problem or "every file has it",
    )


def _equivalence_verdicts(candidate: Candidate) -> list[RuleVerdict]:
    return [
        _equivalence_verdict(candidate, target) for target in sorted(candidate.formats) if target != candidate.native
    ]


def _equivalence_verdict(candidate: Candidate, target: str) -> RuleVerdict:
    source_digest = candidate.formats[candidate.native]
    expected = (
        f"passed evidence that `{target}` {_short(candidate.formats[target])} computes what "
        f"`{candidate.native}` {_short(source_digest)} computes"
    )
    evidence = candidate.newest(EQUIVALENCE, target)
    if evidence is None:
        received = "no evidence for these bytes"
    elif (evidence.values.get("source"), evidence.values.get("source_digest")) != (candidate.native, source_digest):
        received = f"evidence against other bytes, {_short(str(evidence.values.get('source_digest')))}"
    else:
        received = "passed" if evidence.passed else f"failed: {_numbers(evidence.values)}"
    return RuleVerdict(rule=f"equivalence.{target}", passed=received == "passed", expected=expected, received=received)


def _metric_verdicts(candidate: Candidate, policy: GateSettings) -> list[RuleVerdict]:
    evidence = candidate.test_metrics()
    verdicts: list[RuleVerdict] = []
    for kind, limits in (("min_metrics", policy.min_metrics), ("max_metrics", policy.max_metrics)):
        for metric, limit in sorted(limits.items()):
            value = _metric(evidence, metric)
            passed = value is not None and (value >= limit if kind == "min_metrics" else value <= limit)
            verdicts.append(
                RuleVerdict(
                    rule=f"{kind}.{metric}",
                    passed=passed,
                    expected=f"{'at least' if kind == 'min_metrics' else 'at most'} {limit:g} on the test split",
                    received=_describe(evidence, metric, value),
                )
            )
    return verdicts


def _regression_verdicts(candidate: Candidate, policy: GateSettings, holder: Candidate | None) -> list[RuleVerdict]:
    return [
        _regression_verdict(candidate, holder, metric, allowed, lower_is_better=_lower_is_better(metric, policy))
        for metric, allowed in sorted(policy.max_regression.items())
    ]


def _regression_verdict(
    candidate: Candidate, holder: Candidate | None, metric: str, allowed: float, *, lower_is_better: bool
) -> RuleVerdict:
    rule = f"max_regression.{metric}"
    if holder is None or holder.reference == candidate.reference:
        return RuleVerdict(
            rule=rule, passed=True, expected="not worse than the present holder", received="no other holder"
        )
    mine = candidate.test_metrics()
    dataset = None if mine is None else str(mine.values.get("dataset_digest"))
    theirs = holder.test_metrics(dataset)
    value, reference_value = _metric(mine, metric), _metric(theirs, metric)
    if mine is not None and theirs is None and (other := holder.test_metrics()) is not None:
        return RuleVerdict(
            rule=rule,
            passed=False,
            expected=f"`{holder.reference}` measured on the same dataset, {dataset}",
            received=f"measured on {other.values.get('dataset_digest')} only; `noa flows run` and "
            "`noa train --promote` measure both on the same rows",
        )
    if value is None or reference_value is None:
        missing, evidence = (candidate, mine) if value is None else (holder, theirs)
        return RuleVerdict(
            rule=rule,
            passed=False,
            expected=f"`{metric}` of `{missing.reference}` on the test split",
            received=_describe(evidence, metric, None),
        )
    limit = reference_value + allowed if lower_is_better else reference_value - allowed
    return RuleVerdict(
        rule=rule,
        passed=value <= limit if lower_is_better else value >= limit,
        expected=f"{'at most' if lower_is_better else 'at least'} {limit:g} "
        f"(`{holder.reference}` has {reference_value:g}, {allowed:g} worse is allowed)",
        received=f"{value:g}",
    )


def _lower_is_better(metric: str, policy: GateSettings) -> bool:
    if metric in policy.min_metrics:
        return False
    return metric in policy.max_metrics or any(part in _LOWER_IS_BETTER for part in metric.lower().split("_"))


def _metric(evidence: Evidence | None, metric: str) -> float | None:
    if evidence is None:
        return None
    metrics = cast("Mapping[str, object]", evidence.values.get("metrics", {}))
    value = metrics.get(metric)
    return None if value is None else float(cast("float | str", value))


def _describe(evidence: Evidence | None, metric: str, value: float | None) -> str:
    if value is not None:
        return f"{value:g}"
    if evidence is None:
        return "no test metrics of these bytes"
    metrics = cast("Mapping[str, object]", evidence.values.get("metrics", {}))
    return f"no `{metric}`; there are " + ", ".join(f"`{name}`" for name in sorted(metrics))


def _numbers(values: Mapping[str, object]) -> str:
    shown = {
        k: v for k, v in values.items() if isinstance(v, int | float | str) and "digest" not in k and k != "source"
    }
    return ", ".join(f"{key} {value}" for key, value in sorted(shown.items())) or "no details"


def _short(digest: str) -> str:
    return digest[: len("sha256:") + 12]
