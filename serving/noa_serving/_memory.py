"""How much memory there is for a model, before it is loaded: the machine's, or the container's where that is less.

A model takes at least the bytes of its files. What does not fit by that measure is refused; what does may still take
more.
"""

from __future__ import annotations

from pathlib import Path

from noa.errors import ServiceError

_MACHINE = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup")


def require_memory(size_bytes: int, *, workers: int, reference: str) -> None:
    """Check that `workers` processes can each load files of that size.

    Raises:
        ServiceError: there is not enough memory.
    """
    needed, free = size_bytes * workers, free_bytes()
    if free is not None and needed > free:
        raise ServiceError(
            f"there is not enough memory for `{reference}` beside what is served",
            expected=f"at least {_mebibytes(needed)} ({_mebibytes(size_bytes)} in each of {workers} workers)",
            received=f"{_mebibytes(free)} available",
            remedy="Use fewer `serving.workers`, a smaller format, or a larger machine",
        )


def free_bytes(*, machine: Path = _MACHINE, container: Path = _CONTAINER) -> int | None:
    """Return how much memory can be taken before others suffer, None where the system does not tell."""
    found = [one for one in (_free_of_machine(machine), _free_of_container(container)) if one is not None]
    return min(found, default=None)


def _free_of_machine(path: Path) -> int | None:
    kibibytes = _table(path).get("MemAvailable:")
    return None if kibibytes is None else kibibytes << 10


def _free_of_container(folder: Path) -> int | None:
    """Return what is left below the limit; pages of files that are not in use count as free."""
    try:
        limit, used = (folder / "memory.max").read_text().strip(), int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    if not limit.isdigit():  # "max": no limit
        return None
    return max(0, int(limit) - used + _table(folder / "memory.stat").get("inactive_file", 0))


def _table(path: Path) -> dict[str, int]:
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) >= 2 and line[1].isdigit()}


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
