"""A server that `noa serve` runs in the foreground, as in another terminal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(root: Path, *arguments: str) -> Generator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """Run `noa serve` until the end of the block, and give it with what it printed."""
    command = [sys.executable, "-m", "noa_cli", "serve", *arguments, "--port", "0", "--json"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            text = ""
            while not text.endswith("}\n"):
                line = process.stdout.readline()
                assert line, "the server ended"
                text += line
            yield process, json.loads(text)
        finally:
            process.send_signal(signal.SIGINT)
