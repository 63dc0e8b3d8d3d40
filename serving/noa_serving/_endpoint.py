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
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from noa.errors import NoaError, NotFoundError
from noa.references import ModelReference, parse_reference
from noa.settings import FALLBACK_ARM
from noa_serving._arm_names import followed_names
from noa_serving._crew import Ballot, Choice, Content, Crew, Rejection, lone_crew
from noa_serving._format_choice import AUTO, choose_format
from noa_serving._generation import Generation, load_generation
from noa_serving._http import RequestRefusedError, public_text
from noa_serving._memory import require_memory
from noa_serving._probation import Probation
from noa_serving._response_cache import CacheCounts, ResponseCache
from noa_serving._runtimes import Runtimes

if TYPE_CHECKING:
    from noa.settings import EndpointSettings
    from noa_registry import LedgerEntry, ModelVersion, Registry
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


class Announced(NamedTuple):
    """What the registry is told: the version that answers, and the move of the alias that was followed to it.

    `move` is a row of the ledger; 0 while no move was followed to it, as by a worker that takes over what others serve.
    """

    model: str
    number: int
    digest: str
    format: str
    move: int


class Followed(NamedTuple):
    """Where an alias pointed when it was looked up, and the row of the ledger that put it there; a number has none."""

    content: Content
    move: int


class _Prepared(NamedTuple):
    """A version that is ready to be swapped in. `came_from` is what the alias was promoted from, if it was promoted."""

    ballot: Ballot
    generation: Generation
    move: int
    came_from: Content | None


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
    move: int = 0
    """The row of the ledger that put it there; 0 where the other workers serve it and this one cannot."""


class Endpoint:
    """One endpoint of this process. All attributes may be read from any thread."""

    def __init__(
        self,
        name: str,
        settings: EndpointSettings,
        *,
        threads: int,
        crew: Crew | None = None,
        runtimes: Runtimes | None = None,
        main: Endpoint | None = None,
        arm: str = "",
    ) -> None:
        self.name = name
        self.settings = settings
        self.threads = threads
        self.runtimes = Runtimes(threads=threads) if runtimes is None else runtimes
        self.crew = lone_crew(followed_names({name: settings})) if crew is None else crew
        self.main = main
        """The endpoint of which this is an arm, which clients cannot call by itself; None for any other."""
        self.arm = arm
        self.traffic: Traffic | None = None
        """How its requests are split; None where it has neither arms nor a fallback."""
        self.current: Generation | None = None
        self.announced: Announced | None = None
        self.waiting_for: str | None = None
        self.failure: SwapFailure | None = None
        self.swaps = 0
        self.refusals = 0
        self.cache_counts = CacheCounts()
        self.rollbacks = 0
        self.probation: Probation | None = None
        self.recent: tuple[Counted, ...] = ()
        """The versions whose times `/metrics` shows, the present one last."""
        self._prepared: _Prepared | None = None
        self._wanted: Followed | None = None
        self._followed: Followed | None = None
        self._swapped_at = 0.0

    @cached_property
    def reference(self) -> ModelReference:
        """What it follows."""
        return parse_reference(self.settings.model)

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
    def rejected(self) -> Rejection | None:
        """The version that the workers went back from by themselves; None if the alias was followed since."""
        return self.crew.agreement(self.name).rejected

    @property
    def is_rejection_pending(self) -> bool:
        """Whether the alias still points to the version that the workers went back from."""
        rejected, wanted = self.rejected, self._wanted
        return rejected is not None and (wanted is None or wanted == (rejected.content, rejected.move))

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
        found = self._look_up(registry) if self._is_optional else None
        if found is None and self._is_optional:
            return self._withdraw()
        self._judge(clock())
        was_swapped = self._catch_up(registry, clock)
        found = self._look_up(registry) if found is None else found
        if found is None:
            return was_swapped
        self.waiting_for = None
        wanted = found.content
        agreement = self.crew.agreement(self.name)
        rejected = agreement.rejected
        if rejected is not None and found == (rejected.content, rejected.move):
            self._announce(clock())  # the registry does not know yet that this one was left
            return was_swapped
        if wanted == agreement.content:
            if self.current is not None and wanted == (self.current.number, self.current.digest):
                self.failure, self._prepared = None, None
                self.crew.drop_ballot(self.name)
                if self.crew.agreement(self.name).content == wanted:
                    self._followed = found  # nothing older can be swapped in now: no ballot is left, none has passed
                self._announce(clock())
            return was_swapped
        ballot, is_new = self.crew.open_ballot(self.name, wanted, clock())
        if ballot.reason:
            self._note_refusal(ballot)
        elif self._prepared is None or self._prepared.ballot.id != ballot.id:
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
            ballot, generation = self._prepared.ballot, self._prepared.generation
            now = agreement.ballot
            if agreement.content == ballot.content:
                before, came_from, move = self.current, self._prepared.came_from, self._prepared.move
                was_swapped = self._swap(generation, ballot.content, clock(), move=move)
                if was_swapped and before is not None and came_from == (before.number, before.digest):
                    self._begin_probation(ballot.content, before, move, clock())
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
        self._prepared = self.failure = self.probation = self._followed = None
        agreed = self.crew.agreement(self.name)
        if agreed.content is not None or self.name in self.crew.served:
            self.crew.withdraw(self.name, agreed.content)
        before, self.current, self.announced = self.current, None, None
        if before is not None:
            log.info("endpoint %s: %s -> nothing: %s", self.name, before.reference, self.waiting_for)
        return before is not None

    def _catch_up(self, registry: Registry, clock: Callable[[], float]) -> bool:
        """Serve what the other workers serve, if this one does not: it is new, or stood still during a swap."""
        agreement = self.crew.agreement(self.name)
        agreed = agreement.content
        current, failure = self.current, self.failure
        if agreed is None or (current is not None and (current.number, current.digest) == agreed):
            return False
        if self._prepared is not None and self._prepared.ballot.content == agreed:
            return self.settle(clock=clock)
        if failure is not None and (failure.number, failure.digest) == agreed and clock() < failure.retry_at:
            return False
        try:
            generation = self._load(registry, agreed, agreement.choice, workers=1)
        except Exception as exc:  # noqa: BLE001  # whatever a broken model raises, the old one must go on
            self._record(exc, agreed, clock())
            return False
        was_swapped = self._swap(generation, agreed, clock())
        if was_swapped and self.settings.rollback.is_on:
            self._go_on_with_probation(registry, agreed, clock())
        return was_swapped

    def _prepare(self, registry: Registry, ballot: Ballot, *, is_new: bool) -> None:
        """Have the version of a ballot ready beside what is served, or vote against it."""
        self._prepared = None
        try:
            choice = self._choose(registry, ballot)
            if choice is None and self.settings.format == AUTO:
                return  # another worker chooses for all
            # Who opens the ballot looks for all workers whether there is room: later some of them have it already.
            generation = self._load(registry, ballot.content, choice, workers=self.crew.size if is_new else 0)
        except Exception as exc:  # noqa: BLE001  # whatever a broken model raises, the old one must go on
            self._log_refusal(ballot.content, exc)
            self.crew.vote(self.name, ballot.id, public_text(exc) or type(exc).__name__)
            return
        # Loading takes long: who moved the alias on meanwhile, and waited for that, must not see this version.
        found = self._look_up(registry)
        if found is not None and found.content == ballot.content:
            came_from = self._came_from(registry, found.move)
            self._prepared = _Prepared(ballot, generation, found.move, came_from)
            self.crew.vote(self.name, ballot.id)

    def _choose(self, registry: Registry, ballot: Ballot) -> Choice | None:
        """Return the format that all workers load; None where it is named by the settings or not chosen yet."""
        if self.settings.format != AUTO or ballot.choice is not None:
            return ballot.choice
        if not self.crew.is_chooser(self.name, ballot.id):
            return None
        version = self._resolve(registry, ballot.content)
        return self.crew.choose(self.name, ballot.id, choose_format(registry, version, self.runtimes))

    def _swap(self, generation: Generation, content: Content, now: float, *, move: int = 0) -> bool:
        """Let `generation` answer from now on, unless the workers have agreed on something else meanwhile."""
        before, self.current = self.current, generation
        if not self.crew.join(self.name, content):
            self.current = before
            return False
        self._count_from_now(generation)
        self.probation = None
        self._followed = Followed(content, move)
        self.failure = None
        self.swaps += before is not None
        self._swapped_at = now
        name = "nothing" if before is None else before.reference
        how = f"{generation.format}: {generation.choice}" if generation.choice else generation.format
        asked = generation.golden_requests
        checked = f"{asked} golden requests answered" if asked else "no golden requests in its evidence"
        log.info(
            "endpoint %s: %s -> %s %s as %s, %s", self.name, name, generation.reference, generation.digest, how, checked
        )
        self._announce(now)
        return True

    def _came_from(self, registry: Registry, move: int) -> Content | None:
        """Return from which version the alias was promoted by a move, where a rule may lead back to it.

        After a rollback there is no probation: the way back from there leads to yet another version.
        """
        entry = self._promotion(registry, move)
        if entry is None or entry.from_number is None or entry.from_digest is None:
            return None
        return Content(entry.from_number, entry.from_digest)

    def _promotion(self, registry: Registry, move: int) -> LedgerEntry | None:
        """Return a move of the alias if it was a promotion, and there is a rule that looks at it."""
        if not self.settings.rollback.is_on or not move:
            return None
        entry = next(iter(registry.ledger.entries(name=self.reference.name, limit=1, before=move + 1)), None)
        return entry if entry is not None and entry.sequence == move and entry.action == "promote" else None

    def _go_on_with_probation(self, registry: Registry, content: Content, now: float) -> None:
        """Judge what the other workers serve on probation, or served so when they died: this worker is new.

        The version before is loaded as well. How long it lasts is counted from the promotion.
        """
        found = self._look_up(registry)
        entry = None if found is None or found.content != content else self._promotion(registry, found.move)
        if entry is None or found is None or entry.from_number is None or entry.from_digest is None:
            return
        age_s = max((datetime.now(UTC) - entry.created_at).total_seconds(), 0.0)
        if age_s >= self.settings.rollback.within_s:
            return
        try:
            before = self._load(registry, Content(entry.from_number, entry.from_digest), None, workers=1)
        except Exception as exc:  # noqa: BLE001  # whatever it is, what is served goes on
            log.warning(
                "endpoint %s: nothing judges %s/%d here, as the version before cannot be loaded: %s",
                *(self.name, self.reference.name, content.number, public_text(exc)),
            )
            return
        self._begin_probation(content, before, found.move, now - age_s)

    def _begin_probation(self, content: Content, before: Generation, move: int, now: float) -> None:
        rule = self.settings.rollback
        if rule.is_on:
            self.probation = Probation(rule=rule, content=content, move=move, before=before, began_at=now)

    def _judge(self, now: float) -> None:
        """Have all workers go back if the version on probation breaks the rule; end it when its time is up."""
        probation, current = self.probation, self.current
        if probation is None or current is None:
            return
        before = probation.before
        reason = probation.judge(current.statistics)
        if reason is not None:
            rejection = Rejection(content=probation.content, move=probation.move, reason=reason, back_to=before.number)
            choice = Choice(before.format, before.choice) if self.settings.format == AUTO else None
            if self.crew.go_back(self.name, Content(before.number, before.digest), rejection, choice):
                self.rollbacks += 1
                log.error(
                    "endpoint %s: %s goes back to %s by itself: %s",
                    self.name,
                    current.reference,
                    before.reference,
                    reason,
                )
        elif probation.is_over(now):
            self.probation = None
            asked, fewest = current.statistics.requests, probation.rule.min_requests
            how = "has passed" if asked >= fewest else f"had too few requests to be judged (of {fewest})"
            log.info("endpoint %s: %s %s, %d requests", self.name, current.reference, how, asked)

    def _count_from_now(self, generation: Generation) -> None:
        """Show the times of `generation` from now on; a version that comes back counts from zero, as after a start."""
        version = Served(generation.model, generation.number, generation.digest, generation.format)
        others = [one for one in self.recent if one.version != version]
        self.recent = (*others[-_MOST_PAST_VERSIONS:], Counted(version, generation.statistics.stages))

    def _announce(self, now: float) -> None:
        """Let the lease of what is served be written once all workers serve it; the registry learns of laggards."""
        current, told, followed = self.current, self.announced, self._followed
        if current is None or followed is None:
            return
        move = followed.move if followed.content == (current.number, current.digest) else 0
        if told is not None and self._is_announced(current):
            if told.move != move:
                self.announced = told._replace(move=move)
            return
        if self.crew.all_serve(self.name) or now - self._swapped_at > _ANNOUNCE_PATIENCE_S:
            self.announced = Announced(current.model, current.number, current.digest, current.format, move)

    def _is_announced(self, current: Generation) -> bool:
        return self.announced is not None and self.announced[:3] == (current.model, current.number, current.digest)

    def _look_up(self, registry: Registry) -> Followed | None:
        found = self._find(registry)
        if found is not None and self._is_optional and self.main is not None and self.main.serves(found.content):
            self.waiting_for = f"`{self.reference}` is what the endpoint serves anyway"
            return None
        return found

    def _find(self, registry: Registry) -> Followed | None:
        reference = self.reference
        if reference.alias is not None:
            found = registry.holder(reference.name, reference.alias)
            self._wanted = None if found is None else Followed(Content(*found[:2]), found.move)
            if found is None:
                self.waiting_for = f"`{reference}` points to no version yet; promote one"
            return self._wanted
        if self.current is not None:  # a pinned version never moves
            return Followed(Content(self.current.number, self.current.digest), 0)
        found = _pinned(registry, str(reference))
        if found is None:
            self.waiting_for = f"`{reference}` points to no version yet; promote one"
            return None
        return Followed(found, 0)

    def _resolve(self, registry: Registry, content: Content) -> ModelVersion:
        version = registry.resolve(f"{self.reference.name}/{content.number}")
        if version.digest != content.digest:
            raise NoaError(
                f"`{version.reference}` changed while it was read", expected=content.digest, received=version.digest
            )
        return version

    def _load(self, registry: Registry, content: Content, choice: Choice | None, *, workers: int) -> Generation:
        kept = None if self.probation is None else self.probation.before
        if kept is not None and (kept.number, kept.digest) == content:
            return kept
        version = self._resolve(registry, content)
        if choice is None and self.settings.format == AUTO:  # what is served was agreed on without one
            choice = choose_format(registry, version, self.runtimes)
        chosen = Choice(self.settings.format, "") if choice is None else choice
        if chosen.format in version.formats:
            size = version.formats[chosen.format].manifest.size_bytes
            require_memory(size, workers=workers, reference=version.reference)
        generation = load_generation(
            registry,
            version,
            endpoint=self.name if self.main is None else self.main.name,
            arm=self.arm,
            format=chosen.format,
            threads=self.threads,
            runtimes=self.runtimes,
            choice=chosen.reason,
            cache=None if self.settings.cache is None else ResponseCache(self.settings.cache, self.cache_counts),
            stream=self.settings.stream,
        )
        if self.settings.rollback.is_on:
            generation.statistics.stages.keep_totals()
        return generation

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
        wanted = self._wanted
        found = SwapFailure(
            number=ballot.content.number,
            digest=ballot.content.digest,
            reason=ballot.reason,
            attempts=ballot.attempts,
            retry_at=ballot.retry_at,
            move=wanted.move if wanted is not None and wanted.content == ballot.content else 0,
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


def _pinned(registry: Registry, reference: str) -> Content | None:
    try:
        version = registry.resolve(reference)
    except NotFoundError:
        return None
    return Content(version.number, version.digest)
