"""A process is killed at any instant of any operation: what was committed is there whole, the rest leaves nothing.

An operation is rehearsed once, which gives its points and what the database holds after each of its commits. Then a
process is killed at a point, the registry is put back, killed at another, ... (see `fault_points.py`). After each kill
the database must hold exactly what was committed before; everything that is visible must verify; the same operation
must succeed when it is done again; and no file may be left that no row explains.

Here some points of each operation are tried, others with another seed; `make chaos` tries all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fault_client import EVERY_POINT, FaultRunner, scratch_folder
from noa.settings import RegistrySettings
from postgres_server import PostgresServer
from s3_server import S3Server, s3_settings

OPERATIONS = (
    "register",
    "register equal bytes",
    "add_format",
    "attach",
    "promote",
    "rollback",
    "approve and promote",
    "delete",
    "restore",
    "gc",
    "import an archive",
    "import an ONNX file",
    "export",
    "repair",
    "fetch",
    "open after a crash",
)
REMOTE_OPERATIONS = ("register", "promote", *(("add_format", "gc", "fetch", "restore") if EVERY_POINT else ()))
SAMPLE, REMOTE_SAMPLE = 3, 2
SLOW = {"import an ONNX file": 2}
LEAST_POINTS = 200
pytestmark = [pytest.mark.timeout(3600), pytest.mark.chaos] if EVERY_POINT else [pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def runner(empty_sqlite_file: Path) -> Iterator[FaultRunner]:
    """Of a registry in a SQLite file and a folder."""
    with scratch_folder() as folder:
        state = folder / "state"
        settings = RegistrySettings(
            database_url=f"sqlite:///{state / 'noa.db'}",
            artifact_dir=state / "artifacts",
            ledger_anchor=state / "anchor.jsonl",
        )
        made = FaultRunner(settings, state=state, scratch=folder, empty=empty_sqlite_file)
        yield made
        made.close()


@pytest.fixture(scope="module")
def remote_runner(
    postgres_server: PostgresServer, empty_postgres_database: str, s3_server: S3Server
) -> Iterator[FaultRunner]:
    """Of a registry in PostgreSQL and S3: a client dies, the servers live."""
    name = postgres_server.create_database(template=empty_postgres_database)
    with scratch_folder() as folder:
        state = folder / "state"
        state.mkdir()
        settings = RegistrySettings(
            database_url=postgres_server.url(name).replace("postgresql://", "postgresql+psycopg://"),
            artifact_url=f"s3://{s3_server.create_bucket()}/some/prefix",
            s3=s3_settings(s3_server.url, lease_s=1.0),
            cache_dir=state / "cache",
        )
        made = FaultRunner(settings, state=state, scratch=folder)
        yield made
        made.close()
    for left in (name, f"{name}_base", f"{name}_prepared"):
        postgres_server.drop_database(left)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_killed_at_any_point_is_done_or_not_and_can_be_repeated(
    runner: FaultRunner, operation: str, show: Callable[[str], None]
) -> None:
    found = runner.kill(operation, sample=None if EVERY_POINT else SLOW.get(operation, SAMPLE))
    show(f"{operation}: killed at {found['killed']} of {len(found['labels'])} points")
    assert found["killed"] > 0
    assert not found["problems"], "\n".join(found["problems"])


@pytest.mark.parametrize("operation", REMOTE_OPERATIONS)
def test_an_operation_on_postgresql_and_s3_killed_at_any_point_is_done_or_not_and_can_be_repeated(
    remote_runner: FaultRunner, operation: str, show: Callable[[str], None]
) -> None:
    found = remote_runner.kill(operation, sample=None if EVERY_POINT else REMOTE_SAMPLE)
    show(f"{operation} on PostgreSQL and S3: killed at {found['killed']} of {len(found['labels'])} points")
    assert found["killed"] > 0
    assert not found["problems"], "\n".join(found["problems"])


def test_there_are_points_of_every_kind_and_at_least_two_hundred(
    runner: FaultRunner, show: Callable[[str], None]
) -> None:
    labels = {name: runner.kill(name, sample=0)["labels"] for name in OPERATIONS}
    counts = {name: len(found) for name, found in labels.items()}
    show(f"{sum(counts.values())} points: {counts}")
    assert sum(counts.values()) >= LEAST_POINTS
    assert min(counts.values()) > 1
    kinds = {label.split(" ", 1)[0] for found in labels.values() for label in found}
    assert kinds >= {"sql", "commit", "step", "open", "write", "fsync", "os.rename", "os.link", "os.remove", "os.mkdir"}
