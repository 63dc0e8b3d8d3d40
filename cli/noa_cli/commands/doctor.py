"""`noa doctor`: is everything here that noa needs, and does it work?"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from noa_cli import _console as console
from noa_cli._invocation import current
from noa_cli._options import JsonOption

if TYPE_CHECKING:
    from noa.settings import LoadedSettings, Settings
    from noa_cli._settings_checks import Remark

_ONNX = ("onnx", "onnx-ir", "onnxruntime", "ml-dtypes")
_TORCH = ("torch", "onnxscript")
_JAX = ("jax", "jaxlib", "optax")
_SERVE = ("bentoml", "uvicorn", "uvloop", "httptools")
_FLOWS = ("prefect", "fastapi")
# What pyproject.toml says, an extra that includes another with the packages of both; a test compares.
EXTRAS = {
    "onnx": _ONNX,
    "torch": (*_TORCH, *_ONNX),
    "jax": (*_JAX, *_ONNX),
    "flax": ("flax", *_JAX, *_ONNX),
    "equinox": ("equinox", *_JAX, *_ONNX),
    "serve": (*_SERVE, *_ONNX),
    "grpc": ("grpcio", "grpcio-reflection", "protobuf", *_SERVE, *_ONNX),
    "jwt": ("pyjwt", *_SERVE, *_ONNX),
    "trace": ("opentelemetry-proto", "protobuf", *_SERVE, *_ONNX),
    "flows": (*_FLOWS, *_ONNX),
    "demo": ("scikit-learn", *_TORCH, *_JAX, *_SERVE, *_FLOWS, *_ONNX),
    "optimize": ("onnxslim", *_ONNX),
    "sklearn": ("scikit-learn", "skl2onnx", *_ONNX),
    "xgboost": ("xgboost-cpu", "onnxmltools", *_ONNX),
    "lightgbm": ("lightgbm", "onnxmltools", *_ONNX),
    "keras": ("keras", *_ONNX),
    "tflite": ("tflite2onnx", "ai-edge-litert", *_ONNX),
    "postgres": ("psycopg",),
    "s3": ("boto3",),
    "scan": ("picklescan",),
    "signing": ("model-signing", "pyopenssl"),
    "plots": ("matplotlib",),
    "sweep": ("optuna", "matplotlib"),
    "images": ("pillow",),
}
_LEAST_FREE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. A `warning` leaves noa usable, a `problem` does not."""

    name: str
    state: Literal["ok", "warning", "problem"]
    detail: str
    remedy: str | None = None


def doctor(as_json: JsonOption = False) -> None:
    """Check Python, extras, settings, folder, disk, ports and the registry; exit code 1 if something is broken."""
    findings = list(_examine())
    if as_json:
        console.print_json([asdict(finding) for finding in findings])
    else:
        marks = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}
        rows = [[f.name, marks[f.state], f.detail, f.remedy] for f in findings]
        console.print_table(["check", "verdict", "detail", "remedy"], rows)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def _examine() -> Iterator[Finding]:
    from noa.errors import NoaError

    yield _python()
    for extra, packages in EXTRAS.items():
        yield _extra(extra, packages)
    try:
        loaded = current().load()
    except NoaError as exc:
        yield Finding(name="settings", state="problem", detail=str(exc), remedy=exc.remedy)
        return
    yield _project(loaded)
    if loaded.project_file is None:
        return
    settings = loaded.settings
    yield _folder(settings.state_dir)
    yield _disk(settings.state_dir)
    for name, port in (
        ("serving", settings.serving.port),
        ("flows", settings.flows.port),
        ("tracking", settings.tracking.port),
    ):
        yield _port(name, port)
    yield from _mistakes(loaded)
    yield _guarded("registry", lambda: _registry(settings))
    yield _guarded("gates", lambda: _gates(settings))
    yield _guarded("models", lambda: _names(settings))


def _python() -> Finding:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        return Finding(
            name="python",
            state="warning",
            detail=f"{text}; PYTHONDONTWRITEBYTECODE is set, which makes every start slow",
            remedy="unset PYTHONDONTWRITEBYTECODE",
        )
    return Finding(name="python", state="ok", detail=f"{text} ({sys.executable})")


def _extra(extra: str, packages: tuple[str, ...]) -> Finding:
    found: list[str] = []
    missing: list[str] = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        detail = f"not installed: {', '.join(missing)}"
        return Finding(name=f"noa[{extra}]", state="warning", detail=detail, remedy=f'pip install "noa[{extra}]"')
    return Finding(name=f"noa[{extra}]", state="ok", detail=", ".join(found))


def _project(loaded: LoadedSettings) -> Finding:
    if loaded.project_file is None:
        detail = f"no noa.toml in {current().directory.absolute()} or above"
        return Finding(name="project", state="warning", detail=detail, remedy="noa init")
    return Finding(
        name="project", state="ok", detail=f"{loaded.project_file}, {console.count(len(loaded.origins), 'setting')} set"
    )


def _mistakes(loaded: LoadedSettings) -> Iterator[Finding]:
    from noa_cli._settings_checks import SIGNING, find_mistakes

    signing = loaded.settings.registry.signing
    fine = {
        "signing": "the keys can be used" if signing.signs or signing.checks else "off",
        "settings": "keys, kinds of events, formats and files that they name are there",
    }
    for mistake in find_mistakes(loaded):
        name = "signing" if str(mistake.facts["key"]).startswith(SIGNING) else "settings"
        fine.pop(name, None)
        yield Finding(name=name, state="problem", detail=str(mistake), remedy=mistake.remedy)
    for name, detail in fine.items():
        yield Finding(name=name, state="ok", detail=detail)


def _folder(folder: Path) -> Finding:
    place = folder
    while not place.exists():
        place = place.parent
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        return Finding(
            name="folder", state="problem", detail=f"{place} is not writable", remedy="Change its permissions"
        )
    return Finding(name="folder", state="ok", detail=str(folder))


def _disk(folder: Path) -> Finding:
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    state: Literal["ok", "warning"] = "ok" if free >= _LEAST_FREE_BYTES else "warning"
    return Finding(
        name="disk",
        state=state,
        detail=f"{free / 1e9:.1f} GB free",
        remedy=None if state == "ok" else "Free some space",
    )


def _port(name: str, port: int) -> Finding:
    if port == 0:
        return Finding(name=f"port of {name}", state="ok", detail="0: a free one is chosen")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return Finding(
                name=f"port of {name}",
                state="warning",
                detail=f"{port} is in use (by this project's own services, if they are up)",
                remedy=f"noa status, or -o {name}.port=0",
            )
    return Finding(name=f"port of {name}", state="ok", detail=f"{port} is free")


def _registry(settings: Settings) -> Finding:
    from noa_cli._registry import open_registry, store_problems

    with open_registry(settings) as registry:
        models = registry.models()
        registry.verify_ledger()
        changed = [model.problem for model in models if model.problem is not None]
        changed += [
            problem.what
            for model in models
            for number in registry.numbers(model.name)
            for problem in registry.find_record_problems(model.name, number)
        ]
        changed += [problem.what for problem in registry.find_time_problems()]
        changed += [problem.what for problem in registry.find_foreign_cells()]
        differing = registry.mirror_discrepancies()
        strange = store_problems(registry, settings)
    if changed:
        more = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
        return Finding(
            name="registry",
            state="problem",
            detail=f"{changed[0]}{more}",
            remedy="See all with: noa models verify; then restore a backup",
        )
    if strange:
        detail, remedy = f"{strange[0].what} ({strange[0].where})", strange[0].remedy
        only_unknown = "units" in strange[0].facts  # which harms nobody
        return Finding(name="registry", state="warning" if only_unknown else "problem", detail=detail, remedy=remedy)
    rows = [found for found in differing if found.field != "moved"]
    if rows:
        detail = f"MLflow's rows were changed behind noa's back ({len(rows)}): {rows[0].name}, {rows[0].subject}"
        remedy = (
            "noa models verify --repair" if any(one.is_repairable for one in rows) else "noa models verify says more"
        )
        return Finding(name="registry", state="warning", detail=detail, remedy=remedy)
    if differing:
        detail = f"the project was moved or copied: MLflow's rows name its files below {differing[0].received}"
        return Finding(name="registry", state="warning", detail=detail, remedy="noa models verify --repair")
    return Finding(
        name="registry", state="ok", detail=f"{console.count(len(models), 'model')}, the ledger's chain holds"
    )


def _gates(settings: Settings) -> Finding:
    from noa_cli._gate_remarks import gate_remarks
    from noa_cli._registry import open_registry

    with open_registry(settings) as registry:
        remarks = gate_remarks(settings, registry)
    return _told("gates", remarks, fine=f"of {console.count(len(settings.gates), 'model')}")


def _names(settings: Settings) -> Finding:
    from noa_cli._gate_remarks import name_remarks
    from noa_cli._registry import open_registry

    with open_registry(settings) as registry:
        remarks = name_remarks(settings, registry)
    return _told("models", remarks, fine="endpoints and webhooks name models that are known")


def _told(name: str, remarks: Sequence[Remark], *, fine: str) -> Finding:
    if not remarks:
        return Finding(name=name, state="ok", detail=fine)
    return Finding(
        name=name,
        state="warning",
        detail="; ".join(remark.text for remark in remarks),
        remedy="; ".join(dict.fromkeys(remark.remedy for remark in remarks)),
    )


def _guarded(name: str, look: Callable[[], Finding]) -> Finding:
    from noa.errors import NoaError

    try:
        return look()
    except NoaError as exc:
        return Finding(name=name, state="problem", detail=str(exc), remedy=exc.remedy)
