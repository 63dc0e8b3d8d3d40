"""The tables: noa's own, and those columns of MLflow's that noa reads and writes.

noa's tables hold the truth. Rows about versions, formats, evidence and moves are only ever inserted; triggers of the
database refuse everything else, also to other programs. MLflow's tables are created and migrated by MLflow (see
`mlflow_schema.py`); guards on them keep its clients from deleting a version that a live alias needs.
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
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

SCHEMA_VERSION = 2

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
    ForeignKeyConstraint(["name"], ["noa_models.name"]),
    CheckConstraint("number >= 1"),
    Index("noa_versions_created", "created_at"),
    Index("noa_versions_digest", "digest"),
    Index("noa_versions_dataset", "dataset_digest"),
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
    ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
    Index("noa_evidence_version", "name", "number"),
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
)

version_tags = Table(
    "noa_version_tags",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("key", String(250), primary_key=True),
    Column("value", Text, nullable=False),
    Index("noa_version_tags_key", "key", "value"),
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
    Index("noa_version_metrics_value", "metric", "value"),
    Index("noa_version_metrics_version", "name", "number"),
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

alembic_version = Table("alembic_version", mlflow_metadata, Column("version_num", String(32), primary_key=True))

_APPEND_ONLY = (versions, formats, evidence, ledger, attachments, signatures, outbox)
_LIVE = "EXISTS (SELECT 1 FROM noa_aliases a WHERE a.name = OLD.name AND a.number = OLD.version)"
_SEALED = "EXISTS (SELECT 1 FROM noa_versions v WHERE v.name = OLD.name AND v.number = OLD.version)"
# What MLflow's clients do when they delete a version is an update of its stage; a deleted model takes its rows along.
_GUARDS = {
    "noa_guard_live_delete": f"BEFORE DELETE ON model_versions WHEN {_LIVE}",
    "noa_guard_live_stage": "BEFORE UPDATE OF current_stage ON model_versions "
    f"WHEN NEW.current_stage = 'Deleted_Internal' AND {_LIVE}",
    "noa_guard_source": "BEFORE UPDATE OF source, storage_location ON model_versions "
    f"WHEN NEW.current_stage <> 'Deleted_Internal' AND {_SEALED}",
    "noa_guard_rename": "BEFORE UPDATE OF name ON registered_models "
    "WHEN NEW.name <> OLD.name AND EXISTS (SELECT 1 FROM noa_versions WHERE noa_versions.name = OLD.name)",
}


def create_tables(connection: Connection) -> None:
    """Create noa's tables and the guards if they are missing, in the caller's transaction."""
    metadata.create_all(connection)
    for table in _APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            connection.execute(
                DDL(
                    f"CREATE TRIGGER IF NOT EXISTS {table.name}_no_{verb.lower()} BEFORE {verb} ON {table.name} "
                    f"BEGIN SELECT RAISE(ABORT, 'noa: rows of {table.name} are never changed or deleted'); END"
                )
            )
    create_guards(connection)


def create_guards(connection: Connection) -> None:
    """Guard the MLflow rows of sealed versions against other programs."""
    for name, when in _GUARDS.items():
        message = "noa: this version is sealed, or an alias needs it; move the alias with noa first"
        connection.execute(
            DDL(f"CREATE TRIGGER IF NOT EXISTS {name} {when} BEGIN SELECT RAISE(ABORT, '{message}'); END")
        )


def drop_guards(connection: Connection) -> None:
    """Lift the guards for the rest of the transaction, so that MLflow's rows can be repaired."""
    for name in _GUARDS:
        connection.execute(DDL(f"DROP TRIGGER IF EXISTS {name}"))
