"""What people see: tables for pipes, and what is waited for."""

from __future__ import annotations

import os
import re
import shlex
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noa_cli import _console as console
from noa_cli.__main__ import run
from noa_cli._column_widths import column_widths
from noa_cli.commands.flows import show_runs
from noa_flows import FlowRun
from noa_flows.supervisor import Command, Supervisor

_ROWS = [["a", "x" * 300], ["name", "short"], ["word", "some words " * 10]]


_REASON = "The gate refused digits/4: " + "accuracy 0.91 is below 0.95, " * 12 + "and that was the last of it"


def failed_run(name: str) -> FlowRun:
    moment = datetime(2026, 1, 31, 12, tzinfo=UTC)
    return FlowRun(
        id="0f8b5a8e-1111-2222-3333-444455556666",
        name=name,
        recipe="digits",
        state="Failed",
        message=_REASON,
        is_finished=True,
        is_success=False,
        started_at=moment,
        ended_at=moment,
        expected_at=None,
        address="http://127.0.0.1:4200",
    )


def test_why_a_run_failed_is_whole_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    show_runs([failed_run("gray-fox")])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "gray-fox" in line]
    assert _REASON in row
    assert row.endswith(failed_run("gray-fox").id)


@pytest.mark.parametrize("columns", [80, 120])
def test_why_a_run_failed_stands_on_lines_of_its_own_where_a_row_has_no_room(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    show_runs([failed_run("gray-fox"), failed_run("blue-bear")])
    lines = capsys.readouterr().out.splitlines()
    for name in ("gray-fox", "blue-bear"):
        assert f"{name}: {_REASON}" in lines
    table = [line for line in lines if _REASON not in line]
    assert max(map(len, table)) <= columns
    assert sum(failed_run("").id in line for line in table) == 2


def pretend_service(project: Path, name: str, port: int) -> None:
    """Let a process that does nothing be a service of the project, at a port where something else listens."""
    Supervisor(project / ".noa").start(
        Command(
            name=name,
            arguments=("sleep", "60"),
            environment=dict(os.environ),
            folder=project,
            log_file=project / ".noa" / "logs" / f"{name}.log",
            address=f"http://127.0.0.1:{port}",
        )
    )


def test_a_table_in_a_pipe_keeps_its_lines_and_fills_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    console.print_table(["one", "other"], _ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line != line.rstrip()] == []
    assert any("x" * 300 in line for line in lines)
    assert max(len(line) for line in lines if "short" in line) < 20


def test_a_table_in_a_pipe_keeps_to_columns_where_it_is_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    console.print_table(["one", "other"], _ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert [line for line in lines if line != line.rstrip()] == []
    assert sum(line.count("x") for line in lines) == 300


_RULES = [
    ["equivalence.onnx", "passed", "passed evidence that `onnx` " + "computes what `torch` computes " * 9, "passed"],
    ["slices.class=1.accuracy", "REFUSED", "at least 0.9 on the test split", "no test metrics of these bytes " * 5],
]


def test_free_text_in_a_pipe_is_wrapped_and_no_word_of_it_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    digest = "sha256:" + "5" * 64
    columns = ["rule", "verdict", "expected", "received"]
    rows = [*_RULES, ["r", "v", digest, "/a/" + "b" * 150]]
    console.print_table(columns, rows, wrapped=columns[2:])
    text = capsys.readouterr().out
    assert 200 < max(map(len, text.splitlines())) < 320
    assert digest in text
    assert "/a/" + "b" * 150 in text


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_names_are_not_broken_while_text_can_give_way(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    console.print_table(["rule", "verdict", "expected", "received"], _RULES)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert {"equivalence.onnx", "slices.class=1.accuracy", "REFUSED"} <= set(" ".join(lines).split())


@given(st.lists(st.lists(st.text("ab c", max_size=40), min_size=1, max_size=4), min_size=1, max_size=5), st.integers(5))
def test_columns_fill_their_room_and_no_more(columns: list[list[str]], room: int) -> None:
    widths = column_widths(columns, room)
    assert sum(widths) <= room
    needed = sum(max(1, *map(len, cells)) for cells in columns)
    assert sum(widths) >= min(needed, room) or all(
        width >= max(map(len, " ".join(cells).split()), default=1) for width, cells in zip(widths, columns, strict=True)
    )


def test_what_takes_longer_says_what_it_waits_for_and_what_is_quick_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = threading.Event()
    note = console.note

    def hear(text: str) -> None:
        note(text)
        told.set()

    with console.patience("Quick"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "note", hear)
    began = time.monotonic()
    with console.patience("Listing") as tell:
        tell("waiting for the server")
        assert told.wait(30)
    assert time.monotonic() - began >= 2
    assert re.fullmatch(r"Listing  \d+ s  waiting for the server\n", capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [["flows", "list"], ["flows", "schedule", "noisy", "--cron", "0 3 * * *"]])
def test_flow_commands_say_that_they_wait_for_a_server_that_is_slow(
    registered: Path, arguments: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(registered)
    monkeypatch.setattr(console, "_WAITING_LINE_EVERY_S", 0.2)
    state = registered / ".noa"
    with socket.create_server(("127.0.0.1", 0)) as server:  # hears, and hangs up when it was heard to be waited for
        pretend_service(registered, "prefect", server.getsockname()[1])

        def answer() -> None:
            connection, _ = server.accept()
            time.sleep(3)
            connection.close()
            server.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            assert run(arguments) == 1
            told = capfd.readouterr().err
            assert "waiting for the project's Prefect server" in told
            assert "the Prefect server does not answer" in told.splitlines()[-1]
        finally:
            Supervisor(state).stop("prefect", timeout_s=0.1)
            thread.join()


def test_the_command_that_imports_an_export_quotes_its_file(
    registered: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(registered)
    assert run(["models", "export", "digits/2", "-o", str(tmp_path / "d 2.noa")]) == 0
    command = capfd.readouterr().err.splitlines()[-1].partition("Import it elsewhere with: ")[2]
    assert shlex.split(command) == ["noa", "models", "import", "d 2.noa"]
    assert run(["models", "import", "no such file"]) == 1
    assert "noa models import 'no such file' --name NAME" in capfd.readouterr().err


def test_a_settings_file_that_is_a_pipe_is_to_be_written_to_a_file(
    registered: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(registered)
    os.mkfifo(tmp_path / "pipe")
    assert run(["models", "list", "--config", str(tmp_path / "pipe")]) == 1
    assert capfd.readouterr().err.endswith(". Write it to a file first, and name that file\n")


def test_serving_on_the_port_of_an_own_service_says_how_that_is_stopped(
    registered: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(registered)
    state = registered / ".noa"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert run(["serve", "--port", str(port)]) == 1
        assert "noa down" not in capfd.readouterr().err
        pretend_service(registered, "serving", port)
        try:
            assert run(["serve", "--port", str(port)]) == 1
            assert "Stop it with: noa down --only serving; or choose another port" in capfd.readouterr().err
        finally:
            Supervisor(state).stop("serving", timeout_s=0.1)
