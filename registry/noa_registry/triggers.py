"""Triggers: what the database itself refuses, also to programs that know nothing of noa; the same on both databases.

Rows about versions, evidence and moves are only ever inserted. Guards on MLflow's rows keep its clients from deleting a
version that a live alias needs. On PostgreSQL, triggers also make MLflow's writers wait for noa's and the other way
round, as a SQLite file does by itself: else a version could be deleted in the instant in which it is promoted. What
only SQLite lets through is refused by `cell_guards.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import DDL, Connection, Table, inspect, text

from noa_registry.cell_guards import cell_guards, create_cell_guards, drop_cell_guards
from noa_registry.postgres_keys import WRITE_LOCK
from noa_registry.tables import APPEND_ONLY

_LIVE = "EXISTS (SELECT 1 FROM noa_aliases a WHERE a.name = OLD.name AND a.number = OLD.version)"
_SEALED = "EXISTS (SELECT 1 FROM noa_versions v WHERE v.name = OLD.name AND v.number = OLD.version)"
_SEALED_MODEL = "EXISTS (SELECT 1 FROM noa_versions v WHERE v.name = OLD.name)"
# MLflow shows these texts inside its own: a refused rename reads "already exists. Error: ... noa refused ...".
_LIVE_MESSAGE = (
    "noa refused this and nothing was changed: an alias holds this model version. Point the alias at another version "
    "first (noa models promote), then delete this one with: noa models delete"
)
_SOURCE_MESSAGE = (
    "noa refused this and nothing was changed: this version is sealed, its source cannot be moved. "
    "Register a new version instead"
)
_RENAME_MESSAGE = (
    "noa refused this and nothing was changed: a model with sealed versions keeps its name, which is part of their "
    "digests; this is not about another model of that name. Register the versions under the new name instead"
)
# Every table that MLflow's registry writes: the first write of a transaction takes the turn, before it locks any row.
_SHARED_TABLES = (
    "registered_models",
    "registered_model_tags",
    "registered_model_aliases",
    "model_versions",
    "model_version_tags",
)
_TURN = "noa_take_turn"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    """Refuses `event` on rows of `table` for which `condition` holds; None: on all rows."""

    name: str
    event: str
    table: str
    message: str
    condition: str | None = None


# What MLflow's clients do when they delete a version is an update of its stage; a deleted model takes its rows along.
_GUARDS = (
    _Refusal(
        name="noa_guard_live_delete",
        event="DELETE",
        table="model_versions",
        message=_LIVE_MESSAGE,
        condition=_LIVE,
    ),
    _Refusal(
        name="noa_guard_live_stage",
        event="UPDATE OF current_stage",
        table="model_versions",
        message=_LIVE_MESSAGE,
        condition=f"NEW.current_stage = 'Deleted_Internal' AND {_LIVE}",
    ),
    _Refusal(
        name="noa_guard_source",
        event="UPDATE OF source, storage_location",
        table="model_versions",
        message=_SOURCE_MESSAGE,
        condition=f"NEW.current_stage <> 'Deleted_Internal' AND {_SEALED}",
    ),
    _Refusal(
        name="noa_guard_rename",
        event="UPDATE OF name",
        table="registered_models",
        message=_RENAME_MESSAGE,
        condition=f"NEW.name <> OLD.name AND {_SEALED_MODEL}",
    ),
)

_APPROVAL_STAYS = ("id", "name", "number", "alias", "digest", "principal", "reason", "created_at", "expires_at")
_APPROVAL_MESSAGE = "noa: an approval is used once, and never changed, copied or deleted"
# What a promotion used up stays used up, whoever writes.
_APPROVALS = (
    _Refusal(
        name="noa_approvals_used_once",
        event="UPDATE",
        table="noa_approvals",
        message=_APPROVAL_MESSAGE,
        condition=" OR ".join(f"NEW.{column} <> OLD.{column}" for column in _APPROVAL_STAYS)
        + " OR COALESCE(NEW.signature, '') <> COALESCE(OLD.signature, '')"
        " OR (OLD.used_by IS NOT NULL AND COALESCE(NEW.used_by, -1) <> OLD.used_by)"
        " OR (OLD.revoked_at IS NOT NULL AND COALESCE(NEW.revoked_at, '') <> OLD.revoked_at)",
    ),
    _Refusal(
        name="noa_approvals_no_copy",
        event="INSERT",
        table="noa_approvals",
        message=_APPROVAL_MESSAGE,
        condition="EXISTS (SELECT 1 FROM noa_approvals a WHERE a.name = NEW.name AND a.number = NEW.number "
        "AND a.alias = NEW.alias AND a.principal = NEW.principal AND a.created_at = NEW.created_at)",
    ),
    _Refusal(name="noa_approvals_no_delete", event="DELETE", table="noa_approvals", message=_APPROVAL_MESSAGE),
)

_SET_MESSAGE = "noa: the set of the evidence of a version only grows"
# A fact that somebody removes must leave its trace in the set.
_SETS = (
    _Refusal(
        name="noa_evidence_sets_grow",
        event="UPDATE",
        table="noa_evidence_sets",
        message=_SET_MESSAGE,
        condition="NEW.name <> OLD.name OR NEW.number <> OLD.number OR NEW.facts <= OLD.facts",
    ),
    _Refusal(name="noa_evidence_sets_no_delete", event="DELETE", table="noa_evidence_sets", message=_SET_MESSAGE),
)


def create_triggers(connection: Connection) -> None:
    """Create all triggers anew, in the caller's transaction: a changed one replaces the old."""
    drop_triggers(connection)
    for refusal in (*_append_only(), *_APPROVALS, *_SETS):
        _create(connection, refusal)
    if connection.dialect.name == "postgresql":
        _create_turns(connection)
    create_cell_guards(connection)
    create_guards(connection)


def drop_triggers(connection: Connection) -> None:
    """Lift all triggers for the rest of the transaction, so that tables can be changed."""
    tables = set(inspect(connection).get_table_names())
    for refusal in (*_append_only(), *_APPROVALS, *_SETS, *_GUARDS):
        if refusal.table in tables:
            _drop(connection, refusal)
    drop_cell_guards(connection)


def create_guards(connection: Connection) -> None:
    """Guard the MLflow rows of sealed versions against other programs."""
    for guard in _GUARDS:
        _create(connection, guard)


def drop_guards(connection: Connection) -> None:
    """Lift the guards for the rest of the transaction, so that MLflow's rows can be repaired."""
    for guard in _GUARDS:
        _drop(connection, guard)


@contextmanager
def lifted_removal(connection: Connection, table: Table) -> Generator[None, None, None]:
    """Let rows of an append-only table be deleted inside the block; for the garbage collector's attachments alone."""
    refusal = next(one for one in _append_only() if (one.table, one.event) == (table.name, "DELETE"))
    _drop(connection, refusal)
    yield
    _create(connection, refusal)


def missing_triggers(connection: Connection) -> list[str]:
    """Return the names of triggers that somebody dropped or switched off, each with its table."""
    if connection.dialect.name == "sqlite":
        query = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    else:
        query = "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D'"
    found = {str(row[0]) for row in connection.execute(text(query))}
    of_cells = cell_guards() if connection.dialect.name == "sqlite" else ()
    expected = (*_append_only(), *_APPROVALS, *_SETS, *_GUARDS, *of_cells)
    return [f"{one.name} on {one.table}" for one in expected if one.name not in found]


def _append_only() -> Iterator[_Refusal]:
    for table in APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            yield _Refusal(
                name=f"{table.name}_no_{verb.lower()}",
                event=verb,
                table=table.name,
                message=f"noa: rows of {table.name} are never changed or deleted",
            )


def _create(connection: Connection, refusal: _Refusal) -> None:
    if connection.dialect.name == "sqlite":
        condition = "" if refusal.condition is None else f"WHEN {refusal.condition} "
        connection.execute(
            DDL(
                f"CREATE TRIGGER IF NOT EXISTS {refusal.name} BEFORE {refusal.event} ON {refusal.table} {condition}"
                f"BEGIN SELECT RAISE(ABORT, '{refusal.message}'); END"
            )
        )
        return
    kept = "OLD" if refusal.event == "DELETE" else "NEW"
    _create_function(
        connection,
        refusal.name,
        f"IF {refusal.condition or 'true'} THEN "
        f"RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation', MESSAGE = '{refusal.message}'; "
        f"END IF; RETURN {kept};",
    )
    connection.execute(
        DDL(
            f"CREATE OR REPLACE TRIGGER {refusal.name} BEFORE {refusal.event} ON {refusal.table} "
            f"FOR EACH ROW EXECUTE FUNCTION {refusal.name}()"
        )
    )


def _drop(connection: Connection, refusal: _Refusal) -> None:
    on_table = "" if connection.dialect.name == "sqlite" else f" ON {refusal.table}"
    connection.execute(DDL(f"DROP TRIGGER IF EXISTS {refusal.name}{on_table}"))


def _create_turns(connection: Connection) -> None:
    """Make every writer of MLflow's registry rows wait for its turn, and refuse to empty noa's tables."""
    _create_function(connection, _TURN, f"PERFORM pg_advisory_xact_lock({WRITE_LOCK}); RETURN NULL;")
    for table in _SHARED_TABLES:
        connection.execute(
            DDL(
                f"CREATE OR REPLACE TRIGGER {_TURN} BEFORE INSERT OR UPDATE OR DELETE ON {table} "
                f"FOR EACH STATEMENT EXECUTE FUNCTION {_TURN}()"
            )
        )
    for table in APPEND_ONLY:  # TRUNCATE fires no trigger of a row
        connection.execute(
            DDL(
                f"CREATE OR REPLACE TRIGGER {table.name}_no_truncate BEFORE TRUNCATE ON {table.name} "
                f"FOR EACH STATEMENT EXECUTE FUNCTION {table.name}_no_delete()"
            )
        )


def _create_function(connection: Connection, name: str, body: str) -> None:
    # The search path of the creator: the tables are found whatever the writer's path is.
    connection.execute(
        DDL(
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT "
            f"AS $noa$ BEGIN {body} END $noa$"
        )
    )
