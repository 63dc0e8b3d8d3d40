"""An unknown model, alias or server: the error holds what to type instead."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from noa_cli.__main__ import run


@pytest.fixture(autouse=True)
def _inside(registered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(registered)


def remedy_of(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run([*arguments, "--json"]) == 1
    return str(json.loads(capfd.readouterr().err.splitlines()[-1])["remedy"])


TAKE_A_VERSION = (
    ["models", "show"],
    ["models", "check"],
    ["models", "verify"],
    ["models", "promote"],
    ["convert"],
    ["serve"],
    ["predict", "--input", "in.json"],
)


@pytest.mark.parametrize("command", [*TAKE_A_VERSION, ["models", "rollback"]], ids=" ".join)
def test_an_unknown_alias_names_the_aliases_there_are(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    remedy = remedy_of(capfd, *command, "digits@rogue")
    assert remedy == ("Use `digits@champion`, or set the alias first: noa models promote digits/3 --alias rogue")


@pytest.mark.parametrize("command", TAKE_A_VERSION, ids=" ".join)
def test_an_unknown_model_names_the_one_that_was_meant(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert remedy_of(capfd, *command, "digit@champion").startswith("Did you mean `digits`?")
    assert remedy_of(capfd, *command, "elephants/1") == "List them with: noa models list"


@pytest.mark.parametrize("command", ["list", "verify", "history", "rollback"])
def test_commands_about_a_whole_model_do_too(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert remedy_of(capfd, "models", command, "digit").startswith("Did you mean `digits`?")


def test_a_format_that_is_missing_keeps_its_own_remedy(capfd: pytest.CaptureFixture[str]) -> None:
    remedy = remedy_of(capfd, "predict", "digits/1", "--input", "in.json", "--format", "jax")
    assert remedy == "Make it with: noa convert digits/1 --to jax"


def test_a_version_that_is_missing_is_told_with_a_command_that_lists_those_there_are(
    capfd: pytest.CaptureFixture[str],
) -> None:
    remedy = remedy_of(capfd, "models", "show", "digits/9")
    assert remedy == "List them with: noa models list digits"
    assert run(remedy.removeprefix("List them with: noa ").split()) == 0
    assert "digits/3" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("what", "options", "version"), [("numbers", [], 1), ("digits", [], 2), ("digits/3", ["--url", "127.0.0.1:1"], 3)]
)
def test_without_a_server_the_remedy_is_a_command_that_works_as_it_stands(
    what: str, options: list[str], version: int, registered: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "my in.json").write_text((registered / "in.json").read_text())
    monkeypatch.chdir(tmp_path)
    typed = ["predict", what, "--input", "my in.json", "-C", str(registered), "-o", "serving.port=1", *options]
    remedy = remedy_of(capfd, *typed)
    name, *arguments = shlex.split(remedy.partition("compute here: ")[2])
    assert name == "noa"
    assert run(arguments) == 0
    assert json.loads(capfd.readouterr().out)["version"] == version


def test_a_server_that_does_not_answer_is_told_with_all_parts_of_an_error(
    registered: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(registered)
    for command, remedy in (
        (["bench", "digits", "-o", "serving.port=1"], "Start one with `noa serve --override "),
        (["bench", "digits", "--url", "127.0.0.1:1"], "Check `--url`"),
        (["predict", "digits", "--input", "in.json", "--url", "127.0.0.1:1"], "Check `--url`, or compute here: noa"),
        (["flows", "list"], "Start it with `noa up`"),
        (["flows", "run", "noisy"], "Start it with `noa up`"),
    ):
        assert run([*command, "--json"]) == 1
        error = json.loads(capfd.readouterr().err.splitlines()[-1])
        assert error["error"] in ("NoAnswerError", "ServiceError")
        assert [part for part, text in error.items() if not text] == []
        assert str(error["remedy"]).startswith(remedy)


def test_a_remedy_does_not_repeat_keys(capfd: pytest.CaptureFixture[str]) -> None:
    overrides = ["-o", "serving.port=1", "-o", 'serving.api_keys=["a-secret-key-of-mine"]']
    remedy = remedy_of(capfd, "predict", "numbers", "--input", "in.json", *overrides)
    assert "serving.port=1" in remedy
    assert "secret" not in remedy
