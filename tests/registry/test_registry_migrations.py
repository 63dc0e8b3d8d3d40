from __future__ import annotations

import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from noa.errors import IntegrityError
from noa.settings import RegistrySettings
from noa_registry import Registry
from noa_registry.bootstrap import open_database
from noa_registry.database import Database
from noa_registry.mlflow_schema import import_mlflow, prepare_mlflow_tables
from noa_registry.schema_upgrade import VERSION_TABLE, migrate, upgrade_tables
from noa_registry.tables import SCHEMA_VERSION, metadata, schema
from postgres_server import PostgresServer
from samples import on_one_dialect
from sql_access import execute_on, tables_of

OLDER = Path(__file__).with_name("data") / "schema_1.sql"
BEFORE_WORKSPACES = "c8d9e0f1a2b3"  # MLflow's next revision rebuilds the tables on which noa has triggers
KEPT = ("noa_models", "noa_versions", "noa_formats", "noa_evidence", "noa_ledger", "noa_aliases")
OF_MLFLOW = ("registered_models", "model_versions", "model_version_tags", "registered_model_aliases")


def write_older_file(path: Path, artifact_dir: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript(OLDER.read_text().replace("@ARTIFACTS@", str(artifact_dir)))
    connection.close()


@pytest.fixture
def fresh_settings(fresh_database_url: str, tmp_path: Path) -> RegistrySettings:
    """Settings of a database in which nothing is yet; the files are here on both."""
    return RegistrySettings(database_url=fresh_database_url, artifact_dir=tmp_path / "fresh" / "artifacts")


@pytest.fixture(scope="module")
def mlflow_on_postgres(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database with MLflow's tables alone, to be copied: MLflow takes seconds to make them."""
    name = postgres_server.create_database()
    database = Database(postgres_url(postgres_server, name), lock_timeout_s=10)
    prepare_mlflow_tables(database, artifact_root=tmp_path_factory.mktemp("mlflow").as_uri())
    database.close()
    return name


@pytest.fixture
def older_settings(request: pytest.FixtureRequest, dialect: str, tmp_path: Path) -> Iterator[RegistrySettings]:
    """A registry of the first schema with versions, evidence, moves and aliases: `digits/1` to `/3`, and `other/1`."""
    file, artifact_dir = tmp_path / "fresh" / "noa.db", tmp_path / "fresh" / "artifacts"
    write_older_file(file, artifact_dir)
    if dialect == "sqlite":
        yield RegistrySettings(database_url=f"sqlite:///{file}", artifact_dir=artifact_dir)
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create_database(template=request.getfixturevalue("mlflow_on_postgres"))
    copy_older_rows(file, postgres_url(server, name))
    file.unlink()
    yield RegistrySettings(database_url=postgres_url(server, name), artifact_dir=artifact_dir)
    server.drop_database(name)


def postgres_url(server: PostgresServer, name: str) -> str:
    return server.url(name).replace("postgresql://", "postgresql+psycopg://")


def copy_older_rows(file: Path, url: str) -> None:
    """Make the tables of the first schema beside MLflow's, and fill them with what a file holds."""
    database = Database(url, lock_timeout_s=10)
    source = sa.create_engine(f"sqlite:///{file}", poolclass=sa.NullPool)
    with database.write_schema() as connection, source.connect() as older:
        migrate(connection, "0001")
        for name in ("noa_schema", *KEPT, *OF_MLFLOW):
            table = sa.Table(name, sa.MetaData(), autoload_with=connection)
            same = sa.Table(name, sa.MetaData(), autoload_with=older)
            rows = [dict(row) for row in older.execute(sa.select(same)).mappings()]
            for row in rows:
                row |= {key: bool(row[key]) for key in row if key == "passed" and row[key] is not None}
            if rows:
                connection.execute(sa.insert(table), rows)
        connection.exec_driver_sql("DROP TABLE noa_alembic_version")  # the first schema was made without Alembic
    database.close()


def content(settings: RegistrySettings) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of the tables that the first schema had, by the columns that it had."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    older = sqlite3.connect(":memory:")
    older.executescript(OLDER.read_text())
    for table in (*KEPT, *OF_MLFLOW):
        columns = [row[1] for row in older.execute(f"PRAGMA table_info({table})")]
        found[table] = sorted(execute_on(settings, f"SELECT {', '.join(columns)} FROM {table}"), key=str)
    older.close()
    return found


def assert_is_upgraded(settings: RegistrySettings) -> None:
    with Registry.open(settings) as registry:
        assert {model.name: model.versions for model in registry.models()} == {"digits": 3, "other": 1}
        assert registry.resolve("digits@champion").number == 2
        assert registry.resolve("digits@previous").number == 1
        assert registry.previous("digits") == 1
        assert [entry.to_number for entry in registry.history("digits", alias="champion")] == [2, 3, 2, 1]
        registry.verify_ledger()
        assert registry.mirror_discrepancies() == []
        for name, numbers in {"digits": (1, 2, 3), "other": (1,)}.items():
            assert [registry.find_record_problems(name, number) for number in numbers] == [[] for _ in numbers]
    for table in ("noa_versions", "noa_formats", "noa_evidence"):
        assert execute_on(settings, f"SELECT count(*) FROM {table} WHERE record IS NULL") == [(0,)]
    assert execute_on(settings, "SELECT version FROM noa_schema") == [(SCHEMA_VERSION,)]


def test_an_older_database_is_upgraded_in_place_and_keeps_what_is_in_it(older_settings: RegistrySettings) -> None:
    before = content(older_settings)
    assert len(before["noa_versions"]) == 4
    assert len(before["noa_ledger"]) == 5
    assert_is_upgraded(older_settings)
    assert content(older_settings) == before


def test_what_an_older_database_holds_is_found_by_search(older_settings: RegistrySettings) -> None:
    expected = {
        "tag.team=vision": {"digits/1", "digits/2", "digits/3"},
        "tag.round=2": {"digits/2"},
        "metric.accuracy>=0.93": {"digits/2", "digits/3"},
        "metric.accuracy>=0.955": set[str](),  # measured again, and better: that counts for nothing
        "metric.accuracy=0.95": {"digits/2"},  # the worst of both measurements
        "by:eve": {"other/1"},
    }
    with Registry.open(older_settings) as registry:
        found = {query: {f"{hit.name}/{hit.number}" for hit in registry.search(query).hits} for query in expected}
    assert found == expected


PLACES = ("schema_upgrade.migrate", "schema_upgrade.rebuild_index", "triggers.create_guards", "bootstrap.to_text")


@pytest.fixture
def older_file(tmp_path: Path) -> RegistrySettings:
    file, artifact_dir = tmp_path / "fresh" / "noa.db", tmp_path / "fresh" / "artifacts"
    write_older_file(file, artifact_dir)
    return RegistrySettings(database_url=f"sqlite:///{file}", artifact_dir=artifact_dir)


def spoil_older(settings: RegistrySettings, *statements: str) -> None:
    with closing(sqlite3.connect(settings.database_url.removeprefix("sqlite:///"))) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            assert connection.execute(statement).rowcount > 0
        connection.commit()


@pytest.mark.parametrize(
    ("statements", "what", "where", "expected", "received"),
    [
        (
            ("UPDATE noa_versions SET number = 'zwei' WHERE name = 'digits' AND number = 2",),
            "`number` of noa_versions is of another type than noa writes",
            "the row with name 'digits', number 'zwei'",
            "a whole number",
            "a text: 'zwei'",
        ),
        (
            (
                "DELETE FROM noa_evidence WHERE name = 'digits' AND number = 2",
                "DELETE FROM noa_formats WHERE name = 'digits' AND number = 2",
                "DELETE FROM noa_versions WHERE name = 'digits' AND number = 2",
            ),
            "version 2 of `digits` is not there",
            "row 2 of the ledger",
            "a row of noa_versions with name 'digits', number 2",
            "nothing",
        ),
    ],
)
def test_an_older_database_whose_rows_were_changed_is_refused_with_the_row_and_left_as_it_was(
    older_file: RegistrySettings, statements: tuple[str, ...], what: str, where: str, expected: str, received: str
) -> None:
    spoil_older(older_file, *statements)
    before = content(older_file)
    with pytest.raises(IntegrityError) as caught:
        Registry.open(older_file)
    assert caught.value.what.startswith("the database cannot be upgraded: ")
    assert what in caught.value.what
    assert where in str(caught.value.where)
    assert (caught.value.expected, caught.value.received) == (expected, received)
    assert "restore a backup" in str(caught.value.remedy)
    assert content(older_file) == before
    assert execute_on(older_file, "SELECT version FROM noa_schema") == [(1,)]


def test_an_older_database_with_a_spoilt_cell_that_hinders_nothing_is_upgraded(older_file: RegistrySettings) -> None:
    spoil_older(older_file, "UPDATE noa_models SET next_number = 'x5' WHERE name = 'digits'")
    with Registry.open(older_file) as registry:
        found = [problem.where for problem in registry.find_foreign_cells()]
    assert found == ["the row with name 'digits'"]


@pytest.mark.parametrize(("dialect", "place"), on_one_dialect(PLACES))
def test_a_process_killed_in_an_upgrade_leaves_a_database_that_the_next_start_upgrades(
    older_settings: RegistrySettings, place: str, opening_processes: Any
) -> None:
    """The function at `place` does its work, and the process ends before the transaction does."""
    before, tables = content(older_settings), tables_of(older_settings)
    (done,) = opening_processes.open(older_settings, killed_in=place)
    assert done.code == -signal.SIGKILL, done.said
    assert tables_of(older_settings) == tables
    assert content(older_settings) == before
    assert_is_upgraded(older_settings)
    assert content(older_settings) == before


def test_many_processes_upgrade_an_older_database_at_once(
    older_settings: RegistrySettings, opening_processes: Any
) -> None:
    answers = opening_processes.open(older_settings, processes=6)
    assert [(answer.code, answer.said) for answer in answers] == [(0, "2")] * 6
    assert_is_upgraded(older_settings)


def test_an_older_mlflow_is_upgraded_below_noas_tables(
    fresh_settings: RegistrySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its revisions rebuild tables that noa's triggers name and guard; the guards stand aside meanwhile."""
    Path(fresh_settings.artifact_dir.parent).mkdir(parents=True, exist_ok=True)
    database = Database(fresh_settings.database_url, lock_timeout_s=10)
    with database.engine.begin() as connection:
        make_older_mlflow(connection, BEFORE_WORKSPACES)
    with database.write_schema() as connection:
        upgrade_tables(connection)
        mark = {"mlflow_revision": BEFORE_WORKSPACES, "mlflow_version": "3.9.0", "applied_at": "then"}
        connection.execute(schema.insert().values(version=SCHEMA_VERSION, **mark))
        connection.exec_driver_sql("INSERT INTO registered_models (name, creation_time) VALUES ('theirs', 1)")
    database.close()
    meanwhile: list[set[str]] = []

    def prepare(database: Database, *, artifact_root: str) -> str:
        meanwhile.append(guards_of(fresh_settings))
        return prepare_mlflow_tables(database, artifact_root=artifact_root)

    monkeypatch.setattr("noa_registry.bootstrap.prepare_mlflow_tables", prepare)
    with Registry.open(fresh_settings) as registry:
        assert registry.models() == []
    assert execute_on(fresh_settings, "SELECT workspace, name FROM registered_models") == [("default", "theirs")]
    assert meanwhile == [set()]
    assert guards_of(fresh_settings) == {
        "noa_guard_live_delete",
        "noa_guard_live_stage",
        "noa_guard_rename",
        "noa_guard_source",
    }


def make_older_mlflow(connection: sa.Connection, revision: str) -> None:
    import_mlflow()
    from alembic import command
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    migrations: Any = utils
    Base.metadata.create_all(connection)
    connection.commit()
    config = migrations._get_alembic_config("")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def guards_of(settings: RegistrySettings) -> set[str]:
    query = (
        "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        if settings.database_url.startswith("sqlite")
        else "SELECT trigger_name FROM information_schema.triggers"
    )
    return {str(name) for (name,) in execute_on(settings, query) if str(name).startswith("noa_guard")}


@pytest.fixture
def migrated(fresh_settings: RegistrySettings) -> Iterator[Database]:
    database = open_database(
        fresh_settings.database_url, artifact_root=fresh_settings.artifact_dir.as_uri(), lock_timeout_s=60
    )
    yield database
    database.close()


def test_the_revisions_make_exactly_the_tables_that_are_declared(migrated: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def is_ours(_: object, name: str | None, kind: str, *_more: object) -> bool:
        return kind != "table" or (str(name).startswith("noa_") and name != VERSION_TABLE)

    with migrated.read() as connection:
        options = {"include_object": is_ours, "version_table": VERSION_TABLE, "target_metadata": metadata}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_the_revisions_make_the_same_keys_and_checks_as_the_declaration(
    migrated: Database, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What Alembic does not compare: primary keys, checks, collations, which rows a table keeps by."""
    if migrated.dialect == "sqlite":
        declared = sa.create_engine(f"sqlite:///{tmp_path / 'declared.db'}", poolclass=sa.NullPool)
        metadata.create_all(declared)
        assert shape_of(migrated.engine) == shape_of(declared)
        return
    server = request.getfixturevalue("postgres_server")
    name = server.create_database()
    declared = sa.create_engine(server.url(name).replace("postgresql:", "postgresql+psycopg:"), poolclass=sa.NullPool)
    metadata.create_all(declared)
    assert shape_of(migrated.engine) == shape_of(declared)
    server.drop_database(name)


def shape_of(engine: sa.Engine) -> dict[str, object]:
    inspector = sa.inspect(engine)
    return {
        table: {
            "columns": [(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)],
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "foreign": sorted(
                (f["constrained_columns"], f["referred_table"], f["referred_columns"])
                for f in inspector.get_foreign_keys(table)
            ),
            "unique": sorted(c["column_names"] for c in inspector.get_unique_constraints(table)),
            "checks": sorted(c["sqltext"] for c in inspector.get_check_constraints(table)),
            "indexes": sorted((i["name"], i["column_names"], i["unique"]) for i in inspector.get_indexes(table)),
            "options": inspector.get_table_options(table) if engine.dialect.name == "sqlite" else None,
        }
        for table in inspector.get_table_names()
        if table.startswith("noa_") and table != VERSION_TABLE
    }
