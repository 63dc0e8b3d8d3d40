"""The follower: one thread per worker that keeps every endpoint at what the registry says.

A thread, not a task: hashing, loading and warming a model must not hold up the event loop. If the registry cannot be
read, serving goes on with what it has; the problem is logged once when it begins and once when it ends. While this
worker has a new version ready and others do not, it looks at them every few milliseconds, so that all swap at the same
time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from noa_serving._endpoint import Endpoint

if TYPE_CHECKING:
    from noa_registry import Registry
    from noa_serving._crew import Rejection
    from noa_serving._endpoint import Announced, SwapFailure
    from noa_serving._leases import LeaseKeeper
    from noa_serving._pipeline import Pipeline

    _Reported = tuple[Announced | None, SwapFailure | None, Rejection | None]

log = logging.getLogger("noa.serving")

_STEP_S = 0.01  # between looks at the other workers while a swap is under way


class Follower:
    """Polls the registry until `stop`. `problem` tells why the registry cannot be read just now, or is None."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        open_registry: Callable[[], Registry],
        *,
        poll_interval_s: float,
        leases: LeaseKeeper | None = None,
        pipelines: Sequence[Pipeline] = (),
    ) -> None:
        self._endpoints = endpoints
        self._open_registry = open_registry
        self._poll_interval_s = poll_interval_s
        self._leases = leases
        self._pipelines = pipelines
        self._stopping = threading.Event()
        self._registry: Registry | None = None
        self._thread = threading.Thread(target=self._run, name="noa-follower", daemon=True)
        self.problem: str | None = None
        self.failed_polls = 0

    @property
    def is_settled(self) -> bool:
        """Whether every worker tried every endpoint at least once: each is ready, or has a reason why not."""
        return all(endpoint.crew.is_started() for endpoint in self._endpoints)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()
        if self._leases is not None:
            self._leases.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread; a load in progress is left to the end of the process."""
        self._stopping.set()
        if self._leases is not None:
            self._leases.stop()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        poll_at = time.monotonic()
        while not self._stopping.is_set():
            if time.monotonic() >= poll_at:
                self.poll()
                poll_at = time.monotonic() + self._poll_interval_s
            else:
                self._settle()
            left_s = max(0.0, poll_at - time.monotonic())
            is_settled = not any(endpoint.is_unsettled for endpoint in self._endpoints)
            self._stopping.wait(left_s if is_settled else min(left_s, _STEP_S))
        if self._registry is not None:
            self._registry.close()

    def poll(self) -> None:
        """Bring every endpoint up to date once."""
        for endpoint in self._endpoints:
            before = _reported(endpoint)
            try:
                if self._registry is not None and self._registry.was_replaced:
                    self._registry.close()
                    self._registry = None
                if self._registry is None:
                    self._registry = self._open_registry()
                endpoint.follow(self._registry)
            except Exception as exc:  # noqa: BLE001  # any failure of the registry must leave serving alone
                self.failed_polls += 1
                if self.problem is None:
                    log.warning("the registry cannot be read, serving goes on with what is loaded: %s", exc)
                self.problem = f"{type(exc).__name__}: {exc}"
            else:
                if self.problem is not None:
                    log.info("the registry can be read again")
                self.problem = None
            self._compare(endpoint)
            self._put_together(endpoint)
            self._wake_leases(endpoint, before)
            if self._stopping.is_set():
                return
        for endpoint in self._endpoints:
            endpoint.crew.mark_tried()

    def _settle(self) -> None:
        """Look whether the other workers are as far as this one, where it waits for them."""
        for endpoint in self._endpoints:
            if not endpoint.is_unsettled:
                continue
            before = _reported(endpoint)
            try:
                endpoint.settle()
            except Exception as exc:  # noqa: BLE001  # whatever it is, the old generation must go on
                log.warning("endpoint %s: the other workers cannot be told what is ready here: %s", endpoint.name, exc)
            self._compare(endpoint)
            self._put_together(endpoint)
            self._wake_leases(endpoint, before)

    def _put_together(self, endpoint: Endpoint) -> None:
        """Have the pipelines over an endpoint compute with what it serves now, before that is announced."""
        for pipeline in self._pipelines:
            if endpoint in pipeline.parts.values():
                pipeline.look()

    def _compare(self, endpoint: Endpoint) -> None:
        """Have the arms compared with their endpoint; what is not served any more is let go, without a request too."""
        traffic = (endpoint if endpoint.main is None else endpoint.main).traffic
        if traffic is not None:
            traffic.look()

    def _wake_leases(self, endpoint: Endpoint, before: _Reported) -> None:
        if self._leases is not None and _reported(endpoint) != before:
            self._leases.wake()


def _reported(endpoint: Endpoint) -> _Reported:
    """Return what the registry is told of an endpoint."""
    return endpoint.announced, endpoint.failure, endpoint.rejected
