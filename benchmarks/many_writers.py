"""Many writers: versions of one model, registered by several processes at once; none may fail, be lost or be doubled.

The same number from one process is the peer: what the processes gain by preparing files side by side, and what they
lose by committing one after the other.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.models import CLASSES, FEATURES, write_mlp
from benchmarks.rows import Row
from noa.settings import RegistrySettings
from noa_registry import Registry, VersionDraft

MODEL = "rush"
WRITERS = 8


def measure(root: Path, *, quick: bool) -> list[Row]:
    """Return the rates of one and of eight processes, after checking that every version is there and verifies.

    Raises:
        RuntimeError: a process failed, or a version is missing, doubled or damaged.
    """
    versions = 80 if quick else 1_000
    alone = _rate(root / "alone", writers=1, versions=versions // 5)
    together = _rate(root / "together", writers=WRITERS, versions=versions)
    return [
        Row(
            what=f"register {versions:,} versions from {WRITERS} processes",
            figure=together,
            unit="versions/s",
            peer="from one process",
            peer_figure=alone,
        )
    ]


def _rate(root: Path, *, writers: int, versions: int) -> float:
    settings = RegistrySettings(database_url=f"sqlite:///{root / 'noa.db'}", artifact_dir=root / "artifacts")
    Registry.open(settings).close()
    share = versions // writers
    arguments = [sys.executable, "-m", "benchmarks.many_writers", settings.model_dump_json(), str(share)]
    processes = [
        subprocess.Popen([*arguments, str(writer)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for writer in range(writers)
    ]
    for process in processes:
        _line_of(process)  # it has imported everything, and waits
    started = time.perf_counter()
    for process in processes:
        process.communicate("go\n")
    seconds = time.perf_counter() - started
    failed = [process.args for process in processes if process.returncode != 0]
    if failed:
        raise RuntimeError(f"{len(failed)} of {writers} writers failed; their tracebacks are above")
    _check(settings, writers * share)
    return writers * share / seconds


def _line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _check(settings: RegistrySettings, versions: int) -> None:
    with Registry.open(settings) as registry:
        numbers = registry.numbers(MODEL)
        if numbers != list(range(1, versions + 1)):
            raise RuntimeError(f"{versions} versions were registered, {len(numbers)} are there, {numbers[-3:]} last")
        for number in numbers:
            registry.verify(MODEL, number)
        if registry.mirror_discrepancies():
            raise RuntimeError("MLflow's rows differ from noa's")


def _write(settings: RegistrySettings, versions: int, writer: int) -> None:
    with tempfile.TemporaryDirectory() as folder, Registry.open(settings) as registry:
        source = Path(folder) / "onnx"
        write_mlp(source, seed=writer)
        draft = VersionDraft(
            name=MODEL,
            formats={"onnx": source},
            native="onnx",
            input_example={"x": np.zeros((2, FEATURES), np.float32)},
            dataset_digest="sha256:" + "0" * 64,
            params={"writer": writer, "classes": CLASSES},
        )
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(versions):
            registry.register(draft, actor=f"writer {writer}")


if __name__ == "__main__":
    _write(RegistrySettings.model_validate_json(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
