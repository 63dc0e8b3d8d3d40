"""Quotas: how many requests and bytes per second one client may send, as token buckets that all workers share.

A bucket is one number, the time at which it will be full again (the "theoretical arrival time" of the generic cell
rate algorithm, ITU-T I.371): nothing fills it, and a client that was silent for a while needs no memory. The numbers
are in a mapped file of the server, in slots found by a hash of the client and taken over when they are full again.

Workers do not lock it: of two charges to one client at the very same moment, one may be lost. Bytes may be overdrawn by
one request, so that one larger than the bucket is possible at all, and are paid back by waiting.
"""

from __future__ import annotations

import math
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from noa.atomic_write import translate_disk_errors
from noa_serving._http import RequestRefusedError

if TYPE_CHECKING:
    from noa.settings import ServingSettings
    from noa_serving.api_keys import KeyQuota

_SLOTS = 1 << 15
_CELLS = 3
"""Of a slot: whose it is, when its requests are free again, when its bytes are."""
_PROBES = 8
_BYTES = (_SLOTS + 1) * _CELLS * 8
_ROUNDING_S = 1e-6
_NOWHERE: tuple[int, int | None] = (0, None)  # no slot has this owner


def make_shared(path: Path) -> None:
    """Make the file that the workers of one server share; it begins with a secret of the hash."""
    with translate_disk_errors(path):
        path.touch(mode=0o600, exist_ok=False)
    with translate_disk_errors(path), path.open("r+b") as file:
        file.write(os.urandom(_CELLS * 8))
        file.flush()
        os.posix_fallocate(file.fileno(), 0, _BYTES)  # a hole on a full disk would kill who writes to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may send, with what `Quotas.charge` needs of it made ready."""

    requests: str  # how an error tells them
    interval_s: float  # between two requests; 0: there is no limit
    slack_s: float  # how far ahead of its rate a client may be
    bytes: str
    byte_s: float  # per byte; 0: there is no limit
    byte_burst_s: float

    @property
    def is_on(self) -> bool:
        """Whether there is anything to keep."""
        return self.interval_s > 0 or self.byte_s > 0

    @classmethod
    def of(cls, settings: ServingSettings, quota: KeyQuota | None = None) -> Limits:
        """Return what the settings let a client send, or a key with a quota of its own."""
        rate, burst_s = settings.quota_requests_per_s, settings.quota_burst_s
        byte_rate: float | None = settings.quota_bytes_per_s
        byte_burst_s = burst_s
        if quota is not None and quota.requests_per_s is not None:
            rate = quota.requests_per_s
            burst_s = burst_s if quota.burst_requests is None else quota.burst_requests / rate
        if quota is not None and quota.bytes_per_s is not None:
            byte_rate = quota.bytes_per_s
            byte_burst_s = byte_burst_s if quota.burst_bytes is None else quota.burst_bytes / byte_rate
        interval_s = 0.0 if rate is None else 1.0 / rate
        return cls(
            requests="" if rate is None else f"at most {rate:g} requests per second, {burst_s:g} s of it at once",
            interval_s=interval_s,
            slack_s=max(burst_s - interval_s, 0.0) + _ROUNDING_S,
            bytes=""
            if byte_rate is None
            else f"at most {byte_rate:.12g} bytes per second, {byte_burst_s:g} s of it at once",
            byte_s=0.0 if byte_rate is None else 1.0 / byte_rate,
            byte_burst_s=byte_burst_s,
        )


class Quotas:
    """The buckets, as one worker sees them. `path` is the file it shares with others, None: it is alone."""

    def __init__(
        self,
        settings: ServingSettings,
        path: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,  # of the machine, so that workers agree
    ) -> None:
        self.refused = 0
        self._clock = clock
        limits = Limits.of(settings)
        self._limits = limits if limits.is_on else None
        self._memory = _map(path)
        whole = memoryview(self._memory)
        self._secret = bytes(whole[: _CELLS * 8])
        self._owners = whole[_CELLS * 8 :].cast("q")
        self._times = whole[_CELLS * 8 :].cast("d")
        self._known: dict[str, tuple[int, int | None]] = {}

    @property
    def is_on(self) -> bool:
        """Whether there is anything to keep of a client that has no limits of its own."""
        return self._limits is not None

    def charge(self, client: str, num_bytes: int, limits: Limits | None = None) -> None:
        """Take one request and its bytes from a client's buckets; a refused request costs nothing.

        A client with `limits` of its own has them in place of the settings'.

        Raises:
            RequestRefusedError: 429, with the time after which the same request passes.
        """
        if limits is None:
            limits = self._limits
            if limits is None:
                return
        cell, owner = self._known.get(client, _NOWHERE)
        if self._owners[cell] != owner:
            cell = self._find(client)
        times, now, free_at = self._times, self._clock(), 0.0  # written for speed: this is in every request's way
        interval_s, byte_s = limits.interval_s, limits.byte_s
        if interval_s:
            free_at = times[cell + 1]
            if free_at < now:
                free_at = now
            elif free_at - now > limits.slack_s:
                wait_s = max(free_at - now - limits.slack_s, _byte_wait_s(times[cell + 2] - now, limits))
                raise self._refusal(wait_s, limits.requests)
        if byte_s:
            bytes_free_at = times[cell + 2]
            if bytes_free_at < now:
                bytes_free_at = now
            elif bytes_free_at - now >= limits.byte_burst_s:
                raise self._refusal(_byte_wait_s(bytes_free_at - now, limits), limits.bytes)
            times[cell + 2] = bytes_free_at + num_bytes * byte_s
        if interval_s:
            times[cell + 1] = free_at + interval_s

    def add_bytes(self, client: str, num_bytes: int, limits: Limits | None = None) -> None:
        """Take the bytes of a body whose length nobody had said."""
        limits = limits or self._limits
        if limits is not None and limits.byte_s:
            cell = self._find(client) + 2
            self._times[cell] = max(self._times[cell], self._clock()) + num_bytes * limits.byte_s

    def _refusal(self, wait_s: float, expected: str) -> RequestRefusedError:
        self.refused += 1
        return RequestRefusedError(
            "this client has used up its quota",
            status=429,
            expected=expected,
            retry_after_s=max(1, math.ceil(wait_s)),
        )

    def _find(self, client: str) -> int:
        """Return a client's first cell; the next two are its times."""
        cell, owner = self._known.get(client, _NOWHERE)
        if self._owners[cell] == owner:
            return cell
        digest = blake2b(client.encode(), digest_size=8, key=self._secret).digest()
        owner = int.from_bytes(digest, "little", signed=True) or 1
        cell = self._place(owner)
        if len(self._known) >= _SLOTS:
            self._known.clear()
        self._known[client] = cell, owner
        return cell

    def _place(self, owner: int) -> int:
        cells = [(owner + probe) % _SLOTS * _CELLS for probe in range(_PROBES)]
        for cell in cells:
            if self._owners[cell] == owner:
                return cell
        # One that is full again says nothing; where all do, the one that says the least is forgotten.
        cell = min(cells, key=lambda cell: max(self._times[cell + 1], self._times[cell + 2]))
        self._owners[cell] = owner
        self._times[cell + 1] = self._times[cell + 2] = 0.0
        return cell


@lru_cache(maxsize=4096)
def client_of(host: str) -> str:
    """Return whom an address stands for: itself, or the 64 bits of an IPv6 network, which is one customer's."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.version == 4 or address.is_loopback:
        return host
    mapped = address.ipv4_mapped
    return str(mapped) if mapped is not None else address.exploded[:19]


def _byte_wait_s(ahead_s: float, limits: Limits) -> float:
    """Return after which time bytes pass again: once a client is ahead by less than its burst, not by just as much."""
    return 0.0 if not limits.byte_s or ahead_s < limits.byte_burst_s else ahead_s - limits.byte_burst_s + _ROUNDING_S


def _map(path: Path | None) -> mmap.mmap:
    if path is None:
        memory = mmap.mmap(-1, _BYTES)
        memory[: _CELLS * 8] = os.urandom(_CELLS * 8)
        return memory
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), _BYTES)
