"""Under `--json` standard output is one JSON document, and an error is JSON on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from noa_cli.__main__ import run
from noa_cli._app import build

# For each command arguments with which it ends well and others with which it fails. None in the first place: it needs
# services or minutes.
COMMANDS: dict[str, tuple[list[str] | None, list[str] | None]] = {
    "init": (["fresh"], ["."]),
    "demo": (None, ["--folder", "."]),
    "doctor": ([], None),
    "up": (None, ["--only", "nothing"]),
    "down": ([], ["--only", "nothing"]),
    "status": ([], ["-C", "missing"]),
    "train": (None, ["nothing"]),
    "sweep": (None, ["nothing"]),
    "runs list": ([], ["status:nothing"]),
    "runs show": (None, ["nothing"]),
    "runs compare": (None, ["nothing", "nobody"]),
    "runs plot": (None, ["nothing"]),
    "models list": ([], ["nothing"]),
    "models show": (["digits@champion"], ["digits@rogue"]),
    "models check": (["digits/3"], ["digits@rogue"]),
    "models compare": (["digits/1", "digits/2"], ["digits/1", "digits@rogue"]),
    "models measure": (["digits/1", "--batch", "1", "--seconds", "0.1"], ["digits@rogue"]),
    "models verify": ([], ["nothing"]),
    "models promote": (["digits/3", "--dry-run"], ["digits/99"]),
    "models rollback": (["digits", "--dry-run"], ["digits@rogue"]),
    "models history": (["digits"], ["nothing"]),
    "models delete": (None, ["digits/2", "--reason", "r"]),
    "models restore": (None, ["digits/1"]),
    "models lineage": (["digits"], ["nothing"]),
    "models search": (["name:digits"], ["size:large"]),
    "models export": (["digits/1", "-o", "digits.noa"], ["digits@rogue"]),
    "models import": (None, ["nothing.onnx", "--name", "digits"]),
    "models card": (["digits/1", "-o", "card.md"], ["digits@rogue"]),
    "models reproduce": (None, ["digits@rogue"]),
    "models sign": (None, ["digits/1"]),
    "models signatures": (["digits/1"], ["digits@rogue"]),
    "gc": ([], ["--apply", "--dry-run"]),
    "models approve": (["digits/3", "--reason", "r"], ["digits/3", "--expires", "soon"]),
    "models approvals": (["digits"], ["nothing"]),
    "models revoke": (None, ["99"]),
    "ledger show": ([], ["--model", "1nothing"]),
    "ledger verify": ([], ["--anchor", "nothing"]),
    "ledger anchor": ([], ["--output", "noa.toml"]),
    "endpoints list": ([], ["-C", "missing"]),
    "endpoints show": (None, ["nothing"]),
    "endpoints traffic": (None, ["nothing"]),
    "endpoints watch": (None, ["-C", "missing"]),
    "api-keys new": (["shop", "--expires", "9d"], ["shop", "--verb", "write"]),
    "api-keys list": ([], ["-C", "missing"]),
    "api-keys limit": (None, ["nobody", "--rate", "5"]),
    "api-keys revoke": (None, ["nobody"]),
    "keys new-signing": (["release", "--folder", "keys"], ["re/lease"]),
    "keys new": (["somebody", "--folder", "keys"], ["some/body"]),
    "events list": ([], ["--model", "1nothing"]),
    "events consumers": ([], None),
    "events dead-letters": ([], ["--webhook", "nothing", "--redeliver"]),
    "events seek": (["ci", "0", "--new"], ["ci", "99999"]),
    "events forget": (None, ["nothing", "--dry-run"]),
    "events trim": (["--dry-run"], ["-o", "nothing=1"]),
    "convert": (None, ["digits/1"]),
    "formats": ([], None),
    "verify": (None, ["nothing.onnx", "nothing"]),
    "optimize": (None, ["nothing"]),
    "serve": (None, ["nothing"]),
    "package": (["digits/1", "-o", "packed"], ["nothing"]),
    "predict": (["digits@champion", "--input", "in.json"], ["numbers", "--input", "in.json", "-o", "serving.port=1"]),
    "bench": (None, ["digits", "--connections", "none"]),
    "flows list": (None, []),
    "flows run": (None, ["noisy"]),
    "flows schedule": (None, ["noisy", "--cron", "0 3 * * *"]),
    "flows unschedule": (None, ["noisy"]),
    "flows cancel": (None, ["nothing"]),
    "config show": ([], ["nothing"]),
    "config explain": (["serving.port"], ["nothing"]),
    "config validate": ([], ["-o", "nothing=1"]),
    "config schema": ([], None),
    "config diff": (["-", "-"], ["-", "nothing"]),
}


def commands(group: object, trail: str = "") -> Iterator[str]:
    for name, command in getattr(group, "commands", {}).items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{trail}{name} ")
        elif any("--json" in parameter.opts for parameter in command.params):
            yield f"{trail}{name}"


def test_every_command_that_takes_json_is_tested_here() -> None:
    assert set(commands(typer.main.get_command(build()))) == set(COMMANDS)


@pytest.mark.parametrize("command", [name for name, (good, _) in COMMANDS.items() if good is not None])
def test_the_result_is_one_document(
    command: str, registered: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(registered)
    code = run([*command.split(), *(COMMANDS[command][0] or []), "--json"])
    captured = capfd.readouterr()
    assert code == 0, captured.err
    json.loads(captured.out)


@pytest.mark.parametrize("command", [name for name, (_, bad) in COMMANDS.items() if bad is not None])
def test_an_error_leaves_standard_output_empty_and_is_the_last_line_of_standard_error(
    command: str, registered: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(registered)
    code = run([*command.split(), *(COMMANDS[command][1] or []), "--json"])
    captured = capfd.readouterr()
    assert (code, captured.out) == (1, "")
    error = json.loads(captured.err.splitlines()[-1])
    assert set(error) == {"error", "what", "where", "expected", "received", "remedy"}


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), PermissionError(13, "Permission denied", "/x")])
def test_an_error_that_is_not_ours_is_json_too(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("noa_cli.commands.doctor._examine", fail)
    assert run(["doctor", "--json"]) == 1
    captured = capfd.readouterr()
    told = json.loads(captured.err)
    assert (captured.out, told["error"]) == ("", type(error).__name__)
    assert "out of luck" in told["what"] or (told["what"], told["where"]) == ("permission denied", "/x")
