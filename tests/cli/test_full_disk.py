"""On a full disk commands do their work, say what could not be written and where, and `noa init` leaves nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from noa.errors import StorageError
from noa_cli.__main__ import run
from noa_cli.commands import project


def noa(folder: Path, *arguments: str, output: str | None = None, errors: str | None = None) -> tuple[int, str]:
    """Run `noa` with its output or errors sent to a file; return the exit code and what it says on standard error."""
    (folder / "noa.toml").touch()
    streams = [subprocess.PIPE if path is None else os.open(path, os.O_WRONLY) for path in (output, errors)]
    done = subprocess.run(
        [sys.executable, "-m", "noa_cli", *arguments],
        cwd=folder,
        stdout=streams[0],
        stderr=streams[1],
        text=True,
        timeout=120,
        check=False,
    )
    for stream in streams:
        if stream >= 0:
            os.close(stream)
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize("arguments", [("status",), ("status", "--json"), ("down",), ("formats",)])
def test_output_that_cannot_be_written_is_named_with_the_file_and_a_remedy(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    code, told = noa(tmp_path, *arguments, output="/dev/full")
    assert code == 1
    if "--json" in arguments:
        assert '"where": "/dev/full"' in told
    assert "cannot write the output: no space left on device" in told and "/dev/full" in told
    assert "send the output elsewhere" in told
    assert "Traceback" not in told and "Exception ignored" not in told


def test_errors_that_cannot_be_written_do_not_end_the_work(tmp_path: Path) -> None:
    assert noa(tmp_path, "down", errors="/dev/full")[0] == 0
    assert noa(tmp_path, "models", "show", "gone/1", errors="/dev/full")[0] == 1


def test_a_file_that_cannot_be_written_is_named_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/file")

    monkeypatch.setattr(project, "write_project", refuse)
    assert run(["init", "there"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: cannot write: no space left on device (/disk/file). Free some space")


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_project_that_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    real, calls = os.fsync, [0]

    def fsync(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").resolve().is_file():
            calls[0] += 1
            if calls[0] == fails_at + 1:  # what is removed then makes room
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match="no space left"):
        project.write_project(tmp_path / "deep" / "down", template="digits")
    assert not list(tmp_path.iterdir())
    calls[0] = 0
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / ".gitignore").write_text("mine\n")
    with pytest.raises(StorageError, match="no space left"):
        project.write_project(kept, template="digits")
    assert {path.name: path.read_text() for path in kept.iterdir()} == {".gitignore": "mine\n"}
