"""Sealed versions, their formats and evidence, aliases and the ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from noa_registry.migrations.column_types import byte_string

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "noa_schema",
        sa.Column("version", sa.Integer(), primary_key=True),
        sa.Column("mlflow_revision", byte_string(32), nullable=False),
        sa.Column("mlflow_version", byte_string(64), nullable=False),
        sa.Column("applied_at", byte_string(40), nullable=False),
    )
    op.create_table(
        "noa_models",
        sa.Column("name", byte_string(128), primary_key=True),
        sa.Column("next_number", sa.Integer(), nullable=False),
        sa.Column("created_at", byte_string(40), nullable=False),
        sa.Column("updated_at", byte_string(40), nullable=False),
    )
    op.create_table(
        "noa_versions",
        sa.Column("name", byte_string(128), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("uid", byte_string(64), nullable=False, unique=True),
        sa.Column("digest", byte_string(71), nullable=False),
        sa.Column("native", byte_string(64), nullable=False),
        sa.Column("signature", sa.Text(), nullable=False),
        sa.Column("wrapper", sa.Text(), nullable=False),
        sa.Column("dataset_digest", byte_string(71), nullable=False),
        sa.Column("run_id", byte_string(64)),
        sa.Column("git_commit", byte_string(64)),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("params", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", byte_string(40), nullable=False),
        sa.Column("created_by", byte_string(256), nullable=False),
        sa.ForeignKeyConstraint(["name"], ["noa_models.name"]),
        sa.CheckConstraint("number >= 1"),
    )
    op.create_table(
        "noa_formats",
        sa.Column("name", byte_string(128), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("format", byte_string(64), primary_key=True),
        sa.Column("uid", byte_string(64), nullable=False),
        sa.Column("digest", byte_string(71), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("created_at", byte_string(40), nullable=False),
        sa.Column("created_by", byte_string(256), nullable=False),
        sa.ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
    )
    op.create_index("noa_formats_uid", "noa_formats", ["uid"])
    op.create_table(
        "noa_evidence",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("name", byte_string(128), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", byte_string(64), nullable=False),
        sa.Column("subject", byte_string(64), nullable=False),
        sa.Column("digest", byte_string(71), nullable=False),
        sa.Column("passed", sa.Boolean()),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("created_at", byte_string(40), nullable=False),
        sa.ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
    )
    op.create_index("noa_evidence_version", "noa_evidence", ["name", "number"])
    op.create_table(
        "noa_ledger",
        sa.Column("sequence", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("name", byte_string(128), nullable=False),
        sa.Column("alias", byte_string(64), nullable=False),
        sa.Column("action", byte_string(16), nullable=False),
        sa.Column("from_number", sa.Integer()),
        sa.Column("to_number", sa.Integer(), nullable=False),
        sa.Column("from_digest", byte_string(71)),
        sa.Column("to_digest", byte_string(71), nullable=False),
        sa.Column("actor", byte_string(256), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("created_at", byte_string(40), nullable=False),
        sa.Column("previous_hash", byte_string(71), nullable=False),
        sa.Column("hash", byte_string(71), nullable=False, unique=True),
        sa.CheckConstraint("action IN ('promote', 'rollback')"),
    )
    op.create_index("noa_ledger_alias", "noa_ledger", ["name", "alias", "sequence"])
    op.create_table(
        "noa_aliases",
        sa.Column("name", byte_string(128), primary_key=True),
        sa.Column("alias", byte_string(64), primary_key=True),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("digest", byte_string(71), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
        sa.ForeignKeyConstraint(["sequence"], ["noa_ledger.sequence"]),
        sa.UniqueConstraint("sequence"),
    )
