"""Answers that were computed before: the outputs of one generation, by a hash of the inputs.

Off unless an endpoint asks for it. What is kept are outputs, not bytes of an answer, so the same inputs are found
whichever route, encoding, request id or choice of outputs they come with. The cache belongs to a generation and goes
with it: no version is ever answered with the outputs of another. Each worker has its own, on its event loop.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from noa.settings import CacheSettings

MAX_INPUT_BYTES = 1 << 20
"""Larger inputs are computed without a look: hashing them would hold up the event loop for milliseconds."""

_ENTRY_BYTES = 400  # what Python takes for an entry beside the arrays
_KEY_BYTES = 16


@dataclass(slots=True)
class CacheCounts:
    """What was found and what was not. `passed` were too large to be looked for; `hit_ns` is the time of the looks."""

    hits: int = 0
    misses: int = 0
    passed: int = 0
    hit_ns: int = 0


class _Entry(NamedTuple):
    outputs: Mapping[str, np.ndarray]
    num_bytes: int
    kept_at: float


class ResponseCache:
    """The newest outputs of one generation, bounded in bytes; those that were asked for longest ago go first.

    `counts` are those of the endpoint, over all its generations; `own` of this one.
    """

    def __init__(
        self, settings: CacheSettings, counts: CacheCounts, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.own = CacheCounts()
        self._counts = (counts, self.own)
        self.num_bytes = 0
        self._max_bytes = settings.max_bytes
        self._max_age_s = settings.max_age_s
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, inputs: Mapping[str, np.ndarray]) -> tuple[bytes | None, Mapping[str, np.ndarray] | None]:
        """Return the key of `inputs` (None: not for a cache) and what was computed for them, if it is there."""
        start = time.perf_counter_ns()
        if sum(array.nbytes for array in inputs.values()) > MAX_INPUT_BYTES:
            for one in self._counts:
                one.passed += 1
            return None, None
        key = hash_inputs(inputs)
        entry = self._entries.get(key)
        if entry is not None and self._max_age_s is not None and self._clock() - entry.kept_at > self._max_age_s:
            self._remove(key)
            entry = None
        if entry is None:
            for one in self._counts:
                one.misses += 1
            return key, None
        self._entries.move_to_end(key)
        ns = time.perf_counter_ns() - start
        for one in self._counts:
            one.hits += 1
            one.hit_ns += ns
        return key, entry.outputs

    def keep(self, key: bytes, outputs: Mapping[str, np.ndarray]) -> None:
        """Keep outputs: copies, as those of a batch are parts of one array that would stay with them."""
        num_bytes = _ENTRY_BYTES + sum(_size(array) for array in outputs.values())
        if num_bytes > self._max_bytes:
            return
        if key in self._entries:
            self._remove(key)
        while self.num_bytes + num_bytes > self._max_bytes:
            self._remove(next(iter(self._entries)))
        copies = {name: array.copy() for name, array in outputs.items()}
        for array in copies.values():
            array.flags.writeable = False
        self._entries[key] = _Entry(copies, num_bytes, self._clock())
        self.num_bytes += num_bytes

    def _remove(self, key: bytes) -> None:
        self.num_bytes -= self._entries.pop(key).num_bytes


def hash_inputs(inputs: Mapping[str, np.ndarray]) -> bytes:
    """Return a hash of names, dtypes, shapes and values, the same in whichever order the inputs come.

    BLAKE2b (RFC 7693), 16 bytes: nobody can make two inputs that share one, so no client sees another's answer.
    """
    digest = blake2b(digest_size=_KEY_BYTES)
    for name in sorted(inputs):
        array = inputs[name]
        digest.update(f"{name}\0{array.dtype.str}{array.shape}".encode())
        if array.dtype.hasobject:
            for item in array.flat:
                text = item if isinstance(item, bytes) else str(item).encode()
                digest.update(len(text).to_bytes(8, "little"))
                digest.update(text)
        else:
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()


def _size(array: np.ndarray) -> int:
    if array.dtype.hasobject:
        return array.nbytes + sum(len(item) for item in array.flat)
    return array.nbytes
