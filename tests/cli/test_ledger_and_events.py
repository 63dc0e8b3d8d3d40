"""`noa ledger`, `noa events`, `noa keys` and approvals as a person at a terminal uses them."""

from __future__ import annotations

import io
import json
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import time
import unicodedata
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from noa.settings import load_settings
from noa_cli import _console as console
from noa_cli.__main__ import run
from noa_registry import Registry

Capture = pytest.CaptureFixture[str]


def noa(capfd: Capture, *arguments: str, code: int = 0) -> str:
    assert run(list(arguments)) == code, capfd.readouterr().err
    captured = capfd.readouterr()
    return captured.out if code == 0 else captured.out + captured.err


def as_json(capfd: Capture, *arguments: str) -> Any:
    return json.loads(noa(capfd, *arguments, "--json"))


@pytest.fixture
def project(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the registered project, in which the test may do what it likes."""
    import shutil

    folder = tmp_path / "project"
    shutil.copytree(registered, folder)
    monkeypatch.chdir(folder)
    return folder


def test_the_ledger_is_shown_verified_and_anchored(project: Path, capfd: Capture) -> None:
    assert "digits@champion" in noa(capfd, "ledger", "show")
    rows = as_json(capfd, "ledger", "show", "--model", "digits", "--limit", "1")
    assert (rows[0]["sequence"], rows[0]["to"], rows[0]["verdict"]["passed"]) == (2, 2, True)
    assert as_json(capfd, "ledger", "anchor")["hash"] == rows[0]["hash"]
    assert "row 2" in noa(capfd, "ledger", "anchor", "--output", "anchors.jsonl")
    assert "2 rows and 1 anchor checked: 0 problems" in noa(capfd, "ledger", "verify", "--anchor", "anchors.jsonl")
    line = json.loads((project / "anchors.jsonl").read_text())
    line["hash"] = "sha256:" + "0" * 64
    (project / "anchors.jsonl").write_text(json.dumps(line) + "\n")
    told = noa(capfd, "ledger", "verify", "--anchor", "anchors.jsonl", code=1)
    assert "row 2: the row differs from what was anchored" in told


def test_half_of_a_surrogate_pair_in_the_database_is_escaped_in_json(project: Path, capfd: Capture) -> None:
    settings = load_settings(project).settings.registry
    file = settings.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file)) as database, database:
        for (guard,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{guard}"')
        spoilt = """UPDATE noa_outbox SET payload = replace(payload, '"actor":"', '"actor":"\\ud800')"""
        assert database.execute(spoilt).rowcount > 0
    told = noa(capfd, "ledger", "verify", "--json", code=1)
    assert "\\ud800" in told
    assert json.loads(told)["problems"]
    assert "\\ud800" in noa(capfd, "events", "list", "--json")
    assert "\\ud800" in noa(capfd, "ledger", "verify", code=1)


def test_a_letter_that_the_output_does_not_know_is_escaped_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    for letter in ("é", "日"):
        console.print_json({"name": letter})
        console.print_json_line({"name": letter})
    lines = raw.getvalue().decode("latin-1")
    assert lines == '{\n  "name": "é"\n}\n{"name": "é"}\n{\n  "name": "\\u65e5"\n}\n{"name": "\\u65e5"}\n'


def test_a_protected_alias_is_approved_with_a_key_and_promoted(project: Path, capfd: Capture) -> None:
    pair = as_json(capfd, "keys", "new", "ada", "--folder", "keys")
    assert stat.S_IMODE(Path(pair["private_file"]).stat().st_mode) == 0o600
    with (project / "noa.toml").open("a") as file:
        file.write(
            f'[gates.digits]\napprovals = 1\naliases = ["champion"]\n[registry.principals]\nada = "{pair["public"]}"\n'
        )
    told = noa(capfd, "models", "promote", "digits/3", "--reason", "more data", code=1)
    assert "noa models approve digits/3 --alias champion" in told
    assert "must be signed" in noa(capfd, "models", "approve", "digits/3", "--reason", "r", code=1)
    told = noa(capfd, "models", "approve", "digits/3", "--reason", "fine", "--expires", "2h", "--key", "keys/ada.key")
    assert "ada allows digits/3" in told
    assert "signed" in told
    assert "digits/2 -> digits/3" in noa(capfd, "models", "promote", "digits/3", "--reason", "more data")
    again = noa(capfd, "models", "promote", "digits/3", "--reason", "once more")
    assert "digits/3 holds digits@champion already, since ledger row 3" in again and "more data" in again
    (approval,) = as_json(capfd, "models", "approvals", "digits")
    assert (approval["state"], approval["used_by"], approval["principal"]) == ("used", 3, "ada")
    assert "used by row 3" in noa(capfd, "models", "approvals", "digits@champion")
    assert "ada" in noa(capfd, "ledger", "show", "--limit", "1")
    assert "can no longer be revoked" in noa(capfd, "models", "revoke", str(approval["id"]), code=1)


def test_an_approval_without_principals_is_by_the_user_and_can_be_revoked(project: Path, capfd: Capture) -> None:
    import getpass

    granted = as_json(capfd, "models", "approve", "digits/3", "--reason", "r")
    assert (granted["principal"], granted["signature"], granted["state"]) == (getpass.getuser(), None, "open")
    assert "is revoked" in noa(capfd, "models", "revoke", str(granted["id"]), "--reason", "saw a problem")
    assert "revoked" in noa(capfd, "models", "approvals", "digits/3")


@pytest.mark.parametrize("expires", ["", "24", "h", "-1h", "1y", "1,5h"])
def test_a_time_that_is_none_is_refused(project: Path, capfd: Capture, expires: str) -> None:
    told = noa(capfd, "models", "approve", "digits/3", "--reason", "r", "--expires", expires, code=1)
    assert "is no span of time (--expires)" in told


def test_events_are_listed_and_consumers_kept(project: Path, capfd: Capture) -> None:
    assert "alias.promoted" in noa(capfd, "events", "list")
    events = as_json(capfd, "events", "list", "--model", "digits", "--limit", "2")
    assert [event["kind"] for event in events] == ["alias.promoted", "alias.promoted"]
    assert as_json(capfd, "events", "list", "--after", str(events[0]["id"]))[-1] == events[1]
    assert "Nobody has committed" in "".join(capture(capfd, "events", "consumers"))
    noa(capfd, "events", "seek", "ci", str(events[0]["id"]), "--new")
    (consumer,) = as_json(capfd, "events", "consumers")
    assert (consumer["consumer"], consumer["last_id"], consumer["lag"]) == ("ci", events[0]["id"], 1)
    assert "ci" in noa(capfd, "events", "consumers")
    tried = as_json(capfd, "events", "seek", "ci", "0", "--dry-run")
    assert tried == {"consumer": "ci", "last_id": 0, "before": events[0]["id"], "dry_run": True}
    text = noa(capfd, "events", "seek", "ci", "0", "--dry-run")
    assert "ci would go on with the oldest event that is kept: events up to" in text
    assert "nothing changes" in noa(capfd, "events", "seek", "ci", str(events[0]["id"]))
    assert f"event {events[1]['id']} is skipped" in noa(
        capfd, "events", "seek", "ci", str(events[1]["id"]), "--dry-run"
    )
    assert as_json(capfd, "events", "consumers")[0]["last_id"] == events[0]["id"]
    assert noa(capfd, "events", "seek", "ci", "99999", "--dry-run", code=1)
    assert as_json(capfd, "events", "trim", "--keep-days", "0", "--dry-run") == {
        "removed": 0,
        "removable": len(as_json(capfd, "events", "list")) - 1,
        "dry_run": True,
    }
    assert "would forget ci" in noa(capfd, "events", "forget", "ci", "--dry-run")
    assert "forgot ci" in noa(capfd, "events", "forget", "ci")
    assert as_json(capfd, "events", "consumers") == []
    assert "removed 4 events" in noa(capfd, "events", "trim", "--keep-days", "0")
    assert "No event was given up" in "".join(capture(capfd, "events", "dead-letters"))


def capture(capfd: Capture, *arguments: str) -> tuple[str, str]:
    assert run(list(arguments)) == 0
    return capfd.readouterr()


def test_followed_events_come_as_they_happen(project: Path) -> None:
    command = [sys.executable, "-m", "noa_cli", "events", "list", "--follow", "--json", "--limit", "1"]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True) as follower:
        try:
            assert follower.stdout is not None
            assert json.loads(follower.stdout.readline())["data"]["to"] == 2
            with Registry.open(load_settings(project).settings.registry) as registry:
                registry.promote("digits", 3, reason="r", actor="ada")
            assert json.loads(follower.stdout.readline())["data"]["to"] == 3
        finally:
            follower.send_signal(signal.SIGINT)
        assert follower.wait(timeout=30) == 0


@pytest.mark.parametrize("command", [("events", "deliver"), ("events", "list", "--follow")])
def test_who_presses_ctrl_c_twice_ends_a_program_that_goes_on_by_itself(
    project: Path, command: tuple[str, ...]
) -> None:
    with (project / "noa.toml").open("a") as file:
        file.write(
            '[webhooks.ci]\nurl = "http://127.0.0.1:9/"\nsecret = "a-secret-of-the-tests"\nallow_private = true\n'
        )
    arguments = [sys.executable, "-m", "noa_cli", *command]
    for pause_s in (0.0, 0.0005, 0.005):
        with subprocess.Popen(arguments, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as program:
            try:
                assert program.stdout is not None
                assert b"rror" not in program.stdout.readline()  # it is at work
                program.send_signal(signal.SIGINT)
                time.sleep(pause_s)
                program.send_signal(signal.SIGINT)
                assert program.wait(timeout=30) == 0, program.stdout.read()
            finally:
                program.kill()


def test_delivering_without_a_webhook_says_what_to_write(project: Path, capfd: Capture) -> None:
    assert "[webhooks.NAME]" in noa(capfd, "events", "deliver", code=1)


def test_what_others_wrote_cannot_steer_the_terminal(project: Path, capfd: Capture) -> None:
    steering = "bad\x1b[2J\x1b]0;owned\x07\nledger ok\r\x9b1m \u202elive"
    assert "cannot be kept" in noa(capfd, "models", "promote", "digits/3", "--reason", steering, code=1)
    noa(capfd, "models", "promote", "digits/3", "--reason", "STEERING")
    (file,) = (project / ".noa").glob("*.db")
    with sqlite3.connect(file) as connection:  # as somebody who may change the database itself
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f'DROP TRIGGER "{name}"')
        connection.execute("UPDATE noa_ledger SET reason = ? WHERE reason = 'STEERING'", (steering,))
        quoted = json.dumps(steering)[1:-1]
        connection.execute("UPDATE noa_outbox SET payload = replace(payload, 'STEERING', ?)", (quoted,))
    connection.close()
    tables = [("models", "history", "digits"), ("ledger", "show"), ("events", "list"), ("models", "lineage", "digits")]
    for command in tables:
        shown = noa(capfd, *command)
        assert not [each for each in shown if each != "\n" and unicodedata.category(each) in ("Cc", "Cf")], command
    assert "\\x1b[2J" in "".join(noa(capfd, "models", "history", "digits").split())
    assert as_json(capfd, "models", "history", "digits")[0]["reason"] == steering
    told = noa(capfd, "models", "show", "x\x1b[2J", code=1)
    assert "\x1b" not in told


def test_a_public_key_is_no_key_to_approve_with(project: Path, capfd: Capture) -> None:
    pair = as_json(capfd, "keys", "new", "ada", "--folder", "keys")
    with (project / "noa.toml").open("a") as file:
        file.write(f'[registry.principals]\nada = "{pair["public"]}"\n')
    told = noa(capfd, "models", "approve", "digits/3", "--reason", "r", "--key", pair["public_file"], code=1)
    assert "this is a public key" in told
    assert f"--key {pair['private_file']}" in told


@pytest.mark.parametrize(
    "command",
    [
        ("events", "seek", "typo", "0"),
        ("events", "list", "--model", "digit"),
        ("events", "dead-letters", "--webhook", "typo"),
        ("events", "dead-letters", "--webhook", "typo", "--redeliver"),
    ],
)
def test_a_mistyped_name_has_no_events_and_is_told(project: Path, capfd: Capture, command: tuple[str, ...]) -> None:
    told = noa(capfd, *command, code=1)
    assert "no consumer `" in told or "Did you mean `digits`?" in told


def test_times_say_their_zone(project: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoneinfo import ZoneInfo

    from noa_cli._console import short_time

    moment = datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert short_time(moment, ZoneInfo("Europe/Berlin")) == "2026-07-01 14:00:00 CEST"
    assert re.search(r"\d\d:\d\d:\d\d [A-Z+-]", noa(capfd, "ledger", "show"))


def test_an_event_that_cannot_be_read_is_named_and_the_others_are_listed(project: Path, capfd: Capture) -> None:
    of = [event["id"] for event in as_json(capfd, "events", "list")]
    (file,) = (project / ".noa").glob("*.db")
    with sqlite3.connect(file) as base:
        base.execute("DROP TRIGGER noa_outbox_no_update")
        base.execute("UPDATE noa_outbox SET created_at = 'never' WHERE id = ?", (of[0],))
        base.execute("UPDATE noa_outbox SET payload = CAST('x' AS BLOB) WHERE id = ?", (of[1],))
        base.execute("UPDATE noa_outbox SET kind = CAST(kind AS BLOB) WHERE id = ?", (of[2],))
    base.close()
    assert run(["events", "list", "--json"]) == 0
    captured = capfd.readouterr()
    assert [event["id"] for event in json.loads(captured.out)] == of[3:]
    told = " ".join(captured.err.split())
    for number in of[:3]:
        assert f"event {number} of `digits` was changed" in told
        assert f"noa events seek CONSUMER {number}" in told
    assert run(["events", "list"]) == 0
    assert "alias.promoted" in capfd.readouterr().out
