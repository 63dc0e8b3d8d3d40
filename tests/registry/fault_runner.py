"""Lets faults hit an operation of the registry and looks at what is left: `python fault_runner.py JSON`.

A server for one test run: it makes a registry, then takes lines of JSON that name an operation and a fault (killed at
its points, or a full disk), and answers each with a line. Everything is imported once and nothing is open here: each
attempt is a fork, and so is each look at what it left.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from fault_backing import Backing
from fault_operations import GATES, GOING, NOW, OPERATIONS, Operation, Place, build_registry
from fault_points import Points
from fault_states import State, database_state, differences, standing_problems, unexplained_files

from noa.errors import NoaError, StorageError
from noa.settings import RegistrySettings
from noa_registry import Registry

_DEADLINE_S = 20.0


@dataclass(frozen=True)
class Rehearsal:
    """An operation that nobody interrupted: its points, and what the database held after each commit."""

    labels: list[str]
    states: list[State]


@dataclass(frozen=True)
class Death:
    """The end of a process: at which point, None if it came to its end, and after how many commits."""

    label: str | None
    commits: int


def main(request: dict[str, Any]) -> None:
    place = Place(
        state=Path(request["state"]),
        inputs=Path(request["inputs"]),
        settings=RegistrySettings.model_validate(request["settings"]),
    )
    # What lies in the system's folder for temporary files is the system's to remove.
    tempfile.tempdir = str(place.inputs.parent / "tmp")
    for folder in (place.inputs, Path(tempfile.tempdir)):
        folder.mkdir()
    backing = Backing(settings=place.settings, state=place.state, in_child=in_child)
    if "empty" in request:
        place.state.mkdir()
        shutil.copyfile(request["empty"], place.state / "noa.db")
    in_child(lambda: build_registry(place))
    backing.keep("base")
    warm_up(place)
    gc.freeze()  # a fork that collects garbage would copy every page
    rehearsed: dict[str, Rehearsal] = {}
    labels: dict[str, list[str]] = {}
    for line in sys.stdin:
        order = json.loads(line)
        operation = next(one for one in OPERATIONS if one.name == order["operation"])
        if order.get("sample") == 0 and operation.name in labels:
            print(json.dumps({"labels": labels[operation.name], "killed": 0, "problems": []}), flush=True)
            continue
        if operation.name not in rehearsed:
            rehearsed = {operation.name: prepare(place, backing, operation)}
        rehearsal = rehearsed[operation.name]
        labels[operation.name] = rehearsal.labels
        if order["fault"] == "kill":
            answer = interrupt(place, backing, operation, rehearsal, order)
        else:
            backing.put_back("prepared")
            answer = run_out(place, operation, rehearsal, order)
        print(json.dumps(answer), flush=True)


def warm_up(place: Place) -> None:
    """Look at the registry once, and close it: what SQLAlchemy compiles and boto reads then is in every fork."""
    with Registry.open(place.settings, gates=GATES) as registry:
        standing_problems(registry)
        registry.find_store_problems()
    database_state(place.settings)
    unexplained_files(place.settings, place.state)


def prepare(place: Place, backing: Backing, operation: Operation) -> Rehearsal:
    """Keep the registry that the operation starts from, and let the operation run once."""
    backing.put_back("base")
    in_child(lambda: operation.prepare(place))
    backing.keep("prepared")
    return rehearse(place, operation)


def interrupt(
    place: Place, backing: Backing, operation: Operation, rehearsal: Rehearsal, order: dict[str, Any]
) -> dict[str, Any]:
    """Kill the operation at some of its points, or at all, and return what was wrong afterwards."""
    chosen = choose(len(rehearsal.labels), order["sample"], order["seed"])
    problems: list[str] = []
    for number in chosen:
        backing.put_back("prepared")
        death = die_at(place, operation, number)
        # Nothing of an unfinished transaction, everything of a finished one: rows, aliases, ledger, MLflow's rows,
        # events.
        possible = [rehearsal.states[death.commits]]
        found = in_child(lambda possible=possible: examine(place, operation, rehearsal, possible))
        problems += [f"killed at point {number} ({death.label}): {problem}" for problem in found]
    return {"labels": rehearsal.labels, "killed": len(chosen), "problems": problems}


def run_out(place: Place, operation: Operation, rehearsal: Rehearsal, order: dict[str, Any]) -> dict[str, Any]:
    """Let the operation run on a full disk, make room, and return how it ended and what was wrong afterwards.

    The disk has `free` bytes left, or no file may become larger than `limit` bytes.
    """
    before = in_child(lambda: sorted(unexplained_files(place.settings, place.state)))
    ballast = place.state.with_name("ballast")
    if "free" in order:
        fill_disk(ballast, order["free"])
    ended = in_child(lambda: try_out(place, operation, order.get("limit")))
    ballast.unlink(missing_ok=True)
    problems = [ended] if ended not in ("done", "refused") else []
    left = set(in_child(lambda: sorted(unexplained_files(place.settings, place.state)))) - set(before)
    problems += [f"left behind at once: {path}" for path in sorted(left)]
    possible = rehearsal.states[-1:] if ended == "done" else rehearsal.states
    problems += in_child(lambda: examine(place, operation, rehearsal, possible))
    return {"ended": ended, "problems": problems}


def fill_disk(ballast: Path, free: int) -> None:
    """Write a file that leaves about `free` bytes for everybody else."""
    disk = os.statvfs(ballast.parent)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_frsize - free))


def try_out(place: Place, operation: Operation, limit: int | None) -> str:
    """Return how the operation ended: done, refused as it should be, or what it raised instead."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        with Registry.open(place.settings, gates=GATES) as registry:
            operation.run(registry, place)
    except StorageError as exc:
        return "refused" if exc.remedy else f"a refusal without a remedy: {exc}"
    except Exception:  # noqa: BLE001  # whatever it is, it should have been a StorageError
        return traceback.format_exc()
    return "done"


def rehearse(place: Place, operation: Operation) -> Rehearsal:
    def perform() -> list[Any]:
        states = [database_state(place.settings)]
        points = Points(place.state, after_commit=lambda _: states.append(database_state(place.settings)))
        perform_operation(place, operation, points)
        return [points.labels, states]

    labels, states = in_child(perform)
    return Rehearsal(labels=labels, states=states)


def choose(points: int, sample: int | None, seed: int) -> list[int]:
    """Return the numbers of all points, or of every n-th; other seeds begin at another one."""
    if sample == 0:
        return []
    step = 1 if sample is None else max(1, points // sample)
    return list(range(1 + seed % step, points + 1, step))


def die_at(place: Place, operation: Operation, number: int) -> Death:
    """Let a process perform the operation until it kills itself, and return the last thing that it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            points = Points(place.state, kill_at=number, report=writing)
            with suppress(NoaError):
                perform_operation(place, operation, points)
            os.write(writing, json.dumps({"label": None, "commits": points.commits}).encode())
            code = 0
        except BaseException:  # noqa: BLE001  # the end of this process, whatever it is
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as answers:
        said = answers.read()
    _, status = os.waitpid(child, 0)
    death = Death(**json.loads(said))
    # The number of points varies a little with time: if there is no such point, the operation ran to its end.
    assert (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL) is (death.label is not None), status
    return death


def perform_operation(place: Place, operation: Operation, points: Points) -> None:
    points.install()
    if operation.opens:
        points.start()
    with Registry.open(place.settings, gates=GATES, checkpoint=points.checkpoint) as registry:
        points.start()
        operation.run(registry, place)
        points.stop()


def examine(place: Place, operation: Operation, rehearsal: Rehearsal, possible: list[State]) -> list[str]:
    """Look at what a fault left, do the operation again, and return everything that is not as it should be.

    The database must be in one of the `possible` states.
    """
    first, last = rehearsal.states[0], rehearsal.states[-1]
    is_remote, first_new = bool(place.settings.artifact_url), GOING + 1
    found = database_state(place.settings)
    problems: list[str] = []
    if found not in possible:
        problems += [f"the database: {line}" for line in differences(possible[0], found)]
    try:
        with Registry.open(place.settings, gates=GATES) as registry:
            if not operation.damaged:
                # Reading all objects of S3 takes longer than all the rest, so the old ones are read once, below.
                new = first_new if is_remote else 1
                problems += [f"reopened: {problem}" for problem in standing_problems(registry, hashed_from=new)]
            try:
                operation.run(registry, place)
            except operation.repeated as exc:
                if found != last:
                    problems.append(f"the retry was refused: {exc}")
            if found == first:
                problems += [f"the retry: {line}" for line in differences(last, database_state(place.settings))]
            operation.check(registry, place)
            new = first_new if is_remote and operation.reads else 1
            problems += [f"after the retry: {problem}" for problem in standing_problems(registry, hashed_from=new)]
        if not is_remote and not operation.garbage:
            left = unexplained_files(place.settings, place.state)
            problems += [f"left behind for a collection: {path}" for path in sorted(left)]
        problems += [f"left behind: {path}" for path in sorted(collect(place))]
    except Exception:  # noqa: BLE001  # whatever it is, it is what this looks for
        problems.append(traceback.format_exc())
    return problems


def collect(place: Place) -> set[str]:
    """Collect garbage, and return what is left all the same. S3 has no locks: a dead writer's lease has to run out."""
    deadline = time.monotonic() + _DEADLINE_S
    while True:
        with Registry.open(place.settings, gates=GATES) as registry:
            registry.retention.apply(registry.retention.plan_gc(orphan_age=NOW), actor="ada")
        left = unexplained_files(place.settings, place.state)
        if not left or not place.settings.artifact_url or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def in_child(action: Callable[[], Any]) -> Any:
    """Return what `action` returns in a process of its own, as JSON."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as answer:
                json.dump(action(), answer)
            code = 0
        except BaseException:  # noqa: BLE001  # the end of this process, whatever it is
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as answers:
        said = answers.read()
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise RuntimeError("a child failed; its traceback is above")
    return json.loads(said)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
