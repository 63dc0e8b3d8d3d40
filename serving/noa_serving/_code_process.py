"""A model that runs code of its own, in a process of its own beside the worker.

    worker  CodeRunnable -> its one thread (`pool`) -> a socket -> `_code_child`, which loads the model through MLflow

The process has limits, a folder for its rubbish and an environment without the server's. It is asked by one thread,
which belongs to this model: a run that hangs holds up no other model. A run that takes too long, or in which the
process dies, is refused, and the process is started again; one that dies again and again rests for a time that grows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from noa.errors import InvalidInputError, NoaError, SignatureError
from noa.signatures import Signature
from noa_serving._code_wire import ERROR, INPUTS, OUTPUTS, READY, WireError, pack, receive, send, unpack
from noa_serving._http import ModelFailedError

if TYPE_CHECKING:
    import numpy as np

    from noa.settings import CodeSettings

log = logging.getLogger("noa.serving")

_KEPT_VARIABLES: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_SAID_BYTES: Final = 2000
_LONGEST_PAUSE_S: Final = 60.0
_END_S: Final = 5.0
_GONE_S: Final = 0.5

# The kernel ends a child with the *thread* that started it, so that has to live as long as the process.
_STARTER: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="noa-code-starter")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What is started: the model's folder, verified, its name, and its limits."""

    folder: Path
    model: str
    limits: CodeSettings
    threads: int


class CodeRunnable:
    """A loaded model in its own process, which ends when this is freed."""

    device = "cpu"

    def __init__(self, folder: Path, *, model: str, limits: CodeSettings, threads: int) -> None:
        """Start the process and wait until it has loaded the model.

        Raises:
            InvalidInputError: it was not allowed for this model when it was sealed, or it cannot be loaded.
        """
        from noa_registry.outside import check_allowed

        check_allowed(folder, model)
        self.signature = Signature.load(folder)
        for spec in (*self.signature.inputs, *self.signature.outputs):
            if spec.dtype in ("string", "bfloat16"):
                raise InvalidInputError(
                    f"tensor `{spec.name}` cannot be sent to the process of a model that runs its own code",
                    where=str(folder),
                    expected="numbers and booleans that NumPy knows",
                    received=spec.dtype,
                    remedy="Convert the model to `onnx`, which takes texts and bfloat16",
                )
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"noa-code-{model}")
        self.runtime = f"MLflow pyfunc in a process of its own (at most {limits.memory_bytes >> 20} MiB)"
        order = _Order(folder=folder, model=model, limits=limits, threads=threads)
        self._keeper = _Keeper(order, self.signature, self.pool)
        weakref.finalize(self, self._keeper.close)
        try:
            self._keeper.start()
        except ModelFailedError as exc:
            self._keeper.close()
            raise InvalidInputError(exc.what, received=exc.received, remedy=exc.remedy) from exc

    @property
    def pid(self) -> int | None:
        """The process that computes now, None while there is none."""
        return self._keeper.pid

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs by name.

        Raises:
            InvalidInputError: the model's code raised an error for these inputs.
            ModelFailedError: 504, it took too long; 502, its process died or answered wrongly; 503, it rests.
        """
        return self._keeper.run(inputs)


class _Child:
    """One process that has loaded the model. `on_end` is told, in a thread of its own, when it is gone."""

    def __init__(self, order: _Order, on_end: Callable[[_Child], None]) -> None:
        self._scratch = tempfile.mkdtemp(prefix="noa-code-")
        ours, theirs = socket.socketpair()
        self._wire = ours
        self._said = bytearray()
        try:
            with theirs:
                self._process = _STARTER.submit(_start, order, theirs.fileno(), self._scratch).result()
        except BaseException:
            ours.close()
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        threading.Thread(target=self._listen, args=(self._process.stderr, on_end), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self, deadline: float) -> str | None:
        """Return None once the model is loaded, else why it cannot be."""
        kind, payload = receive(self._wire, most_bytes=0, deadline=deadline)
        return None if kind == READY else payload.decode(errors="replace")

    def ask(self, inputs: bytes, *, deadline: float, most_bytes: int) -> tuple[bytes, bytes]:
        send(self._wire, INPUTS, inputs, deadline=deadline)
        return receive(self._wire, most_bytes=most_bytes, deadline=deadline)

    def has_ended(self) -> bool:
        """Tell whether the process is gone; one that has only closed its standard error is not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GONE_S)
        return self._process.poll() is not None

    def end(self) -> str:
        """End the process and what it has started; returns how it ended, and the last line that it said."""
        self._wire.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.05)  # one that died by itself says how
        code = self._process.poll()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        shutil.rmtree(self._scratch, ignore_errors=True)
        lines = bytes(self._said).decode(errors="replace").strip().splitlines()
        ended = "it was ended" if code is None else _describe_exit(code)
        return f"{ended}; it said: {lines[-1][:200]}" if lines else ended

    def _listen(self, stream: IO[bytes] | None, on_end: Callable[[_Child], None]) -> None:
        """Keep the end of what the process says, however much it is, until it says no more."""
        if stream is not None:
            with stream:
                while piece := os.read(stream.fileno(), 1 << 16):
                    self._said += piece
                    del self._said[:-_SAID_BYTES]
        on_end(self)


class _Keeper:
    """Keeps one process running for a model. Holds no reference to its `CodeRunnable`."""

    def __init__(self, order: _Order, signature: Signature, pool: ThreadPoolExecutor) -> None:
        self._order = order
        self._signature = signature
        self._pool = pool
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._is_closed = False
        self._failures = 0
        self._rests_until = 0.0

    @property
    def pid(self) -> int | None:
        child = self._child
        return None if child is None else child.pid

    def start(self) -> None:
        """Start the process if there is none.

        Raises:
            ModelFailedError: it could not load the model, or rests.
        """
        with self._lock:
            self._require()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with self._lock:
            child = self._require()
            limits = self._order.limits
            try:
                kind, payload = child.ask(
                    pack(inputs), deadline=time.monotonic() + limits.run_s, most_bytes=limits.max_output_bytes
                )
                outputs = self._checked(kind, payload, inputs)
            except WireError as exc:
                raise self._failed(child, exc) from exc
            self._failures = 0
            return outputs

    def close(self) -> None:
        """End the process for good. What runs is cut off: nobody waits for a model that is freed."""
        self._is_closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        child, self._child = self._child, None
        if child is None:
            return
        try:
            _STARTER.submit(child.end)  # whoever frees a model, maybe the event loop, does not wait for it
        except RuntimeError:  # this process ends
            child.end()

    def _require(self) -> _Child:
        """Return the process, started if need be."""
        if self._child is not None:
            return self._child
        model, limits = self._order.model, self._order.limits
        left_s = self._rests_until - time.monotonic()
        if self._is_closed or left_s > 0.0:
            raise ModelFailedError(
                f"the process of `{model}` has failed {self._failures} times in a row and rests",
                status=503,
                retry_after_s=max(1, round(left_s)),
            )
        child = _Child(self._order, self._noticed)
        try:
            problem, is_late = child.wait_ready(time.monotonic() + limits.start_s), False
        except WireError as exc:
            problem, is_late = str(exc), exc.is_late
        if problem is None:
            self._child = child
            if self._is_closed:  # meanwhile
                self.close()
            return child
        how = child.end()
        self._note_failure(f"{problem}; {how}")
        received = f"nothing within {limits.start_s:g} s" if is_late else _public(problem)
        raise ModelFailedError(
            f"the process of `{model}` could not load it",
            status=503,
            retry_after_s=max(1, round(self._rests_until - time.monotonic())),
            received=received,
            remedy="Its packages must be installed here, and `serving.code` leave it memory and time enough",
        )

    def _noticed(self, child: _Child) -> None:
        """Have a process that died while nothing was asked of it replaced before the next request."""
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._pool.submit(self._replace, child)

    def _replace(self, child: _Child) -> None:
        with self._lock:
            if self._child is child and child.has_ended():
                self._failed(child, WireError("it ended"))

    def _checked(self, kind: bytes, payload: bytes, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs in an answer; what the process says is checked like anything from outside."""
        if kind == ERROR:
            raise InvalidInputError(payload.decode(errors="replace"))
        if kind != OUTPUTS:
            raise WireError("it sent something else than outputs")
        from noa_conversion.batches import sizes_of

        outputs = unpack(payload)
        try:
            self._signature.validate_outputs(outputs, sizes=sizes_of(self._signature, inputs))
        except SignatureError as exc:
            raise WireError(f"it sent something else than its signature says: {exc.what}") from exc
        return outputs

    def _failed(self, child: _Child, error: WireError) -> ModelFailedError:
        """End the process, have it started again, and return what its request is answered with."""
        self._child = None
        how = child.end()
        self._note_failure(f"{error}; {how}")
        if not self._is_closed and self._failures == 1:
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                self._pool.submit(_start_quietly, self)
        model, limits = self._order.model, self._order.limits
        if error.is_late:
            return ModelFailedError(
                f"the process of `{model}` took too long and was ended",
                status=504,
                expected=f"an answer within {limits.run_s:g} s",
            )
        return ModelFailedError(f"the process of `{model}` failed on this request", status=502)

    def _note_failure(self, what: str) -> None:
        if self._is_closed:
            return
        self._failures += 1
        pause_s = 0.0 if self._failures == 1 else min(2.0 ** (self._failures - 2), _LONGEST_PAUSE_S)
        self._rests_until = time.monotonic() + pause_s
        log.error("the process of `%s` failed: %s; failures in a row: %d", self._order.model, what, self._failures)


def _start_quietly(keeper: _Keeper) -> None:
    with contextlib.suppress(NoaError, OSError):
        keeper.start()


def _start(order: _Order, descriptor: int, scratch: str) -> subprocess.Popen[bytes]:
    arguments = [str(descriptor), str(order.folder), str(order.limits.memory_bytes), str(os.getpid())]
    return subprocess.Popen(
        [sys.executable, "-m", "noa_serving._code_child", *arguments],
        pass_fds=(descriptor,),
        env=_environment(order.threads, scratch),
        cwd=scratch,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _environment(threads: int, scratch: str) -> dict[str, str]:
    """Return a whole environment: what Python needs, and nothing that the server was started with."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    bounded = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    return {
        **kept,
        **bounded,
        "HOME": scratch,
        "TMPDIR": scratch,
        "PYTHONDONTWRITEBYTECODE": "1",  # the model's folder is sealed
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
    }


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"it was killed by {signal.Signals(-code).name}"
    return "it ran out of memory" if code == 3 else f"it ended with exit code {code}"


def _public(problem: str) -> str:
    """Return what may be shown to whoever may read a server's status: no text with a path in it."""
    line = problem.splitlines()[0][:200] if problem else ""
    return "an error; the server's log has it" if "/" in line or not line else line
