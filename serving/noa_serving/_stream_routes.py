"""The ways in to the streams of a worker's endpoints, by path, and what is counted of them.

Only endpoints whose settings have streams have any. Which version answers is drawn as for other requests, once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from noa.errors import NotFoundError
from noa.settings import MAIN_ARM
from noa_serving import _stream_requests
from noa_serving._models import parse_version, require_version
from noa_serving._stream_counts import StreamCounts
from noa_serving._stream_events import EventForm, GenerateEvents, NamedEvents

if TYPE_CHECKING:
    from noa_serving._endpoint import Endpoint
    from noa_serving._generation import Generation
    from noa_serving._http import Headers
    from noa_serving._metrics import RouteMetrics
    from noa_serving._streams import StreamRequest

CountIn = Callable[["Endpoint", str], "tuple[RouteMetrics, Mapping[str, RouteMetrics]]"]
"""Makes what counts the requests of an endpoint on a route: as a whole, or by arm where it has some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRoute:
    """One way in to the streams of an endpoint. `read` understands what came, `version` is what a path asks for."""

    endpoint: Endpoint
    counts: StreamCounts
    metrics: RouteMetrics
    by_arm: Mapping[str, RouteMetrics]
    read: Callable[..., StreamRequest]
    max_batch_items: int
    version: int | None = None

    def understand(self, headers: Headers, body: object, who: str) -> StreamRequest:
        """Understand a request with the version that is to answer it; `who` is the name of the caller's key.

        Raises:
            RequestRefusedError: 503, nothing is loaded yet; or it is too large.
            NotFoundError: another version than the one asked for is served.
            InvalidInputError, SignatureError: it is malformed or does not fit the model.
        """
        generation = self._choose(headers, who)
        start = time.perf_counter_ns()
        try:
            return self.read(generation, headers, body, max_batch_items=self.max_batch_items, started_ns=start)
        except Exception:
            generation.statistics.count_refused(time.perf_counter_ns() - start)
            raise

    def counted_in(self, asked: StreamRequest | None) -> RouteMetrics:
        """Return where a request is counted; None: it was not understood."""
        return self.metrics if asked is None else self.by_arm.get(asked.generation.arm or MAIN_ARM, self.metrics)

    def of_version(self, name: str, version: str) -> StreamRoute:
        """Return this route for one version; an empty text asks for any.

        Raises:
            NotFoundError: it is no number.
        """
        return replace(self, version=parse_version(name, version)) if version else self

    def _choose(self, headers: Headers, who: str) -> Generation:
        traffic = self.endpoint.traffic
        chosen = None if traffic is None or self.version is not None else traffic.choose(headers, who)
        return chosen or require_version(self.endpoint, self.version)


class StreamRoutes:
    """All of them in one worker."""

    def __init__(self, endpoints: Iterable[Endpoint], count_in: CountIn, *, max_batch_items: int) -> None:
        self._endpoints = {one.name: one for one in endpoints if one.settings.stream.is_on}
        self._count_in = count_in
        self._max_batch_items = max_batch_items
        self.counts = {
            name: StreamCounts(name, one.settings.stream.max_streams) for name, one in self._endpoints.items()
        }
        self._plain = self.add("stream", _stream_requests.read_plain)
        self._generate = self.add("generate_stream", _stream_requests.read_generate)

    def add(self, name: str, read: Callable[..., StreamRequest]) -> dict[str, StreamRoute]:
        """Return another way in for each endpoint that has streams; `name` is what metrics and logs call it."""
        routes: dict[str, StreamRoute] = {}
        for endpoint, one in self._endpoints.items():
            metrics, by_arm = self._count_in(one, name)
            routes[endpoint] = StreamRoute(
                endpoint=one,
                counts=self.counts[endpoint],
                metrics=metrics,
                by_arm=by_arm,
                read=read,
                max_batch_items=self._max_batch_items,
            )
        return routes

    def find(self, path: str) -> tuple[StreamRoute, EventForm] | None:
        """Return the route of `POST path` and the form of its events, None if it is none of a stream."""
        if not self._endpoints:
            return None
        match path.split("/"):
            case ["", "predict", name, "stream"]:
                found, form, version = self._plain.get(name), NamedEvents(), ""
            case ["", "v2", "models", name, "generate_stream"]:
                found, form, version = self._generate.get(name), GenerateEvents(), ""
            case ["", "v2", "models", name, "versions", version, "generate_stream"] if version:
                found, form = self._generate.get(name), GenerateEvents()
            case _:
                return None
        try:
            return None if found is None else (found.of_version(name, version), form)
        except NotFoundError:
            return None


def no_streams(endpoint: str) -> NotFoundError:
    """Return the refusal of a stream of an endpoint that has none."""
    return NotFoundError(
        f"endpoint `{endpoint}` has no streams",
        remedy=f"Set `feeds` in `[endpoints.{endpoint}.stream]` of the server, or ask for one answer",
    )
