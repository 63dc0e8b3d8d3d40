"""Versions are found by their parameters. No table changes; an upgrade makes the index of search anew."""

from __future__ import annotations

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Do nothing."""
