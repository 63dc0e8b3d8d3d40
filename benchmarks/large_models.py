"""Large models: registering one against copying and hashing it once, opening it against `sha256sum`, and the memory.

Both sides of `register` end with an fsync: a copy that a power cut can lose is not what a registry keeps. They take
turns in one run, because the speed of a shared disk changes from minute to minute.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.models import SIGNATURE
from benchmarks.rows import Row
from noa.settings import RegistrySettings
from noa_registry import Registry, VersionDraft

GIGABYTE = 1_000_000_000
_BLOCK_BYTES = 1 << 20
_MEBIBYTE = 1 << 20


def measure(folder: Path, *, quick: bool) -> list[Row]:
    """Return the rows about one large model; writes up to three copies of it below `folder`."""
    size = GIGABYTE // 10 if quick else GIGABYTE
    label = "100 MB" if quick else "1 GB"
    source = folder / "large"
    write_large_format(source, size)
    settings = RegistrySettings(database_url=f"sqlite:///{folder / 'large.db'}", artifact_dir=folder / "artifacts")
    plain, register = _take_turns(settings, source, folder, rounds=3 if quick else 5)
    with Registry.open(settings) as registry:
        version = registry.resolve("large")
        path = registry.open_format(version, "torch") / "weights.safetensors"
        cold = _median(lambda: _open_cold(settings, registry.resolve("large").number, folder), rounds=3)
        again = _median(lambda: registry.open_format(version, "torch"), rounds=20)
    stock = _median(lambda: subprocess.run(["sha256sum", str(path)], check=True, capture_output=True), rounds=3)
    exported, imported, copied = _travel(settings, folder)
    peak = _peak_mib(settings, source)
    return [
        Row(
            what=f"register {label}",
            figure=register,
            unit="s",
            peer="copy, hash and fsync once",
            peer_figure=plain,
        ),
        Row(what=f"register {label}, peak memory of the process", figure=peak, unit="MiB"),
        Row(what=f"open_format of {label}, first time", figure=cold, unit="s", peer="sha256sum", peer_figure=stock),
        Row(what=f"open_format of {label}, unchanged since", figure=again * 1e3, unit="ms"),
        Row(what=f"export {label}", figure=exported, unit="s", peer="copy, hash and fsync once", peer_figure=copied),
        Row(what=f"import {label}", figure=imported, unit="s", peer="copy, hash and fsync once", peer_figure=copied),
    ]


def write_large_format(folder: Path, size: int) -> None:
    """Write a format folder whose weights are `size` random bytes."""
    folder.mkdir(parents=True)
    SIGNATURE.save(folder)
    header = json.dumps({"weights": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    random = np.random.default_rng(0)
    with (folder / "weights.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, size, 1 << 24):
            file.write(random.bytes(min(1 << 24, size - start)))


def copy_and_hash_once(source: Path, target: Path) -> str:
    """Do what everybody would write: a loop that reads, hashes and writes, and an fsync."""
    hasher = hashlib.sha256()
    buffer = bytearray(_BLOCK_BYTES)
    view = memoryview(buffer)
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        while count := reader.readinto(buffer):
            hasher.update(view[:count])
            writer.write(view[:count])
        os.fsync(writer.fileno())
    return hasher.hexdigest()


def register_large(settings: RegistrySettings, source: Path) -> None:
    """Register the format in `source` as the next version of `large`."""
    draft = VersionDraft(
        name="large",
        formats={"torch": source},
        native="torch",
        input_example={"x": np.zeros((1, 64), np.float32)},
        dataset_digest="sha256:" + "0" * 64,
    )
    with Registry.open(settings) as registry:
        registry.register(draft, actor="bench")


def _take_turns(settings: RegistrySettings, source: Path, folder: Path, *, rounds: int) -> tuple[float, float]:
    plain: list[float] = []
    register: list[float] = []
    Registry.open(settings).close()
    for turn in range(rounds):
        _change(source, turn)  # else the bytes are in the store already, and only linked
        os.sync()
        plain.append(_seconds(lambda: copy_and_hash_once(source / "weights.safetensors", folder / "copy")))
        (folder / "copy").unlink()
        os.sync()
        register.append(_seconds(lambda: register_large(settings, source)))
        if turn < rounds - 1:
            _forget_newest(settings)
    return statistics.median(plain), statistics.median(register)


def _change(source: Path, turn: int) -> None:
    with (source / "weights.safetensors").open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(turn.to_bytes(8, "little"))


def _forget_newest(settings: RegistrySettings) -> None:
    """Give the disk back; the row of the version stays, and nothing here reads it again."""
    with Registry.open(settings) as registry:
        version = registry.resolve("large")
        for path in version.folder.rglob("*"):
            if path.is_file():
                path.unlink()
    for blob in (settings.artifact_dir / "_blobs").glob("??/*"):
        if blob.is_file() and blob.stat().st_nlink == 1:
            blob.unlink()


def _open_cold(settings: RegistrySettings, number: int, folder: Path) -> None:
    fresh = folder / f"cache-{time.monotonic_ns()}"  # a machine that has never seen the file
    with Registry.open(settings.model_copy(update={"cache_dir": fresh})) as registry:
        registry.open_format(registry.resolve(f"large/{number}"), "torch")


def _travel(settings: RegistrySettings, folder: Path) -> tuple[float, float, float]:
    """Return the seconds of exporting the newest version, of importing it elsewhere, and of copying its weights."""
    archive, target = folder / "large.noa", folder / "copy"
    elsewhere = RegistrySettings(database_url=f"sqlite:///{folder / 'else.db'}", artifact_dir=folder / "elsewhere")
    with Registry.open(settings) as here, Registry.open(elsewhere) as there:
        version = here.resolve("large")
        weights = here.open_format(version, "torch") / "weights.safetensors"
        os.sync()
        copied = _seconds(lambda: copy_and_hash_once(weights, target))
        target.unlink()
        os.sync()
        exported = _seconds(lambda: here.archives.write("large", version.number, archive))
        os.sync()
        imported = _seconds(lambda: there.archives.read(archive, actor="bench"))
        there.verify("large", 1)
    archive.unlink()
    return exported, imported, copied


def _peak_mib(settings: RegistrySettings, source: Path) -> float:
    _change(source, 99)
    arguments = [sys.executable, "-m", "benchmarks.large_models", settings.model_dump_json(), str(source)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return float(done.stdout)


def _median(action: Callable[[], object], *, rounds: int) -> float:
    return statistics.median(_seconds(action) for _ in range(rounds))


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    register_large(RegistrySettings.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
    # Not `ru_maxrss`: over an exec it keeps what the process that started this one had.
    print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / _MEBIBYTE)
