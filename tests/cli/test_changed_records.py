"""What somebody changed in the database is found by every command that looks, and stops none of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from noa_cli.__main__ import run

APPROVALS = "noa_approvals"


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


@pytest.mark.parametrize("column", ["tags", "signature", "wrapper", "params", "environment"])
@pytest.mark.parametrize("text", ["{", "null", "[[1]]"])
def test_a_cell_that_cannot_be_read_stops_nothing_but_its_own_version(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, column: str, text: str
) -> None:
    change(project, f"UPDATE noa_versions SET {column} = '{text}' WHERE number = 3")
    verified = answer(capsys, project, "models", "verify", code=1)
    assert verified["checked"] == 3
    assert [problem["subject"] for problem in verified["problems"]] == ["digits/3"]
    assert "`digits/3` was changed" in verified["problems"][0]["what"]
    answer(capsys, project, "models", "verify", "--repair", code=1)
    assert "`digits/3` was changed" in doctors_word(capsys, project, monkeypatch)["detail"]
    monkeypatch.chdir(project)
    capsys.readouterr()
    assert run(["models", "list", "digits"]) == 0
    listed = capsys.readouterr()
    assert "digits/2" in listed.out
    assert "digits/3" not in listed.out
    assert "`digits/3` was changed" in listed.err
    hits = answer(capsys, project, "models", "search", "name:digits")["hits"]
    assert [hit["reference"] for hit in hits] == ["digits/3", "digits/2", "digits/1"]
    problems = [hit["problem"] for hit in hits]
    if column == "tags":
        assert problems[0] == "the record of `digits/3` was changed: `tags` of noa_versions cannot be read"
    assert problems[1:] == [None, None]
    answer(capsys, project, "models", "lineage", "digits")
    assert run(["models", "show", "digits/3"]) == 1
    assert "`digits/3` was changed" in capsys.readouterr().err
    assert run(["models", "show", "digits/2"]) == 0


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


@pytest.mark.parametrize("cell", ["'yesterday'", "''", "7", "x'ff00'", "CAST(x'ff' AS TEXT)", "'2026-01-01T00:00:00'"])
def test_a_time_that_cannot_be_read_stops_nothing_but_its_own_row(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cell: str
) -> None:
    change(project, f"UPDATE noa_versions SET created_at = {cell} WHERE number = 3")
    hits = answer(capsys, project, "models", "search", "name:digits")["hits"]
    assert sorted((hit["reference"], hit["problem"] is None) for hit in hits) == [
        ("digits/1", True), ("digits/2", True), ("digits/3", False),
    ]  # fmt: skip
    verified = answer(capsys, project, "models", "verify", code=1)
    assert {problem["subject"] for problem in verified["problems"]} == {"digits/3"}
    monkeypatch.chdir(project)
    for words, code in ((["list", "digits"], 0), (["search", "name:digits"], 0), (["show", "digits/2"], 0),
                        (["show", "digits/3"], 1)):  # fmt: skip
        assert run(["models", *words]) == code
    assert "`digits/3` was changed" in capsys.readouterr().err

    change(project, f"UPDATE noa_models SET updated_at = {cell}")
    assert [model["name"] for model in answer(capsys, project, "models", "list")] == ["digits"]
    assert run(["models", "list"]) == 0
    assert "the record of `digits` was changed: `updated_at` of noa_models cannot be read" in capsys.readouterr().err
    assert "`updated_at` of noa_models" in doctors_word(capsys, project, monkeypatch)["detail"]


@pytest.mark.parametrize("column", ["description", "created_by", "tags", "dataset_digest"])
def test_a_text_that_is_no_text_stops_nothing_but_its_own_version(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    change(project, f"UPDATE noa_versions SET {column} = CAST(x'fffe' AS TEXT) WHERE number = 3")
    verified = answer(capsys, project, "models", "verify", code=1)
    subjects = {problem["subject"] for problem in verified["problems"]}
    assert "digits/3" in subjects
    assert subjects <= {"digits/3", "MLflow's row of digits, version 3"}
    assert len(answer(capsys, project, "models", "search", "name:digits")["hits"]) == 3
    monkeypatch.chdir(project)
    assert run(["models", "list", "digits"]) == 0
    assert run(["models", "show", "digits/2"]) == 0


def test_removed_evidence_is_found_by_verify_and_doctor_and_decides_nothing(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(project, "DELETE FROM noa_evidence WHERE number = 3")
    (problem,) = answer(capsys, project, "models", "verify", code=1)["problems"]
    assert problem["subject"] == "digits/3"
    assert "evidence of `digits/3` was removed" in problem["what"]
    assert "of `digits/3` was removed" in doctors_word(capsys, project, monkeypatch)["detail"]
    monkeypatch.chdir(project)
    assert run(["models", "promote", "digits/3", "--reason", "nothing speaks against it"]) == 1
    assert "evidence of `digits/3` was removed" in capsys.readouterr().err
    assert run(["models", "check", "digits/2"]) == 0


@pytest.mark.parametrize(
    ("statement", "place"),
    [
        ("UPDATE noa_versions SET native = cast(native AS blob) WHERE number = 3", "noa_versions"),
        ("UPDATE noa_models SET next_number = 'x5'", "noa_models"),
        ("UPDATE noa_version_labels SET value = cast(value AS blob)", "noa_version_labels"),
        (
            "INSERT INTO noa_approvals VALUES (9, 'digits', 3, 'a', 'd', x'6F', 'r', NULL, 't', 't', 'x2', NULL)",
            APPROVALS,
        ),
    ],
)
def test_a_cell_of_another_type_is_named_and_no_command_calls_it_a_mistake_of_its_own(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, statement: str, place: str
) -> None:
    change(project, statement)
    verified = answer(capsys, project, "models", "verify", code=1)
    assert verified["checked"] == 3
    problem = verified["problems"][0]
    assert problem["subject"] == ("digits/3" if place == "noa_versions" else "database")
    assert f"of {place} is of another type than noa writes (the row with " in problem["what"]
    answer(capsys, project, "ledger", "verify", code=1)
    assert doctors_word(capsys, project, monkeypatch)["state"] == "problem"
    monkeypatch.chdir(project)
    for words in (
        ["models", "list"],
        ["models", "list", "digits"],
        ["models", "show", "digits/3"],
        ["models", "search", "digits"],
        ["models", "approvals", "digits"],
        ["models", "check", "digits/3"],
        ["models", "card", "digits/3"],
        ["models", "history", "digits"],
    ):
        capsys.readouterr()
        run(words)
        said = capsys.readouterr()
        assert "mistake in noa" not in said.err + said.out, words


def test_a_spoilt_alias_is_named_once_and_hinders_no_version_that_does_not_hold_it(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    change(project, "UPDATE noa_aliases SET number = 'zwei'")
    capsys.readouterr()
    for words, code in ((["list", "digits"], 0), (["show", "digits/1"], 0), (["show", "digits/3"], 0),
                        (["show", "digits/2"], 1), (["show", "digits@champion"], 1)):  # fmt: skip
        assert run(["models", *words]) == code, words
    problems = answer(capsys, project, "models", "verify", code=1)["problems"]
    whats = [problem["what"] for problem in problems]
    assert sum(what.startswith("a cell was changed: `number` of noa_aliases") for what in whats) == 1


def test_changed_labels_are_named_and_a_repair_writes_them_anew(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(project, "DELETE FROM noa_version_labels WHERE number IN (2, 3)")
    problems = answer(capsys, project, "models", "verify", code=1)["problems"]
    assert [(problem["subject"], problem["what"], problem["received"]) for problem in problems] == [
        (f"index of search, digits, version {number}, labels", "is not what the record says", "nothing")
        for number in (2, 3)
    ]
    answer(capsys, project, "models", "verify", "--repair")
    hits = answer(capsys, project, "models", "search", "format:onnx")["hits"]
    assert [hit["reference"] for hit in hits] == ["digits/3", "digits/2", "digits/1"]
