"""One request on an endpoint with arms: which version computes it, and which one answers if that cannot.

The fallback is tried once, where the version that was chosen fails inside (a 5xx) or its queue cannot take the request;
never for what is the client's fault, what is too late (504), or a path that names its version. It computes under the
same deadline, in a place of its own where the first one was given back. If it fails too, the first error is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from noa.settings import FALLBACK_ARM, MAIN_ARM
from noa_serving._http import RequestRefusedError, log, status_of

if TYPE_CHECKING:
    import numpy as np

    from noa_serving._admission import Place
    from noa_serving._application import HotRoute
    from noa_serving._batcher import Job, Outcome
    from noa_serving._computing import Computing
    from noa_serving._deadline import Deadline
    from noa_serving._generation import Generation
    from noa_serving._http import Headers, Response
    from noa_serving._metrics import RouteMetrics
    from noa_serving._prepared import Prepared


class Attempt:
    """Belongs to the event loop. `prepared` is what computes now, `metrics` where its answer is counted."""

    __slots__ = (
        "_again",
        "_computing",
        "_deadline",
        "_done",
        "_has_ended",
        "_job",
        "generation",
        "metrics",
        "prepared",
    )

    prepared: Prepared
    _computing: Computing
    _deadline: Deadline
    _done: Callable[[Outcome], None]

    def __init__(
        self,
        generation: Generation,
        metrics: RouteMetrics,
        again: tuple[HotRoute, Headers, object] | None,
    ) -> None:
        self.generation = generation
        self.metrics = metrics
        self._again = again
        self._job: Job | None = None
        self._has_ended = False

    @property
    def has_fallback(self) -> bool:
        """Whether another version may answer."""
        return self._again is not None

    def encode(self, outputs: Mapping[str, np.ndarray]) -> Response:
        """Write the answer of the version that computed."""
        passage = self.prepared.passage
        assert passage is not None  # a route makes one for every request
        return passage.encode(outputs)

    def submit(self, computing: Computing, place: Place, deadline: Deadline, done: Callable[[Outcome], None]) -> None:
        """Have the request computed, as `Computing.submit` does. Errors as there."""
        self._computing, self._deadline, self._done = computing, deadline, done
        try:
            job = computing.submit_once(self.prepared, place, deadline, self._end_first)
        except RequestRefusedError as exc:
            if not self._fall_back(exc, place):
                raise
            return
        if not self._has_ended:  # else what computes now is the fallback's, or nothing
            self._job = job

    def drop(self) -> None:
        """Nobody waits for the answer any more."""
        if self._job is not None:
            self._job.drop()

    def _end_first(self, outcome: Outcome) -> None:
        self._job, self._has_ended = None, True
        if not isinstance(outcome, BaseException) or not self._fall_back_anew(outcome):
            self._done(outcome)

    def _fall_back_anew(self, error: BaseException) -> bool:
        """Have the fallback compute in a place of its own, as the first one was given back; tell whether it does."""
        if self._again is None or not self._may_help(error):
            return False
        body = self._again[2]
        try:
            with self._computing.enter() as place:
                if isinstance(body, bytes):  # not a message of gRPC
                    place.reserve(len(body))
                return self._fall_back(error, place)
        except RequestRefusedError:  # others have what was given back
            return False

    def _may_help(self, error: BaseException) -> bool:
        status = status_of(error)
        return self._again is not None and status >= 500 and status != 504

    def _fall_back(self, error: BaseException, place: Place) -> bool:
        """Have the fallback compute, and tell whether it does."""
        if self._again is None or not self._may_help(error):
            return False
        again, self._again, status = self._again, None, status_of(error)
        route, headers, body = again
        traffic = route.endpoint.traffic
        generation = None if traffic is None else traffic.generation_of(FALLBACK_ARM)
        if traffic is None or generation is None or generation is self.generation:
            return False
        first = self.prepared, self.metrics
        try:
            second = route.understand(generation, headers, body, None)
            if first[0].passage is not None and second.passage is not None:
                second.passage.keeps = first[0].passage.keeps
            self.prepared, self.metrics = second, route.by_arm[FALLBACK_ARM]

            def end(outcome: Outcome) -> None:
                self._job = None
                if isinstance(outcome, BaseException):
                    self.prepared, self.metrics = first
                    log.error("endpoint %s: its fallback failed too", route.endpoint.name, exc_info=outcome)
                    self._done(error)
                else:
                    self._done(outcome)

            job = self._computing.submit_once(second, place, self._deadline, end)
        except Exception as exc:  # noqa: BLE001  # whatever it is, the first error is the answer
            self.prepared, self.metrics = first
            log.info("endpoint %s: its fallback cannot answer: %s", route.endpoint.name, exc)
            return False
        arm = first[0].generation.arm or MAIN_ARM
        traffic.count_fallback(arm, "overload" if status == 503 else "error")
        if status != 503:
            log.error("endpoint %s: %s failed, the fallback answers", route.endpoint.name, arm, exc_info=error)
        self._job = job
        return True
