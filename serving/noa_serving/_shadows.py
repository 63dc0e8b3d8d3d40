"""The shadows of one worker: which requests they compute once more, and who judges what they have shown.

    shadows = Shadows(endpoints, settings, pages=..., crew=crew, open_registry=..., mark=...)
    mirror = shadows.mirror("digits")      # of one endpoint, or None; a route has its answers encoded through it
    shadows.start(has_room)

A `Mirror` offers a share of the answers to the `ShadowLane`. A thread looks once a second: it gives up an arm that
hangs, writes what this worker has counted, adds up what all workers of the server have, and gives the verdict about
each pair of versions. A pair that is decided is compared no more. What follows from a verdict is done by one worker
only, the first that is up, and again and again while the registry cannot be reached.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from noa.errors import NotFoundError
from noa_serving._comparing import Comparison, Pair, rules_of
from noa_serving._http import public_text
from noa_serving._shadow_lane import Match, ShadowLane, is_lasting, match_of
from noa_serving._shadow_pages import Settled, ShadowPages
from noa_serving._verdict import Verdict, judge
from noa_serving._verdict_action import Case, keep_evidence, move_alias

if TYPE_CHECKING:
    import numpy as np

    from noa.settings import Settings
    from noa_registry import Registry
    from noa_serving._crash_mark import CrashMark
    from noa_serving._crew import Crew
    from noa_serving._endpoint import Endpoint
    from noa_serving._generation import Generation
    from noa_serving._http import Response
    from noa_serving._prepared import Prepared
    from noa_serving._traffic import Arm, Traffic

log = logging.getLogger("noa.serving")

_TURN_S = 1.0
_LONGEST_PAUSE_S = 60.0
_MOST_DECISIONS = 64


class Mirror:
    """What of one endpoint's requests its shadows compute once more. `encoder` belongs to the event loop."""

    def __init__(self, traffic: Traffic, lane: ShadowLane, settings: Settings) -> None:
        self._traffic = traffic
        self._lane = lane
        self._settings = settings
        self._shares = tuple((one.settings.share, one) for one in traffic.shadows)
        self._matches: dict[str, tuple[Generation, Generation, Match]] = {}

    def encoder(self, prepared: Prepared) -> Callable[[Mapping[str, np.ndarray]], Response]:
        """Return how the answer of a request is written; what is drawn is offered to the shadows after that."""
        matches = [
            match
            for share, arm in self._shares
            if random.random() < share and (match := self._match(arm, prepared.generation)) is not None
        ]
        if not matches:
            return prepared.encode
        encode, inputs, batch, lane = prepared.encode, prepared.inputs, prepared.batch, self._lane
        if not all(map(is_lasting, inputs.values())):  # shared memory: its client may write there after the answer
            if lane.is_full(sum(array.nbytes for array in inputs.values())):
                for match in matches:
                    lane.drop(match.pair)
                return encode
            inputs = {name: array.copy() for name, array in inputs.items()}

        def encode_and_offer(outputs: Mapping[str, np.ndarray]) -> Response:
            response = encode(outputs)
            loop = asyncio.get_running_loop()
            for match in matches:  # in the next turn: this one hands the answer to the client
                loop.call_soon(lane.offer, match, inputs, outputs, batch)
            return response

        return encode_and_offer

    def matches(self) -> Iterator[tuple[Arm, Match | None]]:
        """Return each shadow with what is compared now, None while there is nothing, and let go of what was before."""
        for _, arm in self._shares:
            main, other = self._traffic.main.current, self._traffic.generation_of(arm.name)
            match = None if main is None or other is None else self._find(arm, main, other)
            if match is None:
                self._matches.pop(arm.name, None)
            yield arm, match

    def _match(self, arm: Arm, main: Generation) -> Match | None:
        if main is not self._traffic.main.current:  # another arm answers it, or it began before a swap
            return None
        known = self._matches.get(arm.name)  # the judge's thread makes it, before it opens the pair
        if known is None or known[0] is not main or known[1] is not self._traffic.generation_of(arm.name):
            return None
        return known[2] if self._lane.is_open(known[2].pair) else None

    def _find(self, arm: Arm, main: Generation, other: Generation) -> Match:
        known = self._matches.get(arm.name)
        if known is not None and known[0] is main and known[1] is other:
            return known[2]
        verdict = arm.settings.verdict
        match = match_of(
            self._traffic.main.name,
            arm.name,
            main,
            other,
            rules=rules_of(main.signature, verdict, self._settings.conversion),
            most_ratio=verdict.max_latency_ratio or math.inf,
        )
        self._matches[arm.name] = main, other, match
        return match


class Shadows:
    """All shadows of one worker."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        settings: Settings,
        *,
        pages: ShadowPages,
        crew: Crew,
        open_registry: Callable[[], Registry] | None,
        mark: CrashMark | None = None,
    ) -> None:
        self._timeout_s = settings.serving.timeout_s
        self._pages = pages
        self._crew = crew
        self._open_registry = open_registry
        self._is_idle: Callable[[], bool] = bool
        self.lane = ShadowLane(self._has_room, mark=mark)
        self._mirrors = {
            one.name: Mirror(one.traffic, self.lane, settings)
            for one in endpoints
            if one.traffic is not None and one.traffic.shadows
        }
        self._rows: dict[str, dict[str, dict[str, object]]] = {}
        self._own: dict[Pair, Comparison] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="noa-judge", daemon=True)

    def mirror(self, endpoint: str) -> Mirror | None:
        """Return the mirror of an endpoint, None if it has no shadow."""
        return self._mirrors.get(endpoint)

    def rows(self, endpoint: str) -> Mapping[str, Mapping[str, object]]:
        """Return what is known of each shadow of an endpoint, of all workers together, as of a second ago."""
        return self._rows.get(endpoint, {})

    def own_counts(self) -> Mapping[Pair, Comparison]:
        """Return what this worker has counted, as of a second ago."""
        return self._own

    def start(self, is_idle: Callable[[], bool]) -> None:
        """Begin to compare and to judge. `is_idle` tells whether this worker has nothing to answer now."""
        self.begin(is_idle)
        self._thread.start()

    def begin(self, is_idle: Callable[[], bool]) -> None:
        """Begin to compare; `turn` is called by somebody else."""
        self._is_idle = is_idle
        self.lane.start(self._pages.read_own())

    def stop(self) -> None:
        """End, and leave to the others what was counted."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
        self.lane.stop()
        self._pages.write_own(self.lane.counts())

    def _has_room(self) -> bool:
        return self._is_idle()

    def turn(self, now: float) -> None:
        """Look once; `now` is since 1970, seconds."""
        self.lane.watch(self._timeout_s)
        own = self.lane.counts()
        if own != self._own:
            self._pages.write_own(own)
        self._own = own
        total = self._pages.sum_up(own)
        decisions = self._pages.read_decisions()
        is_judge = all(slot > self._crew.slot for slot in self._crew.others_up())
        rows: dict[str, dict[str, dict[str, object]]] = {}
        is_open: list[Pair] = []
        for name, mirror in self._mirrors.items():
            table = rows[name] = {}
            for arm, match in mirror.matches():
                if match is None:
                    table[arm.name] = {"model": arm.settings.model, "state": "idle"}
                    continue
                counts = total.get(match.pair, Comparison())
                settled, verdict = decisions.get(match.pair), judge(counts, arm.settings.verdict)
                if settled is None and verdict.decision == "go on":
                    is_open.append(match.pair)
                elif is_judge and (settled is None or not settled.is_final):
                    settled = settled or _settle(match.pair, verdict, counts, now)
                    settled = decisions[match.pair] = self._follow_up(arm, match, settled, now)
                    self._pages.write_decisions(dict(list(decisions.items())[-_MOST_DECISIONS:]))
                table[arm.name] = _row(arm, match, counts, verdict, settled)
        self.lane.open_only(is_open)
        self._rows = rows

    def _run(self) -> None:
        while True:
            try:
                self.turn(time.time())
            except Exception:
                log.exception("shadows cannot be judged just now")
            if self._stopping.wait(_TURN_S):
                return

    def _follow_up(self, arm: Arm, match: Match, settled: Settled, now: float) -> Settled:
        """Return what was settled after what follows from it was tried."""
        if now < settled.retry_at:
            return settled
        if self._open_registry is None:
            return replace(settled, is_final=True, done="told; there is no registry here")
        assert arm.endpoint.main is not None  # it is an arm
        case = Case(
            pair=match.pair,
            main=arm.endpoint.main.reference,
            arm=arm.endpoint.reference,
            acts=arm.settings.verdict.decide == "act",
            error=arm.settings.verdict.error,
        )
        verdict = settled.verdict
        try:
            with self._open_registry() as registry:
                if not settled.is_kept:
                    try:
                        keep_evidence(registry, case, verdict, settled.counts)
                    except NotFoundError as exc:
                        done = f"nothing was moved: {public_text(exc)}"
                        return replace(settled, is_final=True, done=done)
                    settled = replace(settled, is_kept=True)
                done = move_alias(registry, case, verdict)
        except Exception as exc:  # noqa: BLE001  # any failure of the registry must leave serving alone
            attempts = settled.attempts + 1
            pause_s = min(_TURN_S * 2**attempts, _LONGEST_PAUSE_S)
            done = f"waits for the registry: {public_text(exc)}"
            log.warning(
                "endpoint %s: the verdict about %s is not carried out yet: %s", case.pair.endpoint, arm.name, exc
            )
            return replace(settled, attempts=attempts, retry_at=now + pause_s, done=done)
        log.info("endpoint %s: shadow %s: %s: %s", case.pair.endpoint, arm.name, verdict.decision, done)
        return replace(settled, is_final=True, done=done)


def _settle(pair: Pair, verdict: Verdict, counts: Comparison, now: float) -> Settled:
    log.info("endpoint %s: verdict about shadow %s: %s: %s", pair.endpoint, pair.arm, verdict.decision, verdict.reason)
    return Settled(pair=pair, verdict=verdict, counts=counts.describe(), decided_at=now)


def _row(arm: Arm, match: Match, counts: Comparison, verdict: Verdict, settled: Settled | None) -> dict[str, object]:
    pair = match.pair
    row: dict[str, object] = {
        "model": arm.settings.model,
        "state": "comparing" if settled is None else "decided",
        "share": arm.settings.share,
        "version": pair.arm_number,
        "digest": pair.arm_digest,
        "compared_with": pair.main_number,
        "compared_with_digest": pair.main_digest,
        "counts": counts.describe() if settled is None else settled.counts,
        "verdict": (verdict if settled is None else settled.verdict).to_json(),
    }
    if settled is not None:
        row |= {"decided_at": settled.decided_at, "done": settled.done}
    return row
