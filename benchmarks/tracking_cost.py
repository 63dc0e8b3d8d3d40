"""What tracking costs the training thread: ten metrics a step, with a real log and a real database.

Each step computes for about a millisecond in numpy, outside of Python's lock, as a step of training does. The same loop
without tracking is the peer; bursts of both take turns. What the writing thread takes from the training thread, by
Python's lock and by the processor, is in the difference.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.rows import Row
from noa.settings import RegistrySettings
from noa_registry import Registry

_METRICS = {f"m{number}": number / 7 for number in range(10)}
_SIZE = 160


def measure(*, quick: bool) -> list[Row]:
    """Return the microseconds that tracking adds to a step."""
    from noa_training.reporting import Reporter
    from noa_training.schedules import Plan
    from noa_training.tracking import RunInfo, RunTracking

    steps, bursts = (200, 3) if quick else (1000, 15)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = RegistrySettings(database_url=f"sqlite:///{root / 'noa.db'}", artifact_dir=root / "artifacts")
        Registry.open(settings).close()
        reporter = Reporter("bench", root, lambda _: None)
        warned: list[str] = []
        tracking = RunTracking(
            settings, project="bench", on_run=lambda _: None, on_warning=warned.append, log=root / "events.jsonl"
        )
        reporter.tracking = tracking
        tracking.begin(RunInfo(name="bench", params={}, tags={}))
        plan = Plan(rows=64, batch_size=32, epochs=10**6, seed=0)
        reporter.started(root, backend="torch", attempt=1, dataset_digest="d", plan=plan)
        matrix = np.random.default_rng(0).normal(size=(_SIZE, _SIZE)).astype(np.float32)
        done = 0

        def tracked() -> None:
            nonlocal done
            done += 1
            reporter.epoch(done, done, _METRICS, is_best=False)

        times: dict[str, list[float]] = {"with": [], "without": []}
        for _ in range(bursts + 1):
            times["without"].append(_burst(matrix, steps, lambda: None))
            times["with"].append(_burst(matrix, steps, tracked))
        tracking.finish("FINISHED")
        if warned:
            raise RuntimeError(warned[0])
    plain, with_it = (statistics.median(times[name][1:]) for name in ("without", "with"))
    return [
        Row(
            what="a step of 1 ms that tracks ten metrics",
            figure=with_it * 1e6,
            unit="us",
            peer="without",
            peer_figure=plain * 1e6,
        ),
        Row(what="tracking ten metrics a step adds", figure=(with_it - plain) * 1e6, unit="us"),
    ]


def _burst(matrix: np.ndarray, steps: int, report: Callable[[], None]) -> float:
    begun = time.perf_counter()
    for _ in range(steps):
        for _ in range(4):
            matrix @ matrix
        report()
    return (time.perf_counter() - begun) / steps
