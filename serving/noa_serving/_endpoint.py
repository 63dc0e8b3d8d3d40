"""An endpoint: the name clients call, the generation that answers now, and what is known about following the registry.

`follow` runs in the follower's thread; requests read `current` on the event loop. Replacing that one reference is the
swap. A version that cannot be loaded is refused: the old one goes on, the reason is kept, and the same bytes are tried
again only after a growing pause.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from noa.errors import NoaError, NotFoundError
from noa.references import parse_reference
from noa_serving._generation import Generation, load_generation
from noa_serving._http import RequestRefusedError, public_text

if TYPE_CHECKING:
    from noa.settings import EndpointSettings
    from noa_registry import Registry

log = logging.getLogger("noa.serving")

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapFailure:
    """A version that was refused, and why. `retry_at` is on the clock given to `follow`, seconds."""

    number: int
    digest: str
    reason: str
    attempts: int
    retry_at: float


class Endpoint:
    """One endpoint of this process. All attributes may be read from any thread."""

    def __init__(self, name: str, settings: EndpointSettings, *, threads: int) -> None:
        self.name = name
        self.settings = settings
        self.reference = parse_reference(settings.model)
        self.threads = threads
        self.current: Generation | None = None
        self.waiting_for: str | None = None
        self.failure: SwapFailure | None = None
        self.swaps = 0
        self.refusals = 0
        self.was_tried = False

    @property
    def state(self) -> str:
        """`ready`, `waiting` (nothing to serve yet), `failed` (what there is cannot be served) or `loading`."""
        if self.current is not None:
            return "ready"
        if self.failure is not None:
            return "failed"
        return "waiting" if self.waiting_for is not None else "loading"

    def require(self) -> Generation:
        """Return the generation that answers now.

        Raises:
            RequestRefusedError: 503, there is none yet; the text says what is missing.
        """
        if self.current is not None:
            return self.current
        if self.failure is not None:
            what = f"endpoint `{self.name}` is not ready: `{self.settings.model}` could not be loaded"
        elif self.waiting_for is not None:
            what = f"endpoint `{self.name}` is not ready: {self.waiting_for}"
        else:
            what = f"endpoint `{self.name}` is not ready: its model is being loaded"
        raise RequestRefusedError(what, status=503, retry_after_s=1)

    def follow(self, registry: Registry, *, clock: Callable[[], float] = time.monotonic) -> bool:
        """Look where the reference points and load what is new. Returns whether the generation was swapped.

        A version that cannot be served is recorded in `failure`, never raised.

        Raises:
            NoaError: the registry itself cannot be read; what is served stays.
        """
        wanted = self._look_up(registry)
        if wanted is None:
            return False
        number, digest = wanted
        self.waiting_for = None
        current = self.current
        if current is not None and (current.number, current.digest) == wanted:
            self.failure = None
            return False
        failure = self.failure
        if failure is not None and (failure.number, failure.digest) == wanted and clock() < failure.retry_at:
            return False
        try:
            self.current = self._load(registry, number, digest)
        except Exception as exc:  # noqa: BLE001  # whatever a broken model raises, the old one must go on
            self._record(exc, number, digest, clock())
            return False
        self.failure = None
        self.swaps += current is not None
        before = "nothing" if current is None else current.reference
        log.info("endpoint %s: %s -> %s/%d %s", self.name, before, self.reference.name, number, digest)
        return True

    def _look_up(self, registry: Registry) -> tuple[int, str] | None:
        reference = self.reference
        if reference.alias is not None:
            found = registry.resolve_digest(reference.name, reference.alias)
        elif self.current is not None:
            return self.current.number, self.current.digest  # a pinned version never moves
        else:
            found = _pinned(registry, str(reference))
        if found is None:
            self.waiting_for = f"`{reference}` points to no version yet; promote one"
        return found

    def _load(self, registry: Registry, number: int, digest: str) -> Generation:
        version = registry.resolve(f"{self.reference.name}/{number}")
        if version.digest != digest:
            raise NoaError(f"`{version.reference}` changed while it was read", expected=digest, received=version.digest)
        return load_generation(registry, version, endpoint=self.name, format=self.settings.format, threads=self.threads)

    def _record(self, error: Exception, number: int, digest: str, now: float) -> None:
        last = self.failure
        is_same = last is not None and (last.number, last.digest) == (number, digest)
        attempts = last.attempts + 1 if last is not None and is_same else 1
        pause_s = min(_FIRST_PAUSE_S * 2 ** (attempts - 1), _LONGEST_PAUSE_S)
        self.failure = SwapFailure(
            number=number, digest=digest, reason=public_text(error), attempts=attempts, retry_at=now + pause_s
        )
        self.refusals += 1
        kept = "nothing is served" if self.current is None else f"{self.current.reference} goes on"
        log.error("endpoint %s: refused %s/%d: %s; %s", self.name, self.reference.name, number, error, kept)


def _pinned(registry: Registry, reference: str) -> tuple[int, str] | None:
    try:
        version = registry.resolve(reference)
    except NotFoundError:
        return None
    return version.number, version.digest
