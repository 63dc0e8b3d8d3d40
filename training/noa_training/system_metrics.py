"""What the machine does while a job runs, under the names that MLflow's own monitor gives, and shows apart.

All are of the whole machine but those of `process`. CPU percentages are those since the sample before; of the process
100 is one core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psutil

from noa_training.nvml import find_gpus

PREFIX: Final = "system/"
_MEGABYTE: Final = 1e6


class SystemSampler:
    """Samples the machine, off the training thread. `folder` is on the disk that is looked at. Close it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = psutil.Process()
        self._gpus = find_gpus()
        self._network = _network()
        psutil.cpu_percent()  # the first one counts from here
        self._process.cpu_percent()

    def sample(self) -> dict[str, float]:
        """Return the values of this moment by their keys; what the system does not tell is left out."""
        memory = psutil.virtual_memory()
        with self._process.oneshot():
            own_cpu, own_memory = self._process.cpu_percent(), self._process.memory_info().rss
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
            "process_cpu_percentage": own_cpu,
            "process_memory_megabytes": own_memory / _MEGABYTE,
        }
        values |= self._disk() | self._traffic()
        values |= {} if self._gpus is None else self._gpus.sample()
        return {f"{PREFIX}{name}": round(value, 2) for name, value in values.items()}

    def close(self) -> None:
        """Let the GPUs' library go."""
        if self._gpus is not None:
            self._gpus.close()

    def _disk(self) -> dict[str, float]:
        try:
            usage = psutil.disk_usage(str(self._folder))
        except OSError:
            return {}
        return {
            "disk_usage_percentage": usage.percent,
            "disk_usage_megabytes": usage.used / _MEGABYTE,
            "disk_available_megabytes": usage.free / _MEGABYTE,
        }

    def _traffic(self) -> dict[str, float]:
        """Return what came and went since this sampler was made."""
        now = _network()
        if now is None or self._network is None:
            return {}
        return {
            "network_receive_megabytes": (now[0] - self._network[0]) / _MEGABYTE,
            "network_transmit_megabytes": (now[1] - self._network[1]) / _MEGABYTE,
        }


def _network() -> tuple[int, int] | None:
    try:
        counters = psutil.net_io_counters()
    except (OSError, RuntimeError):
        return None
    # psutil's stubs say that there are always counters; a container without a network has none.
    return None if counters is None else (counters.bytes_recv, counters.bytes_sent)  # pyright: ignore[reportUnnecessaryComparison]
