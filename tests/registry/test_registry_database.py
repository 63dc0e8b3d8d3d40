"""What `Database` promises, on each kind of database."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Integer, String, func, insert, select, text, update

from noa.errors import InvalidInputError, SettingsError, StorageError
from noa.settings import RegistrySettings, list_values, load_settings
from noa_registry.database import Database
from noa_registry.database_url import parse_database_url
from noa_registry.tables import metadata, models

WORKER = """
import sys
from sqlalchemy import select, update
from noa_registry.database import Database
from noa_registry.tables import models
database = Database(sys.argv[1], lock_timeout_s=60)
for _ in range(int(sys.argv[2])):
    with database.write() as connection:
        number = connection.execute(select(models.c.next_number)).scalar_one()
        connection.execute(update(models).values(next_number=number + 1))
"""


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url, lock_timeout_s=10)
    yield opened
    opened.close()


def add_model(database: Database, name: str) -> None:
    with database.write() as connection:
        connection.execute(insert(models).values(name=name, next_number=1, created_at="t", updated_at="t"))


def count(connection: Any) -> int:
    return connection.execute(select(func.count()).select_from(models)).scalar_one()


def test_a_database_says_which_kind_it_is(database: Database, dialect: str) -> None:
    assert database.dialect == dialect
    with database.read() as connection:
        assert connection.dialect.name == dialect


def test_a_read_sees_the_newest_committed_state_and_a_snapshot_one_state(database: Database) -> None:
    with database.read() as reader, database.snapshot() as snapshot:
        assert (count(reader), count(snapshot)) == (0, 0)
        add_model(database, "a")
        assert (count(reader), count(snapshot)) == (1, 0)
    with database.snapshot() as later:
        assert count(later) == 1


def test_a_snapshot_takes_no_writes_on_postgresql_and_leaves_the_connection_writable(
    database: Database, dialect: str
) -> None:
    if dialect == "postgresql":
        with database.snapshot() as snapshot, pytest.raises(Exception, match="read-only"):
            snapshot.execute(insert(models).values(name="a", next_number=1, created_at="t", updated_at="t"))
    for name in ("a", "b"):
        with database.snapshot() as snapshot:
            count(snapshot)
        add_model(database, name)


def test_a_write_that_fails_leaves_nothing_and_the_next_one_works(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.write() as connection:
        connection.execute(insert(models).values(name="a", next_number=1, created_at="t", updated_at="t"))
        raise ZeroDivisionError
    add_model(database, "b")
    with database.read() as reader:
        assert connection.closed
        assert [row.name for row in reader.execute(select(models))] == ["b"]


def test_a_statement_that_the_database_refuses_is_a_storage_error(database: Database) -> None:
    add_model(database, "a")
    with pytest.raises(StorageError, match="refused") as caught:
        add_model(database, "a")
    assert caught.value.where == str(database.url)
    add_model(database, "b")


def test_writers_of_all_processes_go_one_after_the_other(database: Database, database_url: str) -> None:
    add_model(database, "counter")
    arguments = [sys.executable, "-c", WORKER, database_url, "25"]
    children = [subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [child.communicate(timeout=120)[1] for child in children]
    assert [child.returncode for child in children] == [0] * 4, errors
    with database.read() as connection:
        assert connection.execute(select(models.c.next_number)).scalar_one() == 1 + 4 * 25


def test_a_writer_sees_what_was_committed_while_it_waited(database: Database, database_url: str) -> None:
    add_model(database, "counter")
    other = Database(database_url, lock_timeout_s=10)
    waiting, seen = threading.Event(), list[int]()

    def write() -> None:
        waiting.set()
        with other.write() as connection:
            seen.append(connection.execute(select(models.c.next_number)).scalar_one())

    thread = threading.Thread(target=write)
    with database.write() as connection:
        thread.start()
        assert waiting.wait(10)
        connection.execute(update(models).values(next_number=7))
    thread.join(30)
    other.close()
    assert seen == [7]


def test_who_waits_too_long_for_another_writer_is_told(database: Database, database_url: str) -> None:
    impatient = Database(database_url, lock_timeout_s=0.2)
    with database.write(), pytest.raises(StorageError, match="locked by another writer"), impatient.write():
        pass
    with database.write(), pytest.raises(StorageError, match="locked by another writer"):
        threads_turn(database)
    with impatient.write():
        pass
    impatient.close()


def threads_turn(database: Database) -> None:
    database.lock_timeout_s = 0.1  # the threads of one process wait for each other, not for the database
    with database.write():
        pass


def test_names_sort_by_their_bytes(database: Database) -> None:
    for name in ("b", "a-b", "ab", "a.b", "B", "a_b"):
        add_model(database, name)
    with database.read() as connection:
        found = list(connection.execute(select(models.c.name).order_by(models.c.name)).scalars())
    assert found == sorted(found) == ["B", "a-b", "a.b", "a_b", "ab", "b"]


def test_every_text_of_noas_tables_sorts_by_its_bytes_on_postgresql() -> None:
    from sqlalchemy.dialects import postgresql

    texts = [column for table in metadata.tables.values() for column in table.columns if type(column.type) is String]
    assert len(texts) > 50
    for column in texts:
        assert 'COLLATE "C"' in column.type.compile(dialect=postgresql.dialect()), column
    assert isinstance(models.c.next_number.type, Integer)


def test_a_missing_table_is_told_from_other_errors(database: Database) -> None:
    from sqlalchemy import exc

    with database.read() as connection, pytest.raises(exc.DBAPIError) as caught:
        connection.execute(text("SELECT 1 FROM nothing_here"))
    assert database.is_missing_table(caught.value)
    with database.read() as connection, pytest.raises(exc.DBAPIError) as caught:
        connection.execute(text("SELECT nothing_here FROM noa_models"))
    assert not database.is_missing_table(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:s3cret@h:5/db", "postgresql+psycopg://ada:********@h:5/db"),
        ("postgresql+psycopg://ada:s3cret@h/db", "postgresql+psycopg://ada:********@h/db"),
        ("postgresql://ada@h/db?password=s3cret&sslmode=require", None),
        ("postgresql://ada:s3c%2Fret@h/db", "postgresql+psycopg://ada:********@h/db"),
    ],
)
def test_a_password_is_shown_nowhere(url: str, shown: str | None) -> None:
    parsed = parse_database_url(url)
    settings = RegistrySettings(database_url=url)
    for text_of in (str(parsed), repr(parsed), repr(settings), str(settings)):
        assert "s3cret" not in text_of
        assert "s3c%2Fret" not in text_of
    assert shown is None or str(parsed) == shown
    assert "s3c" in parsed.render()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:s3cret@h",  # no database
        "postgresql://ada:s3@cret@h/db",  # not percent-encoded
        "postgresql://ada:s3cret@h:port/db",
        "mysql://ada:s3cret@h/db",
        "postgresql+asyncpg://ada:s3cret@h/db",
        "://ada:s3cret@h/db",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match="database_url") as caught:
        parse_database_url(url)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "s3" not in str(chain).replace("postgres", "")
        chain = chain.__cause__
    assert "s3" not in json.dumps(caught.value.to_dict())


def test_settings_for_people_hide_the_password(tmp_path: Any) -> None:
    (tmp_path / "noa.toml").write_text('[registry]\ndatabase_url = "postgresql://ada:s3cret@h/db"\n')
    loaded = load_settings(tmp_path)
    shown = {value.key: value.value for value in list_values(loaded)}
    assert shown["registry.database_url"] == "postgresql://ada:********@h/db"
    assert loaded.settings.registry.database_url == "postgresql://ada:s3cret@h/db"


def test_a_value_that_postgresql_cannot_hold_is_an_input_error(database: Database, dialect: str) -> None:
    """SQLite holds any text."""
    if dialect == "sqlite":
        add_model(database, "n" * 200)
        return
    for name in ("n" * 200, "a\0b"):
        with pytest.raises(InvalidInputError, match="cannot hold"):
            add_model(database, name)
    add_model(database, "a")
