"""Does a file system tell of every write to a file, also of one through a mapping, by the file's change time?

Linux's own file systems for disks do, once the pages of the file are clean. Memory (tmpfs, ramfs) does not, and of
network file systems and those in user space nobody here knows what another machine or program does to the file. An
overlay does what the file system below it does, which may not be visible from a container: such ones are tried out.
"""

from __future__ import annotations

import mmap
import os
import secrets
import threading
from contextlib import suppress
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_KEEPING = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"})
_DEPENDING = frozenset({"overlay", "zfs", "bcachefs"})
"""It depends on how they are mounted (an overlay of memory, a volatile one) or on their version."""


class ChangeTimes:
    """Whether file systems keep change times; asked once for each, and tried out below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[int, bool] = {}
        self._turn = threading.Lock()

    def are_kept(self, handle: int, device: int) -> bool:
        """Tell it of the file system that an open file of this device (`st_dev`) is in; False where it is not known."""
        known = self._known.get(device)
        if known is None:
            with self._turn:
                known = self._known.get(device)
                if known is None:
                    known = self._known[device] = self._ask(handle, device)
        return known

    def _ask(self, handle: int, device: int) -> bool:
        kind = file_system_of(handle)
        if kind in _DEPENDING:
            return shows_mapped_writes(self._folder, device)
        return kind in _KEEPING


def file_system_of(handle: int) -> str | None:
    """Return the type of the file system of an open file as the kernel names it, None where it does not tell."""
    # By the mount, not by the device: the files of a Btrfs subvolume have a device that no mount is listed with.
    try:
        facts = Path(f"/proc/self/fdinfo/{handle}").read_text().split()
        mount = facts[facts.index("mnt_id:") + 1]
        for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
            if line.split(" ", 1)[0] == mount:
                return line.split(" - ", 1)[1].split(" ", 1)[0]
    except (OSError, ValueError, IndexError):
        return None
    return None


def shows_mapped_writes(folder: Path, device: int) -> bool:
    """Tell whether a mapped write to a synced page changes the times of a new file in `folder`, on that device."""
    path = folder / f".probe.{secrets.token_hex(6)}"
    try:
        with path.open("xb+") as file:
            file.write(b"\x00")
            file.flush()
            with mmap.mmap(file.fileno(), 1) as mapping:
                mapping[0] = 1
                os.fsync(file.fileno())
                os.utime(file.fileno(), ns=(0, 0))
                mapping[0] = 2
                status = os.fstat(file.fileno())
        return status.st_dev == device and status.st_mtime_ns != 0
    except (OSError, ValueError):
        return False
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
