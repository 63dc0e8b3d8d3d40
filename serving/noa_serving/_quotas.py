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
from functools import lru_cache
from hashlib import blake2b
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from noa.atomic_write import translate_disk_errors
from noa_serving._http import RequestRefusedError

if TYPE_CHECKING:
    from noa.settings import ServingSettings

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
        self._requests_per_s = settings.quota_requests_per_s
        self._bytes_per_s = settings.quota_bytes_per_s
        self._burst_s = settings.quota_burst_s
        self._interval_s = 0.0 if self._requests_per_s is None else 1.0 / self._requests_per_s
        self._byte_s = 0.0 if self._bytes_per_s is None else 1.0 / self._bytes_per_s
        self._slack_s = max(self._burst_s - self._interval_s, 0.0) + _ROUNDING_S
        self._memory = _map(path)
        whole = memoryview(self._memory)
        self._secret = bytes(whole[: _CELLS * 8])
        self._owners = whole[_CELLS * 8 :].cast("q")
        self._times = whole[_CELLS * 8 :].cast("d")
        self._known: dict[str, tuple[int, int | None]] = {}

    @property
    def is_on(self) -> bool:
        """Whether there is anything to keep."""
        return self._requests_per_s is not None or self._bytes_per_s is not None

    def charge(self, client: str, num_bytes: int) -> None:
        """Take one request and its bytes from a client's buckets; a refused request costs nothing.

        Raises:
            RequestRefusedError: 429, with the time after which the same request passes.
        """
        cell, owner = self._known.get(client, _NOWHERE)
        if self._owners[cell] != owner:
            cell = self._find(client)
        times, now, free_at = self._times, self._clock(), 0.0  # written for speed: this is in every request's way
        if self._interval_s:
            free_at = times[cell + 1]
            if free_at < now:
                free_at = now
            elif free_at - now > self._slack_s:
                raise self._refusal(free_at - now - self._slack_s, f"at most {self._requests_per_s:g} requests")
        if self._byte_s:
            bytes_free_at = times[cell + 2]
            if bytes_free_at < now:
                bytes_free_at = now
            elif bytes_free_at - now >= self._burst_s:
                raise self._refusal(bytes_free_at - now - self._burst_s, f"at most {self._bytes_per_s} bytes")
            times[cell + 2] = bytes_free_at + num_bytes * self._byte_s
        if self._interval_s:
            times[cell + 1] = free_at + self._interval_s

    def add_bytes(self, client: str, num_bytes: int) -> None:
        """Take the bytes of a body whose length nobody had said."""
        if self._byte_s:
            cell = self._find(client) + 2
            self._times[cell] = max(self._times[cell], self._clock()) + num_bytes * self._byte_s

    def _refusal(self, wait_s: float, expected: str) -> RequestRefusedError:
        self.refused += 1
        return RequestRefusedError(
            "this client has used up its quota",
            status=429,
            expected=f"{expected} per second, {self._burst_s:g} s of it at once",
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


def _map(path: Path | None) -> mmap.mmap:
    if path is None:
        memory = mmap.mmap(-1, _BYTES)
        memory[: _CELLS * 8] = os.urandom(_CELLS * 8)
        return memory
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), _BYTES)
