"""A SQLite database that this user may only read: beside its writer, after one that was killed, and of an older noa."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from noa.errors import StorageError
from noa.settings import RegistrySettings
from noa_registry import Registry
from noa_registry.database import Database
from sql_access import execute_on
from without_rights import closed_for_writing, run_script_bound

if TYPE_CHECKING:
    from tests.registry.conftest import Formats

LOOK = """
import json, sys
import numpy as np
from noa.errors import NoaError
from noa.settings import RegistrySettings
from noa_registry import Registry

settings = RegistrySettings.model_validate_json(sys.argv[1])
try:
    with Registry.open(settings) as registry:
        version = registry.resolve("digits")
        outputs = registry.load("digits", format="onnx").run({"x": np.ones((1, 4), np.float32)})
        found = {"read_only": registry.is_read_only, "newest": version.number, "rows": len(outputs["logits"])}
        try:
            registry.attach("digits", 1, [])
        except NoaError as exc:
            found["refused"] = str(exc)
except NoaError as exc:
    found = {"error": str(exc)}
print(json.dumps(found))
"""
KILLED = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("CREATE TABLE somebody (x)")
connection.commit()
os._exit(0)
"""


def look(settings: RegistrySettings) -> dict[str, object]:
    done = run_script_bound(LOOK, settings.model_dump_json())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def state(sqlite_settings: RegistrySettings, formats: Formats) -> Path:
    """The folder of a database with one version."""
    with Registry.open(sqlite_settings) as registry:
        registry.register(formats.draft(), actor="ada")
    return sqlite_file(sqlite_settings).parent


def sqlite_file(settings: RegistrySettings) -> Path:
    return Path(settings.database_url.removeprefix("sqlite:///"))


def test_a_registry_that_cannot_be_written_resolves_and_loads(sqlite_settings: RegistrySettings, state: Path) -> None:
    with closed_for_writing(state), closed_for_writing(sqlite_settings.artifact_dir):
        found = look(sqlite_settings)
    assert (found["read_only"], found["newest"], found["rows"]) == (True, 1, 1)
    assert str(found["refused"]).startswith("this registry can only be read: its database cannot be written")


def test_a_reader_without_rights_sees_what_a_writer_beside_it_commits(
    sqlite_settings: RegistrySettings, state: Path, formats: Formats
) -> None:
    with Registry.open(sqlite_settings) as writer:
        writer.register(formats.draft(), actor="ada")
        assert Path(f"{sqlite_file(sqlite_settings)}-wal").stat().st_size > 0
        with closed_for_writing(state):
            assert look(sqlite_settings)["newest"] == 2


def test_what_a_killed_writer_left_is_read_or_refused_with_what_to_do(
    sqlite_settings: RegistrySettings, state: Path
) -> None:
    file = sqlite_file(sqlite_settings)
    subprocess.run([sys.executable, "-c", KILLED, str(file)], check=True)
    assert Path(f"{file}-wal").stat().st_size > 0
    with closed_for_writing(state):
        assert look(sqlite_settings)["newest"] == 1
    Path(f"{file}-shm").unlink()
    with closed_for_writing(state):
        error = str(look(sqlite_settings)["error"])
    assert error.startswith("the database was not closed by its last writer")
    assert "run `noa models list` once, or copy the project to a folder of yours" in error


def test_a_database_of_an_older_noa_is_refused_and_one_of_another_mlflow_is_read(
    sqlite_settings: RegistrySettings, state: Path
) -> None:
    execute_on(sqlite_settings, "UPDATE noa_schema SET mlflow_version = '3.0.0'")
    with closed_for_writing(state):
        assert look(sqlite_settings)["newest"] == 1
    execute_on(sqlite_settings, "UPDATE noa_schema SET version = 1")
    with closed_for_writing(state):
        error = str(look(sqlite_settings)["error"])
    assert error.startswith("the database is of an older noa, and this user cannot upgrade it: it can only be read")
    assert "received schema 1" in error
    assert "Let somebody who may write to it run `noa models list` with this noa once" in error


def test_what_was_read_while_somebody_changed_the_file_is_refused(
    sqlite_settings: RegistrySettings, state: Path, reader: Database
) -> None:
    file = sqlite_file(sqlite_settings)
    with pytest.raises(StorageError, match="changed by somebody else while it was read"), reader.read() as connection:
        connection.execute(text("SELECT count(*) FROM noa_versions")).scalar()
        execute_on(sqlite_settings, "UPDATE noa_schema SET mlflow_version = '3.0.0'")
    copy = file.with_name("copy.db")
    shutil.copy(file, copy)
    with pytest.raises(StorageError, match="Run the same command again"), reader.snapshot() as connection:
        copy.replace(file)
        connection.execute(text("SELECT no_such_column FROM noa_versions"))
    with reader.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM noa_versions")).scalar() == 1


@pytest.fixture
def reader(sqlite_settings: RegistrySettings, state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The database as somebody sees it who may not write it."""
    monkeypatch.setattr("noa_registry.sqlite_database.is_read_only", lambda _file: True)
    database = Database(sqlite_settings.database_url, lock_timeout_s=1)
    yield database
    database.close()
