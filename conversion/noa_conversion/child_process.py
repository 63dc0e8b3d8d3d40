"""Work in a process of its own, asked and answered in JSON: bounded in memory and time, silent, and killed with us.

Reading, folding or trying a graph runs no code of the file, but a graph may ask for endless work or memory. Here that
ends with the child. `ask` starts `python -m MODULE` and gives its answer or raises the error that it reports; the
module's main function is `answer`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from noa.errors import (
    ConversionError,
    DependencyMissingError,
    InvalidInputError,
    NoaError,
    SignatureError,
    StorageError,
)

_ERRORS: Final[dict[str, type[NoaError]]] = {
    error.__name__: error for error in (ConversionError, InvalidInputError, SignatureError, StorageError)
}
_MOST_ANSWER_BYTES: Final = 16 << 20
_SHOWN: Final = 300


def ask(
    module: str,
    request: Mapping[str, object],
    *,
    seconds: float,
    memory_bytes: int,
    failure: type[NoaError],
    what: str,
    remedy: str = "It may ask for endless work",
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a child's answer. `failure` and `what` say how it is put that the work was not done; `remedy`, in time.

    Raises:
        failure: it used up its time or memory, or died.
        NoaError: what the child reports.
    """
    try:
        result = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps({**request, "memory_bytes": memory_bytes}).encode(),
            capture_output=True,
            timeout=seconds,
            check=False,
            env={**os.environ, **(environment or {})},
        )
    except subprocess.TimeoutExpired as exc:
        raise failure(f"{what} in {seconds:g} seconds", remedy=remedy) from exc
    try:
        answer = cast("dict[str, Any]", json.loads(result.stdout[-_MOST_ANSWER_BYTES:].splitlines()[-1]))
    except (ValueError, IndexError) as exc:
        said = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise failure(
            f"{what}: the process that worked on it ended with {result.returncode}",
            expected=f"at most {memory_bytes >> 20} MiB of memory",
            received=said[-1][:_SHOWN] if said else "no answer",
        ) from exc
    if "error" in answer:
        raise _rebuilt(answer, failure)
    return answer


def answer(work: Callable[[dict[str, Any]], dict[str, object]], *, failure: type[NoaError], too_large: str) -> int:
    """Be the child: do what standard input asks, and write what comes of it to standard output.

    `too_large` is said, as a `failure`, where the memory does not suffice.
    """
    die_with_parent()
    request = cast("dict[str, Any]", json.loads(sys.stdin.buffer.read()))
    memory = int(request["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer_to = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no part of the answer
    try:
        found = work(request)
    except DependencyMissingError as exc:
        found = {**exc.to_dict(), "package": exc.package, "extra": exc.extra, "purpose": exc.purpose}
    except NoaError as exc:
        found = dict(exc.to_dict())
    except MemoryError:
        found = {"error": failure.__name__, "what": too_large}
    os.write(answer_to, b"\n" + json.dumps(found).encode())
    return 0


def _rebuilt(found: Mapping[str, Any], failure: type[NoaError]) -> NoaError:
    """Return the error that the child reported."""
    if found["error"] == "DependencyMissingError":
        return DependencyMissingError(found["package"], extra=found["extra"], purpose=found["purpose"])
    parts = {key: found.get(key) for key in ("where", "expected", "received", "remedy")}
    return _ERRORS.get(str(found["error"]), failure)(str(found.get("what")), **parts)


def die_with_parent() -> None:
    """End when the parent ends, however it does (Linux)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
