"""Paths as people read them: absolute, and without `..` where the folder before it is no link."""

from __future__ import annotations

from pathlib import Path


def plain_path(path: Path) -> Path:
    """Return the same place as an absolute path without detours such as `project/../other`; links stay as they are.

    What follows a link is another folder than its name says, so that a `..` after one stays too.
    """
    here, *parts = path.absolute().parts
    plain = Path(here)
    for part in parts:
        is_detour = part == ".." and plain.name != ".." and not plain.is_symlink()
        plain = plain.parent if is_detour else plain / part
    return plain
