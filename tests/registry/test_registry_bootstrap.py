from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from noa.errors import StorageError
from noa.settings import RegistrySettings
from noa_registry import Registry

CHILD = Path(__file__).with_name("registry_child.py")


def start(settings: RegistrySettings) -> subprocess.Popen[str]:
    arguments = [sys.executable, str(CHILD), "open", json.dumps({"settings": settings.model_dump(mode="json")})]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def database(settings: RegistrySettings) -> Path:
    return Path(settings.database_url.removeprefix("sqlite:///"))


def change(settings: RegistrySettings, statement: str) -> None:
    connection = sqlite3.connect(database(settings))
    with connection:
        connection.execute(statement)
    connection.close()


def test_sixteen_processes_open_an_empty_folder_at_once(fresh_settings: RegistrySettings) -> None:
    children = [start(fresh_settings) for _ in range(16)]
    answers = [(child.communicate(timeout=200), child.returncode) for child in children]
    assert [code for _, code in answers] == [0] * 16, answers
    assert [json.loads(out) for (out, _), _ in answers] == [{"models": 0}] * 16
    connection = sqlite3.connect(database(fresh_settings))
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("SELECT count(*) FROM noa_schema").fetchone() == (1,)
    connection.close()


def test_a_process_killed_while_it_builds_the_database_does_not_hinder_the_next(
    fresh_settings: RegistrySettings,
) -> None:
    child = start(fresh_settings)
    building = database(fresh_settings).parent / ".noa.db.building"
    deadline = time.monotonic() + 60
    while not building.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate(timeout=30)
    assert not database(fresh_settings).exists()
    with Registry.open(fresh_settings) as registry:
        assert registry.models() == []
    left = {path.name for path in database(fresh_settings).parent.iterdir()}
    assert left <= {"noa.db", "noa.db-wal", "noa.db-shm", "noa.db.lock"}


def test_an_empty_file_is_not_a_database_yet(fresh_settings: RegistrySettings) -> None:
    database(fresh_settings).parent.mkdir()
    database(fresh_settings).touch()
    with Registry.open(fresh_settings) as registry:
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


def test_an_existing_mlflow_database_is_extended_and_keeps_what_is_in_it(fresh_settings: RegistrySettings) -> None:
    from noa_registry.mlflow_schema import create_mlflow_tables

    path = database(fresh_settings)
    path.parent.mkdir()
    create_mlflow_tables(path, artifact_root=path.parent / "elsewhere")
    change(fresh_settings, "INSERT INTO registered_models (name, creation_time) VALUES ('theirs', 1)")
    with Registry.open(fresh_settings) as registry:
        assert registry.models() == []
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM registered_models").fetchall() == [("theirs",)]
    connection.close()


def test_an_older_mlflow_database_is_upgraded(settings: RegistrySettings) -> None:
    """Another installed MLflow makes the next start check, and record, the revision."""
    change(settings, "UPDATE noa_schema SET mlflow_version = '3.0.0'")
    Registry.open(settings).close()
    connection = sqlite3.connect(database(settings))
    found = connection.execute("SELECT mlflow_version, mlflow_revision = version_num FROM noa_schema, alembic_version")
    version, matches = found.fetchone()
    connection.close()
    assert (version != "3.0.0", matches) == (True, 1)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE noa_schema SET version = 99", "newer noa"),
        ("UPDATE alembic_version SET version_num = 'ffffffffffff'", "newer MLflow"),
    ],
)
def test_a_database_of_a_newer_program_is_refused_and_left_alone(
    settings: RegistrySettings, statement: str, message: str
) -> None:
    change(settings, statement)
    before = database(settings).read_bytes()
    with pytest.raises(StorageError, match=message):
        Registry.open(settings)
    assert database(settings).read_bytes() == before


def test_a_file_that_is_no_database_is_refused(fresh_settings: RegistrySettings) -> None:
    database(fresh_settings).parent.mkdir()
    database(fresh_settings).write_bytes(b"not a database at all" * 100)
    with pytest.raises(StorageError, match="not a database"):
        Registry.open(fresh_settings)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = RegistrySettings(database_url=f"sqlite:///{tmp_path}/file/noa.db", artifact_dir=tmp_path / "artifacts")
    with pytest.raises(StorageError, match="a file is where a folder should be"):
        Registry.open(settings)


def test_a_lock_on_the_database_held_too_long_is_reported(fresh_settings: RegistrySettings) -> None:
    from filelock import FileLock

    database(fresh_settings).parent.mkdir()
    impatient = fresh_settings.model_copy(update={"lock_timeout_s": 0.1})
    with FileLock(f"{database(fresh_settings)}.lock"), pytest.raises(StorageError, match="preparing the database"):
        Registry.open(impatient)
