"""`noa endpoints`: what running servers do now, at a glance and again and again."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from noa_cli.__main__ import run
from noa_cli.commands.endpoints import problems_of
from noa_serve import serving
from noa_serving import Client
from noa_serving.live import LiveEndpoint

pytestmark = pytest.mark.bentoml


@pytest.fixture(scope="module")
def loaded(registered: Path) -> Iterator[Path]:
    """A project whose server is asked all the time."""
    stop = threading.Event()

    def load(url: str) -> None:
        with Client(url) as client:
            while not stop.is_set():
                client.predict("digits", {"x": np.ones((1, 4), np.float32)})
                time.sleep(0.01)

    with serving(registered, "digits@champion", "numbers") as (_, told):
        thread = threading.Thread(target=load, args=(str(told["url"]),))
        thread.start()
        yield registered
        stop.set()
        thread.join(20)


def look(project: Path, *arguments: str, capfd: pytest.CaptureFixture[str], code: int = 0) -> str:
    capfd.readouterr()
    assert run(["-C", str(project), "endpoints", *arguments, "--seconds", "1"]) == code
    captured = capfd.readouterr()
    return captured.out if code == 0 else captured.err


def test_the_list_has_version_rate_and_latencies(loaded: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in json.loads(look(loaded, "list", "--json", capfd=capfd))}
    assert set(rows) == {"digits", "numbers"}
    busy, idle = rows["digits"], rows["numbers"]
    assert (busy["version"], busy["state"], busy["workers_ready"]) == (2, "ready", 1)
    assert busy["digest"].startswith("sha256:")
    assert busy["requests_per_s"] > 1
    assert 0 < busy["p50_ms"] <= busy["p99_ms"]
    assert [one["share"] for one in busy["versions"]] == [1.0]
    assert (idle["version"], idle["requests_per_s"], idle["p50_ms"]) == (1, 0.0, None)
    words = [line.split() for line in look(loaded, "list", capfd=capfd).splitlines()]
    assert any(row[:3] == ["digits", "digits@champion", "2"] for row in words)


def test_one_endpoint_shows_where_the_time_goes(loaded: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = look(loaded, "show", "digits", capfd=capfd)
    assert re.search(r"golden requests  (none|[1-9]\d*)", text)
    assert "digits/2" in text
    assert "100.0%" in text
    for stage in ("parse", "queue", "batch", "run", "encode"):
        assert any(line.split()[:1] == [stage] for line in text.splitlines())


def test_an_endpoint_that_nobody_serves_is_told_with_those_that_are(
    loaded: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = look(loaded, "show", "nothing", capfd=capfd, code=1)
    assert "no running server of this project has an endpoint `nothing`" in text
    assert "`digits`, `numbers`" in text


def test_without_a_server_the_list_is_empty(
    registered: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "noa.toml").write_text((registered / "noa.toml").read_text())
    assert json.loads(look(tmp_path, "list", "--json", capfd=capfd)) == []
    assert look(tmp_path, "list", capfd=capfd) == ""


@pytest.mark.parametrize("is_json", [True, False])
def test_watching_into_a_pipe_prints_lines_until_ctrl_c(loaded: Path, is_json: bool) -> None:
    command = [sys.executable, "-m", "noa_cli", "endpoints", "watch", "digits", "--seconds", "0.5"]
    options = ["--json"] if is_json else []
    with subprocess.Popen([*command, *options], cwd=loaded, stdout=subprocess.PIPE, text=True) as watcher:
        try:
            assert watcher.stdout is not None
            lines = [watcher.stdout.readline() for _ in range(3)]
        finally:
            watcher.send_signal(signal.SIGINT)
        assert watcher.wait(timeout=30) == 0
    if is_json:
        rows = [json.loads(line)["endpoints"] for line in lines]
        assert [[row["name"] for row in one] for one in rows] == [["digits"]] * 3
        assert rows[2][0]["requests_per_s"] > 1
    else:
        assert all("digits  ready  2 " in line and "requests/s" in line for line in lines)


def test_watching_on_a_terminal_draws_a_table_and_ctrl_c_ends_it_cleanly(loaded: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "noa_cli", "endpoints", "watch", "--seconds", "0.5"]
    environment = {**os.environ, "COLUMNS": "200", "TERM": "xterm"}
    with subprocess.Popen(command, cwd=loaded, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as watcher:
        os.close(theirs)
        try:
            seen = b""
            deadline = time.monotonic() + 60
            while seen.count(b"digits@champion") < 3:
                assert time.monotonic() < deadline, seen
                if select.select([ours], [], [], 0.2)[0]:
                    seen += os.read(ours, 65536)
        finally:
            watcher.send_signal(signal.SIGINT)
        rest = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            rest += chunk
        assert watcher.wait(timeout=30) == 0
    os.close(ours)
    assert b"Traceback" not in seen + rest
    assert (seen + rest).rstrip().endswith(b"\x1b[?25h"), "the cursor is shown again"


def test_what_a_server_left_by_itself_is_among_the_problems() -> None:
    left = {"version": 2, "digest": "sha256:0", "reason": "p99 is 9 ms", "registry_knows": False}
    row = LiveEndpoint(name="digits", model="digits@champion", state="ready", address="", pid=1, rolled_back=left)
    told = "digits: went back from version 2 by itself: p99 is 9 ms"
    assert problems_of([row]) == [f"{told}; the alias still points to it"]
    known = replace(row, rolled_back={**left, "registry_knows": True})
    assert problems_of([known]) == [told]
