"""What follows from a verdict: evidence of the arm's version, and under `decide = "act"` a move of an alias.

To promote is to let the main's alias point to the arm's version, through the gate of the model, and only if the version
that was compared holds it still: of several servers that judge at once the registry lets one move it. To roll back ends
the arm: its alias goes back to the version that answers (which is no arm then), by the alias's own past where that
leads there, else by a promotion; where the gate refuses that, by the alias's past wherever it leads.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from noa.actors import flow_actor
from noa.errors import ConflictError, GateRefusedError, NotFoundError
from noa_serving._http import public_text
from noa_serving._verdict import TEST, Verdict

if TYPE_CHECKING:
    from noa.references import ModelReference
    from noa_registry import Registry
    from noa_serving._comparing import Pair

log = logging.getLogger("noa.serving")

EVIDENCE_KIND = "shadow"

_MOST_REASON = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A pair that was judged, what its endpoint and its arm follow, and whether to move aliases."""

    pair: Pair
    main: ModelReference
    arm: ModelReference
    acts: bool
    error: float


def keep_evidence(registry: Registry, case: Case, verdict: Verdict, counts: Mapping[str, object]) -> None:
    """Attach to the arm's version what was seen, by which test, and what follows from it.

    Raises:
        NotFoundError: there is no such version any more.
        NoaError: it is another one, or the registry cannot be written now.
    """
    from noa_registry import Evidence

    pair = case.pair
    version = registry.resolve(f"{case.arm.name}/{pair.arm_number}")
    if version.digest != pair.arm_digest:
        raise NotFoundError(f"`{version.reference}` is not what was compared", expected=pair.arm_digest)
    values = {
        "endpoint": pair.endpoint,
        "arm": pair.arm,
        "compared_with": f"{case.main.name}/{pair.main_number}",
        "compared_with_digest": pair.main_digest,
        "test": TEST,
        "error": case.error,
        **verdict.to_json(),
        "counts": counts,
    }
    fact = Evidence(
        kind=EVIDENCE_KIND,
        subject="version",
        digest=version.digest,
        passed=verdict.decision == "promote",
        values=values,
    )
    registry.attach(version.name, version.number, fact, actor=_actor(case), by_pipeline=True)


def move_alias(registry: Registry, case: Case, verdict: Verdict) -> str:
    """Move what a verdict moves, if the case acts, and return what was done, in a line.

    What the registry refuses for good (the gate, another holder meanwhile) is told there, not raised.

    Raises:
        NoaError: the registry cannot be reached or written now; another attempt may succeed.
    """
    if not case.acts:
        return "told; nothing was moved"
    reason = f"shadow of {case.pair.endpoint}: {verdict.reason}"[:_MOST_REASON]
    try:
        return _promote(registry, case, reason) if verdict.decision == "promote" else _end_arm(registry, case, reason)
    except (ConflictError, GateRefusedError, NotFoundError) as exc:
        return f"nothing was moved: {public_text(exc)}"


def _promote(registry: Registry, case: Case, reason: str) -> str:
    main, arm, pair = case.main, case.arm, case.pair
    if main.alias is None or main.name != arm.name:
        return f"told; endpoint {pair.endpoint} does not follow an alias of `{arm.name}`"
    if pair.arm_number < pair.main_number:
        return f"told; an older version than {pair.main_number} is promoted by people only"
    entry = registry.promote(
        arm.name, pair.arm_number, alias=main.alias, reason=reason, actor=_actor(case), expect=pair.main_number
    )
    return f"`{arm.name}@{main.alias}` was moved to version {pair.arm_number} (ledger row {entry.sequence})"


def _end_arm(registry: Registry, case: Case, reason: str) -> str:
    main, arm, pair = case.main, case.arm, case.pair
    if arm.alias is None:
        return f"told; the arm is pinned to version {pair.arm_number}"
    alias, actor = arm.alias, _actor(case)

    def roll_back() -> int:
        entry = registry.rollback(arm.name, alias=alias, reason=reason, actor=actor, expect=pair.arm_number)
        return entry.to_number

    is_same_model = main.name == arm.name
    if is_same_model and _previous(registry, arm.name, alias) != pair.main_number:
        try:
            registry.promote(
                arm.name, pair.main_number, alias=alias, reason=reason, actor=actor, expect=pair.arm_number
            )
        except GateRefusedError as exc:
            log.warning("endpoint %s: the arm is not moved to version %d: %s", pair.endpoint, pair.main_number, exc)
        else:
            return f"`{arm.name}@{alias}` was moved to version {pair.main_number}, which answers"
    return f"`{arm.name}@{alias}` was rolled back to version {roll_back()}"


def _previous(registry: Registry, name: str, alias: str) -> int | None:
    try:
        return registry.previous(name, alias=alias)
    except NotFoundError:
        return None


def _actor(case: Case) -> str:
    """Return who acts: the server, and the user whose rights it has, who may not approve it."""
    return flow_actor(f"shadow {case.pair.endpoint}/{case.pair.arm}")
