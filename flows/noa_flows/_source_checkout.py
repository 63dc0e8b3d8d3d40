"""The files of a commit, laid out beside the project: what somebody trained from; what is there now stays as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from noa.errors import NotFoundError, StorageError
from noa_flows._private_files import PrivateFiles

_TIMEOUT_S = 300.0
_NEVER_LINKED = frozenset({"__pycache__", "node_modules", "venv"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """`project` is the project's folder at the commit; `linked` are the data files that are in no commit.

    `left_out` are the keys among these, which are not there.
    """

    project: Path
    linked: tuple[str, ...]
    left_out: tuple[str, ...]


def check_out(root: Path, commit: str, path: str, target: Path, *, private: PrivateFiles) -> Checkout:
    """Write the files of `commit` below `target`; `path` is the project inside the repository that holds `root`.

    Nothing of the repository changes: neither its index nor its list of work trees. What git ignores or does not know
    (data, mostly) is linked in from `root`, so that the recipe finds it; Python files and what is `private` are not.

    Raises:
        NotFoundError: git or the commit is missing, or the project is not in it.
        StorageError: git could not write the files.
    """
    top = Path(_git(root, "rev-parse", "--show-toplevel").stdout.strip() or ".")
    if not has_commit(root, commit):
        raise NotFoundError(
            f"the commit `{commit[:12]}` is not in this repository",
            where=str(top),
            remedy="Fetch it with git, or use the files that are here with --present-files",
        )
    environment = {**os.environ, "GIT_INDEX_FILE": str(target.with_suffix(".index"))}
    for arguments in (("read-tree", commit), ("checkout-index", "--all", "--force", f"--prefix={target}/")):
        done = _git(top, *arguments, environment=environment)
        if done.returncode != 0:
            raise StorageError(f"git could not write the files of `{commit[:12]}`", received=done.stderr.strip()[-300:])
    project = target / path
    if not project.is_dir():
        raise NotFoundError(f"the project `{path}` is not in the commit `{commit[:12]}`", where=str(top))
    data = _DataLinks(private=private)
    _link_data(root, project, data)
    return Checkout(project=project, linked=tuple(data.linked), left_out=tuple(data.left_out))


def has_commit(root: Path, commit: str) -> bool:
    """Tell whether the repository that holds `root` has a commit.

    Raises:
        NotFoundError: git is not installed.
    """
    return _git(root, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0


@dataclass(slots=True, kw_only=True)
class _DataLinks:
    """Links data into a checkout, of a folder that holds keys all the rest."""

    private: PrivateFiles
    linked: list[str] = field(default_factory=list[str])
    left_out: list[str] = field(default_factory=list[str])

    def add(self, source: Path, link: Path, name: str) -> None:
        """Link one file or folder, as far as it is data."""
        if self._link(source, link, name, above=()):
            self.linked.append(name)

    def _link(self, source: Path, link: Path, name: str, *, above: tuple[Path, ...]) -> bool:
        if self.private.is_state(source):
            return False
        if self.private.is_key(source):
            self.left_out.append(name)
            return False
        if not (source.is_dir() and self.private.are_within(source)):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source.absolute())
            return True
        place = source.resolve()
        if place in above:  # a link to a folder that it is in
            return False
        above = (*above, place)
        linked = [
            self._link(part, link / part.name, f"{name}/{part.name}", above=above) for part in sorted(source.iterdir())
        ]
        return any(linked)


def _link_data(root: Path, project: Path, data: _DataLinks) -> None:
    listed = _git(root, "ls-files", "--others", "--directory", "--no-empty-directory", "-z").stdout
    for name in sorted(entry.rstrip("/") for entry in listed.split("\0") if entry):
        parts = PurePosixPath(name).parts
        is_key = data.private.is_key(root / name)
        is_hidden = any(part.startswith(".") or part in _NEVER_LINKED for part in parts)
        if not is_key and (is_hidden or name.endswith((".py", ".pyc"))):
            continue
        if not (project / name).exists():
            data.add(root / name, project / name, name)


def _git(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    if shutil.which("git") is None:
        raise NotFoundError("git is not installed", remedy="Install git, or use --present-files")
    try:
        return subprocess.run(
            ["git", "-C", str(folder), "-c", "core.quotepath=false", *arguments],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=_TIMEOUT_S,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise StorageError("git did not answer", received=str(exc)[:200]) from exc
