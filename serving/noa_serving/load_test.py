"""A load test of one endpoint from one client process: rates and latencies at several numbers of connections.

Every connection sends the same request over and over, the next as soon as the last is answered (a closed loop). A
client in Python sends some thousands of requests per second at most; for what a server can do at its limit, use wrk.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from noa.errors import DependencyMissingError
from noa.signatures import is_float, numpy_dtype
from noa.text_tensors import text_array
from noa_serving._client_wire import Inputs, infer_request, read_inputs
from noa_serving.async_client import AsyncClient

if TYPE_CHECKING:
    from noa.signatures import TensorSpec
    from noa_serving._client_wire import Request

_WARM_UP_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What was measured with one number of connections. `latencies_ms` are those of the answers with 200, sorted."""

    connections: int
    seconds: float
    statuses: dict[int, int]
    latencies_ms: np.ndarray

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return len(self.latencies_ms) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latency, milliseconds; NaN if nothing was answered."""
        return float(np.percentile(self.latencies_ms, percent)) if len(self.latencies_ms) else float("nan")


async def run_load(
    client: AsyncClient, endpoint: str, inputs: Inputs, *, connections: Sequence[int], seconds: float
) -> list[LoadResult]:
    """Measure an endpoint with each number of connections for `seconds`, after a short warm-up.

    Raises:
        NotFoundError: no such endpoint.
        InvalidInputError: the server refuses the input.
        ServiceError: the server does not answer.
    """
    specs = read_inputs(await client.metadata(endpoint), client.url)
    request = infer_request(endpoint, inputs, specs=specs, outputs=())
    await client.call(request)  # whatever is wrong with it is told now
    results: list[LoadResult] = []
    for count in connections:
        await _run(client, request, count, seconds * _WARM_UP_SHARE)
        results.append(await _run(client, request, count, seconds))
    return results


def example_inputs(specs: Sequence[TensorSpec], *, batch: int, seed: int) -> dict[str, np.ndarray]:
    """Return random inputs that fit `specs`: small numbers, words, and zeros for integers, which may be indices."""
    generator = np.random.default_rng(seed)
    inputs: dict[str, np.ndarray] = {}
    for spec in specs:
        shape = tuple(batch if isinstance(size, str) else size for size in spec.shape)
        if spec.dtype == "string":
            inputs[spec.name] = text_array([f"text {index % 10}" for index in range(math.prod(shape))], shape)
            continue
        inputs[spec.name] = (generator.random(shape) if is_float(spec.dtype) else np.zeros(shape)).astype(
            numpy_dtype(spec.dtype)
        )
    return inputs


def plot_latencies(results: Sequence[LoadResult], path: Path, *, title: str) -> None:
    """Draw the latency up to each percentile, one line per number of connections.

    Raises:
        DependencyMissingError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as exc:
        raise DependencyMissingError("matplotlib", extra="plots", purpose="a latency plot") from exc
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    percents = np.concatenate([np.linspace(0, 90, 91), np.linspace(90.5, 99.9, 95)])
    for one in results:
        if len(one.latencies_ms):
            label = f"{one.connections} connections, {one.rate:,.0f}/s"
            axes.plot(percents, np.percentile(one.latencies_ms, percents), label=label)
    axes.set(xlabel="percentile", ylabel="latency, ms", yscale="log", title=title)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


async def _run(client: AsyncClient, request: Request, connections: int, seconds: float) -> LoadResult:
    latencies: list[float] = []
    statuses: dict[int, int] = {}
    start = time.perf_counter()
    end = start + seconds

    async def send() -> None:
        while (begun := time.perf_counter()) < end:
            try:
                answer = await client.exchange(request)
                status = answer.status
            except (OSError, EOFError, ValueError):
                status = 0  # no answer at all
            statuses[status] = statuses.get(status, 0) + 1
            if status == 200:
                latencies.append(time.perf_counter() - begun)
            else:
                await asyncio.sleep(0.001)  # a server that refuses must not be hammered by a loop without an end

    await asyncio.gather(*(send() for _ in range(connections)))
    return LoadResult(
        connections=connections,
        seconds=time.perf_counter() - start,
        statuses=statuses,
        latencies_ms=np.sort(np.array(latencies)) * 1000,
    )
