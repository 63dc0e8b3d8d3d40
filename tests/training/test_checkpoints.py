from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from noa.errors import StorageError
from noa_training.backends.interface import TrainerState
from noa_training.checkpoints import CheckpointStore, Progress, Snapshot


def snapshot(step: int, *, has_best: bool = True) -> Snapshot:
    weights = {"output.weight": np.full((3, 2), step, np.float32), "output.bias": np.zeros(0, np.float32)}
    return Snapshot(
        state=TrainerState(step=step, weights=weights, moments={"momentum/output.weight": np.ones((3, 2), np.float32)}),
        best={"output.weight": np.full((3, 2), -1, np.float32)} if has_best else None,
        progress=Progress(step=step, epochs_done=1, best_epoch=1, best_metrics={"loss": 0.1}, gain_reference=-0.1),
        belongs_to={"dataset": "sha256:1"},
    )


def newest(store: CheckpointStore) -> tuple[tuple[Path, Snapshot] | None, list[tuple[str, str]]]:
    rejected: list[tuple[str, str]] = []
    found = store.newest(lambda _: None, lambda path, reason: rejected.append((path.name, reason)))
    return found, rejected


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


@pytest.mark.parametrize("has_best", [True, False])
def test_a_checkpoint_comes_back_to_the_bit(store: CheckpointStore, has_best: bool) -> None:
    written = snapshot(7, has_best=has_best)
    store.save(written)
    found, rejected = newest(store)
    assert found is not None and not rejected
    assert found[1].progress == written.progress
    assert found[1].belongs_to == written.belongs_to
    for key in ("weights", "moments"):
        for name, value in getattr(written.state, key).items():
            np.testing.assert_array_equal(getattr(found[1].state, key)[name], value)
    assert (found[1].best is None) != has_best


def test_only_the_newest_are_kept(store: CheckpointStore) -> None:
    for step in (1, 2, 30, 4):
        store.save(snapshot(step))
    assert [path.name for path in store.paths()] == ["step-00000030", "step-00000004"]


def test_an_empty_folder_has_no_checkpoint(store: CheckpointStore) -> None:
    assert newest(store) == (None, [])


@pytest.mark.parametrize("file", ["state.safetensors", "best.safetensors", "progress.json"])
@pytest.mark.parametrize("damage", ["flip", "tear", "remove"])
def test_a_damaged_checkpoint_is_skipped_named_and_set_aside(store: CheckpointStore, file: str, damage: str) -> None:
    store.save(snapshot(1))
    victim = store.save(snapshot(2)) / "data" / file
    data = bytearray(victim.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    victim.unlink() if damage == "remove" else victim.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    found, rejected = newest(store)
    assert found is not None and found[1].state.step == 1
    assert [name for name, _ in rejected] == ["step-00000002"]
    assert file in rejected[0][1]
    assert newest(store)[1] == [], "it is reported once"
    store.save(snapshot(2))
    assert len(store.paths()) == 2, "what was set aside does not count among the kept"


@pytest.mark.parametrize("content", ["", "{", "[]", '[{"path": "../../x", "size_bytes": 1, "digest": "d"}]', "null"])
def test_an_unreadable_manifest_is_a_damaged_checkpoint(store: CheckpointStore, content: str) -> None:
    (store.save(snapshot(2)) / "manifest.json").write_text(content)
    found, rejected = newest(store)
    assert found is None and len(rejected) == 1


def test_a_checkpoint_that_belongs_to_something_else_is_not_used(store: CheckpointStore) -> None:
    store.save(snapshot(2))
    rejected: list[str] = []
    assert store.newest(lambda _: "other data", lambda _, reason: rejected.append(reason)) is None
    assert rejected == ["other data"]


def test_leftovers_of_a_killed_process_are_removed(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(snapshot(2))
    leftover = tmp_path / "checkpoints" / ".writing-abc"
    leftover.mkdir()
    newest(store)
    assert not leftover.exists()


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_is_a_storage_error_and_earlier_checkpoints_stay(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str
) -> None:
    store.save(snapshot(1))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full) if call == "fsync" else patch.setattr(Path, "rename", full)
        with pytest.raises(StorageError, match="no space left") as caught:
            store.save(snapshot(2))
    assert caught.value.remedy is not None and "run the same command again" in caught.value.remedy
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    found, _ = newest(store)
    assert found is not None and found[1].state.step == 1
