"""How the versions of a server are loaded: threads, device, compiled or not, and whose own code may run.

What runs code of its own is loaded by a process beside the worker (`_code_process`), everything else in the worker. A
model computes on an accelerator only if it answers its example there as it does on the CPU, on which it was proven.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from noa.errors import InvalidInputError
from noa.formats import DescribedRunnable, Device, RuntimeAdapter, RuntimeOptions, find_adapter
from noa.settings import CodeSettings, ConversionSettings
from noa_serving._code_process import CodeRunnable

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    import numpy as np

    from noa.formats import Runnable
    from noa.settings import ServingSettings
    from noa.signatures import Signature

log = logging.getLogger("noa.serving")

CODE_FORMATS = frozenset({"mlflow"})
"""Formats that run code of the model. A pickle is none: it is never loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtimes:
    """What the settings say about loading models."""

    threads: int
    device: Device = "cpu"
    is_compiled: bool = False
    code: CodeSettings = field(default_factory=CodeSettings)

    @staticmethod
    def of(settings: ServingSettings, *, threads: int) -> Runtimes:
        """Return what the settings of a server say."""
        return Runtimes(threads=threads, device=settings.device, is_compiled=settings.torch_compile, code=settings.code)

    def load(self, folder: Path, *, model: str, format: str, example: Mapping[str, np.ndarray]) -> Runnable:  # our word
        """Load one format of a version of `model`; `example` are real inputs, by which devices are compared.

        Raises:
            InvalidInputError: it cannot be loaded, or runs code that nobody has allowed.
            DependencyMissingError: its library is not installed.
        """
        if format in CODE_FORMATS:
            require_allowed(model, format, self.code)
            return CodeRunnable(folder, model=model, limits=self.code, threads=self.threads)
        adapter = find_adapter(format)
        if not isinstance(adapter, RuntimeAdapter):
            return adapter.load(folder, threads=self.threads)
        wanted = RuntimeOptions(threads=self.threads, device=self.device, is_compiled=self.is_compiled)
        if self.device == "cpu" or adapter.accelerator() is None:
            return adapter.load_with(folder, replace(wanted, device="cpu"))
        return _load_on_accelerator(adapter, folder, wanted, example)

    def has_accelerator(self, format: str) -> bool:  # our word
        """Tell whether that format would compute on something else than the CPU."""
        if self.device == "cpu" or format in CODE_FORMATS:
            return False
        adapter = find_adapter(format)
        return isinstance(adapter, RuntimeAdapter) and adapter.accelerator() is not None


def bound_xla(threads: int) -> None:
    """Bound XLA's threads in this process and keep it off the GPU, unless the environment says otherwise.

    Its pool has a thread per core, whatever a program asks for, unless `NPROC` is set when it is made. A stored program
    computes on the CPU, and JAX would take most of a GPU's memory for nothing.
    """
    os.environ.setdefault("NPROC", str(threads))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def require_allowed(model: str, format: str, code: CodeSettings) -> None:  # our word
    """Check that the settings allow a model to run its own code.

    Raises:
        InvalidInputError: they do not.
    """
    if model not in code.allow:
        raise InvalidInputError(
            f"the format `{format}` of `{model}` runs code of the model, which the server does not allow",
            expected=f"`{model}` in `serving.code.allow`",
            received=", ".join(f"`{one}`" for one in code.allow) or "none",
            remedy=f'If you trust it: allow = ["{model}"] below [serving.code] of noa.toml',
        )


def runtime_of(runnable: Runnable) -> str:
    """Return what runs a loaded model, for people; empty if it does not say."""
    return runnable.runtime if isinstance(runnable, DescribedRunnable) else ""


def pool_of(runnable: Runnable) -> ThreadPoolExecutor | None:
    """Return the threads that alone may call a model, None for any of the worker's."""
    return runnable.pool if isinstance(runnable, CodeRunnable) else None


class _OnCpu:
    """A model on the CPU, with the reason why it is not on the accelerator."""

    def __init__(self, inner: DescribedRunnable, reason: str) -> None:
        self.signature: Signature = inner.signature
        self.run = inner.run
        self.device = "cpu"
        self.runtime = f"{inner.runtime}; {reason}"


def _load_on_accelerator(
    adapter: RuntimeAdapter, folder: Path, wanted: RuntimeOptions, example: Mapping[str, np.ndarray]
) -> DescribedRunnable:
    """Return the model where it computes fastest and as proven; whatever fails there leaves it on the CPU."""
    on_cpu = adapter.load_with(folder, replace(wanted, device="cpu"))
    try:
        found = adapter.load_with(folder, wanted)
        if found.device == "cpu":
            return found
        difference = _difference(on_cpu, found, example)
    except Exception as exc:  # noqa: BLE001  # whatever a driver raises, the CPU computes
        found, difference = None, f"not on {adapter.accelerator()}: {_first_line(exc)}"
    if found is not None and difference is None:
        return found
    log.warning("%s computes on the CPU: %s", folder.name, difference)
    return _OnCpu(on_cpu, str(difference))


def _difference(on_cpu: Runnable, other: DescribedRunnable, example: Mapping[str, np.ndarray]) -> str | None:
    """Return in what two runs of the example differ beyond the tolerance of equivalence, None if in nothing."""
    from noa_conversion.comparison import compare_output

    expected, received = on_cpu.run(example), other.run(example)
    batch = next((len(array) for array in example.values() if array.ndim), 1)
    for spec in on_cpu.signature.outputs:
        found = compare_output(
            spec, expected[spec.name], received[spec.name], batch=batch, settings=ConversionSettings()
        )
        if not found.passed:
            return f"not on {other.device}: output `{spec.name}` differs there"
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
