"""A server for which one folder lies on a tiny disk; where this user may mount none, its files may only be small."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from noa.settings import EndpointSettings, Settings
from noa_serving import ServerProcess, server_command

DISK_BYTES = 128 << 10


@cache
def may_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(_mounting(Path(folder), ["true"]), capture_output=True, check=False).returncode == 0


@contextmanager
def server_on_small_disk(
    settings: Settings, endpoints: Mapping[str, EndpointSettings], folder: Path, log_file: Path
) -> Iterator[tuple[ServerProcess, Path]]:
    """Start a server; gives it, and where this process sees the folder that is small for it."""
    folder.mkdir(exist_ok=True)
    command = server_command(settings, endpoints=endpoints)
    argv = [sys.executable, *command.argv[1:]]
    started = _mounting(folder, argv) if may_mount() else _limited(argv)
    with log_file.open("wb") as log:
        process = subprocess.Popen(started, env={**os.environ, **command.env}, stdout=log, stderr=log)
    with ServerProcess(command, process, log_file) as server:
        server.wait_ready()
        yield server, Path(f"/proc/{server.pid}/root{folder}") if may_mount() else folder


def _mounting(folder: Path, command: list[str]) -> list[str]:
    mount = f'mount -t tmpfs -o size={DISK_BYTES} tmpfs "$0" && exec "$@"'
    return ["unshare", "-Urm", "sh", "-c", mount, str(folder), *command]


def _limited(command: list[str]) -> list[str]:
    return ["sh", "-c", f'ulimit -f {DISK_BYTES // 512} && exec "$@"', "sh", *command]
