"""A recipe's own process: all that needs the user's code beside training is asked of it, never done in ours.

`ask_recipe` sends one line and waits for one line. Within `keep_recipe_processes` there is one process per recipe and
backend, started when it is first needed and kept over the steps, so that frameworks and data are loaded once; outside,
one question has a process of its own. It runs under a warden: it ends with us, and its whole tree with it.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeAlias

from noa.errors import InvalidInputError, NoaError, RecipeError, TrainingError
from noa_flows._environment import recipe_environment
from noa_flows._process_tree import MARKER_VARIABLE, identify
from noa_flows._recipe_answers import read_answer
from noa_flows._recipe_messages import Message
from noa_flows._recipe_output import RecipeOutput, with_output
from noa_flows.child import end_tree, forward_lines, spawn_tree
from noa_training import JobRequest

_COMMAND = (sys.executable, "-P", "-m", "noa_flows._recipe_child")
_TITLE = "the recipe after training"
_GRACE_S = 0.5  # what it has to keep is in its answers
_LONGEST_ANSWER = 256 << 20
_LEAVE_S = 3.0  # from the end of its answers to that of the process itself
_Key: TypeAlias = tuple[str, str, str]

_lock = threading.Lock()
_holds: Counter[str] = Counter()
_kept: dict[_Key, _RecipeProcess] = {}


@contextmanager
def keep_recipe_processes(root: Path) -> Generator[None]:
    """Keep the processes of this project's recipes until the end of the block, where they are proven gone."""
    name = str(root.absolute())
    with _lock:
        _holds[name] += 1
    try:
        yield
    finally:
        with _lock:
            _holds[name] -= 1
            done = [] if _holds[name] else [key for key in _kept if key[0] == name]
            processes = [_kept.pop(key) for key in done]
        for process in processes:
            process.end()


def end_recipe_processes(requests: Iterable[JobRequest]) -> None:
    """End the processes of these requests now, also in the middle of a question, which then fails."""
    with _lock:
        processes = [process for request in requests if (process := _kept.pop(_key(request), None)) is not None]
    for process in processes:
        process.end()


def ask_recipe(request: JobRequest, step: str, values: Message, *, folder: Path | None = None) -> Any:
    """Return the answer of the recipe's process to one question, as JSON values.

    `folder` is that of the job, if there is one: what the recipe prints is kept there.

    Raises:
        NoaError: as the step found it, with its class, parts and facts.
        TrainingError: the process ended without an answer, or gave none that can be read; says how, and what it printed
            last.
        ServiceError: the system refused to start a process.
    """
    process, is_kept = _process_for(request)
    try:
        return process.ask(step, values, folder=folder)
    finally:
        if not is_kept or process.has_ended:
            with _lock:
                if _kept.get(_key(request)) is process:
                    del _kept[_key(request)]
            process.end()


class _RecipeProcess:
    """One process that answers questions, one after the other, whichever threads ask."""

    def __init__(self, request: JobRequest) -> None:
        environment = recipe_environment()
        outer = os.environ.get(MARKER_VARIABLE)
        self._recipe = request.recipe
        self._marker = f"{outer}/{uuid.uuid4().hex}" if outer else uuid.uuid4().hex
        self._process = spawn_tree(
            _COMMAND,
            environment={**environment, MARKER_VARIABLE: self._marker},
            folder=request.root.absolute(),
            grace_s=_GRACE_S,
            stdin=subprocess.PIPE,
        )
        self._leader = identify(self._process.pid)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._output = RecipeOutput()
        self._folder: Path | None = None
        self._question = threading.Lock()
        self._ending = threading.Lock()
        self._token: str | None = None
        self._fault: str | None = None
        self._was_stopped = False
        self._is_gone = False
        self.has_ended = False
        self._readers = [
            _reader("noa-recipe-answers", self._process.stdout, self._take, longest=_LONGEST_ANSWER),
            _reader("noa-recipe-output", self._process.stderr, self._output.take),
        ]
        for reader in self._readers:
            reader.start()

    def ask(self, step: str, values: Message, *, folder: Path | None) -> Any:
        """Send a question and wait for its answer."""
        with self._question:
            self._folder = folder or self._folder
            self._token = token = uuid.uuid4().hex
            line = json.dumps({"token": token, "step": step, "values": values})
            if not self.has_ended and self._process.stdin is not None:
                with suppress(OSError, ValueError):  # it has ended, or is being ended: the answers say so
                    self._process.stdin.write(line + "\n")
                    self._process.stdin.flush()
            while not self.has_ended:
                answer = self._lines.get()
                if answer is None:
                    self.has_ended = True
                elif answer.startswith(token):  # else: late, to a question before
                    return self._read(step, answer.removeprefix(token))
        raise self._no_answer(step)

    def _take(self, line: str | None) -> None:
        """Pass on answers; whatever else the user's code wrote there is dropped as it comes."""
        if line is not None and len(line) >= _LONGEST_ANSWER:
            self._fault = f"a line of more than {_LONGEST_ANSWER >> 20} MiB where its answers are read"
            line = None
        if line is None or (self._token is not None and line.startswith(self._token)):
            self._lines.put(line)

    def _read(self, step: str, answer: str) -> Any:
        try:
            value = read_answer(step, answer)
        except InvalidInputError as exc:
            self.has_ended = True  # what it says can no longer be believed
            raise TrainingError(
                f"the recipe's process gave no valid answer in the step `{step}`",
                where=self._recipe,
                received=exc.received,
                remedy="Look in the recipe for code that changes noa or Python's own modules",
            ) from exc
        if isinstance(value, RecipeError):
            self._output.wait_for_some(_GRACE_S)  # its traceback is on its way in another pipe
        path = self._output.append_to(self._folder, f"{_TITLE}, until its answer to `{step}`")
        if isinstance(value, NoaError):
            if isinstance(value, RecipeError) and value.remedy is None:
                value.remedy = with_output(None, path)
            raise value
        return value

    def end(self) -> None:
        """End the process and all that it has started; returns when the kernel says that they are gone."""
        with self._ending:
            self._was_stopped = self._was_stopped or not self.has_ended
            if self._is_gone:
                return
            end_tree(self._process, self._marker, self._leader, grace_s=_GRACE_S, must_stop=True)
            for reader in self._readers:
                reader.join(timeout=_GRACE_S)
            for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
            self._output.append_to(self._folder, f"{_TITLE}, until its end")
            self._is_gone = True

    def _no_answer(self, step: str) -> NoaError:
        if self._was_stopped:
            return TrainingError(f"stopped in the step `{step}`", where=self._recipe)
        ending = self._fault or self._how_it_ended()
        self.end()
        return TrainingError(
            f"the recipe's process ended in the step `{step}` without an answer",
            where=self._recipe,
            expected="that the recipe's `data` and model can be used again after training",
            received=f"{ending}; {self._output.last_line()}",
            remedy=with_output(None, self._output.append_to(self._folder, _TITLE)),
        )

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=_LEAVE_S)
        except subprocess.TimeoutExpired:
            return "it closed the pipe that its answers come from and went on"
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def _process_for(request: JobRequest) -> tuple[_RecipeProcess, bool]:
    key = _key(request)
    with _lock:
        if not _holds[key[0]]:
            return _RecipeProcess(request), False
        if key not in _kept or _kept[key].has_ended:
            _kept[key] = _RecipeProcess(request)
        return _kept[key], True


def _reader(name: str, stream: IO[str] | None, take: Callable[[str | None], None], **bound: int) -> threading.Thread:
    return threading.Thread(target=forward_lines, args=(stream, take), kwargs=bound, name=name, daemon=True)


def _key(request: JobRequest) -> _Key:
    return str(request.root.absolute()), request.recipe, request.backend
