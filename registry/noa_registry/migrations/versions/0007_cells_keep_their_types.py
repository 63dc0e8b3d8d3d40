"""SQLite refuses cells of another type and rows that are replaced. No table changes; an upgrade makes triggers anew.

A cell of another type that is there already stays, and is named by the verification.
"""

from __future__ import annotations

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Do nothing."""
