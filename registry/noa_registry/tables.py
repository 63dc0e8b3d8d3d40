"""The tables: noa's own, and those columns of MLflow's that noa reads and writes.

noa's tables hold the truth. What is declared here is what the revisions in `migrations/` make; a change goes to both,
and raises SCHEMA_VERSION. MLflow's tables are created and migrated by MLflow (see `mlflow_schema.py`).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 8

metadata = MetaData()
mlflow_metadata = MetaData()

schema = Table(
    "noa_schema",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("mlflow_revision", String(32), nullable=False),
    Column("mlflow_version", String(64), nullable=False),
    Column("applied_at", String(40), nullable=False),
)

# PostgreSQL only: a row per write of the last hour, by which a lost commit is found (see `postgres_database.py`).
commits = Table(
    "noa_commits",
    metadata,
    Column("token", String(32), primary_key=True),
    Column("created_at", String(40), nullable=False),
    Index("noa_commits_created", "created_at"),
)

models = Table(
    "noa_models",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("next_number", Integer, nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("updated_at", String(40), nullable=False),
)

versions = Table(
    "noa_versions",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("uid", String(64), nullable=False, unique=True),
    Column("digest", String(71), nullable=False),
    Column("native", String(64), nullable=False),
    Column("signature", Text, nullable=False),
    Column("wrapper", Text, nullable=False),
    Column("dataset_digest", String(71), nullable=False),
    Column("run_id", String(64)),
    Column("git_commit", String(64)),
    Column("environment", Text, nullable=False),
    Column("params", Text, nullable=False),
    Column("tags", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("created_by", String(256), nullable=False),
    Column("record", String(71)),
    ForeignKeyConstraint(["name"], ["noa_models.name"]),
    CheckConstraint("number >= 1"),
    Index("noa_versions_created", "created_at", "name", "number"),
    Index("noa_versions_model", "name", "created_at", "number"),
    Index("noa_versions_digest", "digest"),
)

formats = Table(
    "noa_formats",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("format", String(64), primary_key=True),
    Column("uid", String(64), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("manifest", Text, nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("created_by", String(256), nullable=False),
    Column("record", String(71)),
    ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
    Index("noa_formats_uid", "uid"),
    Index("noa_formats_digest", "digest"),
)

evidence = Table(
    "noa_evidence",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(128), nullable=False),
    Column("number", Integer, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("passed", Boolean),
    Column("content", Text, nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("record", String(71)),
    ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
    Index("noa_evidence_version", "name", "number"),
)

evidence_sets = Table(
    "noa_evidence_sets",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("facts", Integer, nullable=False),
    Column("digest", String(71), nullable=False),
    CheckConstraint("facts >= 0"),
    ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
)

ledger = Table(
    "noa_ledger",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("name", String(128), nullable=False),
    Column("alias", String(64), nullable=False),
    Column("action", String(16), nullable=False),
    Column("from_number", Integer),
    Column("to_number", Integer, nullable=False),
    Column("from_digest", String(71)),
    Column("to_digest", String(71), nullable=False),
    Column("actor", String(256), nullable=False),
    Column("reason", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("previous_hash", String(71), nullable=False),
    Column("hash", String(71), nullable=False, unique=True),
    Index("noa_ledger_alias", "name", "alias", "sequence"),
    CheckConstraint("action IN ('promote', 'rollback')"),
)

aliases = Table(
    "noa_aliases",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("number", Integer, nullable=False),
    Column("digest", String(71), nullable=False),
    Column("sequence", Integer, nullable=False),
    ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
    ForeignKeyConstraint(["sequence"], ["noa_ledger.sequence"]),
    UniqueConstraint("sequence"),
)

alias_stack = Table(
    "noa_alias_stack",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("depth", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, nullable=False),
    Column("sequence", Integer, nullable=False),
    ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
    ForeignKeyConstraint(["sequence"], ["noa_ledger.sequence"]),
    CheckConstraint("depth >= 1"),
    Index("noa_alias_stack_version", "name", "number"),
    Index("noa_alias_stack_sequence", "sequence"),
)

identity = Table("noa_identity", metadata, Column("id", String(64), primary_key=True))

attachments = Table(
    "noa_attachments",
    metadata,
    Column("digest", String(71), primary_key=True),
    Column("media_type", String(128), nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("created_at", String(40), nullable=False),
)

signatures = Table(
    "noa_signatures",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(128), nullable=False),
    Column("number", Integer, nullable=False),
    Column("subject", String(64), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("identity", String(512), nullable=False),
    Column("bundle", Text, nullable=False),
    Column("created_at", String(40), nullable=False),
    ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
    Index("noa_signatures_version", "name", "number"),
)

approvals = Table(
    "noa_approvals",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(128), nullable=False),
    Column("number", Integer, nullable=False),
    Column("alias", String(64), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("principal", String(256), nullable=False),
    Column("reason", Text, nullable=False),
    Column("signature", Text),
    Column("created_at", String(40), nullable=False),
    Column("expires_at", String(40), nullable=False),
    Column("used_by", Integer),
    Column("revoked_at", String(40)),
    ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
    Index("noa_approvals_version", "name", "number", "alias"),
)

outbox = Table(
    "noa_outbox",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(128), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("payload", Text, nullable=False),
    Column("created_at", String(40), nullable=False),
    Index("noa_outbox_model", "name", "id"),
    sqlite_autoincrement=True,
)

consumers = Table(
    "noa_consumers",
    metadata,
    Column("consumer", String(128), primary_key=True),
    Column("last_id", Integer, nullable=False),
    Column("updated_at", String(40), nullable=False),
)

dead_letters = Table(
    "noa_dead_letters",
    metadata,
    Column("consumer", String(128), primary_key=True),
    Column("event_id", Integer, primary_key=True, autoincrement=False),
    Column("attempts", Integer, nullable=False),
    Column("error", Text, nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("next_attempt_at", String(40)),
)

webhook_cursors = Table(
    "noa_webhook_cursors",
    metadata,
    Column("consumer", String(128), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("last_id", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", String(40)),
    Column("error", Text),
)

trash = Table(
    "noa_trash",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("deleted_by", String(256), nullable=False),
    Column("deleted_at", String(40), nullable=False),
    Column("purge_after", String(40), nullable=False),
    Column("purged_at", String(40)),
    ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
    CheckConstraint("state IN ('trashed', 'purging', 'purged')"),
)

generations = Table(
    "noa_generations",
    metadata,
    Column("endpoint", String(128), primary_key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("name", String(128), nullable=False),
    Column("number", Integer, nullable=False),
    Column("alias", String(64)),
    Column("format", String(64), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("created_at", String(40), nullable=False),
    Index("noa_generations_version", "name", "number"),
)

replicas = Table(
    "noa_replicas",
    metadata,
    Column("endpoint", String(128), primary_key=True),
    Column("replica", String(128), primary_key=True),
    Column("generation", Integer, nullable=False),
    Column("acknowledged_at", String(40), nullable=False),
    Column("expires_at", String(40), nullable=False),
    # The newest move of the alias that it has followed, by its row of the ledger; 0: none yet.
    Column("move", Integer),
)

refusals = Table(
    "noa_refusals",
    metadata,
    Column("endpoint", String(128), primary_key=True),
    Column("replica", String(128), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("number", Integer, nullable=False),
    Column("alias", String(64)),
    Column("digest", String(71), nullable=False),
    Column("move", Integer, nullable=False),
    Column("reason", String(1000), nullable=False),
    Column("refused_at", String(40), nullable=False),
    Column("expires_at", String(40), nullable=False),
)

# What search finds versions by: one row per label (`tag.KEY`, `param.KEY`, `format`, ...).
# The version's time is in the row, so that the newest versions with a label are read in order from the index alone.
version_labels = Table(
    "noa_version_labels",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("key", String(260), primary_key=True),
    Column("value", String(260), primary_key=True),
    Column("created_at", String(40), nullable=False),
    Index("noa_version_labels_key", "key", "value", "created_at", "name", "number"),
    sqlite_with_rowid=False,
)

version_metrics = Table(
    "noa_version_metrics",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(128), nullable=False),
    Column("number", Integer, nullable=False),
    Column("format", String(64), nullable=False),
    Column("dataset_digest", String(71), nullable=False),
    Column("split", String(64), nullable=False),
    Column("metric", String(128), nullable=False),
    Column("value", Float, nullable=False),
    Column("created_at", String(40), nullable=False),
    Index("noa_version_metrics_value", "metric", "value", "name", "number", "created_at"),
    Index("noa_version_metrics_version", "name", "number", "metric", "value"),
)

mlflow_models = Table(
    "registered_models",
    mlflow_metadata,
    Column("workspace", String(63), primary_key=True),
    Column("name", String(256), primary_key=True),
    Column("creation_time", BigInteger),
    Column("last_updated_time", BigInteger),
    Column("description", String(5000)),
)

mlflow_versions = Table(
    "model_versions",
    mlflow_metadata,
    Column("workspace", String(63), primary_key=True),
    Column("name", String(256), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("creation_time", BigInteger),
    Column("last_updated_time", BigInteger),
    Column("description", String(5000)),
    Column("user_id", String(256)),
    Column("current_stage", String(20)),
    Column("source", String(500)),
    Column("storage_location", String(500)),
    Column("run_id", String(32)),
    Column("status", String(20)),
)

mlflow_version_tags = Table(
    "model_version_tags",
    mlflow_metadata,
    Column("workspace", String(63), primary_key=True),
    Column("name", String(256), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("key", String(250), primary_key=True),
    Column("value", Text),
)

mlflow_aliases = Table(
    "registered_model_aliases",
    mlflow_metadata,
    Column("workspace", String(63), primary_key=True),
    Column("name", String(256), primary_key=True),
    Column("alias", String(256), primary_key=True),
    Column("version", Integer),
)

mlflow_experiments = Table(
    "experiments",
    mlflow_metadata,
    Column("experiment_id", Integer, primary_key=True),
    Column("workspace", String(63)),
    Column("name", String(256)),
    Column("artifact_location", String(256)),
    Column("lifecycle_stage", String(32)),
    Column("creation_time", BigInteger),
    Column("last_update_time", BigInteger),
)

mlflow_runs = Table(
    "runs",
    mlflow_metadata,
    Column("run_uuid", String(32), primary_key=True),
    Column("name", String(250)),
    Column("source_type", String(20)),
    Column("source_name", String(500)),
    Column("entry_point_name", String(50)),
    Column("source_version", String(50)),
    Column("user_id", String(256)),
    Column("experiment_id", Integer),
    Column("artifact_uri", String(200)),
    Column("status", String(20)),
    Column("start_time", BigInteger),
    Column("end_time", BigInteger),
    Column("lifecycle_stage", String(20)),
    Column("deleted_time", BigInteger),
)

mlflow_params = Table(
    "params",
    mlflow_metadata,
    Column("run_uuid", String(32), primary_key=True),
    Column("key", String(250), primary_key=True),
    Column("value", Text),
)

mlflow_run_tags = Table(
    "tags",
    mlflow_metadata,
    Column("run_uuid", String(32), primary_key=True),
    Column("key", String(250), primary_key=True),
    Column("value", Text),
)


def _metric_columns() -> list[Column[Any]]:
    return [
        Column("run_uuid", String(32), primary_key=True),
        Column("key", String(250), primary_key=True),
        Column("value", Float),
        Column("timestamp", BigInteger),
        Column("step", BigInteger),
        Column("is_nan", Boolean),
    ]


mlflow_metrics = Table("metrics", mlflow_metadata, *_metric_columns())

mlflow_latest_metrics = Table("latest_metrics", mlflow_metadata, *_metric_columns())

mlflow_logged_models = Table(
    "logged_models",
    mlflow_metadata,
    Column("model_id", String(36), primary_key=True),
    Column("artifact_location", String(1000)),
)

alembic_version = Table("alembic_version", mlflow_metadata, Column("version_num", String(32), primary_key=True))

APPEND_ONLY = (versions, formats, evidence, ledger, attachments, signatures, outbox)
"""Tables whose rows are only ever inserted; `triggers.py` refuses everything else."""


def _sort_texts_by_bytes() -> None:
    # PostgreSQL sorts texts by the rules of a language, which SQLite does not know; here both sort by bytes.
    for table in metadata.tables.values():
        for column in table.columns:
            if type(column.type) is String:
                length = column.type.length
                column.type = String(length).with_variant(String(length, collation="C"), "postgresql")


_sort_texts_by_bytes()
