"""Leases: tell the registry which version this process serves, so that nobody deletes it and everybody can see it.

A thread of its own, beside the follower: a database that is locked or gone must hold up neither a request nor a swap.
All of it is best effort. What cannot be written now is written later, serving never waits for it, and the lease of a
process that was killed ends by itself, or is taken over by the worker that comes in its place. A new version is
announced once every worker of the server serves it.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noa_registry import Registry
    from noa_serving._endpoint import Endpoint

log = logging.getLogger("noa.serving")

_RENEWALS_PER_LEASE = 3
_FIRST_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What was last written for one endpoint."""

    model: str
    number: int
    digest: str
    generation: int
    renew_at: float


class LeaseKeeper:
    """Announces and acknowledges what `endpoints` serve, until `stop`. `problem` tells why that fails just now."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        open_registry: Callable[[], Registry],
        *,
        lease_s: float,
        replica: str | None = None,
    ) -> None:
        self.replica = replica or f"{socket.gethostname()[:80]}:{os.getpid()}:{secrets.token_hex(3)}"
        self.problem: str | None = None
        self._endpoints = endpoints
        self._open_registry = open_registry
        self._lease_s = lease_s
        self._held: dict[str, _Held] = {}
        self._registry: Registry | None = None
        self._failures = 0
        self._stopping = threading.Event()
        self._changed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="noa-leases", daemon=True)

    def start(self) -> None:
        """Begin to keep leases."""
        self._thread.start()

    def wake(self) -> None:
        """Say that an endpoint serves something else now."""
        self._changed.set()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Give all leases back; waits at most `timeout_s` for the database."""
        self._stopping.set()
        self._changed.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._changed.clear()
            if self._stopping.is_set():  # only after the flag is cleared: `stop` sets both
                break
            self._changed.wait(self.write(time.monotonic()))
        self._release()

    def write(self, moment: float) -> float:
        """Write what is due, and return after how many seconds to come again unless something changes before."""
        try:
            if self._registry is None:
                self._registry = self._open_registry()
            for endpoint in self._endpoints:
                self._keep(self._registry, endpoint, moment)
        except Exception as exc:  # noqa: BLE001  # whatever the database says, serving goes on
            self._failures += 1
            if self.problem is None:
                log.warning("the registry cannot be told what is served, serving goes on: %s", exc)
            self.problem = f"{type(exc).__name__}: {exc}"
            return min(_FIRST_PAUSE_S * 2**self._failures, self._lease_s / _RENEWALS_PER_LEASE)
        if self.problem is not None:
            log.info("the registry knows again what is served")
        self.problem, self._failures = None, 0
        return self._lease_s / _RENEWALS_PER_LEASE

    def _keep(self, registry: Registry, endpoint: Endpoint, moment: float) -> None:
        now = endpoint.announced
        held = self._held.get(endpoint.name)
        if now is None:
            if held is not None:  # an arm that has ended
                registry.endpoints.release(endpoint.name, self.replica)
                del self._held[endpoint.name]
            return
        is_same = held is not None and (held.model, held.number, held.digest) == (now.model, now.number, now.digest)
        if held is not None and is_same:
            if moment < held.renew_at:
                return
            generation = held.generation
        else:
            generation = registry.endpoints.announce(
                endpoint.name, now.model, now.number, alias=endpoint.reference.alias, format=now.format
            )
        registry.endpoints.acknowledge(endpoint.name, self.replica, generation, lease_s=self._lease_s)
        self._held[endpoint.name] = _Held(
            model=now.model,
            number=now.number,
            digest=now.digest,
            generation=generation,
            # A little early: the thread wakes up about every third of a lease.
            renew_at=moment + 0.9 * self._lease_s / _RENEWALS_PER_LEASE,
        )

    def _release(self) -> None:
        if self._registry is None:
            return
        try:
            for name in self._held:
                self._registry.endpoints.release(name, self.replica)
            self._registry.close()
        except Exception as exc:  # noqa: BLE001  # the lease ends by itself
            log.info("the registry could not be told that serving ends: %s", exc)
