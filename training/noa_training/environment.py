"""Where a job runs, as far as it may decide what comes out: Python, platform, processor, threads, GPUs, packages."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from noa_training.nvml import find_gpus

_COMMON: Final = ("noa", "numpy", "safetensors", "onnx", "mlflow")
_OF_BACKEND: Final = {
    "torch": ("torch", "onnxscript"),
    "jax": ("jax", "jaxlib", "optax", "ml-dtypes"),
}
_OTHER_NAMES: Final = {
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "cv2": "opencv-python",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
    "dateutil": "python-dateutil",
    "google": "",
}
"""Packages whose modules bear another name; an empty one is that of many packages."""
_MOST_PACKAGES: Final = 150


def capture_packages(backend: str) -> dict[str, str]:
    """Return the versions of the packages that decide what comes out: the backend's, and all that are loaded now.

    Loaded now is what the recipe has imported, and what noa itself needs.
    """
    found: dict[str, str] = {}
    for package in (*_COMMON, *_OF_BACKEND.get(backend, ()), *_loaded_packages()):
        if package in found or len(found) == _MOST_PACKAGES:
            continue
        try:
            found[package] = version(package)
        except (PackageNotFoundError, ValueError):
            continue
    return found


def capture_machine(threads: int) -> dict[str, str]:
    """Return Python, platform, processor, cores that this process may use, compute threads and GPUs.

    `threads` 0: the libraries decide, mostly as many as there are cores.
    """
    cores = len(os.sched_getaffinity(0))
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": str(cores),
        "threads": str(threads) if threads else "default",
    }
    gpus = find_gpus()
    if gpus is not None:
        found["gpus"] = gpus.describe()
        gpus.close()
    return found


def _loaded_packages() -> Iterator[str]:
    standard = sys.stdlib_module_names
    tops = sorted({name.partition(".")[0] for name in list(sys.modules)})
    for top in tops:
        if top not in standard and not top.startswith("_") and not top.startswith("noa_"):
            name = _OTHER_NAMES.get(top, top.replace("_", "-"))
            if name:
                yield name


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
