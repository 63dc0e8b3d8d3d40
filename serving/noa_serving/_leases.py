"""Leases: tell the registry which version this process serves, so that nobody deletes it and everybody can see it.

A thread of its own, beside the follower: a database that is locked or gone must hold up neither a request nor a swap.
All of it is best effort. What cannot be written now is written later, serving never waits for it, and the lease of a
process that was killed ends by itself, or is taken over by the worker that comes in its place. A new version is
announced once every worker of the server serves it; with it goes which move of the alias was followed to it, so that
who waits for a move is not told of a moment before it. A version that was refused is reported with the reason. If the
workers went back from one by themselves, the alias is rolled back too, unless somebody has moved it since.
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

from noa.current_user import current_user
from noa.errors import ConflictError

if TYPE_CHECKING:
    from noa_registry import Registry
    from noa_serving._crew import Rejection
    from noa_serving._endpoint import Endpoint, SwapFailure

log = logging.getLogger("noa.serving")

_RENEWALS_PER_LEASE = 3
_FIRST_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What was last written for one endpoint."""

    model: str
    number: int
    digest: str
    move: int
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
        self._refused: dict[str, tuple[SwapFailure, float]] = {}
        self._left: dict[str, Rejection] = {}
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
            if self._registry is not None and self._registry.was_replaced:
                self._registry.close()
                self._registry = None
                self._held.clear()  # another database knows nothing of them
            if self._registry is None:
                self._registry = self._open_registry()
            for endpoint in self._endpoints:
                self._report(self._registry, endpoint, moment)
                self._keep(self._registry, endpoint, moment)
            for endpoint in self._endpoints:
                self._roll_back(self._registry, endpoint)
        except Exception as exc:  # noqa: BLE001  # whatever the database says, serving goes on
            self._failures += 1
            if self.problem is None:
                log.warning("the registry cannot be told what is served, serving goes on: %s", exc)
            self.problem = f"{type(exc).__name__}: {exc}"
            self._complain(exc)
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
            if moment < held.renew_at and held.move == now.move:
                return
            generation = held.generation
        else:
            generation = registry.endpoints.announce(
                endpoint.name, now.model, now.number, alias=endpoint.reference.alias, format=now.format
            )
        registry.endpoints.acknowledge(endpoint.name, self.replica, generation, lease_s=self._lease_s, move=now.move)
        self._held[endpoint.name] = _Held(
            model=now.model,
            number=now.number,
            digest=now.digest,
            move=now.move,
            generation=generation,
            renew_at=self._renewal(moment),
        )

    def _report(self, registry: Registry, endpoint: Endpoint, moment: float) -> None:
        """Tell which version the endpoint refuses and why, or that it refuses none any more."""
        failure, told = endpoint.failure, self._refused.get(endpoint.name)
        if failure is None:
            if told is not None:
                registry.endpoints.accept(endpoint.name, self.replica)
                del self._refused[endpoint.name]
            return
        if told is not None and _is_same_refusal(told[0], failure) and moment < told[1]:
            return
        registry.endpoints.refuse(
            endpoint.name,
            self.replica,
            name=endpoint.reference.name,
            number=failure.number,
            digest=failure.digest,
            alias=endpoint.reference.alias,
            move=failure.move,
            reason=failure.reason,
            lease_s=self._lease_s,
        )
        self._refused[endpoint.name] = failure, self._renewal(moment)

    def _roll_back(self, registry: Registry, endpoint: Endpoint) -> None:
        """Move the alias back from what the workers went back from, unless somebody has moved it since."""
        rejected, alias = endpoint.rejected, endpoint.reference.alias
        if rejected is None or alias is None or self._left.get(endpoint.name) == rejected:
            return
        name, number = endpoint.reference.name, rejected.content.number
        try:
            holder = registry.holder(name, alias)
            if holder is not None and holder.move == rejected.move:
                registry.rollback(
                    name,
                    alias=alias,
                    reason=f"endpoint `{endpoint.name}` went back by itself from version {number}: {rejected.reason}",
                    actor=f"endpoint {endpoint.name} by {current_user()}",
                    expect=number,
                )
                log.warning("endpoint %s: rolled `%s@%s` back from version %d", endpoint.name, name, alias, number)
            else:
                log.info("endpoint %s: somebody moved `%s@%s` from version %d", endpoint.name, name, alias, number)
        except ConflictError as exc:
            log.info("endpoint %s: somebody else moved `%s@%s` meanwhile: %s", endpoint.name, name, alias, exc)
        self._left[endpoint.name] = rejected

    def _complain(self, problem: Exception) -> None:
        """Say, as often as it is tried, that the registry does not know what the workers went back from."""
        for one in self._endpoints:
            rejected, reference = one.rejected, one.reference
            if rejected is None or reference.alias is None or self._left.get(one.name) == rejected:
                continue
            log.error(
                "endpoint %s went back to %s/%d by itself, but `%s` still points to version %d: %s",
                *(one.name, reference.name, rejected.back_to, reference, rejected.content.number, problem),
            )

    def _renewal(self, moment: float) -> float:
        # A little early: the thread wakes up about every third of a lease.
        return moment + 0.9 * self._lease_s / _RENEWALS_PER_LEASE

    def _release(self) -> None:
        if self._registry is None:
            return
        try:
            for name in self._held.keys() | self._refused.keys():
                self._registry.endpoints.release(name, self.replica)
            self._registry.close()
        except Exception as exc:  # noqa: BLE001  # the lease ends by itself
            log.info("the registry could not be told that serving ends: %s", exc)


def _is_same_refusal(one: SwapFailure, other: SwapFailure) -> bool:
    return (one.digest, one.move, one.reason) == (other.digest, other.move, other.reason)
