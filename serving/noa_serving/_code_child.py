"""`python -m noa_serving._code_child FD FOLDER MEMORY_BYTES PARENT`: a model that runs its own code, asked by a worker.

Started by `_code_process`, with a clean environment, and ended with it. What the model prints goes to standard error.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
from pathlib import Path

from noa.errors import InvalidInputError
from noa_serving._code_wire import (
    ERROR,
    INPUTS,
    MOST_TEXT_BYTES,
    OUTPUTS,
    READY,
    WireError,
    pack,
    receive,
    send,
    unpack,
)

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_MOST_INPUT_BYTES = 1 << 40  # the worker has bounded them, and is trusted here
_OUT_OF_MEMORY = 3


def main() -> int:
    """Load the model and answer until the worker hangs up; returns the process's exit code."""
    descriptor, folder, memory_bytes, parent = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    _confine(memory_bytes, parent)
    os.dup2(2, 1)  # whatever the model prints is no answer
    with socket.socket(fileno=descriptor) as wire:
        try:
            return _serve(wire, folder)
        except WireError:  # the worker is gone
            return 0
        except MemoryError:
            return _OUT_OF_MEMORY


def _serve(wire: socket.socket, folder: Path) -> int:
    from noa_conversion.formats.mlflow_format import ADAPTER

    try:
        runnable = ADAPTER.load(folder)
    except InvalidInputError as exc:
        _tell(wire, exc)
        return 1
    send(wire, READY, b"")
    while True:
        kind, payload = receive(wire, most_bytes=_MOST_INPUT_BYTES)
        if kind != INPUTS:
            raise WireError("the worker sent no inputs")
        try:
            outputs = runnable.run(unpack(payload))
        except InvalidInputError as exc:
            if isinstance(exc.__cause__, MemoryError):
                raise exc.__cause__ from exc
            _tell(wire, exc)
        else:
            send(wire, OUTPUTS, pack(outputs))


def _tell(wire: socket.socket, error: InvalidInputError) -> None:
    send(wire, ERROR, error.what.encode()[:MOST_TEXT_BYTES])


def _confine(memory_bytes: int, parent: int) -> None:
    """End with the worker, gain no rights, write no core, and take no more memory than is allowed."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Not the address space, of which libraries reserve far more than they use.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


if __name__ == "__main__":
    raise SystemExit(main())
