"""Atomic writes: whole or not at all, whatever the disk does."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from noa.atomic_write import publish_folder, write_file
from noa.errors import StorageError


def test_a_file_is_replaced_and_no_temporary_is_left(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    write_file(target, "one")
    write_file(target, b"two")
    assert target.read_bytes() == b"two"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_a_full_disk_leaves_the_old_content_and_no_rubbish(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse the write, as a full disk does."""
    target = tmp_path / "file.txt"
    target.write_text("old")
    code = (
        "import resource, signal, sys; from pathlib import Path; from noa.atomic_write import write_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_file(Path(sys.argv[1]), b'x' * 100_000)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_a_read_only_file_system_is_a_storage_error_with_a_remedy(tmp_path: Path) -> None:
    blocker = tmp_path / "proc"
    blocker.symlink_to("/proc/self")
    with pytest.raises((StorageError, OSError)) as caught:
        write_file(blocker / "nothing-here", "x")
    assert "nothing-here" in str(caught.value)


def test_publish_moves_a_whole_folder(tmp_path: Path) -> None:
    temporary = tmp_path / "staging"
    (temporary / "sub").mkdir(parents=True)
    (temporary / "sub" / "a").write_text("a")
    publish_folder(temporary, tmp_path / "out" / "final")
    assert (tmp_path / "out" / "final" / "sub" / "a").read_text() == "a"
    assert not temporary.exists()


def test_kill_9_in_the_middle_leaves_old_or_new(tmp_path: Path) -> None:
    """A writer is killed at many moments; every time the file is one of the two whole contents."""
    target = tmp_path / "file.bin"
    old, new = b"o" * 200_000, b"n" * 200_000
    code = (
        "import sys; from pathlib import Path; from noa.atomic_write import write_file\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    write_file(Path(sys.argv[1]), b'n' * 200_000); write_file(Path(sys.argv[1]), b'o' * 200_000)"
    )
    for _ in range(8):
        target.write_bytes(old)
        process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert target.read_bytes() in (old, new)
    write_file(target, old)
    left = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert not any(size for name, size in left.items() if name != target.name)  # killed before it wrote: goes when old


def test_what_a_killed_writer_left_goes_with_the_next_write_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    """Two writers are held in the instant before the name is changed; one is killed there, the other goes on later."""
    code = (
        "import sys; from pathlib import Path; from noa.atomic_write import write_file\n"
        "def wait(*_):\n"
        "    print('written', flush=True); sys.stdin.readline(); Path.replace = real; real(*_)\n"
        "real, Path.replace = Path.replace, wait\n"
        "write_file(Path(sys.argv[1]), 'new')"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for name in ("killed", "living")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
    assert len(list(tmp_path.iterdir())) == 2
    killed, living = writers
    killed.kill()
    killed.communicate()
    strangers = [".mine.abcdefgh.tmp", ".killed.abcdefgh.noa-tmp~", ".fresh.abcdefgh.noa-tmp"]
    for name in strangers:
        (tmp_path / name).write_text("" if name.startswith(".fresh") else "x")
    write_file(tmp_path / "another", "content")
    left = {path.name for path in tmp_path.iterdir()} - {*strangers, "another"}
    assert len(left) == 1
    assert left.pop().startswith(".living.")
    living.communicate(b"\n", timeout=60)
    assert living.returncode == 0
    assert (tmp_path / "living").read_text() == "new"
    os.utime(tmp_path / strangers[2], (0, 0))
    write_file(tmp_path / "another", "content")
    assert {path.name for path in tmp_path.iterdir()} == {"another", "living", *strangers[:2]}


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "a pipe"), ("folder", "a folder")):
        with pytest.raises(StorageError, match=f"cannot write `{name}`: it is {kind} .*/{name}\\)"):
            write_file(tmp_path / name, "new")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]
