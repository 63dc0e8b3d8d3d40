"""A replica says which move of its alias it has followed, and which version it refused and why."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from noa_registry.migrations.column_types import byte_string

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add a column to the leases, and the table of refusals."""
    columns = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("noa_replicas")}
    if "move" not in columns:  # an upgrade that is run again finds what it made
        op.add_column("noa_replicas", sa.Column("move", sa.Integer()))
    op.create_table(
        "noa_refusals",
        sa.Column("endpoint", byte_string(128), primary_key=True),
        sa.Column("replica", byte_string(128), primary_key=True),
        sa.Column("name", byte_string(128), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("alias", byte_string(64)),
        sa.Column("digest", byte_string(71), nullable=False),
        sa.Column("move", sa.Integer(), nullable=False),
        sa.Column("reason", byte_string(1000), nullable=False),
        sa.Column("refused_at", byte_string(40), nullable=False),
        sa.Column("expires_at", byte_string(40), nullable=False),
        if_not_exists=True,
    )
