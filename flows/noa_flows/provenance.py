"""Where a version came from: interpreter, platform and package versions."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_COMMON = ("noa", "numpy", "safetensors", "onnx", "onnxruntime", "mlflow")
_OF_BACKEND = {
    "torch": ("torch", "onnxscript"),
    "jax": ("jax", "jaxlib", "optax", "ml-dtypes"),
}


def capture_environment(backend: str) -> dict[str, str]:
    """Return the versions of `python`, the platform and the packages that decide what such a model computes."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in (*_COMMON, *_OF_BACKEND.get(backend, ())):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
