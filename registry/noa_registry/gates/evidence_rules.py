"""Rules about everything that is not a metric: equivalence, latency, size, required evidence, signature, approvals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import TYPE_CHECKING

from noa.actors import distinct_users, is_same_user
from noa.formats import KEPT_FORMATS, format_names
from noa_registry.evidence.compatibility import compare_signatures
from noa_registry.evidence.facts import EQUIVALENCE, WHOLE_VERSION, Evidence
from noa_registry.evidence.same_thing import measurements_of, worst_judgement
from noa_registry.gates.candidate import Candidate, GateInput
from noa_registry.gates.recorded_latency import JudgedLatency, RecordedLatency, latency_name
from noa_registry.gates.report import RuleVerdict, recorded_of

if TYPE_CHECKING:
    from noa.settings import GateSettings


def bytes_verdict(problem: str | None) -> RuleVerdict:
    """Return the verdict about the files on disk."""
    return RuleVerdict(
        rule="bytes",
        passed=problem is None,
        expected="every file has the digest it was sealed with",
        received=problem or "every file has it",
    )


def runnable_verdicts(candidate: Candidate, policy: GateSettings | None) -> list[RuleVerdict]:
    """Refuse a version that nobody could serve; say nothing about the others, or if the policy allows it."""
    is_allowed = policy is not None and policy.allow_kept
    if is_allowed or any(name not in KEPT_FORMATS for name in candidate.formats):
        return []
    return [
        RuleVerdict(
            rule="runnable",
            passed=False,
            expected="a format that noa can run: " + ", ".join(n for n in format_names() if n not in KEPT_FORMATS),
            received=", ".join(sorted(candidate.formats)) + ", which is kept and never loaded",
            remedy="Import the model as ONNX, or, if the alias is only a name for these files, set `allow_kept = true` "
            "in [gates.NAME] of noa.toml",
        )
    ]


def equivalence_verdicts(candidate: Candidate) -> list[RuleVerdict]:
    """Return one verdict per format that is not native: does it compute what the native one does?"""
    return [
        _equivalence_verdict(candidate, target) for target in sorted(candidate.formats) if target != candidate.native
    ]


def evidence_verdicts(gate_input: GateInput, policy: GateSettings) -> list[RuleVerdict]:
    """Return the verdicts of all rules that are not about metrics."""
    candidate = gate_input.candidate
    verdicts = [_latency_verdict(candidate, name, limit) for name, limit in sorted(policy.max_latency_ms.items())]
    if policy.max_size_bytes is not None:
        verdicts.append(_size_verdict(candidate, policy.max_size_bytes))
    verdicts += [_required_verdict(candidate, kind) for kind in policy.require]
    if policy.compatible:
        verdicts.append(_compatible_verdict(gate_input))
    if policy.approvals:
        verdicts.append(_approvals_verdict(gate_input, policy.approvals))
    return verdicts


def _equivalence_verdict(candidate: Candidate, target: str) -> RuleVerdict:
    source_digest = candidate.formats[candidate.native]
    expected = (
        f"passed evidence that `{target}` {_short(candidate.formats[target])} computes what "
        f"`{candidate.native}` {_short(source_digest)} computes"
    )
    digest = candidate.formats[target]
    facts = [f for f in candidate.evidence if (f.kind, f.subject, f.digest) == (EQUIVALENCE, target, digest)]
    pair = [
        f for f in facts if (f.values.get("source"), f.values.get("source_digest")) == (candidate.native, source_digest)
    ]
    counted = worst_judgement(pair) if pair else None
    if counted is not None:
        received = "passed" if counted.passed else f"failed: {_numbers(counted.values)}{_of_several(counted, pair)}"
    elif facts:
        received = f"evidence against other bytes, {_short(str(facts[-1].values.get('source_digest')))}"
    else:
        received = "no evidence for these bytes"
    return RuleVerdict(
        rule=f"equivalence.{target}",
        passed=received == "passed",
        expected=expected,
        received=received,
        recorded=() if counted is None else recorded_of({"": counted}),
    )


def _latency_verdict(candidate: Candidate, name: str, limit: float) -> RuleVerdict:
    percentile, batch = latency_name(name)
    served = candidate.served_formats[0]
    recorded = RecordedLatency.of(candidate, served)
    judged, known = recorded.judge(percentile, batch, limit), recorded.slowest
    if judged.taken is not None and known is not None:
        others = "" if judged.chosen is None else judged.chosen.describe_others()
        received = f"{judged.describe(known.hardware.describe())}{others}"
    elif known is not None:
        measured = ", ".join(str(entry.batch) for entry in known.batches)
        received = f"not measured with {batch}; with {measured}"
    else:
        received = recorded.problem or "no measurement"
    return RuleVerdict(
        rule=f"max_latency_ms.{name}",
        passed=judged.passed,
        expected=f"`{served}` answers {batch} row{'' if batch == 1 else 's'} within {limit:g} ms ({percentile})",
        received=received,
        remedy=None if judged.is_decided else _latency_remedy(candidate, judged, batch, is_known=known is not None),
        warning=_slower_elsewhere(recorded, percentile, batch, limit) if judged.chosen is not None else None,
        measured=judged.to_dict(),
        recorded=() if judged.chosen is None else recorded_of({"": judged.chosen.chosen.fact}),
    )


def _latency_remedy(candidate: Candidate, judged: JudgedLatency, batch: int, *, is_known: bool) -> str:
    command = f"noa models measure {candidate.reference}"
    if judged.taken is None:
        only = "; where the model takes only one size of batch, limit the latency of one row" if is_known else ""
        return f"Measure it: {command} --batch {batch}{only}" if is_known else f"Measure it: {command}"
    if judged.chosen is None:
        seconds = judged.taken.entry.seconds_needed(judged.percentile)
        if seconds is None:
            return f"A run takes too long for `{judged.percentile}`: limit the `p50` of this batch size"
        return f"Measure it for longer, which then counts: {command} --batch {batch} --seconds {seconds}"
    return f"Measure it again when the machine has less to do, which then counts: {command}"


def _slower_elsewhere(recorded: RecordedLatency, percentile: str, batch: int, limit: float) -> str | None:
    """Return a warning about machines on which it was measured before and is too slow."""
    values = [(latency.value(percentile, batch), latency.hardware.describe()) for latency in recorded.elsewhere]
    slow = [f"{value:.4g} ms on {machine}" for value, machine in values if value is not None and value > limit]
    return f"it is too slow elsewhere: {'; '.join(slow)}" if slow else None


def _size_verdict(candidate: Candidate, limit: int) -> RuleVerdict:
    served = candidate.served_formats[0]
    size = candidate.sizes.get(served)
    return RuleVerdict(
        rule="max_size_bytes",
        passed=size is not None and size <= limit,
        expected=f"`{served}` has at most {limit} bytes",
        received=f"the size of `{served}` is not known" if size is None else f"{size} bytes",
        remedy="Judge a registered version" if size is None else None,
    )


def _required_verdict(candidate: Candidate, kind: str) -> RuleVerdict:
    """Judge the evidence of a kind per format, and about the version as a whole: what failed once has failed."""
    newest: dict[str, Evidence] = {}
    for evidence in candidate.evidence:
        digest = candidate.digest if evidence.subject == WHOLE_VERSION else candidate.formats.get(evidence.subject)
        if evidence.kind == kind and digest and evidence.digest == digest:
            newest[evidence.subject] = evidence
    groups = {subject: measurements_of(candidate.evidence, fact) for subject, fact in newest.items()}
    counted = {subject: worst_judgement(group) for subject, group in groups.items()}
    failed = [subject for subject, evidence in counted.items() if evidence.passed is False]
    known = sorted({evidence.kind for evidence in candidate.evidence})
    if not newest:
        received = "none of these bytes; there is " + (", ".join(f"`{name}`" for name in known) or "no evidence")
    elif failed:
        received = "failed: " + ", ".join(
            f"`{subject}` ({_numbers(counted[subject].values)}{_of_several(counted[subject], groups[subject])})"
            for subject in failed
        )
    else:
        received = ", ".join(f"of `{subject}`" for subject in sorted(newest))
    return RuleVerdict(
        rule=f"require.{kind}",
        passed=bool(newest) and not failed,
        expected=f"evidence of kind `{kind}` for these bytes, which passed if it judges",
        received=received,
        remedy=None if newest else f"Attach it with `Registry.attach`, or take `{kind}` out of `require`",
        recorded=recorded_of({subject if len(counted) > 1 else "": fact for subject, fact in sorted(counted.items())}),
    )


def _compatible_verdict(gate_input: GateInput) -> RuleVerdict:
    expected = "a signature that clients of the present holder can go on using"
    rival = gate_input.rival
    if rival is None:
        return RuleVerdict(rule="compatible", passed=True, expected=expected, received="no other holder")
    if rival.signature is None or gate_input.candidate.signature is None:
        return RuleVerdict(
            rule="compatible",
            passed=False,
            expected=expected,
            received="the signatures are not known",
            remedy="Judge a registered version",
        )
    found = compare_signatures(rival.signature, gate_input.candidate.signature)
    changes = f": {'; '.join(found.differences)}" if found.differences else ""
    return RuleVerdict(
        rule="compatible",
        passed=found.level != "breaking",
        expected=f"{expected}, `{rival.reference}`",
        received=found.level + changes,
        remedy="Register it under another name, or move the clients first" if found.level == "breaking" else None,
        measured={"level": found.level, "differences": list(found.differences)},
    )


def _approvals_verdict(gate_input: GateInput, needed: int) -> RuleVerdict:
    candidate = gate_input.candidate
    expected = f"{needed} valid approval{'' if needed == 1 else 's'} of these bytes by others than who promotes"
    if gate_input.holder is not None and gate_input.rival is None:  # what it took to get there was used up then
        return RuleVerdict(
            rule="approvals", passed=True, expected=expected, received=f"it holds `{gate_input.alias}` already"
        )
    principals = sorted(
        distinct_users(
            approval.principal
            for approval in gate_input.approvals
            if candidate.digest
            and approval.digest == candidate.digest
            and not is_same_user(approval.principal, gate_input.actor)
        )
    )
    return RuleVerdict(
        rule="approvals",
        passed=len(principals) >= needed,
        expected=expected,
        received=f"{len(principals)}" + (f": {', '.join(principals)}" if principals else ""),
        remedy=None
        if len(principals) >= needed
        else f"Somebody else approves it with: noa models approve {candidate.reference} --alias {gate_input.alias}",
        measured={"principals": principals},
    )


def _of_several(counted: Evidence, facts: Sequence[Evidence]) -> str:
    """Return a remark where others of the same thing say something else."""
    if len({fact.passed for fact in facts}) < 2:
        return ""
    when = counted.created_at.astimezone(UTC).isoformat(timespec="seconds")
    return f"; of {when}, the worst of {len(facts)}"


def _numbers(values: Mapping[str, object]) -> str:
    shown = {
        k: v for k, v in values.items() if isinstance(v, int | float | str) and "digest" not in k and k != "source"
    }
    return ", ".join(f"{key} {value}" for key, value in sorted(shown.items())) or "no details"


def _short(digest: str) -> str:
    return digest[: len("sha256:") + 12]
