"""The gate: may this version become the holder of this alias?"""

from __future__ import annotations

from noa_registry.gates.candidate import Candidate, GateInput
from noa_registry.gates.evidence_rules import bytes_verdict, equivalence_verdicts, evidence_verdicts, runnable_verdicts
from noa_registry.gates.known_policy import known_policy_verdicts, policy_digest
from noa_registry.gates.measured_rows import measured_rows_verdicts
from noa_registry.gates.metric_rules import metric_verdicts
from noa_registry.gates.policy import policy_verdicts
from noa_registry.gates.report import GateReport, report_of
from noa_registry.gates.work import GateWork


def evaluate(gate_input: GateInput, work: GateWork | None = None) -> GateReport:
    """Apply all rules. `work` reads what a bootstrap needs; without it, rules that want one refuse."""
    chosen = work or GateWork()
    return chosen.remember(gate_input, lambda: _evaluate(gate_input, chosen))


def evaluate_rollback(
    candidate: Candidate, *, alias: str, bytes_problem: str | None, policy: str | None = None
) -> GateReport:
    """Apply the rules that no emergency suspends: the bytes, and that all formats compute the same.

    `policy` is the digest of the policy that guarded the alias until now: it goes on doing so.
    """
    verdicts = [bytes_verdict(bytes_problem), *equivalence_verdicts(candidate)]
    return report_of(candidate.reference, alias, verdicts, policy=policy)


def _evaluate(gate_input: GateInput, work: GateWork) -> GateReport:
    policy = gate_input.policy
    is_guarded = policy is not None and (not policy.aliases or gate_input.alias in policy.aliases)
    if policy is not None and is_guarded:
        gate_input = gate_input.on_rows(policy.datasets)
    candidate = gate_input.candidate
    verdicts = [bytes_verdict(gate_input.bytes_problem), *equivalence_verdicts(candidate)]
    verdicts += known_policy_verdicts(policy, gate_input.alias, gate_input.known_policy)
    verdicts += runnable_verdicts(candidate, policy if is_guarded else None)
    if policy is not None and is_guarded:
        verdicts += measured_rows_verdicts(gate_input, policy, work)
        verdicts += metric_verdicts(gate_input, policy, work)
        verdicts += evidence_verdicts(gate_input, policy)
        if policy.check:
            verdicts += policy_verdicts(gate_input, policy.check)
    digest = policy_digest(policy, gate_input.alias)
    return report_of(candidate.reference, gate_input.alias, verdicts, policy=digest)
