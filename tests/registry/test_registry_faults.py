from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from noa.errors import StorageError
from noa.settings import RegistrySettings
from noa_registry import Registry
from noa_registry.artifacts import OWNER_MARK
from noa_registry.database import Database
from noa_registry.faults import REGISTRATION_STEPS
from samples import on_one_dialect
from sql_access import execute_on

pytestmark = pytest.mark.local_files  # markers and full disks of a folder; test_registry_s3.py has those of S3
CHILD = Path(__file__).with_name("registry_child.py")
ADD_FORMAT_STEPS = [step for step in REGISTRATION_STEPS if step != "wrapper written"]


def command(name: str, settings: RegistrySettings, **request: object) -> list[str]:
    full = {"settings": settings.model_dump(mode="json"), **request}
    return [sys.executable, str(CHILD), name, json.dumps(full)]


def run_child(name: str, settings: RegistrySettings, **request: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(name, settings, **request), capture_output=True, text=True, timeout=120, check=False)


def units(settings: RegistrySettings) -> set[Path]:
    """Every folder of model files, sealed or not, and every marker."""
    staging = settings.artifact_dir / "_staging"
    return {*settings.artifact_dir.glob("digits/*"), *(staging.iterdir() if staging.is_dir() else ())}


@pytest.mark.parametrize(("dialect", "step"), on_one_dialect(REGISTRATION_STEPS))
def test_a_registration_killed_at_any_step_leaves_a_whole_version_or_none(
    settings: RegistrySettings, formats: Any, step: str
) -> None:
    killed = run_child("register", settings, formats=str(formats.folder), kill_at=step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with Registry.open(settings) as registry:
        expected = 1 if step == "committed" else 0
        numbers = [version.number for model in registry.models() for version in registry.versions(model.name)]
        assert numbers == list(range(1, expected + 1))
        assert len(units(settings)) == expected, "leftovers were not removed"
        retried = registry.register(formats.draft(), actor="ada")
        assert retried.number == expected + 1
        for number in range(1, retried.number + 1):
            registry.verify("digits", number)
        assert registry.mirror_discrepancies() == []


@pytest.mark.parametrize(("dialect", "step"), on_one_dialect(ADD_FORMAT_STEPS))
def test_adding_a_format_killed_at_any_step_leaves_it_whole_or_not_there(
    settings: RegistrySettings, formats: Any, step: str
) -> None:
    with Registry.open(settings) as registry:
        registry.register(formats.draft(formats={"torch": formats.torch}, evidence=()), actor="ada")
    killed = run_child("add_format", settings, folder=str(formats.onnx), kill_at=step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with Registry.open(settings) as registry:
        added = step == "committed"
        assert ("onnx" in registry.resolve("digits/1").formats) is added
        assert len(units(settings)) == (2 if added else 1)
        if not added:
            registry.add_format("digits", 1, "onnx", formats.onnx, evidence=[formats.equivalence()], actor="ada")
        registry.verify("digits", 1)


def test_a_registering_process_killed_at_a_random_instant_loses_no_whole_version(
    settings: RegistrySettings, formats: Any
) -> None:
    for round_number in range(3):
        child = subprocess.Popen(command("register_forever", settings, formats=str(formats.folder)))
        with Registry.open(settings) as registry:
            before = registry.models()[0].newest if registry.models() else 0
            deadline = time.monotonic() + 60
            while not registry.models() or registry.models()[0].newest < before + 2 + round_number:
                assert time.monotonic() < deadline
                time.sleep(0.001 * (round_number + 1))
        os.kill(child.pid, signal.SIGKILL)
        child.wait(30)
    with Registry.open(settings) as registry:
        versions = registry.versions("digits", limit=1000)
        assert [version.number for version in versions] == list(range(len(versions), 0, -1))
        for version in versions:
            registry.verify("digits", version.number)
        assert units(settings) == {version.folder for version in versions}


def test_the_leftovers_of_the_living_are_not_touched(settings: RegistrySettings, formats: Any) -> None:
    """While one registration is at any step, another process opens the registry and registers."""
    seen: list[str] = []

    def meanwhile(step: str) -> None:
        if step in ("transaction begun", "rows written"):
            return  # the other one would wait for this very transaction
        seen.append(step)
        other = run_child("register", settings, formats=str(formats.folder))
        assert other.returncode == 0, other.stderr + other.stdout

    with Registry.open(settings, checkpoint=meanwhile) as registry:
        version = registry.register(formats.draft(), actor="ada")
        registry.verify("digits", version.number)
        assert len(seen) == len(REGISTRATION_STEPS) - 2
        assert len(registry.versions("digits")) == len(seen) + 1
        assert units(settings) == {entry.folder for entry in registry.versions("digits")}


def test_an_error_at_any_step_leaves_nothing(settings: RegistrySettings, formats: Any) -> None:
    for failing in REGISTRATION_STEPS[:-1]:

        def fail(step: str, failing: str = failing) -> None:
            if step == failing:
                raise RuntimeError(step)

        with Registry.open(settings, checkpoint=fail) as registry:
            with pytest.raises(RuntimeError, match=failing):
                registry.register(formats.draft(), actor="ada")
            assert registry.models() == []
            assert units(settings) == set()


def test_a_failure_after_the_commit_does_not_take_the_version_away(settings: RegistrySettings, formats: Any) -> None:
    def fail(step: str) -> None:
        if step == "committed":
            raise KeyboardInterrupt

    with Registry.open(settings, checkpoint=fail) as registry:
        with pytest.raises(KeyboardInterrupt):
            registry.register(formats.draft(), actor="ada")
        registry.verify("digits", 1)


def test_a_marker_that_is_empty_or_nonsense_is_removed(settings: RegistrySettings, registry: Registry) -> None:
    staging = settings.artifact_dir / "_staging"
    staging.mkdir(parents=True)
    for name, content in (("a.lock", ""), ("b.lock", "nonsense"), ("c.lock", '{"name": "../../etc"}')):
        (staging / name).write_text(content)
    (staging / "b").mkdir()
    Registry.open(settings).close()
    assert list(staging.iterdir()) == []


def test_a_disk_that_is_full_for_model_files_refuses_clearly_and_a_retry_works(
    settings: RegistrySettings, formats: Any, tmp_path: Path
) -> None:
    """On a file system of one MiB if this user may mount one, else with a limit on the size of files."""
    big = formats.torch / "weights.safetensors"
    big.write_bytes(big.read_bytes() + b"\0" * (2 << 20))
    settings.artifact_dir.mkdir()
    arguments = command("register", settings, formats=str(formats.folder))
    mount = f"mount -t tmpfs -o size=1m tmpfs '{settings.artifact_dir}' && echo mounted >&2 && "
    after = f"; status=$?; find '{settings.artifact_dir}' -type f ! -name {OWNER_MARK} >&2; exit $status"
    mounted = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", mount + '"$@"' + after, "sh", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "mounted" in mounted.stderr:
        answer, left = mounted, mounted.stderr.replace("mounted", "").strip()
    else:
        answer = run_child("register", settings, formats=str(formats.folder), max_file_bytes=1 << 20)
        left = "\n".join(map(str, units(settings)))
    error = json.loads(answer.stdout)
    assert (answer.returncode, error["error"]) == (3, "StorageError"), answer.stdout + answer.stderr
    assert "nothing was lost" in error["remedy"]
    assert left == ""
    with Registry.open(settings) as registry:
        assert registry.models() == []
        assert registry.register(formats.draft(evidence=()), actor="ada").number == 1
        registry.verify("digits", 1)


def test_a_limit_on_file_sizes_is_a_storage_error(settings: RegistrySettings, formats: Any) -> None:
    big = formats.torch / "weights.safetensors"
    big.write_bytes(big.read_bytes() + b"\0" * (2 << 20))
    answer = run_child("register", settings, formats=str(formats.folder), max_file_bytes=1 << 20)
    assert json.loads(answer.stdout)["error"] == "StorageError", answer.stdout + answer.stderr
    assert units(settings) == set()


def test_a_disk_that_is_full_for_the_database_refuses_clearly_and_a_retry_works(
    sqlite_settings: RegistrySettings, formats: Any
) -> None:
    settings = sqlite_settings
    database = Path(settings.database_url.removeprefix("sqlite:///"))
    limit = database.stat().st_size  # the write-ahead log is a file of its own; keep it smaller than one registration
    answer = run_child("register", settings, formats=str(formats.folder), max_file_bytes=min(limit, 16 << 10))
    error = json.loads(answer.stdout)
    assert (answer.returncode, error["error"]) == (3, "StorageError"), answer.stdout + answer.stderr
    with Registry.open(settings) as registry:
        assert registry.models() == []
        assert units(settings) == set()
        assert registry.register(formats.draft(), actor="ada").number == 1


LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_database_that_another_program_has_locked_refuses_every_write_in_time_and_takes_it_later(
    sqlite_settings: RegistrySettings, formats: Any
) -> None:
    file = sqlite_settings.database_url.removeprefix("sqlite:///")
    impatient = sqlite_settings.model_copy(update={"lock_timeout_s": 0.2})
    with Registry.open(impatient) as registry:
        for _ in range(2):
            registry.register(formats.draft(), actor="ada")
        writes = {
            "register": lambda: registry.register(formats.draft(), actor="ada"),
            "attach": lambda: registry.attach("digits", 1, formats.metrics(accuracy=0.9)),
            "promote": lambda: registry.promote("digits", 1, reason="release", actor="ada"),
            "delete": lambda: registry.retention.delete("digits", 2, reason="old", actor="ada"),
            "commit": lambda: registry.events.commit("watcher", 1),
            "repair": registry.repair_mirror,
        }
        with subprocess.Popen(
            [sys.executable, "-c", LOCKER, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as locker:
            assert locker.stdout is not None
            assert locker.stdout.readline() == "locked\n"
            for write in writes.values():
                started = time.monotonic()
                with pytest.raises(StorageError, match=r"locked by another writer.*lock_timeout_s"):
                    write()
                assert time.monotonic() - started >= impatient.lock_timeout_s
            assert registry.resolve("digits").number == 2, "who only reads does not wait"
        for write in writes.values():
            write()
        registry.verify_ledger()
        assert registry.mirror_discrepancies() == []
        assert (registry.resolve("digits@champion").number, registry.numbers("digits")) == (1, [1, 3])
    assert units(impatient) == {impatient.artifact_dir / "digits" / uid for uid in uids(impatient)}


def uids(settings: RegistrySettings) -> set[str]:
    return {str(row[0]) for row in execute_on(settings, "SELECT uid FROM noa_versions")}


def test_a_lock_that_is_held_too_long_is_reported(settings: RegistrySettings, formats: Any) -> None:
    impatient = settings.model_copy(update={"lock_timeout_s": 0.2})
    other = Database(settings.database_url, lock_timeout_s=60)
    with Registry.open(impatient) as registry:
        with other.write(), pytest.raises(StorageError, match="locked"):
            registry.register(formats.draft(), actor="ada")
        assert registry.models() == []
        assert registry.register(formats.draft(), actor="ada").number == 1
    other.close()
    assert len(units(settings)) == 1
