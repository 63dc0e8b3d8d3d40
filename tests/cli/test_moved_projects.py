"""A project is the same by every name of its folder, and one that was moved is told apart from one that was changed."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from noa.settings import load_settings
from noa_cli.__main__ import run
from noa_registry import Registry


@pytest.fixture
def project(registered: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "real"
    shutil.copytree(registered, folder)
    assert run(["models", "verify", "--repair", "-C", str(folder)]) == 0
    return folder


def answer(capfd: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    capfd.readouterr()
    assert run([*words, "--json"]) == code, capfd.readouterr().err
    return json.loads(capfd.readouterr().out)


def doctors_word(capfd: pytest.CaptureFixture[str], name: Path) -> dict[str, str]:
    capfd.readouterr()
    run(["doctor", "--json", "-C", str(name)])
    return next(one for one in json.loads(capfd.readouterr().out) if one["name"] == "registry")


@pytest.mark.parametrize("name", ["beside/../real", "link", "link/../real"])
def test_a_project_is_the_same_by_every_name_of_its_folder(
    project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "link").symlink_to(project)
    monkeypatch.chdir(tmp_path / "beside")
    other = f"../{name}"
    assert answer(capfd, "models", "verify", "-C", other)["problems"] == []
    assert answer(capfd, "models", "verify", "--repair", "-C", other)["repaired"] == []
    assert doctors_word(capfd, Path(other))["state"] == "ok"
    assert answer(capfd, "models", "verify", "-C", str(project))["problems"] == []


def test_what_is_imported_by_another_name_is_recorded_by_the_one_of_the_folder(
    project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "digits.noa"
    answer(capfd, "models", "export", "digits/1", "-o", str(archive), "-C", str(project))
    other = tmp_path / "other"
    (tmp_path / "beside").mkdir()
    other.mkdir()
    (other / "noa.toml").write_text('[project]\nname = "other"\n')
    monkeypatch.chdir(tmp_path / "beside")
    answer(capfd, "models", "import", str(archive), "-C", "../beside/../other")
    with Registry.open(load_settings(other).settings) as registry:
        (version,) = registry.versions("digits")
        with sqlite3.connect(other / ".noa" / "noa.db") as connection:
            rows = connection.execute("SELECT source FROM model_versions").fetchall()
        connection.close()
        assert rows == [(f"{other.as_uri()}/.noa/artifacts/digits/{version.uid}",)]
        assert registry.mirror_discrepancies() == []


def test_a_moved_project_is_called_moved_and_one_command_puts_it_right(
    project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "elsewhere"
    project.rename(moved)
    doctor = doctors_word(capfd, moved)
    assert doctor["state"] == "warning"
    assert doctor["detail"].startswith("the project was moved or copied")
    assert doctor["remedy"] == "noa models verify --repair"
    (problem,) = answer(capfd, "models", "verify", "-C", str(moved), code=1)["problems"]
    assert problem["kind"] == "moved"
    assert problem["what"] == "was moved or copied: MLflow's rows name the old place of the files of 3 versions"
    assert problem["received"] == f"{project.as_uri()}/.noa/artifacts/"
    done = answer(capfd, "models", "verify", "--repair", "-C", str(moved))
    assert (len(done["repaired"]), done["problems"]) == (1, [])
    assert doctors_word(capfd, moved)["state"] == "ok"
