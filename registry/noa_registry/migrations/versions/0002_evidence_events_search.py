"""Records with digests; attachments, signatures, approvals, events, trash, generations, stacks of aliases, search."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from noa_registry.migrations.column_types import byte_string

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("noa_versions", sa.Column("record", byte_string(71)))
    op.create_index("noa_versions_created", "noa_versions", ["created_at", "name", "number"])
    op.create_index("noa_versions_digest", "noa_versions", ["digest"])
    op.create_index("noa_versions_model", "noa_versions", ["name", "created_at", "number"])
    op.add_column("noa_formats", sa.Column("record", byte_string(71)))
    op.create_index("noa_formats_digest", "noa_formats", ["digest"])
    op.add_column("noa_evidence", sa.Column("record", byte_string(71)))
    op.create_table(
        "noa_commits",
        sa.Column("token", byte_string(32), primary_key=True),
        sa.Column("created_at", byte_string(40), nullable=False),
    )
    op.create_index("noa_commits_created", "noa_commits", ["created_at"])
    op.create_table(
        "noa_alias_stack",
        sa.Column("name", byte_string(128), primary_key=True),
        sa.Column("alias", byte_string(64), primary_key=True),
        sa.Column("depth", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.CheckConstraint("depth >= 1"),
        sa.ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
        sa.ForeignKeyConstraint(["sequence"], ["noa_ledger.sequence"]),
    )
    op.create_index("noa_alias_stack_version", "noa_alias_stack", ["name", "number"])
    op.create_table(
        "noa_identity",
        sa.Column("id", byte_string(64), primary_key=True),
    )
    op.create_table(
        "noa_attachments",
        sa.Column("digest", byte_string(71), primary_key=True),
        sa.Column("media_type", byte_string(128), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", byte_string(40), nullable=False),
    )
    op.create_table(
        "noa_signatures",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("name", byte_string(128), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("subject", byte_string(64), nullable=False),
        sa.Column("digest", byte_string(71), nullable=False),
        sa.Column("identity", byte_string(512), nullable=False),
        sa.Column("bundle", sa.Text(), nullable=False),
        sa.Column("created_at", byte_string(40), nullable=False),
        sa.ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
    )
    op.create_index("noa_signatures_version", "noa_signatures", ["name", "number"])
    op.create_table(
        "noa_approvals",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("name", byte_string(128), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("alias", byte_string(64), nullable=False),
        sa.Column("digest", byte_string(71), nullable=False),
        sa.Column("principal", byte_string(256), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("signature", sa.Text()),
        sa.Column("created_at", byte_string(40), nullable=False),
        sa.Column("expires_at", byte_string(40), nullable=False),
        sa.Column("used_by", sa.Integer()),
        sa.Column("revoked_at", byte_string(40)),
        sa.ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
    )
    op.create_index("noa_approvals_version", "noa_approvals", ["name", "number", "alias"])
    op.create_table(
        "noa_outbox",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("name", byte_string(128), nullable=False),
        sa.Column("kind", byte_string(64), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("created_at", byte_string(40), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("noa_outbox_model", "noa_outbox", ["name", "id"])
    op.create_table(
        "noa_consumers",
        sa.Column("consumer", byte_string(128), primary_key=True),
        sa.Column("last_id", sa.Integer(), nullable=False),
        sa.Column("updated_at", byte_string(40), nullable=False),
    )
    op.create_table(
        "noa_dead_letters",
        sa.Column("consumer", byte_string(128), primary_key=True),
        sa.Column("event_id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("created_at", byte_string(40), nullable=False),
        sa.Column("next_attempt_at", byte_string(40)),
    )
    op.create_table(
        "noa_webhook_cursors",
        sa.Column("consumer", byte_string(128), primary_key=True),
        sa.Column("name", byte_string(128), primary_key=True),
        sa.Column("last_id", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", byte_string(40)),
        sa.Column("error", sa.Text()),
    )
    op.create_table(
        "noa_trash",
        sa.Column("name", byte_string(128), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("state", byte_string(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("deleted_by", byte_string(256), nullable=False),
        sa.Column("deleted_at", byte_string(40), nullable=False),
        sa.Column("purge_after", byte_string(40), nullable=False),
        sa.Column("purged_at", byte_string(40)),
        sa.CheckConstraint("state IN ('trashed', 'purging', 'purged')"),
        sa.ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
    )
    op.create_table(
        "noa_generations",
        sa.Column("endpoint", byte_string(128), primary_key=True),
        sa.Column("generation", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("name", byte_string(128), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("alias", byte_string(64)),
        sa.Column("format", byte_string(64), nullable=False),
        sa.Column("digest", byte_string(71), nullable=False),
        sa.Column("created_at", byte_string(40), nullable=False),
    )
    op.create_index("noa_generations_version", "noa_generations", ["name", "number"])
    op.create_table(
        "noa_replicas",
        sa.Column("endpoint", byte_string(128), primary_key=True),
        sa.Column("replica", byte_string(128), primary_key=True),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("acknowledged_at", byte_string(40), nullable=False),
        sa.Column("expires_at", byte_string(40), nullable=False),
    )
    op.create_table(
        "noa_version_labels",
        sa.Column("name", byte_string(128), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("key", byte_string(260), primary_key=True),
        sa.Column("value", byte_string(260), primary_key=True),
        sa.Column("created_at", byte_string(40), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("noa_version_labels_key", "noa_version_labels", ["key", "value", "created_at", "name", "number"])
    op.create_table(
        "noa_version_metrics",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("name", byte_string(128), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("format", byte_string(64), nullable=False),
        sa.Column("dataset_digest", byte_string(71), nullable=False),
        sa.Column("split", byte_string(64), nullable=False),
        sa.Column("metric", byte_string(128), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("created_at", byte_string(40), nullable=False),
    )
    op.create_index(
        "noa_version_metrics_value", "noa_version_metrics", ["metric", "value", "name", "number", "created_at"]
    )
    op.create_index("noa_version_metrics_version", "noa_version_metrics", ["name", "number", "metric", "value"])
