"""What an approval is: plain values, which the gate may import without a database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

ApprovalState: TypeAlias = Literal["open", "used", "revoked", "expired", "void"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One principal's word that version `name`/`number` with `digest` may become `alias`, once, until `expires_at`.

    `statement` names what was said (and signed) by its SHA-256; `signature` is None where no principals are configured.
    `used_by` is the ledger row of the promotion that used it up. `void` says why it cannot be used as things are,
    although nobody used or revoked it: its version is deleted or has another digest, its signature counts for nothing.
    """

    id: int
    name: str
    number: int
    alias: str
    digest: str
    principal: str
    reason: str
    created_at: datetime
    expires_at: datetime
    statement: str
    signature: str | None
    used_by: int | None
    revoked_at: datetime | None
    void: str | None = None

    def state(self, moment: datetime) -> ApprovalState:
        """Return what the approval is worth at a moment; `open` is what a promotion can use."""
        if self.used_by is not None:
            return "used"
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at <= moment:
            return "expired"
        return "open" if self.void is None else "void"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidApproval:
    """An approval that counts for the promotion that is judged now: every check of it has passed.

    There is at most one fact per principal, and none of the actor.
    """

    id: int
    principal: str
    statement: str
    expires_at: datetime
    is_signed: bool
