"""What holds for all tests."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from file_order import SLOWEST_FILES
from postgres_server import PostgresServer
from s3_server import ACCESS_KEY, SECRET_KEY, S3Server

# No test asserts a time: a machine that others use makes any draw slow.
hypothesis.settings.register_profile("noa", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("noa")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the developer's own settings and width of terminal out of the tests, and let Ctrl-C reach what they start.

    A suite that runs in the background of a script ignores Ctrl-C otherwise.
    """
    home = tempfile.TemporaryDirectory(prefix="noa-no-settings-")
    config.add_cleanup(home.cleanup)
    for name in [name for name in os.environ if name.upper().startswith("NOA__")]:
        del os.environ[name]
    os.environ.pop("COLUMNS", None)  # xdist sets it: the width that tables have
    os.environ["XDG_CONFIG_HOME"] = home.name
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take minutes: begun last they would keep one process busy while the others idle.

    The rest stays in the order that was drawn.
    """
    tests = Path(__file__).parent
    rank = {tests / name: number for number, name in enumerate(SLOWEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import without collecting garbage, then collect less often and from new objects alone.

    It was a third of the time of the collection of tests and a sixth of that of an export: each full round went through
    all of PyTorch, JAX and the tests themselves, which live as long as the process does.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what a command said that failed: pytest itself shows only its exit status."""
    report = yield
    error = call.excinfo.value if call.excinfo is not None else None
    if isinstance(error, subprocess.CalledProcessError | subprocess.TimeoutExpired):
        for name, output in (("stdout", error.stdout), ("stderr", error.stderr)):
            if output:
                text = output.decode(errors="replace") if isinstance(output, bytes) else output
                report.sections.append((f"{name} of the command", text[-4000:]))
    return report


@pytest.fixture(scope="session")
def empty_sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete, empty database of a registry, to be copied: MLflow's import and migrations take three seconds.

    The processes of one run share it: whichever comes first makes it.
    """
    from noa.settings import RegistrySettings
    from noa_registry import Registry

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "registry-template"
    url = f"sqlite:///{folder / 'noa.db'}"
    settings = RegistrySettings(database_url=url, artifact_dir=folder / "artifacts", lock_timeout_s=300)
    Registry.open(settings).close()  # under a lock, and renamed into place when it is complete
    return folder / "noa.db"


@pytest.fixture(scope="session")
def add_empty_database(empty_sqlite_file: Path) -> Callable[[Path], None]:
    """Puts `noa.db`, as a first opening would make it in seconds, into a folder, which is made."""

    def add(state: Path) -> None:
        state.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(empty_sqlite_file, state / "noa.db")
        with closing(sqlite3.connect(state / "noa.db")) as connection, connection:
            moved = "UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)"
            connection.execute(moved, (empty_sqlite_file.parent.as_uri(), state.as_uri()))

    return add


@pytest.fixture(scope="session")
def add_empty_registry(add_empty_database: Callable[[Path], None]) -> Callable[[Path], None]:
    """Gives a new project the database that its first command would take seconds to make."""
    return lambda project: add_empty_database(project / ".noa")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test process, started when the first test asks for it. Do not stop it."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A server of the S3 API, started when the first test asks for it. Processes of the tests find its keys too."""
    # Settings keep keys out of the JSON that other processes get: these look for them where AWS puts them.
    os.environ.update(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY, AWS_EC2_METADATA_DISABLED="true")
    server = S3Server()
    try:
        server.start()
        yield server
    finally:
        server.close()
