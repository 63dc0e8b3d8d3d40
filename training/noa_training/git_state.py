"""What was checked out when a job was trained: the commit, and whether what ran was really what the commit holds."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 20.0
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GitState:
    """`commit` in full; `path` of the project inside the repository; `diff_digest` names what differs from the commit.

    Tracked files that were changed and Python files that were never added count as differences; None: there were none.
    `branch` is None where a commit itself is checked out; `untracked` are the Python files that were never added.
    """

    commit: str
    path: str
    diff_digest: str | None
    branch: str | None = None
    untracked: tuple[str, ...] = ()


def read_git_state(root: Path) -> GitState | None:
    """Return what is checked out at `root`, None outside of a repository or where git does not answer."""
    try:
        commit = _git(root, "rev-parse", "--verify", "HEAD").decode().strip()
        path = _git(root, "rev-parse", "--show-prefix").decode().strip().rstrip("/")
        branch = _git(root, "rev-parse", "--abbrev-ref", "HEAD").decode().strip()
        diff = _git(root, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv", "--full-index")
        listed = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", "*.py")
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    hasher = hashlib.sha256(diff)
    untracked = sorted(name for name in listed.decode(errors="surrogateescape").split("\0") if name)
    for name in untracked:
        file = root / name
        content = file.read_bytes() if file.is_file() else b""
        hasher.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape") + content)
    digest = "sha256:" + hasher.hexdigest() if diff or untracked else None
    return GitState(
        commit=commit,
        path=path,
        diff_digest=digest,
        branch=None if branch == "HEAD" else branch,
        untracked=tuple(untracked),
    )


def _git(root: Path, *arguments: str) -> bytes:
    done = subprocess.run(
        ["git", "-C", str(root), "-c", "core.quotepath=false", *arguments],
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=True,
    )
    if len(done.stdout) > _MOST_BYTES:
        raise ValueError("the difference is too large to be named")
    return done.stdout
