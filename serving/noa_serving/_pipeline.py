"""A pipeline: a name that clients call as they call an endpoint, and which computes with several of them.

It follows nothing by itself. Its parts are endpoints of the same server, which load, verify, warm and swap their
versions; when one has swapped, the pipeline is put together anew, in the follower's thread, and swapped by replacing
one reference. A request is computed by the versions of one moment, whatever is swapped meanwhile. Parts that do not fit
each other any more are refused: the old ones go on together.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import orjson

from noa.settings import EndpointSettings
from noa_serving._endpoint import Endpoint, SwapFailure
from noa_serving._generation import Generation, wrap_runnable
from noa_serving._http import public_text
from noa_serving._pipeline_graph import Graph
from noa_serving._warm_up import Batching, Cost, axis_refusal

if TYPE_CHECKING:
    import numpy as np

    from noa.settings import PipelineSettings
    from noa_serving._crew import Crew

log = logging.getLogger("noa.serving")

FORMAT = "pipeline"
_NUMBER = 1
"""A pipeline has no versions in the registry; its digest says which versions it is made of."""

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


class Pipeline(Endpoint):
    """One pipeline of this process. All attributes may be read from any thread; `look` is the follower's."""

    def __init__(self, name: str, settings: PipelineSettings, parts: Mapping[str, Endpoint], crew: Crew) -> None:
        # What pages show; nothing here follows it.
        super().__init__(
            name, EndpointSettings.model_construct(model=settings.shown, format=FORMAT), threads=0, crew=crew
        )
        self.steps = settings
        self.parts = {step.name: parts[step.endpoint] for step in settings.steps}
        self._composed: tuple[Generation, ...] = ()

    @property
    def is_ready(self) -> bool:
        """Whether the server answers for all its parts, and this process for their composition."""
        return self.current is not None and all(one.is_ready for one in self.parts.values())

    def look(self, *, clock: Callable[[], float] = time.monotonic) -> bool:
        """Put the versions of this moment together, if they are others than before. Returns whether it was swapped."""
        found = {name: one.current for name, one in self.parts.items()}
        generations = {name: one for name, one in found.items() if one is not None}
        if len(generations) < len(found):
            missing = next(self.parts[name].name for name, one in found.items() if one is None)
            self.waiting_for = f"its endpoint `{missing}` is not ready"
            return False
        self.waiting_for = None
        parts, now = tuple(generations.values()), clock()
        if _are_same(parts, self._composed):
            return False
        digest = _digest(self.steps, generations)
        if self.failure is not None and self.failure.digest == digest and now < self.failure.retry_at:
            return False
        try:
            generation = compose(self.name, self.steps, generations, digest=digest)
        except Exception as exc:  # noqa: BLE001  # whatever a broken model raises, the old one must go on
            self._refuse(exc, digest, now)
            return False
        before, self.current, self._composed, self.failure = self.current, generation, parts, None
        self.swaps += before is not None
        self._count_from_now(generation)
        log.info("pipeline %s: %s %s", self.name, ", ".join(one.reference for one in parts), digest)
        return True

    def _refuse(self, error: Exception, digest: str, now: float) -> None:
        is_same = self.failure is not None and self.failure.digest == digest
        attempts = self.failure.attempts + 1 if self.failure is not None and is_same else 1
        pause_s = min(_FIRST_PAUSE_S * 2 ** (attempts - 1), _LONGEST_PAUSE_S)
        reason = public_text(error)
        self.failure = SwapFailure(
            number=_NUMBER, digest=digest, reason=reason, attempts=attempts, retry_at=now + pause_s
        )
        self.refusals += 1
        kept = "nothing is served" if self.current is None else "the versions before go on"
        log.error("pipeline %s: %s; %s", self.name, reason, kept)


def make_pipelines(
    rules: Mapping[str, PipelineSettings], endpoints: Sequence[Endpoint], *, crew: Crew
) -> list[Pipeline]:
    """Return the pipelines of a server over its endpoints."""
    parts = {one.name: one for one in endpoints}
    return [Pipeline(name, one, parts, crew) for name, one in rules.items()]


def compose(name: str, settings: PipelineSettings, generations: Mapping[str, Generation], *, digest: str) -> Generation:
    """Return a pipeline as a version that is ready to compute: it has computed an answer.

    What its runs cost, and whether requests may share one, is known from its parts.

    Raises:
        SignatureError: the parts do not fit each other.
    """
    graph = Graph(settings, generations)
    parts = list(generations.values())
    example = _example(graph, settings, generations)
    graph.run(example)
    steps = ", ".join(one.reference for one in generations.values())
    made = wrap_runnable(
        graph,
        endpoint=name,
        model=name,
        number=_NUMBER,
        digest=digest,
        format=FORMAT,
        example=example,
        cost=Cost(fixed_s=sum(one.cost.fixed_s for one in parts), per_item_s=sum(one.cost.per_item_s for one in parts)),
        batching=_batching(graph, generations),
        headers=((b"noa-steps", steps.encode()),),
        runs_inline=all(one.pool is None for one in parts),  # what runs its own code may hang
    )
    made.statistics.parts = {step: one.statistics for step, one in generations.items()}
    for one in {id(one): one for one in parts}.values():
        one.statistics.join_pipeline(name, made.statistics.stages)
    return made


def _example(graph: Graph, settings: PipelineSettings, generations: Mapping[str, Generation]) -> dict[str, np.ndarray]:
    """Return one item for each input of the pipeline: those of the first step that takes it."""
    found: dict[str, np.ndarray] = {}
    for step in settings.steps:
        for name, array in generations[step.name].example.items():
            found.setdefault(step.inputs.get(name, name), array)
    return {spec.name: found[spec.name] for spec in graph.signature.inputs}


def _batching(graph: Graph, generations: Mapping[str, Generation]) -> Batching:
    refusals = [f"step `{name}`: {one.batching.refusal}" for name, one in generations.items() if one.batching.refusal]
    refusal = axis_refusal(graph.signature) or next(iter(refusals), None)
    if refusal is not None:
        return Batching(refusal=refusal)
    return Batching(best_items=min(one.batching.best_items for one in generations.values()))


def _digest(settings: PipelineSettings, generations: Mapping[str, Generation]) -> str:
    """Return a digest over the graph and the digests of its parts, in their formats."""
    parts = [[name, one.digest, one.format] for name, one in generations.items()]
    table = {"graph": settings.model_dump(mode="json"), "parts": parts}
    return f"sha256:{hashlib.sha256(orjson.dumps(table, option=orjson.OPT_SORT_KEYS)).hexdigest()}"


def _are_same(parts: Sequence[Generation], others: Sequence[Generation]) -> bool:
    return len(parts) == len(others) and all(one is other for one, other in zip(parts, others, strict=True))
