from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from noa.errors import StorageError
from noa.settings import RegistrySettings
from noa_registry import Registry
from noa_registry.bootstrap import open_database
from noa_registry.database import Database
from noa_registry.mlflow_schema import prepare_mlflow_tables
from noa_registry.postgres_database import hold_schema_lock
from samples import mostly
from sql_access import execute_on, tables_of

CHILD = Path(__file__).with_name("registry_child.py")


def start(settings: RegistrySettings) -> subprocess.Popen[str]:
    arguments = [sys.executable, str(CHILD), "open", json.dumps({"settings": settings.model_dump(mode="json")})]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def file_of(settings: RegistrySettings) -> Path:
    return Path(settings.database_url.removeprefix("sqlite:///"))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill(child: subprocess.Popen[str]) -> None:
    os.kill(child.pid, signal.SIGKILL)
    child.communicate(timeout=30)


def test_sixteen_processes_open_an_empty_database_at_once(
    fresh_settings: RegistrySettings, opening_processes: Any
) -> None:
    answers = opening_processes.open(fresh_settings, processes=16)
    assert [(answer.code, answer.said) for answer in answers] == [(0, "0")] * 16
    assert execute_on(fresh_settings, "SELECT count(*) FROM noa_schema") == [(1,)]
    assert execute_on(fresh_settings, "SELECT count(*) FROM experiments") == [(1,)]


def test_a_new_file_is_whole_and_keeps_a_write_ahead_log(fresh_sqlite_settings: RegistrySettings) -> None:
    Registry.open(fresh_sqlite_settings).close()
    assert execute_on(fresh_sqlite_settings, "PRAGMA journal_mode") == [("wal",)]
    assert execute_on(fresh_sqlite_settings, "PRAGMA integrity_check") == [("ok",)]


def test_a_process_killed_while_it_builds_the_file_does_not_hinder_the_next(
    fresh_sqlite_settings: RegistrySettings,
) -> None:
    child = start(fresh_sqlite_settings)
    file = file_of(fresh_sqlite_settings)
    wait_until((file.parent / ".noa.db.building").exists)
    kill(child)
    assert not file.exists()
    with Registry.open(fresh_sqlite_settings) as registry:
        assert registry.models() == []
    assert {path.name for path in file.parent.iterdir()} <= {"noa.db", "noa.db-wal", "noa.db-shm", "noa.db.lock"}


@pytest.mark.parametrize(
    "table", mostly("chaos", ["experiments", "alembic_version", "noa_schema"], sample=["alembic_version"])
)
def test_a_process_killed_while_it_fills_a_database_does_not_hinder_the_next(
    fresh_postgres_settings: RegistrySettings, table: str
) -> None:
    child = start(fresh_postgres_settings)
    wait_until(lambda: table in tables_of(fresh_postgres_settings))
    kill(child)
    with Registry.open(fresh_postgres_settings) as registry:
        assert registry.models() == []
    assert execute_on(fresh_postgres_settings, "SELECT count(*) FROM noa_schema") == [(1,)]
    assert execute_on(fresh_postgres_settings, "SELECT count(*) FROM experiments") == [(1,)]


def test_an_empty_file_is_not_a_database_yet(fresh_sqlite_settings: RegistrySettings) -> None:
    file_of(fresh_sqlite_settings).parent.mkdir()
    file_of(fresh_sqlite_settings).touch()
    with Registry.open(fresh_sqlite_settings) as registry:
        assert registry.models() == []


def test_opening_a_ready_database_imports_no_mlflow(settings: RegistrySettings) -> None:
    code = (
        "import sys, json; from noa.settings import RegistrySettings; from noa_registry import Registry; "
        "Registry.open(RegistrySettings.model_validate_json(sys.argv[1])).close(); "
        "print(json.dumps(sorted({'mlflow', 'torch', 'jax', 'onnxruntime', 'alembic'} & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, settings.model_dump_json()], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == []


def test_an_existing_mlflow_database_is_extended_and_keeps_what_is_in_it(
    fresh_settings: RegistrySettings, tmp_path: Path
) -> None:
    (tmp_path / "fresh").mkdir()
    stock = Database(fresh_settings.database_url, lock_timeout_s=10)
    prepare_mlflow_tables(stock, artifact_root=(tmp_path / "elsewhere").as_uri())
    stock.close()
    execute_on(fresh_settings, "INSERT INTO registered_models (name, creation_time) VALUES ('theirs', 1)")
    with Registry.open(fresh_settings) as registry:
        assert registry.models() == []
    assert execute_on(fresh_settings, "SELECT name FROM registered_models") == [("theirs",)]


def test_another_mlflow_makes_the_next_start_check_and_record_the_revision(
    settings: RegistrySettings, execute: Any
) -> None:
    execute("UPDATE noa_schema SET mlflow_version = '3.0.0'")
    Registry.open(settings).close()
    [(recorded, revision)] = execute("SELECT mlflow_version, mlflow_revision FROM noa_schema")
    assert recorded == version("mlflow")
    assert execute("SELECT version_num FROM alembic_version") == [(revision,)]


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE noa_schema SET version = 99", "newer noa"),
        ("UPDATE alembic_version SET version_num = 'ffffffffffff'", "newer MLflow"),
    ],
)
def test_a_database_of_a_newer_program_is_refused_and_left_alone(
    settings: RegistrySettings, execute: Any, statement: str, message: str
) -> None:
    execute(statement)
    marks = ["noa_schema", "alembic_version", "noa_alembic_version"]
    before = tables_of(settings), [execute(f"SELECT * FROM {table}") for table in marks]
    with pytest.raises(StorageError, match=message):
        Registry.open(settings)
    assert (tables_of(settings), [execute(f"SELECT * FROM {table}") for table in marks]) == before


def test_a_file_that_is_no_database_is_refused(fresh_sqlite_settings: RegistrySettings) -> None:
    file_of(fresh_sqlite_settings).parent.mkdir()
    file_of(fresh_sqlite_settings).write_bytes(b"not a database at all" * 100)
    with pytest.raises(StorageError, match="not a database"):
        Registry.open(fresh_sqlite_settings)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = RegistrySettings(database_url=f"sqlite:///{tmp_path}/file/noa.db", artifact_dir=tmp_path / "artifacts")
    with pytest.raises(StorageError, match="a file is where a folder should be"):
        Registry.open(settings)


def test_a_lock_on_the_file_held_too_long_is_reported(fresh_sqlite_settings: RegistrySettings) -> None:
    file_of(fresh_sqlite_settings).parent.mkdir()
    impatient = fresh_sqlite_settings.model_copy(update={"lock_timeout_s": 0.1})
    with (
        FileLock(f"{file_of(fresh_sqlite_settings)}.lock"),
        pytest.raises(StorageError, match="preparing the database"),
    ):
        Registry.open(impatient)


def test_a_lock_on_the_schema_held_too_long_is_reported(fresh_postgres_settings: RegistrySettings) -> None:
    other = Database(fresh_postgres_settings.database_url, lock_timeout_s=10)
    with hold_schema_lock(other), pytest.raises(StorageError, match="preparing the database"):
        open_database(fresh_postgres_settings.database_url, artifact_root="file:///unused", lock_timeout_s=0.1)
    other.close()
