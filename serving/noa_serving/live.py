"""What the endpoints of running servers do now: rates and latencies between two looks at `/metrics`, and the state.

    before = look(server)
    time.sleep(2.0)
    rows = compare(before, look(server))

Counters of each worker are compared over the time between its own two pages, so that a page that is a second old makes
no rate wrong. Percentiles are read from histograms, so they are as fine as these: within a bucket linearly, as
Prometheus does.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from noa.errors import NoaError
from noa_serving._running_servers import RunningServer
from noa_serving._stages import STAGES
from noa_serving._tls import own_server_context
from noa_serving.client import Client

_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One line of Prometheus' text format."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A server at one moment: its `/status` and its `/metrics`. Both are empty where it did not answer."""

    server: RunningServer
    status: Mapping[str, Any]
    samples: tuple[Sample, ...]

    @property
    def has_answered(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.status)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveVersion:
    """A version that answered between the looks, and its share of the answers, 0 to 1."""

    model: str
    version: int
    digest: str
    requests: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEndpoint:
    """One endpoint of one server. What nobody asked for between the looks has no percentiles, stages and versions.

    `workers_ready` of `workers` serve it. `refused` tells of a version that could not be loaded, `degraded` which
    workers do not answer, `golden_requests` how many the version answered before it was served (0: there were none),
    `rolled_back` of a version that the server went back from by itself. Refused requests are among `errors_per_s`, not
    among the versions.
    """

    name: str
    model: str
    state: str
    address: str
    pid: int
    version: int | None = None
    digest: str | None = None
    format: str | None = None
    workers: int = 1
    workers_ready: int = 0
    requests_per_s: float = 0.0
    errors_per_s: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None
    swaps: int = 0
    stages_ms: Mapping[str, float] | None = None
    versions: tuple[LiveVersion, ...] = ()
    waiting_for: str | None = None
    refused: Mapping[str, Any] | None = None
    degraded: str | None = None
    golden_requests: int | None = None
    rolled_back: Mapping[str, Any] | None = None


def look(server: RunningServer) -> Look:
    """Look at a server; one that does not answer gives a look with nothing in it."""
    tls = own_server_context(server.settings.serving)
    try:
        with Client(server.address.url, api_key=server.own_key, timeout_s=_TIMEOUT_S, tls=tls) as client:
            return Look(server=server, status=client.status(), samples=tuple(read_samples(client.metrics())))
    except NoaError:
        return Look(server=server, status={}, samples=())


def compare(before: Look, after: Look) -> list[LiveEndpoint]:
    """Return what each endpoint of a server did between two looks, and how it is at the second."""
    table = cast("Mapping[str, Mapping[str, Any]]", after.status.get("endpoints", {}))
    # A server that did not answer before has not done all of it in the meantime.
    difference = _Difference(before.samples or after.samples, after.samples)
    rows: list[LiveEndpoint] = []
    for name, rule in after.server.settings.endpoints.items():
        silent = {"state": "unknown" if after.has_answered else "no answer", "model": rule.model}
        rows.append(_endpoint(name, table.get(name, silent), after, difference))
    return rows


def read_samples(text: str) -> Iterator[Sample]:
    """Read Prometheus' text format; lines that are none are left out."""
    for line in text.splitlines():
        match = None if line.startswith("#") else _SAMPLE.fullmatch(line)
        if match is not None:
            name, labels, value = match.groups()
            yield Sample(name=name, labels=dict(_LABEL.findall(labels or "")), value=float(value))


def percentile_s(buckets: Mapping[float, float], share: float) -> float | None:
    """Return the time within which a share of the requests were answered; `buckets` holds counts up to each bound."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0.0:
        return None
    rank, lower, below = share * total, 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= rank and count > below:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower


class _Difference:
    """What was counted between two looks, and over which time for each worker."""

    def __init__(self, before: Sequence[Sample], after: Sequence[Sample]) -> None:
        known = {_key(one): one.value for one in before}
        # A worker that is new, or counts from zero again, has counted all of it meanwhile.
        self._rows: defaultdict[str, list[Sample]] = defaultdict(list)
        for one in after:
            was = known.get(_key(one), 0.0)
            grown = one.value - was if one.value >= was else one.value
            self._rows[one.name].append(Sample(name=one.name, labels=one.labels, value=grown))
        started = min((one.value for one in before if one.name == "noa_metrics_time_seconds"), default=0.0)
        times = {one.labels["worker"]: one.value for one in after if one.name == "noa_metrics_time_seconds"}
        was_at = {one.labels["worker"]: one.value for one in before if one.name == "noa_metrics_time_seconds"}
        self._seconds = {worker: at - was_at.get(worker, started) for worker, at in times.items()}

    def rows(self, name: str, **labels: str) -> Iterator[Sample]:
        for one in self._rows[name]:
            if labels.items() <= one.labels.items():
                yield one

    def rate(self, name: str, *, errors: bool = False, **labels: str) -> float:
        """Return how many a second, all workers together; those without a newer page count as silent."""
        total = 0.0
        for one in self.rows(name, **labels):
            seconds = self._seconds.get(one.labels.get("worker", ""), 0.0)
            if seconds > 0.0 and (not errors or int(one.labels["code"]) >= 400):
                total += one.value / seconds
        return total


def _endpoint(name: str, row: Mapping[str, Any], after: Look, difference: _Difference) -> LiveEndpoint:
    buckets: defaultdict[float, float] = defaultdict(float)
    for one in difference.rows("noa_request_seconds_bucket", endpoint=name):
        buckets[float(one.labels["le"])] += one.value
    p50, p99 = percentile_s(buckets, 0.5), percentile_s(buckets, 0.99)
    workers = cast("list[Mapping[str, Any]] | None", after.status.get("workers"))
    if workers is None:
        ready = int(row["state"] == "ready")
    else:
        ready = sum(name in one.get("versions", {}) for one in workers if one["state"] == "serving")
    return LiveEndpoint(
        name=name,
        model=str(row["model"]),
        state=str(row["state"]),
        address=after.server.address.url,
        pid=after.server.address.pid,
        version=row.get("version"),
        digest=row.get("digest"),
        format=row.get("format"),
        workers=after.server.address.workers,
        workers_ready=ready,
        requests_per_s=difference.rate("noa_requests_total", endpoint=name),
        errors_per_s=difference.rate("noa_requests_total", errors=True, endpoint=name),
        p50_ms=None if p50 is None else p50 * 1000,
        p99_ms=None if p99 is None else p99 * 1000,
        swaps=int(row.get("swaps", 0)),
        stages_ms=_stages(name, difference),
        versions=_versions(name, difference),
        waiting_for=row.get("waiting_for"),
        refused=row.get("refused"),
        degraded=after.status.get("degraded"),
        golden_requests=row.get("golden_requests"),
        rolled_back=row.get("rolled_back"),
    )


def _stages(name: str, difference: _Difference) -> Mapping[str, float] | None:
    """Return the mean time in each stage, milliseconds; None where nothing was answered."""
    means: dict[str, float] = {}
    for stage in STAGES:
        count = sum(one.value for one in difference.rows("noa_stage_seconds_count", endpoint=name, stage=stage))
        spent = sum(one.value for one in difference.rows("noa_stage_seconds_sum", endpoint=name, stage=stage))
        if count:
            means[stage] = spent / count * 1000
    return means or None


def _versions(name: str, difference: _Difference) -> tuple[LiveVersion, ...]:
    counts: defaultdict[tuple[str, int, str], float] = defaultdict(float)
    for one in difference.rows("noa_stage_seconds_count", endpoint=name, stage=STAGES[-1]):
        counts[one.labels["model"], int(one.labels["version"]), one.labels["digest"]] += one.value
    total = sum(counts.values())
    return tuple(
        LiveVersion(model=model, version=version, digest=digest, requests=int(count), share=count / total)
        for (model, version, digest), count in sorted(counts.items(), key=lambda row: -row[1])
        if count
    )


def _key(one: Sample) -> tuple[str, frozenset[tuple[str, str]]]:
    return one.name, frozenset(one.labels.items())
