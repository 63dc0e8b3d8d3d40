"""The patch that a run keeps gives the same files again, holds no secret and is bounded."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from noa.database_urls import MASK
from noa_training.git_diff import is_secret_file, read_git_diff
from noa_training.git_state import GitState, read_git_state


def git(folder: Path, *arguments: str, given: str | None = None) -> str:
    identity = ["-c", "user.name=ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, input=given).stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project in a folder of a repository, beside another one."""
    root = tmp_path / "repo" / "models"
    root.mkdir(parents=True)
    (root / "recipe.py").write_text("x = 1\n\n\ny = 2\n")
    (root / "noa.toml").write_text("[project]\nname = 'mine'\n")
    (root / ".env").write_text("A=1\n")
    (root / "rows.bin").write_bytes(bytes(range(256)))
    (root.parent / "other.py").write_text("z = 1\n")
    git(root.parent, "init", "-q", "-b", "main")
    git(root.parent, "add", "-A")
    git(root, "commit", "-qm", "first")
    return root


def state_of(root: Path) -> GitState:
    state = read_git_state(root)
    assert state is not None
    return state


def diff_of(root: Path, **options: int) -> str:
    diff = read_git_diff(root, state_of(root), **options)
    assert diff is not None
    return diff


def test_a_clean_project_has_no_patch_and_its_branch_is_known(project: Path) -> None:
    assert read_git_diff(project, state_of(project)) is None
    assert (state_of(project).branch, state_of(project).untracked) == ("main", ())
    git(project, "checkout", "-q", "--detach")
    assert state_of(project).branch is None


def test_the_patch_gives_the_same_files_again(project: Path, tmp_path: Path) -> None:
    (project / "recipe.py").write_text("x = 3\n\n\ny = 2\n\n")
    (project.parent / "other.py").unlink()
    (project / "größe.py").write_text("neu = 'ü'\n\nlast = 1")
    (project / "empty.py").write_text("")
    git(project, "add", "recipe.py")
    diff = diff_of(project)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(project.parent), str(clone))
    git(clone, "apply", "--whitespace=nowarn", "-", given=diff)
    for name in ("models/recipe.py", "models/größe.py", "models/empty.py"):
        assert (clone / name).read_bytes() == (project.parent / name).read_bytes(), name
    assert not (clone / "other.py").exists()


def test_no_secret_is_in_the_patch(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "swordfish-swordfish")
    (project / "recipe.py").write_text('x = 1\npassword = "hunter2"\nurl = "postgresql://ada:hunter3@db/x"\ny = 2\n')
    (project / "noa.toml").write_text("[project]\nname = 'mine'\n[registry.s3]\nsecret_key = hunter4\n")
    (project / ".env").write_text("A=hunter5\n")
    (project / "my_secrets.py").write_text("A = 'hunter6'\n")
    (project / "helper.py").write_text(
        "a = 'swordfish-swordfish'\nkey = '''-----BEGIN PRIVATE KEY-----\nhunter7\n'''\n"
    )
    (project / "rows.bin").write_bytes(b"\0hunter8" * 50)
    git(project, "add", "my_secrets.py")
    diff = diff_of(project)
    assert "hunter" not in diff and "swordfish" not in diff
    assert ".env" not in diff and "my_secrets" not in diff
    assert "Binary files a/models/rows.bin and b/models/rows.bin differ" in diff
    assert f'+password = "{MASK}"' in diff and f"ada:{MASK}@db" in diff
    assert diff.startswith(
        "# Files that may hold secrets are left out of this patch.\n# What may be a secret is masked"
    )


def test_a_secret_in_a_heading_of_a_hunk_is_masked(project: Path) -> None:
    lines = ["def load(password='hunter2'):", *(f"    x{number} = {number}" for number in range(30))]
    (project / "recipe.py").write_text("\n".join(lines) + "\n")
    git(project, "commit", "-qam", "second")
    (project / "recipe.py").write_text("\n".join([*lines[:-1], "    changed = 1"]) + "\n")
    diff = diff_of(project)
    assert "def load" in diff and "hunter2" not in diff


def test_a_patch_is_bounded_and_says_so(project: Path) -> None:
    (project / "recipe.py").write_text("".join(f"x{number} = {number}\n" for number in range(5000)))
    (project / "new.py").write_text("z = 1\n" * 5000)
    diff = diff_of(project, most_bytes=20_000)
    assert len(diff.encode()) < 20_300
    assert "# It is cut off after 20000 bytes." in diff
    assert all(len(line) < 100 for line in diff.splitlines())


@pytest.mark.parametrize(
    ("path", "is_secret"),
    [
        (".env", True), ("a/.ENV.local", True), ("prod.env", True), ("deploy/server.pem", True), ("ID_RSA", True),
        ("secrets.toml", True), ("a/credentials.json", True), (".netrc", True), ("recipe.py", False),
        ("environment.py", False), ("tokenizer.json", False), ("keyboard.py", False), ("noa.toml", False),
    ],
)  # fmt: skip
def test_files_that_hold_secrets_are_known_by_name(path: str, is_secret: bool) -> None:
    assert is_secret_file(path) is is_secret
