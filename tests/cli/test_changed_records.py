"""What somebody changed in the database is found by every command that looks, and stops none of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from noa_cli.__main__ import run


@pytest.fixture
def project(registered: Path) -> Iterator[Path]:
    """The registered project, whose database is put back afterwards."""
    (file,) = (registered / ".noa").glob("*.db")
    before = sqlite3.connect(":memory:")
    with sqlite3.connect(file) as connection:
        connection.backup(before)
    yield registered
    with sqlite3.connect(file) as connection:
        before.backup(connection)
    before.close()


def change(project: Path, statement: str) -> None:
    """Run a statement as somebody who may change the database itself: the triggers are lifted, then put back."""
    (file,) = (project / ".noa").glob("*.db")
    with sqlite3.connect(file) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f'DROP TRIGGER "{name}"')
        connection.execute(statement)
        for _, text in triggers:
            connection.execute(text)
    connection.close()


def answer(capsys: pytest.CaptureFixture[str], project: Path, *words: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert run([*words, "--json", "--directory", str(project)]) == code
    return json.loads(capsys.readouterr().out)


def doctors_word(capsys: pytest.CaptureFixture[str], project: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(project)
    capsys.readouterr()
    run(["doctor", "--json"])
    return next(one for one in json.loads(capsys.readouterr().out) if one["name"] == "registry")


def test_changed_evidence_is_found_by_verify_and_doctor(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer(capsys, project, "models", "verify")["problems"] == []
    assert doctors_word(capsys, project, monkeypatch)["state"] == "ok"
    change(project, "UPDATE noa_evidence SET passed = 0 WHERE id = (SELECT max(id) FROM noa_evidence)")
    (problem,) = answer(capsys, project, "models", "verify", code=1)["problems"]
    assert problem["subject"] == "digits/3"
    assert "evidence" in problem["what"]
    assert "--repair" not in problem["remedy"]
    found = doctors_word(capsys, project, monkeypatch)
    assert found["state"] == "problem"
    assert "of `digits/3` was changed" in found["detail"]
