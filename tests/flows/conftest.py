from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from noa.settings import Settings
from noa_flows._process_tree import ProcessId, is_alive, send_signal, signal
from noa_flows.supervisor import Command, Supervisor

sys.path.insert(0, str(Path(__file__).parent))

from flows_helpers import make_project


@pytest.fixture
def tiny_project(tmp_path: Path, add_empty_registry: Callable[[Path], None]) -> Settings:
    """A project with a tiny recipe and an empty registry, which a first command would take seconds to make."""
    root = tmp_path / "project"
    add_empty_registry(root)
    return make_project(root)


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a Python script into the test's folder."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    found = Supervisor(tmp_path / "state")
    yield found
    for name in found.names():
        found.stop(name, timeout_s=0.1)


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Command]:
    """Build a command that runs in the test's folder."""

    def build(*arguments: str, name: str = "service", grace_s: float = 0.5) -> Command:
        return Command(
            name=name,
            arguments=arguments,
            environment=dict(os.environ),
            folder=tmp_path,
            log_file=tmp_path / "state" / "logs" / f"{name}.log",
            grace_s=grace_s,
        )

    return build


@pytest.fixture
def doomed() -> Iterator[list[ProcessId]]:
    """Processes that must not survive the test, whatever happens in it."""
    processes: list[ProcessId] = []
    yield processes
    for process in processes:
        if is_alive(process):
            send_signal(process, signal.SIGKILL)
