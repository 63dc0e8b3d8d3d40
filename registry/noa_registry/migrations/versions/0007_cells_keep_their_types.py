"""SQLite refuses cells of another type and rows that are replaced; an upgrade makes its triggers anew.

A cell of another type that is there already stays, and is named by the verification. With such triggers SQLite looks,
for each row of the ledger that is written, for the rows of aliases that refer to it: that has an index now.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the index."""
    op.create_index("noa_alias_stack_sequence", "noa_alias_stack", ["sequence"], if_not_exists=True)
