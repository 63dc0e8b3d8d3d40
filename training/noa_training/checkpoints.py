"""Checkpoints: everything a job needs to go on as if it had never stopped.

    checkpoints/step-00000120/manifest.json          digests of the files below
    checkpoints/step-00000120/data/state.safetensors weights and optimizer moments
    checkpoints/step-00000120/data/best.safetensors  weights of the best epoch so far (absent before the first epoch's
    end) checkpoints/step-00000120/data/progress.json     step, best metric, early-stopping counters, what they belong
    to

A checkpoint appears whole or not at all. Reading starts with the newest; one that does not verify is set aside under
`rejected-...` and named. Random states and the data position are functions of the step, so the step is all that is
stored.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from noa.atomic_write import publish_folder, translate_disk_errors
from noa.digests import Manifest, build_manifest, verify_folder
from noa.errors import IntegrityError
from noa_training.backends.interface import TrainerState

_STATE, _BEST, _PROGRESS = "state.safetensors", "best.safetensors", "progress.json"
_PREFIX = "step-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is. `epochs_done` counts validated epochs; `best_*` describe the epoch whose weights are kept.

    `gain_reference` is the value that early stopping compares with, `epochs_without_gain` counts since it was reached.
    """

    step: int = 0
    epochs_done: int = 0
    best_epoch: int = 0
    best_metrics: Mapping[str, float] | None = None
    gain_reference: float | None = None
    epochs_without_gain: int = 0
    has_stopped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One checkpoint in memory. `best` are the best epoch's weights; `belongs_to` says what may continue from it."""

    state: TrainerState
    best: Mapping[str, np.ndarray] | None
    progress: Progress
    belongs_to: Mapping[str, str]


class CheckpointStore:
    """The checkpoints of one job. The caller holds the job's lock."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, snapshot: Snapshot) -> Path:
        """Write `snapshot` durably, then remove all but the newest `keep`.

        Raises:
            StorageError: the disk refused; earlier checkpoints are untouched.
        """
        final = self._folder / f"{_PREFIX}{snapshot.state.step:08d}"
        with translate_disk_errors(final):
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=self._folder))
        try:
            with translate_disk_errors(final):
                _write(temporary, snapshot)
                if final.exists():  # the same step again, after a resume that did no step
                    shutil.rmtree(final)
            publish_folder(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in self.paths()[self._keep :]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def paths(self) -> list[Path]:
        """Return the folders of all checkpoints, newest first; they are not verified."""
        return sorted(self._folder.glob(f"{_PREFIX}*"), reverse=True)

    def newest(
        self, accepts: Callable[[Snapshot], str | None], reject: Callable[[Path, str], None]
    ) -> tuple[Path, Snapshot] | None:
        """Return the newest checkpoint that verifies and that `accepts` (it returns a reason to refuse, or None).

        Any other is reported through `reject` and set aside, so that it is not counted among the kept ones.
        """
        for leftover in self._folder.glob(".writing-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for path in self.paths():
            try:
                snapshot = _read(path)
                reason = accepts(snapshot)
            except IntegrityError as exc:
                reason, snapshot = str(exc), None
            if reason is None and snapshot is not None:
                return path, snapshot
            reject(path, reason or "")
            path.rename(self._folder / f"rejected-{path.name}-{time.time_ns()}")
        return None

    def discard(self) -> None:
        """Remove all checkpoints: the job is finished."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _write(folder: Path, snapshot: Snapshot) -> None:
    data = folder / "data"
    data.mkdir()
    arrays = {f"weights/{name}": value for name, value in snapshot.state.weights.items()}
    arrays |= {f"moments/{name}": value for name, value in snapshot.state.moments.items()}
    # Bytes first, then an ordinary write: safetensors' own writer hides the disk's error number.
    (data / _STATE).write_bytes(save({name: np.ascontiguousarray(value) for name, value in arrays.items()}))
    if snapshot.best is not None:
        (data / _BEST).write_bytes(save({name: np.ascontiguousarray(value) for name, value in snapshot.best.items()}))
    progress = {"progress": asdict(snapshot.progress), "belongs_to": dict(snapshot.belongs_to)}
    (data / _PROGRESS).write_text(json.dumps(progress, allow_nan=False))
    (folder / "manifest.json").write_text(build_manifest(data).to_json())


def _read(path: Path) -> Snapshot:
    try:
        verify_folder(path / "data", Manifest.from_json((path / "manifest.json").read_text()))
        arrays = load((path / "data" / _STATE).read_bytes())
        best = path / "data" / _BEST
        values = json.loads((path / "data" / _PROGRESS).read_text())
        progress = Progress(**values["progress"])
        return Snapshot(
            state=TrainerState(
                step=progress.step, weights=_part(arrays, "weights/"), moments=_part(arrays, "moments/")
            ),
            best=load(best.read_bytes()) if best.exists() else None,
            progress=progress,
            belongs_to=values["belongs_to"],
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, struct.error) as exc:
        raise IntegrityError("a checkpoint is not readable", where=str(path), received=str(exc)[:120]) from exc


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
