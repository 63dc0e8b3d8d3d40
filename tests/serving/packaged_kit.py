"""Starts packages as whoever gets one would: with `bentoml serve`, also where nothing but the lean set is there."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path

import psutil


@dataclass(slots=True, kw_only=True)
class Packaged:
    """A running package. `folder` holds its log and what it writes for itself."""

    port: int
    process: subprocess.Popen[bytes]
    folder: Path
    tree: list[psutil.Process] = field(default_factory=list)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        return ask(self.port, "GET", path, headers=headers)

    def is_ready(self) -> bool:
        try:
            return self.get("/v2/health/ready")[0] == 200
        except OSError:
            return False

    def wait_ready(self, timeout_s: float = 150.0) -> None:
        wait_for(self.is_ready, self, timeout_s)

    def stop(self, timeout_s: float = 150.0) -> int:
        """Ask it to end and return the exit code."""
        self.tree = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def wait_for(condition: Callable[[], bool], packaged: Packaged, timeout_s: float = 150.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert packaged.process.poll() is None, packaged.log[-3000:]
        assert time.monotonic() < deadline, packaged.log[-3000:]
        time.sleep(0.02)


def ask(
    port: int, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def predict(port: int, row: list[float], headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, object]]:
    body = json.dumps({"inputs": {"x": [row]}}).encode()
    status, answer = ask(port, "POST", "/predict/digits", body, {"content-type": "application/json", **(headers or {})})
    return status, json.loads(answer)


def free_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return holder.getsockname()[1]


def begin(
    package: Path,
    place: Path,
    *,
    python: Path | None = None,
    host: str = "127.0.0.1",
    env: Mapping[str, str] | None = None,
    options: tuple[str, ...] = (),
) -> Packaged:
    """Start a package; what it writes for itself goes below `place`."""
    (place / "tmp").mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NOA_", "BENTOML_"))}
    environment |= {
        "TMPDIR": str(place / "tmp"),
        "BENTOML_HOME": str(place / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONDONTWRITEBYTECODE": "1",
        **(env or {}),
    }
    argv = [str(python or sys.executable), "-m", "bentoml", "serve", str(package), "--host", host, "--port", str(port)]
    with (place / "log").open("ab") as log:
        process = subprocess.Popen(
            [*argv, *options],
            env=environment,
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Packaged(port=port, process=process, folder=place)


def end(packaged: Packaged) -> None:
    if packaged.process.poll() is None:
        for process in psutil.Process(packaged.process.pid).children(recursive=True):
            process.kill()
        packaged.process.kill()
    packaged.process.wait()


def link_environment(folder: Path, package: Path) -> Path:
    """Make an environment of what a package's `requirements.txt` names and nothing else, and return its Python.

    The pinned distributions are linked from this environment, which takes a second where their installation takes a
    minute; noa is unpacked from the package's wheel.
    """
    venv.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    for line in (package / "requirements.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        if not version:
            with zipfile.ZipFile(package / line) as wheel:
                wheel.extractall(site)
            continue
        found = distribution(name)
        assert found.version == version, f"{name} {found.version} is installed, {version} is locked"
        for file in found.files or ():
            if ".." not in file.parts:
                source = Path(str(found.locate_file(file)))
                compiled = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
                _link(source, site / file)
                if source.suffix == ".py" and compiled.is_file():
                    _link(compiled, site / file.parent / "__pycache__" / compiled.name)
    return folder / "bin" / "python"


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return  # its wheel holds the compiled file too
    try:
        target.hardlink_to(source)
    except OSError:  # another disk
        shutil.copy2(source, target)


@contextmanager
def running(
    package: Path,
    place: Path,
    *,
    python: Path | None = None,
    host: str = "127.0.0.1",
    env: Mapping[str, str] | None = None,
) -> Generator[Packaged]:
    """Start a package and wait until it answers."""
    packaged = begin(package, place, python=python, host=host, env=env)
    try:
        packaged.wait_ready()
        yield packaged
    finally:
        end(packaged)
