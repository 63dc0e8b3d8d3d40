"""NVIDIA's GPUs, asked through the library that comes with their driver: no package is needed, and nothing is started.

Where there is no such library or no GPU, `find_gpus` gives None. A question that a driver does not answer leaves its
value out.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any, Final

LIBRARY: Final = "libnvidia-ml.so.1"
_MOST_GPUS: Final = 16
_NAME_BYTES: Final = 96
_MEGABYTE: Final = 1e6


class Memory(ctypes.Structure):
    """`nvmlMemory_t`: bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Utilization(ctypes.Structure):
    """`nvmlUtilization_t`: percent of the time of the last sample."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Gpus:
    """The GPUs of this machine. Made by `find_gpus`; close it."""

    def __init__(self, library: Any, handles: list[ctypes.c_void_p]) -> None:
        self._library = library
        self._handles = handles

    def describe(self) -> str:
        """Return the names of the GPUs and the driver's version."""
        names = [_text(self._library.nvmlDeviceGetName, handle) or "GPU" for handle in self._handles]
        counted = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        driver = _text(self._library.nvmlSystemGetDriverVersion)
        return f"{counted}, driver {driver}" if driver else counted

    def sample(self) -> dict[str, float]:
        """Return memory (MB, percent), utilisation (percent) and power (W, percent of the limit) by MLflow's names."""
        found: dict[str, float] = {}
        for index, handle in enumerate(self._handles):
            found |= {f"gpu_{index}_{name}": value for name, value in self._of(handle)}
        return found

    def close(self) -> None:
        """Let the library go."""
        self._library.nvmlShutdown()

    def _of(self, handle: ctypes.c_void_p) -> Iterator[tuple[str, float]]:
        memory, used, power, limit = Memory(), Utilization(), ctypes.c_uint(), ctypes.c_uint()
        if not self._library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) and memory.total:
            yield "memory_usage_megabytes", memory.used / _MEGABYTE
            yield "memory_usage_percentage", memory.used / memory.total * 100
        if not self._library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(used)):
            yield "utilization_percentage", float(used.gpu)
        if not self._library.nvmlDeviceGetPowerUsage(handle, ctypes.byref(power)):
            yield "power_usage_watts", power.value / 1000
            asked = self._library.nvmlDeviceGetEnforcedPowerLimit(handle, ctypes.byref(limit))
            if not asked and limit.value:
                yield "power_usage_percentage", power.value / limit.value * 100


def find_gpus(library: str = LIBRARY) -> Gpus | None:
    """Return the GPUs of this machine, None if there are none or the driver does not answer."""
    try:
        loaded: Any = ctypes.CDLL(library)
        if loaded.nvmlInit_v2():
            return None
        count = ctypes.c_uint()
        failed = loaded.nvmlDeviceGetCount_v2(ctypes.byref(count))
        handles = [] if failed else list(_handles(loaded, min(count.value, _MOST_GPUS)))
    except (OSError, AttributeError):  # no library, or one of a driver that is too old
        return None
    if not handles:
        loaded.nvmlShutdown()
        return None
    return Gpus(loaded, handles)


def _handles(library: Any, count: int) -> Iterator[ctypes.c_void_p]:
    for index in range(count):
        handle = ctypes.c_void_p()
        if not library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)):
            yield handle


def _text(ask: Any, *handle: ctypes.c_void_p) -> str:
    buffer = ctypes.create_string_buffer(_NAME_BYTES)
    if ask(*handle, buffer, ctypes.c_uint(_NAME_BYTES)):
        return ""
    return buffer.value.decode("utf-8", "replace")
