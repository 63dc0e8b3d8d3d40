"""Metrics in Prometheus' text format: plain counters of one event loop, a few hundred nanoseconds per request.

Each worker counts for itself; the label `worker` is its process id. `_metrics_pages` puts the workers' pages together.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from noa_serving import _stages
from noa_serving._shadow_metrics import shadow_lines
from noa_serving._stages import STAGES
from noa_serving._traffic import with_arms

if TYPE_CHECKING:
    from noa_serving._admission import Admission
    from noa_serving._computing import Computing
    from noa_serving._endpoint import Counted, Endpoint
    from noa_serving._follower import Follower
    from noa_serving._served_tls import ServedTls
    from noa_serving._shadows import Shadows
    from noa_serving._stream_counts import StreamCounts
    from noa_serving._traffic import Traffic

BUCKETS_S = (
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)


class RouteMetrics:
    """Counts and times of one route of one endpoint, or of one of its arms there."""

    __slots__ = ("arm", "buckets", "codes", "endpoint", "route", "total_s")

    def __init__(self, endpoint: str, route: str, arm: str = "") -> None:
        self.endpoint = endpoint
        self.route = route
        self.arm = arm
        self.codes: dict[int, int] = {}
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.total_s = 0.0

    def observe(self, status: int, seconds: float) -> None:
        """Count one answered request."""
        self.codes[status] = self.codes.get(status, 0) + 1
        self.buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds


def render(
    routes: Iterable[RouteMetrics],
    endpoints: Iterable[Endpoint],
    *,
    admission: Admission,
    follower: Follower,
    computing: Computing,
    over_quota: int,
    fast_answers: int,
    logs: Iterable[tuple[str, int, int]],
    tls: ServedTls | None,
    shadows: Shadows | None,
    streams: Iterable[StreamCounts],
    worker: int,
) -> bytes:
    """Return everything that is counted, as Prometheus text (version 0.0.4)."""
    routes, endpoints = list(routes), list(endpoints)
    lines = [
        *_requests(routes, worker),
        *_latencies(routes, worker),
        *_stage_times(endpoints, worker),
        *_endpoints(endpoints, worker),
        *_traffic([one.traffic for one in endpoints if one.traffic is not None], worker),
        *_caches([one for one in with_arms(endpoints) if one.settings.cache is not None], worker),
        *_gauge("noa_requests_in_flight", "Requests being computed or waiting.", admission.in_flight, worker),
        *_counter("noa_requests_refused_total", "Requests refused because of overload.", admission.refused, worker),
        *_counter("noa_requests_over_quota_total", "Requests refused with 429.", over_quota, worker),
        *_gauge("noa_queue_items", "Items that wait for slow models.", computing.queue.waiting_items, worker),
        *_batches(computing, worker),
        *_counter("noa_fast_answers_total", "Requests answered without ASGI.", fast_answers, worker),
        *_logs(list(logs), worker),
        *_tls(tls, worker),
        *(() if shadows is None else shadow_lines(shadows, worker)),
        *_streams(list(streams), worker),
        *_counter("noa_registry_failed_polls_total", "Look-ups that failed.", follower.failed_polls, worker),
        *_gauge("noa_metrics_time_seconds", "When this was counted, Unix time.", f"{time.time():.3f}", worker),
        *_gauge("noa_registry_reachable", "Whether the last look-up worked.", int(follower.problem is None), worker),
    ]
    return ("\n".join(lines) + "\n").encode()


def _requests(routes: list[RouteMetrics], worker: int) -> Iterator[str]:
    yield "# HELP noa_requests_total Requests answered, by status code."
    yield "# TYPE noa_requests_total counter"
    for route in routes:
        for code, count in sorted(route.codes.items()):
            yield f'noa_requests_total{{{_labels(route, worker)},code="{code}"}} {count}'


def _latencies(routes: list[RouteMetrics], worker: int) -> Iterator[str]:
    yield "# HELP noa_request_seconds Time from the end of the request's headers to its answer."
    yield "# TYPE noa_request_seconds histogram"
    for route in routes:
        yield from _histogram("noa_request_seconds", _labels(route, worker), BUCKETS_S, route.buckets, route.total_s)


def _stage_times(endpoints: list[Endpoint], worker: int) -> Iterator[str]:
    yield "# HELP noa_stage_seconds Time that answered requests spent in each stage, by version."
    yield "# TYPE noa_stage_seconds histogram"
    for endpoint in with_arms(endpoints):
        for one in endpoint.recent:
            yield from _stages_of(_place(endpoint), one, worker)


def _stages_of(place: str, one: Counted, worker: int) -> tuple[str, ...]:
    """Return the lines of one version; of one that has answered nothing since the last time, the same again."""
    count, lines = one.stages.memo
    if count == one.stages.count:
        return lines
    model, number, digest, _ = one.version
    found: list[str] = []
    for stage in STAGES:
        labels = f'{place},model="{model}",version="{number}",digest="{digest}"'
        labels += f',stage="{stage}",worker="{worker}"'
        sum_s = one.stages.sum_ns(stage) / 1e9
        found += _histogram("noa_stage_seconds", labels, _stages.BUCKETS_S, one.stages.buckets(stage), sum_s)
    one.stages.memo = one.stages.count, tuple(found)
    return one.stages.memo[1]


def _histogram(name: str, labels: str, bounds: tuple[float, ...], buckets: list[int], sum_s: float) -> Iterator[str]:
    count = 0
    for bound, hits in zip((*bounds, "+Inf"), buckets, strict=True):
        count += hits
        yield f'{name}_bucket{{{labels},le="{bound}"}} {count}'
    yield f"{name}_sum{{{labels}}} {sum_s:.9f}"
    yield f"{name}_count{{{labels}}} {count}"


def _endpoints(endpoints: list[Endpoint], worker: int) -> Iterator[str]:
    yield "# HELP noa_endpoint_ready Whether the endpoint answers."
    yield "# TYPE noa_endpoint_ready gauge"
    for one in endpoints:
        yield f'noa_endpoint_ready{{endpoint="{one.name}",worker="{worker}"}} {int(one.current is not None)}'
    all_of_them = with_arms(endpoints)
    yield "# HELP noa_endpoint_info The version that is loaded now, of arms too."
    yield "# TYPE noa_endpoint_info gauge"
    for one in all_of_them:
        if (now := one.current) is not None:
            version = f'model="{now.model}",version="{now.number}",digest="{now.digest}",format="{now.format}"'
            yield f'noa_endpoint_info{{{_place(one)},worker="{worker}",{version}}} 1'
    yield "# HELP noa_endpoint_swaps_total Versions swapped in."
    yield "# TYPE noa_endpoint_swaps_total counter"
    for one in all_of_them:
        yield f'noa_endpoint_swaps_total{{{_place(one)},worker="{worker}"}} {one.swaps}'
    yield "# HELP noa_endpoint_rollbacks_total Versions that this worker had all workers go back from."
    yield "# TYPE noa_endpoint_rollbacks_total counter"
    for one in all_of_them:
        yield f'noa_endpoint_rollbacks_total{{{_place(one)},worker="{worker}"}} {one.rollbacks}'
    yield "# HELP noa_endpoint_refused_versions_total Versions that could not be loaded."
    yield "# TYPE noa_endpoint_refused_versions_total counter"
    for one in all_of_them:
        yield f'noa_endpoint_refused_versions_total{{{_place(one)},worker="{worker}"}} {one.refusals}'


def _traffic(found: list[Traffic], worker: int) -> Iterator[str]:
    if not found:
        return
    yield "# HELP noa_arm_share Share of the endpoint's requests that an arm takes now; 0 while it rests."
    yield "# TYPE noa_arm_share gauge"
    for one in found:
        for arm in one.arms:
            share = arm.settings.share if one.generation_of(arm.name) is not None else 0
            yield f'noa_arm_share{{{_place(arm.endpoint)},mode="{arm.settings.mode}",worker="{worker}"}} {share:g}'
    yield "# HELP noa_fallbacks_total Requests that the fallback took, by the arm that could not answer, and why."
    yield "# TYPE noa_fallbacks_total counter"
    for one in found:
        for (arm, reason), count in sorted(one.fallbacks.items()):
            place = f'endpoint="{one.main.name}",arm="{arm}"'
            yield f'noa_fallbacks_total{{{place},reason="{reason}",worker="{worker}"}} {count}'


def _caches(endpoints: list[Endpoint], worker: int) -> Iterator[str]:
    yield "# HELP noa_cache_requests_total Requests of endpoints with a cache: found, not found, or too large for it."
    yield "# TYPE noa_cache_requests_total counter"
    for one in endpoints:
        counts = one.cache_counts
        for result, count in (("hit", counts.hits), ("miss", counts.misses), ("passed", counts.passed)):
            labels = f'{_place(one)},result="{result}",worker="{worker}"'
            yield f"noa_cache_requests_total{{{labels}}} {count}"
    yield "# HELP noa_cache_bytes Bytes of the answers that are kept."
    yield "# TYPE noa_cache_bytes gauge"
    for one in endpoints:
        num_bytes = 0 if one.current is None or one.current.cache is None else one.current.cache.num_bytes
        yield f'noa_cache_bytes{{{_place(one)},worker="{worker}"}} {num_bytes}'


def _batches(computing: Computing, worker: int) -> Iterator[str]:
    ways = (("loop", computing.ticks), ("queue", computing.queue))
    yield "# HELP noa_batches_total Runs of models: on the event loop, or in the pool from the queue."
    yield "# TYPE noa_batches_total counter"
    for name, batcher in ways:
        yield f'noa_batches_total{{way="{name}",worker="{worker}"}} {batcher.batches}'
    yield "# HELP noa_batched_requests_total Requests computed by these runs."
    yield "# TYPE noa_batched_requests_total counter"
    for name, batcher in ways:
        yield f'noa_batched_requests_total{{way="{name}",worker="{worker}"}} {batcher.requests}'


def _logs(logs: list[tuple[str, int, int]], worker: int) -> Iterator[str]:
    yield "# HELP noa_records_total Records of requests that were to be written, by log."
    yield "# TYPE noa_records_total counter"
    for name, offered, _ in logs:
        yield f'noa_records_total{{log="{name}",worker="{worker}"}} {offered}'
    yield "# HELP noa_records_lost_total Records of requests that were lost: the queue was full, or the disk."
    yield "# TYPE noa_records_lost_total counter"
    for name, _, lost in logs:
        yield f'noa_records_lost_total{{log="{name}",worker="{worker}"}} {lost}'


def _streams(streams: list[StreamCounts], worker: int) -> Iterator[str]:
    if not streams:
        return
    labels = [f'endpoint="{one.endpoint}",worker="{worker}"' for one in streams]
    yield "# HELP noa_streams_active Streams that run now."
    yield "# TYPE noa_streams_active gauge"
    for label, one in zip(labels, streams, strict=True):
        yield f"noa_streams_active{{{label}}} {one.active}"
    yield "# HELP noa_streams_total Streams that had a first step and have ended, by the reason."
    yield "# TYPE noa_streams_total counter"
    for label, one in zip(labels, streams, strict=True):
        for reason, count in one.ended.items():
            yield f'noa_streams_total{{{label},reason="{reason}"}} {count}'
    yield "# HELP noa_streams_refused_total Streams that were refused because as many ran as may."
    yield "# TYPE noa_streams_refused_total counter"
    for label, one in zip(labels, streams, strict=True):
        yield f"noa_streams_refused_total{{{label}}} {one.refused}"
    yield "# HELP noa_stream_steps_total Steps of streams that were computed."
    yield "# TYPE noa_stream_steps_total counter"
    for label, one in zip(labels, streams, strict=True):
        yield f"noa_stream_steps_total{{{label}}} {one.steps}"
    yield "# HELP noa_stream_first_seconds Time from the end of a request's headers to its first step."
    yield "# TYPE noa_stream_first_seconds histogram"
    for label, one in zip(labels, streams, strict=True):
        times = one.first_times
        yield from _histogram("noa_stream_first_seconds", label, _stages.BUCKETS_S, times.buckets, times.total_s)
    yield "# HELP noa_stream_step_seconds Time of a step: from when it was asked for until it was written."
    yield "# TYPE noa_stream_step_seconds histogram"
    for label, one in zip(labels, streams, strict=True):
        times = one.step_times
        yield from _histogram("noa_stream_step_seconds", label, _stages.BUCKETS_S, times.buckets, times.total_s)


def _tls(tls: ServedTls | None, worker: int) -> Iterator[str]:
    if tls is None:
        return
    end = int(tls.identity.not_after.timestamp())
    yield from _gauge("noa_tls_not_after_seconds", "When the certificate that is served ends, Unix time.", end, worker)
    soon, refused = int(tls.expires_soon()), int(tls.refusal is not None)
    yield from _gauge("noa_tls_expires_soon", "Whether it ends within the days of the settings.", soon, worker)
    yield from _gauge("noa_tls_refused", "Whether newer files are refused and older ones served.", refused, worker)
    yield from _counter("noa_tls_reloads_total", "Times that replaced files were taken in.", tls.reloads, worker)


def _gauge(name: str, text: str, value: int | str, worker: int) -> tuple[str, ...]:
    return f"# HELP {name} {text}", f"# TYPE {name} gauge", f'{name}{{worker="{worker}"}} {value}'


def _counter(name: str, text: str, value: int, worker: int) -> tuple[str, ...]:
    return f"# HELP {name} {text}", f"# TYPE {name} counter", f'{name}{{worker="{worker}"}} {value}'


def _labels(route: RouteMetrics, worker: int) -> str:
    arm = f',arm="{route.arm}"' if route.arm else ""
    return f'endpoint="{route.endpoint}"{arm},route="{route.route}",worker="{worker}"'


def _place(endpoint: Endpoint) -> str:
    """Return the labels of what follows the registry: the endpoint that clients call, and the arm of it."""
    if endpoint.main is None:
        return f'endpoint="{endpoint.name}"'
    return f'endpoint="{endpoint.main.name}",arm="{endpoint.arm}"'
