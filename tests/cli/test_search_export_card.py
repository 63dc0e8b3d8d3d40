"""`noa models search`, `export`, `import` of an archive and `card`, as somebody types them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from noa.settings import load_settings
from noa_cli.__main__ import run
from noa_flows import Reproduction, Tolerance
from noa_flows.reproduction import ArrayDifference
from noa_registry import Registry


def test_search_prints_a_table_json_and_pages(registered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ["--directory", str(registered)]
    assert run(["models", "search", "name:digits format:onnx", "--limit", "2", "--json", *here]) == 0
    page = json.loads(capsys.readouterr().out)
    assert [hit["reference"] for hit in page["hits"]] == ["digits/3", "digits/2"]
    again = ["models", "search", "name:digits format:onnx", "--limit", "2", "--json", "--cursor", page["next_cursor"]]
    assert run([*again, *here]) == 0
    last = json.loads(capsys.readouterr().out)
    assert [hit["reference"] for hit in last["hits"]] == ["digits/1"]
    assert last["next_cursor"] is None


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["name:digits", "-is:live", "-C", "{root}"], [3, 1]),
        (["-is:live", "-C{root}"], [3, 1]),
        (["-C", "{root}", "--", "-is:live"], [3, 1]),
        (["-number:1", "sort:created:asc", "-oserving.port=1", "-number:3", "-C", "{root}"], [2]),
        (["-digits", "--directory={root}"], []),
        (["-onnx", "-C", "{root}"], [3, 2, 1]),
        (["-housing sort:created:asc", "-C", "{root}"], [1, 2, 3]),
    ],
)
def test_a_negated_term_may_stand_anywhere_among_the_options(
    words: list[str], numbers: list[int], registered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = [word.format(root=registered) for word in words]
    assert run(["models", "search", "--json", *here]) == 0
    assert [hit["number"] for hit in json.loads(capsys.readouterr().out)["hits"]] == numbers


@pytest.mark.parametrize(
    ("word", "told"), [("--limt", "--limit"), ("-x", "-x"), ("-json", "`--json`"), ("-limit=3", "`--limit=3`")]
)
def test_an_option_that_was_mistyped_is_not_taken_for_a_term(
    word: str, told: str, registered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "search", "digits", word, "-C", str(registered)]) == 2
    assert told in capsys.readouterr().err


def test_a_query_that_cannot_be_read_is_one_line_with_a_remedy(
    registered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "search", "digits tagg.team=x", "--directory", str(registered)]) != 0
    error = capsys.readouterr().err.strip()
    assert "column 8" in error
    assert "Did you mean `tag.`?" in error
    assert len(error.splitlines()) == 1


def test_an_archive_needs_its_folder_and_is_told_by_a_plain_path(
    registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export = ["models", "export", "digits/2", "-C", str(registered), "--json", "-o"]
    assert run([*export, str(tmp_path / "no dir" / "x.noa")]) == 1
    assert f"mkdir -p '{tmp_path / 'no dir'}'" in json.loads(capsys.readouterr().err)["remedy"]
    (tmp_path / "file").write_text("")
    assert run([*export, str(tmp_path / "file" / "x.noa")]) == 1
    assert "cannot be in a file" in capsys.readouterr().err
    assert run([*export, str(tmp_path / "here" / ".." / "d.noa")]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(tmp_path / "d.noa")
    card = ["models", "card", "digits/2", "-C", str(registered), "--json", "--output"]
    assert run([*card, str(tmp_path / "here" / ".." / "d.md")]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(tmp_path / "d.md")


def test_an_archive_goes_from_one_project_to_another(
    registered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "d.noa"
    export = ["models", "export", "digits/2", "-o", str(archive), "--directory", str(registered)]
    assert run([*export, "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["reference"] == "digits/2"
    assert written["size_bytes"] == archive.stat().st_size
    assert run(export) == 1
    assert "--force" in capsys.readouterr().err
    assert run([*export, "--force"]) == 0
    there = tmp_path / "there"
    there.mkdir()
    shutil.copy(registered / "noa.toml", there)
    capsys.readouterr()
    take = ["models", "import", str(archive), "--directory", str(there)]
    assert run([*take, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"]["digest"] == written["digest"]
    assert run(take) == 1
    assert "here already: `digits/1`" in capsys.readouterr().err
    assert run([*take, "--exist-ok"]) == 0
    assert "digits/1 is here already, unchanged" in capsys.readouterr().out
    assert run(["models", "verify", "--directory", str(there)]) == 0


def test_a_damaged_version_is_repaired_from_its_archive_by_the_command_that_verify_names(
    registered: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    add_empty_registry: Callable[[Path], None],
) -> None:
    archive = tmp_path / "d.noa"
    assert run(["models", "export", "digits/2", "-o", str(archive), "--directory", str(registered)]) == 0
    there = tmp_path / "there"
    add_empty_registry(there)
    shutil.copy(registered / "noa.toml", there)
    project = ["--directory", str(there)]
    assert run(["models", "import", str(archive), *project]) == 0
    (graph,) = (there / ".noa" / "artifacts").glob("digits/*/formats/onnx/model.onnx")

    def damage() -> None:
        graph.chmod(0o644)
        with graph.open("r+b") as file:
            file.write(b"\0\0\0\0")

    damage()
    capsys.readouterr()
    assert run(["models", "verify", "--repair", *project]) == 1
    command = re.search(r"noa (models import FILE\.noa[ a-z-]*)", capsys.readouterr().out)
    assert command is not None
    mend = [str(archive) if word == "FILE.noa" else word for word in command[1].split()]
    assert run([*mend, *project]) == 0
    out = capsys.readouterr().out
    assert re.search(r"repaired \d files of digits/1", out)
    assert "registered" not in out
    assert run(["models", "verify", *project]) == 0

    damage()
    capsys.readouterr()
    assert run([*mend, "--json", *project]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["outcome"] == "repaired"
    assert any("model.onnx" in text for text in told["repaired"])
    assert run([*mend, "--json", *project]) == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "unchanged"


def test_the_archive_is_named_after_the_version_and_lies_in_the_project(
    registered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "export", "digits@champion", "--directory", str(registered)]) == 0
    assert (registered / "digits-2.noa").is_file()
    (registered / "digits-2.noa").unlink()
    capsys.readouterr()


def test_a_card_is_printed_or_written_in_the_form_of_its_ending(
    registered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = ["models", "card", "digits@champion", "--directory", str(registered)]
    assert run(card) == 0
    assert capsys.readouterr().out.startswith("# digits, version 2\n")
    assert run([*card, "--html"]) == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")
    assert run([*card, "-o", str(tmp_path / "card.html")]) == 0
    assert (tmp_path / "card.html").read_text().startswith("<!doctype html>")
    assert run([*card, "-o", str(tmp_path), "--json"]) == 0
    assert (tmp_path / "digits-2.md").read_text().startswith("# digits")
    capsys.readouterr()
    assert run([*card, "-o", str(tmp_path / "card.pdf")]) == 1
    assert "a file ending in .md or .html" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "address"),
    [
        ("serving.port=4321", "http://127.0.0.1:4321"),
        ("serving.port=0", "http://127.0.0.1:PORT"),
        ("serving.host=::1", "http://[::1]:3000"),
    ],
)
def test_a_card_asks_the_server_of_the_settings(
    override: str, address: str, registered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "card", "digits@champion", "-C", str(registered), "--override", override]) == 0
    assert f"curl -s {address}/predict " in capsys.readouterr().out


def test_reproducing_what_was_not_trained_here_says_what_is_missing(
    registered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "reproduce", "digits/1", "--directory", str(registered)]) == 1
    assert "too little is recorded about how `digits/1` was trained" in capsys.readouterr().err


def test_what_was_left_out_of_a_reproduction_is_said(
    registered: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    none = ArrayDifference(largest=0.0, mean=0.0, count=1, worst="")
    made = Reproduction(
        reference="digits/1",
        verdict="equal",
        source="commit abc",
        recorded_digest="sha256:1",
        received_digest="sha256:1",
        weights=none,
        outputs=none,
        metrics={},
        tolerance=Tolerance(),
        linked=("data",),
        left_out=("keys/ada.key",),
    )
    monkeypatch.setattr("noa_flows.reproduce_version", lambda *_, **__: made)  # it would train
    assert run(["models", "reproduce", "digits/1", "--directory", str(registered)]) == 0
    out = capsys.readouterr().out
    assert "in no commit: data\n" in out
    assert "they are keys: keys/ada.key\n" in out


def test_the_programs_on_a_card_run_as_they_are_printed(registered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "card", "digits@champion", "--directory", str(registered)]) == 0
    programs = re.findall(r"```python\n(.*?)```", capsys.readouterr().out, re.DOTALL)
    assert ["mlflow" in program for program in programs] == [False, True, False]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    for program in programs:
        subprocess.run(
            [sys.executable, "-c", program + ("" if "input.json" in program else "assert outputs\n")],
            cwd=registered,
            env=environment,
            check=True,
            capture_output=True,
            timeout=120,
        )
    request = registered / "input.json"  # what the card sends over HTTP
    with Registry.open(load_settings(registered).settings) as registry:
        example = registry.input_example(registry.resolve("digits@champion"))
    assert json.loads(request.read_text()) == {"inputs": example["x"].tolist()}
    request.unlink()
