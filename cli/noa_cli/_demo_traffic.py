"""Requests of the demo: every held-out image once, and a steady stream while versions change under it."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from noa.errors import NoaError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the endpoint answered to each image, one request each. Latencies in milliseconds."""

    logits: np.ndarray
    accuracy: float
    p50_ms: float
    p99_ms: float
    versions: tuple[int, ...]


@dataclass(slots=True)
class Traffic:
    """What a stream of requests met. Written by its thread, read after the stream ended."""

    requests: int = 0
    failures: list[str] = field(default_factory=list[str])
    versions: Counter[int] = field(default_factory=Counter[int])
    slowest_ms: float = 0.0
    first_answer: threading.Event = field(default_factory=threading.Event)


def send_each(url: str, endpoint: str, images: np.ndarray, labels: np.ndarray) -> Answers:
    """Send every image as a request of its own and measure."""
    import numpy as np

    from noa_serving import Client

    logits: list[np.ndarray] = []
    latencies: list[float] = []
    versions: list[int] = []
    with Client(url) as client:
        client.predict(endpoint, {"image": images[:1]})  # opens the connection
        for index in range(len(images)):
            started = time.perf_counter()
            answer = client.predict(endpoint, {"image": images[index : index + 1]})
            latencies.append((time.perf_counter() - started) * 1e3)
            logits.append(answer.outputs["logits"])
            versions.append(answer.version)
    joined = np.concatenate(logits)
    return Answers(
        logits=joined,
        accuracy=float((joined.argmax(axis=1) == labels).mean()),
        p50_ms=statistics.median(latencies),
        p99_ms=statistics.quantiles(latencies, n=100)[98],
        versions=tuple(sorted(set(versions))),
    )


@contextmanager
def stream(url: str, endpoint: str, images: np.ndarray, *, pause_s: float = 0.01) -> Generator[Traffic]:
    """Send requests one after the other in the background until the block ends."""
    traffic = Traffic()
    stop = threading.Event()
    thread = threading.Thread(target=_send, args=(url, endpoint, images, pause_s, traffic, stop), daemon=True)
    thread.start()
    try:
        yield traffic
    finally:
        stop.set()
        thread.join(timeout=60)


def _send(url: str, endpoint: str, images: np.ndarray, pause_s: float, traffic: Traffic, stop: threading.Event) -> None:
    from noa_serving import Client

    with Client(url, timeout_s=10) as client:
        while not stop.wait(pause_s):
            index = traffic.requests % len(images)
            started = time.perf_counter()
            try:
                answer = client.predict(endpoint, {"image": images[index : index + 1]})
            except NoaError as exc:
                traffic.failures.append(str(exc))
            else:
                traffic.versions[answer.version] += 1
                traffic.first_answer.set()
            traffic.requests += 1
            traffic.slowest_ms = max(traffic.slowest_ms, (time.perf_counter() - started) * 1e3)
