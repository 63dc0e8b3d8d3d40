"""What is checked out is read as it is: the commit, the project's place in it, and whether files differ."""

from __future__ import annotations

import subprocess
from pathlib import Path

from noa_training.git_state import read_git_state


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def make_repository(folder: Path) -> Path:
    project = folder / "models" / "größe"
    project.mkdir(parents=True)
    (project / "recipe.py").write_text("x = 1\n")
    (project / ".gitignore").write_text("data/\n")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return project


def test_a_clean_project_has_its_commit_and_place_and_no_difference(tmp_path: Path) -> None:
    project = make_repository(tmp_path)
    state = read_git_state(project)
    assert state is not None
    assert (state.commit, state.path, state.diff_digest) == (git(project, "rev-parse", "HEAD"), "models/größe", None)


def test_changed_and_new_python_files_differ_and_ignored_or_other_new_files_do_not(tmp_path: Path) -> None:
    project = make_repository(tmp_path)
    (project / "data").mkdir()
    (project / "data" / "rows.py").write_text("ignored")
    (project / "notes.txt").write_text("new, and no code")
    assert digest(project) is None
    (project / "helper.py").write_text("y = 1\n")
    new = digest(project)
    (project / "helper.py").write_text("y = 2\n")
    other = digest(project)
    (project / "helper.py").unlink()
    (project / "recipe.py").write_text("x = 2\n")
    changed = digest(project)
    git(project, "add", "-A")
    assert digest(project) is not None  # staged is not committed
    assert None not in (new, other, changed)
    assert len({new, other, changed}) == 3
    (project / "recipe.py").write_text("x = 1\n")
    git(project, "reset", "-q")
    assert digest(project) is None


def test_outside_of_a_repository_or_before_the_first_commit_there_is_no_state(tmp_path: Path) -> None:
    assert read_git_state(tmp_path / "nowhere") is None
    git(tmp_path, "init", "-q")
    assert read_git_state(tmp_path) is None


def digest(project: Path) -> str | None:
    state = read_git_state(project)
    assert state is not None
    return state.diff_digest
