"""The folder of a search, `<state_dir>/sweeps/NAME/`: what was asked, the trials, what came out, and the pictures.

    sweep.json     what makes its trials comparable, and the limits of the last call
    journal.log    the trials; Optuna's journal
    result.json    which version the best trial has become
    *.png          history, importance, parameters

One process works on a search at a time: it holds `<state_dir>/locks/sweep-NAME.lock`, which the kernel drops with it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from noa.atomic_write import translate_disk_errors, write_file
from noa.errors import ConflictError, IntegrityError, NotFoundError
from noa.references import check_name
from noa.settings import Settings

SWEEP_FILE: Final = "sweep.json"
JOURNAL_FILE: Final = "journal.log"
RESULT_FILE: Final = "result.json"
_SHOWN: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFolder:
    """The files of one search; it need not exist."""

    name: str
    path: Path
    lock: Path

    @property
    def journal(self) -> Path:
        """Where the trials are."""
        return self.path / JOURNAL_FILE

    @property
    def exists(self) -> bool:
        """Whether there is such a search."""
        return (self.path / SWEEP_FILE).is_file()

    @contextmanager
    def hold(self) -> Generator[None]:
        """Hold the right to work on the search.

        Raises:
            ConflictError: another process does; names it.
            StorageError: the disk refused.
        """
        with translate_disk_errors(self.lock):
            self.lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                pid = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
                raise ConflictError(
                    f"the sweep `{self.name}` is already under way in process {pid}",
                    where=str(self.path),
                    remedy=f"Wait for it, stop it, or give this one a --name; see `noa sweep show {self.name}`",
                    pid=pid,
                ) from exc
            with translate_disk_errors(self.lock):
                os.ftruncate(handle, 0)
                os.pwrite(handle, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(handle)

    def is_held(self) -> bool:
        """Tell whether a process works on it now; writes nothing."""
        try:
            handle = os.open(self.lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def begin(self, definition: Mapping[str, object], limits: Mapping[str, object]) -> None:
        """Keep what is asked, or continue what was asked before.

        Raises:
            ConflictError: there is a search of this name whose trials do not compare; names what differs.
            StorageError: the disk refused.
        """
        asked = cast("dict[str, Any]", json.loads(json.dumps(definition)))
        if self.exists:
            before = self.read()["definition"]
            parts = [name for name in (*before, *asked) if before.get(name) != asked.get(name)]
            if parts:
                raise _differs(self, parts[0], before.get(parts[0]), asked.get(parts[0]))
        write_file(self.path / SWEEP_FILE, json.dumps({"definition": asked, "limits": dict(limits)}, indent=2) + "\n")

    def read(self) -> dict[str, Any]:
        """Return what was asked: `definition` and `limits`.

        Raises:
            NotFoundError: there is no such search.
            IntegrityError: the file is not readable.
        """
        path = self.path / SWEEP_FILE
        try:
            value = json.loads(path.read_text())
            parts = {name: dict(value[name]) for name in ("definition", "limits")}
        except FileNotFoundError as exc:
            raise NotFoundError(f"no sweep `{self.name}`", where=str(self.path.parent)) from exc
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise IntegrityError(
                f"what was asked of the sweep `{self.name}` is not readable",
                where=str(path),
                remedy="Begin anew with --restart; the trials' jobs are kept",
                file=path.name,
            ) from exc
        return parts

    def read_result(self) -> dict[str, Any] | None:
        """Return what came out, None if nothing has been registered."""
        try:
            value = json.loads((self.path / RESULT_FILE).read_text())
            return cast("dict[str, Any]", value) if isinstance(value, dict) else None
        except (OSError, ValueError):
            return None

    def write_result(self, result: Mapping[str, object]) -> None:
        """Keep what came out."""
        write_file(self.path / RESULT_FILE, json.dumps(dict(result), indent=2) + "\n")

    def set_aside(self) -> str | None:
        """Give the search a name of its own, `NAME.1`, so that another can begin; None if there is none."""
        if not self.path.exists():
            return None
        number = 1
        while (self.path.parent / f"{self.name}.{number}").exists():
            number += 1
        with translate_disk_errors(self.path):
            self.path.rename(self.path.parent / f"{self.name}.{number}")
        return f"{self.name}.{number}"


def sweep_folder(settings: Settings, name: str) -> SweepFolder:
    """Return where a search is kept, whether there is one or not.

    Raises:
        InvalidInputError: it cannot be a name.
    """
    check_name(name)
    state = settings.state_dir
    return SweepFolder(name=name, path=state / "sweeps" / name, lock=state / "locks" / f"sweep-{name}.lock")


def find_sweep(settings: Settings, name: str) -> SweepFolder:
    """Return where a search is kept.

    Raises:
        NotFoundError: there is none of this name; lists those that there are.
    """
    found = sweep_folder(settings, name)
    if not found.exists:
        names = sweep_names(settings)
        raise NotFoundError(
            f"no sweep `{name}` has begun here",
            where=str(found.path.parent),
            expected=", ".join(f"`{one}`" for one in names) or "a sweep; there is none yet",
            received=f"`{name}`",
            remedy="List them with `noa sweep --list`",
        )
    return found


def sweep_names(settings: Settings) -> list[str]:
    """Return the names of all searches of a project, sorted."""
    return sorted(path.parent.name for path in (settings.state_dir / "sweeps").glob(f"*/{SWEEP_FILE}"))


def _differs(folder: SweepFolder, part: str, before: object, asked: object) -> ConflictError:
    if part == "source":
        what = "the recipe's file has changed since its first trial"
    elif part == "space" and isinstance(before, dict) and isinstance(asked, dict):
        old, new = cast("dict[str, object]", before), cast("dict[str, object]", asked)
        key = next((key for key in (*old, *new) if old.get(key) != new.get(key)), "")
        what, before, asked = f"`{key}` had other values", old.get(key), new.get(key)
    else:
        what = f"`{part}` was another"
    return ConflictError(
        f"the sweep `{folder.name}` has begun with something else: {what}",
        where=str(folder.path),
        expected=json.dumps(before),
        received=json.dumps(asked),
        remedy="Begin anew with --restart, which sets the old trials aside, or give this one a name with --name",
        part=part,
    )
