"""Of several measurements of one thing search knows the worst. No table changes; an upgrade makes the index anew."""

from __future__ import annotations

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Do nothing."""
