"""An endpoint: the name clients call, the generation that answers now, and what is known about following the registry.

`follow` and `settle` run in the follower's thread; requests read `current` on the event loop. Replacing that one
reference is the swap. What is served is agreed on with the other workers of the server (`_crew`): a new version is
loaded and warmed beside the old one, and swapped in once every worker has it ready. One that a worker cannot load is
refused: the old one goes on, the reason is kept, and the same bytes are tried again only after a growing pause.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from noa.errors import NoaError, NotFoundError
from noa.references import parse_reference
from noa.settings import FALLBACK_ARM
from noa_serving._arm_names import followed_names
from noa_serving._crew import Ballot, Content, Crew, lone_crew
from noa_serving._generation import Generation, load_generation
from noa_serving._http import RequestRefusedError, public_text
from noa_serving._memory import require_memory

if TYPE_CHECKING:
    from noa.settings import EndpointSettings
    from noa_registry import Registry
    from noa_serving._stages import StageTimes
    from noa_serving._traffic import Traffic

log = logging.getLogger("noa.serving")

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_ANNOUNCE_PATIENCE_S = 10.0
_MOST_PAST_VERSIONS = 3


class Served(NamedTuple):
    """A version that may be announced to the registry."""

    model: str
    number: int
    digest: str
    format: str


class Counted(NamedTuple):
    """A version that answers now or did not long ago, and the times of what it answered."""

    version: Served
    stages: StageTimes


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

    def __init__(
        self,
        name: str,
        settings: EndpointSettings,
        *,
        threads: int,
        crew: Crew | None = None,
        main: Endpoint | None = None,
        arm: str = "",
    ) -> None:
        self.name = name
        self.settings = settings
        self.reference = parse_reference(settings.model)
        self.threads = threads
        self.crew = lone_crew(followed_names({name: settings})) if crew is None else crew
        self.main = main
        """The endpoint of which this is an arm, which clients cannot call by itself; None for any other."""
        self.arm = arm
        self.traffic: Traffic | None = None
        """How its requests are split; None where it has neither arms nor a fallback."""
        self.current: Generation | None = None
        self.announced: Served | None = None
        self.waiting_for: str | None = None
        self.failure: SwapFailure | None = None
        self.swaps = 0
        self.refusals = 0
        self.recent: tuple[Counted, ...] = ()
        """The versions whose times `/metrics` shows, the present one last."""
        self._prepared: tuple[Ballot, Generation] | None = None
        self._swapped_at = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether the server answers for it: this process, and with several workers the server as a whole."""
        if self.crew.size == 1:
            return self.current is not None
        return self.crew.is_ready(self.name)

    @property
    def is_unsettled(self) -> bool:
        """Whether the other workers are waited for: `settle` is to be called soon."""
        return self._prepared is not None or (self.current is not None and not self._is_announced(self.current))

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

        A version that cannot be served is recorded in `failure`, never raised. With other workers a new version is only
        made ready here, and swapped in by a later call or by `settle`.

        Raises:
            NoaError: the registry itself cannot be read; what is served stays.
        """
        wanted = self._look_up(registry) if self._is_optional else None
        if wanted is None and self._is_optional:
            return self._withdraw()
        was_swapped = self._catch_up(registry, clock)
        wanted = self._look_up(registry) if wanted is None else wanted
        if wanted is None:
            return was_swapped
        self.waiting_for = None
        if wanted == self.crew.agreement(self.name).content:
            if self.current is not None and wanted == (self.current.number, self.current.digest):
                self.failure, self._prepared = None, None
                self.crew.drop_ballot(self.name)
                self._announce(clock())
            return was_swapped
        ballot, is_new = self.crew.open_ballot(self.name, wanted, clock())
        if ballot.reason:
            self._note_refusal(ballot)
        elif self._prepared is None or self._prepared[0].id != ballot.id:
            self._prepare(registry, ballot, is_new=is_new)
        return self.settle(clock=clock) or was_swapped

    def serves(self, content: Content) -> bool:
        """Tell whether a version is what all workers serve here, or will as soon as they have tried."""
        agreed = self.crew.agreement(self.name).content
        return agreed is not None and agreed.digest == content.digest

    def settle(self, *, clock: Callable[[], float] = time.monotonic) -> bool:
        """Swap if all workers have the new version ready now; drop it if one cannot have it. Whether it was swapped."""
        was_swapped = False
        agreement = self.crew.decide(self.name, clock())
        if self._prepared is not None:
            ballot, generation = self._prepared
            now = agreement.ballot
            if agreement.content == ballot.content:
                was_swapped = self._swap(generation, ballot.content, clock())
                self._prepared = None
            elif now is None or now.id != ballot.id or now.reason:
                self._prepared = None
        if agreement.ballot is not None and agreement.ballot.reason:
            self._note_refusal(agreement.ballot)
        self._announce(clock())
        return was_swapped

    @property
    def _is_optional(self) -> bool:
        """Whether it ends when its alias does: an arm; what an endpoint or a fallback serves goes on."""
        return self.main is not None and self.arm != FALLBACK_ARM

    def _withdraw(self) -> bool:
        """Serve nothing any more, and let what was loaded go. Whether something was served."""
        self._prepared = self.failure = None
        agreed = self.crew.agreement(self.name)
        if agreed.content is not None or self.name in self.crew.served:
            self.crew.withdraw(self.name, agreed.content)
        before, self.current, self.announced = self.current, None, None
        if before is not None:
            log.info("endpoint %s: %s -> nothing: %s", self.name, before.reference, self.waiting_for)
        return before is not None

    def _catch_up(self, registry: Registry, clock: Callable[[], float]) -> bool:
        """Serve what the other workers serve, if this one does not: it is new, or stood still during a swap."""
        agreed = self.crew.agreement(self.name).content
        current, failure = self.current, self.failure
        if agreed is None or (current is not None and (current.number, current.digest) == agreed):
            return False
        if self._prepared is not None and self._prepared[0].content == agreed:
            return self.settle(clock=clock)
        if failure is not None and (failure.number, failure.digest) == agreed and clock() < failure.retry_at:
            return False
        try:
            generation = self._load(registry, agreed, workers=1)
        except Exception as exc:  # noqa: BLE001  # whatever a broken model raises, the old one must go on
            self._record(exc, agreed, clock())
            return False
        return self._swap(generation, agreed, clock())

    def _prepare(self, registry: Registry, ballot: Ballot, *, is_new: bool) -> None:
        """Have the version of a ballot ready beside what is served, or vote against it."""
        self._prepared = None
        try:
            # Who opens the ballot looks for all workers whether there is room: later some of them have it already.
            generation = self._load(registry, ballot.content, workers=self.crew.size if is_new else 0)
        except Exception as exc:  # noqa: BLE001  # whatever a broken model raises, the old one must go on
            self._log_refusal(ballot.content, exc)
            self.crew.vote(self.name, ballot.id, public_text(exc) or type(exc).__name__)
            return
        # Loading takes long: who moved the alias on meanwhile, and waited for that, must not see this version.
        if self._look_up(registry) == ballot.content:
            self._prepared = ballot, generation
            self.crew.vote(self.name, ballot.id)

    def _swap(self, generation: Generation, content: Content, now: float) -> bool:
        """Let `generation` answer from now on, unless the workers have agreed on something else meanwhile."""
        before, self.current = self.current, generation
        if not self.crew.join(self.name, content):
            self.current = before
            return False
        self._count_from_now(generation)
        self.failure = None
        self.swaps += before is not None
        self._swapped_at = now
        name = "nothing" if before is None else before.reference
        log.info("endpoint %s: %s -> %s %s", self.name, name, generation.reference, generation.digest)
        self._announce(now)
        return True

    def _count_from_now(self, generation: Generation) -> None:
        """Show the times of `generation` from now on; a version that comes back counts from zero, as after a start."""
        version = Served(generation.model, generation.number, generation.digest, generation.format)
        others = [one for one in self.recent if one.version != version]
        self.recent = (*others[-_MOST_PAST_VERSIONS:], Counted(version, generation.statistics.stages))

    def _announce(self, now: float) -> None:
        """Let the lease of what is served be written once all workers serve it; the registry learns of laggards."""
        current = self.current
        if current is None or self._is_announced(current):
            return
        if self.crew.all_serve(self.name) or now - self._swapped_at > _ANNOUNCE_PATIENCE_S:
            self.announced = Served(current.model, current.number, current.digest, current.format)

    def _is_announced(self, current: Generation) -> bool:
        return self.announced is not None and self.announced[:3] == (current.model, current.number, current.digest)

    def _look_up(self, registry: Registry) -> Content | None:
        reference = self.reference
        if reference.alias is not None:
            found = registry.resolve_digest(reference.name, reference.alias)
        elif self.current is not None:
            return Content(self.current.number, self.current.digest)  # a pinned version never moves
        else:
            found = _pinned(registry, str(reference))
        if found is None:
            self.waiting_for = f"`{reference}` points to no version yet; promote one"
            return None
        content = Content(*found)
        if self._is_optional and self.main is not None and self.main.serves(content):
            self.waiting_for = f"`{reference}` is what the endpoint serves anyway"
            return None
        return content

    def _load(self, registry: Registry, content: Content, *, workers: int) -> Generation:
        version = registry.resolve(f"{self.reference.name}/{content.number}")
        if version.digest != content.digest:
            raise NoaError(
                f"`{version.reference}` changed while it was read", expected=content.digest, received=version.digest
            )
        if self.settings.format in version.formats:
            size = version.formats[self.settings.format].manifest.size_bytes
            require_memory(size, workers=workers, reference=version.reference)
        return load_generation(
            registry,
            version,
            endpoint=self.name if self.main is None else self.main.name,
            arm=self.arm,
            format=self.settings.format,
            threads=self.threads,
        )

    def _record(self, error: Exception, content: Content, now: float) -> None:
        """Note that this worker alone cannot serve what the others serve."""
        last = self.failure
        is_same = last is not None and (last.number, last.digest) == content
        attempts = last.attempts + 1 if last is not None and is_same else 1
        pause_s = min(_FIRST_PAUSE_S * 2 ** (attempts - 1), _LONGEST_PAUSE_S)
        self.failure = SwapFailure(
            number=content.number,
            digest=content.digest,
            reason=public_text(error),
            attempts=attempts,
            retry_at=now + pause_s,
        )
        self.refusals += 1
        self._log_refusal(content, error)

    def _note_refusal(self, ballot: Ballot) -> None:
        """Note that the workers could not agree on a version."""
        found = SwapFailure(
            number=ballot.content.number,
            digest=ballot.content.digest,
            reason=ballot.reason,
            attempts=ballot.attempts,
            retry_at=ballot.retry_at,
        )
        if found == self.failure:
            return
        self.failure = found
        self.refusals += 1
        if self.crew.size > 1:
            self._log_refusal(ballot.content, ballot.reason)

    def _log_refusal(self, content: Content, reason: object) -> None:
        kept = "nothing is served" if self.current is None else f"{self.current.reference} goes on"
        name, number = self.reference.name, content.number
        log.error("endpoint %s: refused %s/%d: %s; %s", self.name, name, number, reason, kept)


def _pinned(registry: Registry, reference: str) -> tuple[int, str] | None:
    try:
        version = registry.resolve(reference)
    except NotFoundError:
        return None
    return version.number, version.digest
