"""The disk is full at any instant of any operation: it says so, leaves nothing, and succeeds when there is room again.

The registry is on a file system of its own in memory, which a file fills up to the last pages; so the disk becomes full
earlier or later in the operation. Where this user may mount nothing, a limit on the size of files takes its place.
`make chaos` tries every number of free pages.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fault_client import EVERY_POINT, FaultRunner, scratch_folder
from noa.settings import RegistrySettings
from s3_server import S3Server, s3_settings

PAGE = 4096
DISK_BYTES = 64 << 20
MOST_BYTES = 8 << 20
SAMPLE = 1
GROWTH = 2 if EVERY_POINT else 4
pytestmark = [pytest.mark.timeout(3600), pytest.mark.chaos] if EVERY_POINT else [pytest.mark.timeout(300)]
OPERATIONS = (
    "register",
    "register equal bytes",
    "add_format",
    "attach",
    "promote",
    "gc",
    "import an archive",
    "export",
)


def may_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(mounting(Path(folder), ["true"]), capture_output=True, check=False)
    return done.returncode == 0


def mounting(folder: Path, command: list[str]) -> list[str]:
    """Return the command line that runs `command` in a world of its own, where `folder` is a small disk."""
    mount = f'mount -t tmpfs -o size={DISK_BYTES} tmpfs "$0" && exec "$@"'
    return ["unshare", "-Urm", "sh", "-c", mount, str(folder), *command]


class Disk:
    """A registry on a disk that can be full."""

    def __init__(self, runner: FaultRunner, *, is_mounted: bool) -> None:
        self._runner = runner
        self._how = "free" if is_mounted else "limit"

    def sweep(self, operation: str) -> dict[str, int]:
        """Fill the disk to several degrees, and return how often the operation ended how."""
        counts = {"refused": 0, "done": 0}
        enough = 0
        while counts["done"] == 0:  # more room each time, until it suffices
            assert enough < MOST_BYTES, "it does not end"
            self._try(operation, enough, counts)
            last, enough = enough, max(PAGE, enough * GROWTH)
        pages = range(1, last // PAGE)
        chosen = list(pages) if EVERY_POINT else random.sample(pages, min(SAMPLE, len(pages)))
        for page in chosen:
            self._try(operation, page * PAGE, counts)
        return counts

    def _try(self, operation: str, size: int, counts: dict[str, int]) -> None:
        answer = self._runner.fill(operation, **{self._how: size})
        assert answer["problems"] == [], f"{self._how} {size}"
        counts[answer["ended"]] += 1


@pytest.fixture(scope="module")
def disk(empty_sqlite_file: Path) -> Iterator[Disk]:
    """Everything is on the small disk: the database and the files."""
    is_mounted = may_mount()
    with scratch_folder() as folder:
        mounted = folder / "disk"
        mounted.mkdir()
        state = mounted / "state"
        settings = RegistrySettings(
            database_url=f"sqlite:///{state / 'noa.db'}",
            artifact_dir=state / "artifacts",
            ledger_anchor=state / "anchor.jsonl",
        )
        command = mounting(mounted, []) if is_mounted else []
        runner = FaultRunner(settings, state=state, scratch=folder, empty=empty_sqlite_file, command=command)
        yield Disk(runner, is_mounted=is_mounted)
        runner.close()


@pytest.fixture(scope="module")
def cache_disk(empty_sqlite_file: Path, s3_server: S3Server) -> Iterator[Disk]:
    """The files are in S3, their local copies on the small disk."""
    is_mounted = may_mount()
    with scratch_folder() as folder:
        mounted = folder / "disk"
        mounted.mkdir()
        state = mounted / "state"
        settings = RegistrySettings(
            database_url=f"sqlite:///{state / 'noa.db'}",
            artifact_url=f"s3://{s3_server.create_bucket()}/models",
            s3=s3_settings(s3_server.url),
            cache_dir=state / "cache",
        )
        command = mounting(mounted, []) if is_mounted else []
        runner = FaultRunner(settings, state=state, scratch=folder, empty=empty_sqlite_file, command=command)
        yield Disk(runner, is_mounted=is_mounted)
        runner.close()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_on_a_full_disk_refuses_clearly_leaves_nothing_and_can_be_repeated(
    disk: Disk, operation: str, show: Callable[[str], None]
) -> None:
    counts = disk.sweep(operation)
    show(f"{operation} on a full disk: {counts}")
    assert counts["refused"] > 0


def test_a_fetch_into_a_full_cache_refuses_clearly_leaves_nothing_and_can_be_repeated(
    cache_disk: Disk, show: Callable[[str], None]
) -> None:
    counts = cache_disk.sweep("fetch")
    show(f"fetch from S3 on a full disk: {counts}")
    assert counts["refused"] > 0
