"""Marks in the store that somebody spoilt: each is a named error or none, and a move that is committed counts."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noa.errors import IntegrityError, NoaError, StorageError
from noa.settings import RegistrySettings
from noa_registry import ModelVersion, Registry
from noa_registry.artifacts import OWNER_MARK
from noa_registry.artifacts.marks import FolderMarks
from noa_registry.store_head import LEDGER_MARK, StoreHead
from s3_server import StoredFiles

OWNERS = {
    "deep": b"[" * 200_000,
    "deep and small": b"[" * 4000,
    "no text": b"\xff\xfe\n",
    "a list": b"[]\n",
    "null": b"null\n",
    "a number": b'{"registry": 1}\n',
    "many digits": b'{"registry": ' + b"9" * 4050 + b"}\n",
    "an escape": b'{"registry": "\\u001b[31mX\\u202e"}\n',
    "a surrogate": b'{"registry": "\\ud800"}\n',
    "33 digits": b'{"registry": "' + b"a" * 33 + b'"}\n',
}
HEADS: dict[str, bytes | dict[str, object]] = {
    "deep": b"[" * 200_000,
    "deep and small": b"[" * 3000,
    "infinite": b', "sequence": 1e999}',
    "too many rows": {"sequence": 2**70},
    "negative": {"sequence": -5},
    "a truth": {"sequence": True},
    "no hash": {"hash": None},
    "a surrogate": {"hash": "\ud800"},
    "another id": {"registry": "x"},
}


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def a_dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))


THINGS = [a_folder, a_pipe, a_link, a_dangling_link]


def use(registry: Registry, formats: Any) -> list[str]:
    """Do everything that looks at the marks; return the kinds of problems that the store is said to have."""
    before = len(registry.ledger.entries())
    for name, action in {
        "register": lambda: registry.register(formats.draft(), actor="ada"),
        "plan": registry.retention.plan_gc,
        "plan unknown": lambda: registry.retention.plan_gc(unknown=True),
    }.items():
        try:
            action()
        except NoaError as exc:
            assert str(exc).isascii(), name
    number = 1 + before % 2
    assert registry.promote("digits", number, reason="r", actor="ada").sequence == before + 1
    assert registry.resolve("digits@champion").number == number
    return [problem.what for problem in registry.find_store_problems()]


@pytest.mark.parametrize("case", OWNERS)
def test_a_spoilt_mark_of_the_owner_is_named_and_stops_no_move(
    settings: RegistrySettings, promoted: list[ModelVersion], stored: StoredFiles, formats: Any, case: str
) -> None:
    stored.set_mark(OWNERS[case])
    with Registry.open(settings) as registry:
        (problem,) = use(registry, formats)
        assert "was changed" in problem or "too large" in problem
        with pytest.raises(IntegrityError):
            registry.register(formats.draft(), actor="ada")
    assert stored.mark() == OWNERS[case]


@pytest.mark.parametrize("case", HEADS)
def test_a_spoilt_mark_of_the_ledger_stops_no_move(
    settings: RegistrySettings, promoted: list[ModelVersion], stored: StoredFiles, formats: Any, case: str
) -> None:
    content, good = HEADS[case], json.loads(stored.mark(LEDGER_MARK) or b"")
    if isinstance(content, dict):
        whole = json.dumps({**good, **content}).encode()
    else:
        whole = json.dumps(good).encode()[:-1] + content if content.startswith(b",") else content
    stored.set_mark(whole + b"\n", LEDGER_MARK)
    with Registry.open(settings) as registry:
        problems = use(registry, formats)
    assert problems == (["a mark of the store is too large to be one"] if case == "deep" else [])
    assert case == "deep" or json.loads(stored.mark(LEDGER_MARK) or b"")["sequence"] == good["sequence"] + 1


@pytest.mark.parametrize("make", THINGS)
@pytest.mark.parametrize("name", [OWNER_MARK, LEDGER_MARK])
@pytest.mark.local_files
def test_what_is_no_file_in_the_place_of_a_mark_is_named_and_stops_no_move(
    settings: RegistrySettings,
    promoted: list[ModelVersion],
    formats: Any,
    artifact_dir: Path,
    name: str,
    make: Callable[[Path], None],
) -> None:
    (artifact_dir / name).unlink()
    make(artifact_dir / name)
    with Registry.open(settings) as registry:
        (problem,) = use(registry, formats)
        assert problem == f"something else is in the place of the mark `{name}` of the store"
        with pytest.raises(IntegrityError, match="Move it away"):
            registry.adopt_store(actor="ada")
    assert not (artifact_dir / "elsewhere").exists()


def test_a_mark_that_somebody_keeps_locked_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noa_registry.artifacts.marks._LOCK_TIMEOUT_S", 0.05)
    marks = FolderMarks(tmp_path)
    marks.replace("mark", b"one")
    handle = os.open(tmp_path / "mark", os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="locked"):
            marks.replace("mark", b"two")
    finally:
        os.close(handle)
    marks.replace("mark", b"two")
    assert marks.read("mark") == b"two"


def test_a_move_counts_whatever_happens_to_the_mark(
    registry: Registry, promoted: list[ModelVersion], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(StoreHead, "_write", fail)
    moved = registry.promote("digits", 1, alias="staging", reason="r", actor="ada")
    assert registry.resolve("digits@staging").number == 1
    assert f"does not remember row {moved.sequence}" in caplog.text
