"""The demo's wall time, as a user meets it: one whole `noa demo` in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from benchmarks.rows import Row


def run(*, quick: bool) -> list[Row]:
    """Run the demo once; `quick` makes no difference, since a shorter demo would be another one."""
    del quick
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "noa_cli", "demo", "--json"], capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - started
    if result.returncode != 0:
        raise RuntimeError(result.stderr[-2000:] + result.stdout[-2000:])
    report = json.loads(result.stdout)
    return [
        Row(what="demo, start to clean end", figure=seconds, unit="s"),
        Row(what="demo, accuracy of the served model", figure=report["served"]["accuracy"], unit=""),
        Row(what="demo, latency of one image over HTTP, p50", figure=report["served"]["p50_ms"], unit="ms"),
        Row(what="demo, requests failed during the swap", figure=report["swap"]["failed"], unit=""),
    ]
