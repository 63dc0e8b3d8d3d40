"""Which policy a version is judged by, and that it does not go away in silence.

The digest of the policy stands in every verdict and so in the ledger. Whoever promotes without one (a script that
opened the registry without the project's settings, a table that was narrowed) is refused where the ledger knows of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from noa.digests import digest_json
from noa_registry.evidence.facts import GATE, WHOLE_VERSION, Evidence
from noa_registry.gates.report import RuleVerdict

if TYPE_CHECKING:
    from noa.settings import GateSettings

_ADDED_LATER: Final = ("datasets", "known_dataset", "directions")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPolicy:
    """The policy that the model was judged by before: its digest, and where that is written."""

    digest: str
    where: str


def policy_digest(policy: GateSettings | None, alias: str) -> str | None:
    """Return the digest of the policy that guards `alias`, None if none does. It holds no path of the machine."""
    if policy is None or (policy.aliases and alias not in policy.aliases):
        return None
    values = policy.model_dump(mode="json")
    for added in _ADDED_LATER:  # what is not used must not make an older verdict's policy look like another
        if not values[added]:
            del values[added]
    if policy.check:
        file, _, function = policy.check.rpartition(":")
        values["check"] = f"{PurePath(file).name}:{function}"
    return digest_json(values)


def policy_in_ledger(verdict: Mapping[str, object], sequence: int) -> KnownPolicy | None:
    """Return the policy that a row of the ledger was judged by, None if there was none."""
    digest = verdict.get("policy")
    return KnownPolicy(digest=digest, where=f"row {sequence} of the ledger") if isinstance(digest, str) else None


def policy_in_evidence(evidence: Sequence[Evidence], digest: str, alias: str) -> KnownPolicy | None:
    """Return the last policy by which the version of `digest` was checked for `alias`, None if there was none.

    A later check without a policy does not take it away. A fact about anything else is no check of this version.
    """
    for fact in reversed(evidence):
        policy = fact.values.get("policy")
        is_check = (fact.kind, fact.subject, fact.digest) == (GATE, WHOLE_VERSION, digest)
        if is_check and fact.values.get("alias") == alias and isinstance(policy, str):
            return KnownPolicy(digest=policy, where="its last check")
    return None


def known_policy_verdicts(policy: GateSettings | None, alias: str, known: KnownPolicy | None) -> list[RuleVerdict]:
    """Refuse where a policy is known and none is given now; say nothing else."""
    if known is None or policy_digest(policy, alias) is not None:
        return []
    return [
        RuleVerdict(
            rule="policy",
            passed=False,
            expected=f"a policy that guards `{alias}`, as in {known.where} ({known.digest[:19]})",
            received="none",
            remedy="Open the registry with all settings of the project, `Registry.open(settings)`; to ask for nothing "
            "any more, write an empty table `[gates.NAME]` in noa.toml",
        )
    ]
