"""Where the time of noa's worker goes in each case: `python -m benchmarks.serving --profile`.

py-spy, in an environment of its own, looks at the running worker 200 times a second from outside while it is loaded
over 64 connections; what is printed is each Python function's own share of the samples in which the worker had the
processor. Time in C (onnxruntime, orjson, the kernel's reads and writes) is that of the function that called it; `run`
of the event loop has what no function called: polling and reading sockets.
Tracing another process needs the right to do so: root, or `kernel.yama.ptrace_scope=0`.
"""

from __future__ import annotations

import collections
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.serving.bursts import Bench, load_server, say
from benchmarks.serving.environments import python_of
from benchmarks.serving.noa_server import make_project, start_noa
from benchmarks.serving.processes import PeerFailedError, Server, run_on
from benchmarks.serving.roster import noa_ways
from benchmarks.serving.run import bench, model_of
from benchmarks.serving.wire import Way, plan

if TYPE_CHECKING:
    from benchmarks.serving.served_models import ServedModel

SECONDS, TOP = 5, 14
_WAITS = ("_worker (concurrent/futures", "Condition.wait (threading")
"""Where threads sleep; on a busy core py-spy takes one that was just woken for one that works."""


def profile(cases: tuple[str, ...]) -> int:
    """Print the profile of each case that has a model of its own; returns the exit code."""
    py_spy = python_of("py-spy").parent / "py-spy"
    with bench() as place:
        for case in cases:
            if case in ("mlp", "cnn", "minilm", "tensor"):
                _profile_model(place, case, py_spy)
    return 0


def _profile_model(place: Bench, name: str, py_spy: Path) -> None:
    model = model_of(place, name)
    folder = place.folder / name
    server = start_noa(make_project(folder, [model]), model, folder, cores=place.server_cores)
    try:
        for way in noa_ways(model) if name == "mlp" else noa_ways(model)[:1]:
            _profile_way(place, server, model, way, py_spy)
    finally:
        server.stop()


def _profile_way(place: Bench, server: Server, model: ServedModel, way: Way, py_spy: Path) -> None:
    path = plan(model, way, place.folder / "profile.plan")
    found = place.folder / "profile.txt"
    command = [str(py_spy), "record", "--pid", str(server.worker().pid), "--duration", str(SECONDS), "--rate", "200"]
    command += ["--format", "raw", "--output", str(found), "--function", "--nonblocking"]
    say(f"profile of {model.name}, {way.name}")
    server.thaw()
    with run_on(place.load_cores):
        looking = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    loaded, cpu_s = load_server(place, server, path, connections=64, seconds=SECONDS + 1)
    server.thaw()
    said, _ = looking.communicate(timeout=60)
    if looking.returncode:
        raise PeerFailedError(f"py-spy: {said.strip()[-300:]}")
    print(f"\n{model.name}, {way.name}: {loaded.ok / max(cpu_s, 1e-3):,.0f} rows per CPU second while it is watched")
    for name, share in own_times(found.read_text())[:TOP]:
        print(f"  {share:6.1%}  {name}")


def own_times(raw: str) -> list[tuple[str, float]]:
    """Return each function's own share of py-spy's raw stacks (`outer;...;inner count` a line), the largest first.

    Threads that wait are left out.
    """
    counts: collections.Counter[str] = collections.Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        inner = stack.rsplit(";", 1)[-1]
        if stack and count.isdigit() and not inner.startswith(_WAITS):
            counts[inner] += int(count)
    total = sum(counts.values())
    return [(name, count / total) for name, count in counts.most_common()]
