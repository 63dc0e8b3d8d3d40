"""The application apart from any server: which path is what, and the answers that need no compute.

Hot routes (inference) are looked up by their whole path; everything else is answered by `answer`, a plain function
from a request to a response.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from noa import __version__
from noa.errors import NotFoundError
from noa.settings import FALLBACK_ARM, MAIN_ARM, is_loopback
from noa_serving import _invocations, _oip, _openapi, _plain
from noa_serving._admission import Admission
from noa_serving._attempt import Attempt
from noa_serving._audit import Audit, action_of
from noa_serving._breath import Breaths
from noa_serving._computing import Computing
from noa_serving._crew import Crew, lone_crew
from noa_serving._guard import Guard, Peer
from noa_serving._http import JSON_TYPE, RequestRefusedError, Response, json_response, refuse
from noa_serving._json_body import json_kind, parse_object
from noa_serving._jwt import reader_of
from noa_serving._key_ring import KeyRing
from noa_serving._metrics import RouteMetrics, render
from noa_serving._metrics_pages import MetricsPages, merge
from noa_serving._models import Models, parse_version, require_version
from noa_serving._prepared import Prepared
from noa_serving._quotas import Limits, Quotas
from noa_serving._scopes import View, require_scope, view_of
from noa_serving._served_tls import ServedTls
from noa_serving._shared_memory import SharedRegions
from noa_serving._stages import Passage
from noa_serving._stream_routes import StreamRoutes, no_streams
from noa_serving._traffic import with_arms
from noa_serving.api_keys import KeyFile

if TYPE_CHECKING:
    from pathlib import Path

    from noa.settings import ServingSettings
    from noa_serving._endpoint import Endpoint
    from noa_serving._follower import Follower
    from noa_serving._generation import Generation
    from noa_serving._http import Headers
    from noa_serving._observer import Observer, Watch
    from noa_serving._shadows import Mirror, Shadows
    from noa_serving._traffic import Traffic

_WHATEVER_THE_BODY = frozenset({401, 403, 404})
_OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready", "/health/startup", "/ping"})
_SHARED_MEMORY = "/v2/systemsharedmemory/"
_NAMELESS = ("predict", "invocations")  # routes that need no name where there is one endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class HotRoute:
    """One path on which models compute. `version` is the number that the path asks for, if it does."""

    endpoint: Endpoint
    metrics: RouteMetrics
    read: Callable[..., Prepared]
    max_batch_items: int
    version: int | None = None
    by_arm: Mapping[str, RouteMetrics] = field(default_factory=dict[str, RouteMetrics])
    mirror: Mirror | None = None

    def require(self) -> Generation:
        """Return the generation that answers now where no arm does.

        Raises:
            RequestRefusedError: 503, nothing is loaded yet.
            NotFoundError: another version than the one in the path is served.
        """
        return require_version(self.endpoint, self.version)

    def prepare(self, headers: Headers, body: bytes, who: str = "") -> Prepared:
        """Understand a request with the generation of this moment; its answer is counted when it is written.

        `who` is the name of the caller's key. Errors as in `require`, and whatever is wrong with the request.
        """
        if self.endpoint.traffic is None:
            return self.understand(self.require(), headers, body, None)
        attempt = self._attempt(self.endpoint.traffic, headers, body, who)
        return self.understand(attempt.generation, headers, body, attempt)

    def understand(self, generation: Generation, headers: Headers, body: object, attempt: Attempt | None) -> Prepared:
        """Understand a request with a given generation; `body` is what `read` takes."""
        start = time.perf_counter_ns()
        try:
            prepared = self.read(generation, headers, body, max_batch_items=self.max_batch_items)
        except Exception:
            generation.statistics.count_refused(time.perf_counter_ns() - start)
            raise
        write = prepared.encode if self.mirror is None else self.mirror.encoder(prepared)
        passage = Passage(generation.statistics.stages, write, start, prepared.batch)
        encode = passage.encode if attempt is None else attempt.encode
        prepared = Prepared(generation, prepared.inputs, prepared.batch, encode, prepared.timeout_s, passage, attempt)
        if attempt is not None:
            attempt.prepared = prepared
        return prepared

    def _attempt(self, traffic: Traffic, headers: Headers, body: bytes, who: str) -> Attempt:
        """Choose the version that is to answer."""
        generation = traffic.choose(headers, who) if self.version is None else None
        if generation is None:
            generation = self.require()
            if generation.arm == FALLBACK_ARM:
                traffic.count_fallback(MAIN_ARM, "absent")
        may_fall_back = traffic.fallback is not None and self.version is None and generation.arm != FALLBACK_ARM
        metrics = self.by_arm[generation.arm or MAIN_ARM]
        return Attempt(generation, metrics, (self, headers, body) if may_fall_back else None)


class Application:
    """Everything one worker knows. Belongs to one event loop."""

    def __init__(
        self,
        settings: ServingSettings,
        endpoints: Sequence[Endpoint],
        follower: Follower,
        *,
        regions: SharedRegions | None = None,
        crew: Crew | None = None,
        quotas: Quotas | None = None,
        own_key: str | None = None,
        keys_seen_file: Path | None = None,
        metrics_pages: MetricsPages | None = None,
        observer: Observer | None = None,
        shadows: Shadows | None = None,
    ) -> None:
        self.settings = settings
        self.follower = follower
        self.crew = crew or lone_crew([endpoint.name for endpoint in with_arms(endpoints)])
        self.endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self.audit = Audit()
        self.guard = Guard(_key_ring(settings, self.endpoints, own_key, keys_seen_file), quotas or Quotas(settings))
        self.admission = Admission(settings.max_in_flight, max_bytes=settings.max_in_flight_bytes)
        self.pool = ThreadPoolExecutor(max_workers=pool_size(settings), thread_name_prefix="noa-compute")
        self.computing = Computing(self.admission, self.pool, settings, pool_size(settings))
        self.breaths = Breaths()
        self.tls = None if settings.tls_certificate is None else ServedTls(settings)
        self.fast_answers = 0
        self.metrics_pages = metrics_pages
        self.observer = observer
        self.shadows = shadows
        self.regions = regions or SharedRegions(None)
        extensions = (*_oip.EXTENSIONS, _oip.SHARED_MEMORY) if self.regions.is_on else _oip.EXTENSIONS
        self.models = Models(self.endpoints, extensions=extensions, max_batch_items=settings.max_batch_items)
        self._metrics: list[RouteMetrics] = []
        self._hot = self._hot_routes()
        self.streams = StreamRoutes(endpoints, self._count_in, max_batch_items=settings.max_batch_items)

    def find_hot(self, path: str) -> HotRoute | None:
        """Return the route on which a model computes for `POST path`, or None."""
        return self._hot.get(path) or self._find_versioned(path)

    def hot_paths(self) -> dict[str, HotRoute]:
        """Return all hot routes by path, but for those that name a version."""
        return self._hot

    def add_routes(self, name: str, read: Callable[..., Prepared]) -> dict[str, HotRoute]:
        """Return a route for each endpoint of another front end, which reads requests with `read`."""
        return {one.name: self._route(one, name, read) for one in self.endpoints.values()}

    def refuse_unknown(self, path: str, headers: Headers) -> Response | None:
        """Return the answer to `POST path` if there is no such route or the caller has no key for it, None else.

        It closes the connection: the body was not read to its end.
        """
        if path.startswith(_SHARED_MEMORY):  # an order there acts without a body too
            return None
        answer = self.answer("POST", path, headers, b"")  # nothing else acts: what computes has routes of its own
        if answer.status not in _WHATEVER_THE_BODY:
            return None
        return answer._replace(headers=(*answer.headers, (b"connection", b"close")))

    def answer(
        self,
        method: str,
        path: str,
        headers: Headers,
        body: bytes,
        *,
        peer: Peer = None,
        watch: Watch | None = None,
    ) -> Response:
        """Answer a request that needs no compute; `peer` is told in the audit trail, `watch` who it is by its key."""
        grant, action = None, action_of(method, path)
        try:
            if path in _OPEN_PATHS:
                return self._answer(method, path, body, View(self.endpoints, self.models))
            grant = self.guard.identify(headers)
            if watch is not None:
                watch.client = grant.who or watch.client
            require_scope(grant, path.strip("/"))
            answer = self._answer(method, path, body, view_of(grant, self.endpoints, self.models))
        except Exception as exc:  # noqa: BLE001  # the last border: whatever it is becomes an answer
            if action is not None:
                self.audit.record(action, grant=grant, peer=peer, error=exc)
            return refuse(exc)
        if action is not None:
            self.audit.record(action, grant=grant, peer=peer, error=None)
        return answer

    def start(self) -> None:
        """Begin with what goes on beside the requests."""
        if self.observer is not None:
            self.observer.start()
        if self.shadows is not None:
            self.shadows.start(lambda: self.admission.in_flight == 0)

    def close(self) -> None:
        """End the compute threads once their work is done, then write what is to be told of it."""
        if self.shadows is not None:
            self.shadows.stop()
        self.pool.shutdown(wait=True, cancel_futures=True)
        if self.observer is not None:
            self.observer.stop()

    def _hot_routes(self) -> dict[str, HotRoute]:
        routes: dict[str, HotRoute] = {}
        read_tensors = partial(_oip.prepare, regions=self.regions)
        for name, endpoint in self.endpoints.items():
            routes[f"/v2/models/{name}/infer"] = self._route(endpoint, "infer", read_tensors)
            routes[f"/predict/{name}"] = self._route(endpoint, "predict", _plain.prepare)
            routes[f"/invocations/{name}"] = self._route(endpoint, "invocations", _invocations.prepare)
        if len(self.endpoints) == 1:
            for path in _NAMELESS:
                routes[f"/{path}"] = routes[f"/{path}/{next(iter(self.endpoints))}"]
        return routes

    def _route(self, endpoint: Endpoint, name: str, read: Callable[..., Prepared]) -> HotRoute:
        metrics, by_arm = self._count_in(endpoint, name)
        return HotRoute(
            endpoint=endpoint,
            metrics=metrics,
            read=read,
            max_batch_items=self.settings.max_batch_items,
            by_arm=by_arm,
            mirror=None if self.shadows is None else self.shadows.mirror(endpoint.name),
        )

    def _count_in(self, endpoint: Endpoint, route: str) -> tuple[RouteMetrics, dict[str, RouteMetrics]]:
        """Return what counts the requests of an endpoint on a route: as a whole, and by arm where it has some."""
        metrics = RouteMetrics(endpoint.name, route)
        self._metrics.append(metrics)
        by_arm: dict[str, RouteMetrics] = {}
        if endpoint.traffic is not None:
            by_arm = {arm: RouteMetrics(endpoint.name, route, arm) for arm in endpoint.traffic.answering_names}
            self._metrics += by_arm.values()
        return metrics, by_arm

    def _find_versioned(self, path: str) -> HotRoute | None:
        parts = path.split("/")
        if len(parts) != 7 or parts[4] != "versions" or parts[6] != "infer":
            return None
        route = self._hot.get(f"/v2/models/{parts[3]}/infer") if parts[1:3] == ["v2", "models"] else None
        try:
            return None if route is None else replace(route, version=parse_version(parts[3], parts[5]))
        except NotFoundError:
            return None

    def _answer(self, method: str, path: str, body: bytes, view: View) -> Response:
        parts = path.strip("/").split("/")
        if self.find_hot(path) is not None or self.streams.find(path) is not None:
            _require_method(method, "POST")
        if parts[:2] == ["v2", "models"] and len(parts) >= 3:
            return _answer_model(view, method, parts[2:])
        if parts[:2] == ["v2", "repository"]:
            _require_method(method, "POST")
            return _answer_repository(view.models, parts[2:], body)
        if parts[:2] == ["v2", "systemsharedmemory"]:
            return self._answer_shared_memory(method, parts[2:], body)
        if parts[0] in _NAMELESS and len(parts) <= 2:
            raise _no_predict_route(view, parts)
        if len(parts) == 3 and (parts[0], parts[2]) == ("predict", "stream"):
            raise no_streams(view.models.find(parts[1]).name)
        answer = {
            "": lambda: _index(view),
            "v2": lambda: json_response(view.models.server()),
            "v2/health/live": lambda: json_response({"live": True}),
            "v2/health/ready": self._ready,
            "health/startup": self._startup,
            "ping": self._ready,
            "version": lambda: Response(200, __version__.encode(), ((b"content-type", b"text/plain"),)),
            "status": self._status,
            "metrics": self._render_metrics,
            "openapi.json": lambda: json_response(_openapi.document(list(view.endpoints.values()))),
            "docs": lambda: _openapi.page(list(view.endpoints.values())),
        }.get("/".join(parts))
        if answer is None:
            raise NotFoundError(f"no route `{path[:120]}`", remedy="`GET /` lists the endpoints")
        _require_method(method, "GET")
        return answer()

    def _ready(self) -> Response:
        waiting = self.models.waiting()
        table: dict[str, object] = {"ready": not waiting, "live": True}
        if waiting and not self.guard.is_on:  # this path asks for no key
            table["error"] = "not ready: " + ", ".join(f"`{name}`" for name in waiting)
        if self.crew.size > 1 and (shortfall := self.crew.shortfall()) is not None:
            table["degraded"] = shortfall
        return json_response(table, status=503 if waiting else 200)

    def _startup(self) -> Response:
        is_settled = self.follower.is_settled
        return json_response({"started": is_settled}, status=200 if is_settled else 503)

    def _status(self) -> Response:
        table: dict[str, object] = {
            "ready": not self.models.waiting(),
            "registry_reachable": self.follower.problem is None,
            "in_flight": self.admission.in_flight,
            "worker": os.getpid(),
            "endpoints": {name: self._describe(one) for name, one in self.endpoints.items()},
        }
        if self.tls is not None:
            table["tls"] = self.tls.describe()
        if self.crew.size > 1:
            table |= {"workers": self.crew.rows(), "degraded": self.crew.shortfall()}
        return json_response(table)

    def _describe(self, endpoint: Endpoint) -> dict[str, object]:
        shadows = {} if self.shadows is None else self.shadows.rows(endpoint.name)
        table = {**describe(endpoint), **({"shadows": shadows} if shadows else {})}
        if (counts := self.streams.counts.get(endpoint.name)) is not None:
            table["streams"] = {"active": counts.active, "max_streams": counts.max_streams, "steps": counts.steps}
        return table

    def render_own_metrics(self) -> bytes:
        """Return what this worker has counted, as Prometheus text."""
        return render(
            self._metrics,
            self.endpoints.values(),
            admission=self.admission,
            follower=self.follower,
            computing=self.computing,
            over_quota=self.guard.over_quota,
            fast_answers=self.fast_answers,
            logs=[] if self.observer is None else self.observer.counts(),
            tls=self.tls,
            shadows=self.shadows,
            streams=self.streams.counts.values(),
            worker=os.getpid(),
        )

    def _render_metrics(self) -> Response:
        text = self.render_own_metrics()
        if self.metrics_pages is not None:
            text = merge([text, *self.metrics_pages.read(self.crew.others_up())])
        return Response(200, text, ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),))

    def _answer_shared_memory(self, method: str, parts: list[str], body: bytes) -> Response:
        name, call = (parts[1], parts[2:]) if len(parts) == 3 and parts[0] == "region" else ("", parts)
        if call == ["status"]:
            _require_method(method, "GET")
            return json_response(self.regions.status(name))
        if call == ["unregister"]:
            _require_method(method, "POST")
            self.regions.unregister(name)
            return json_response({})
        if call == ["register"] and name:
            _require_method(method, "POST")
            table = parse_object(body)
            self.regions.register(name, key=table.get("key"), offset=table.get("offset"), size=table.get("byte_size"))
            return json_response({})
        raise NotFoundError(f"no route `{'/'.join(parts)[:80]}` for shared memory")


def describe(endpoint: Endpoint) -> dict[str, object]:
    """Return what is known about an endpoint, as `/status` shows it. Reasons of failures have no paths."""
    now, failure = endpoint.current, endpoint.failure
    row: dict[str, object] = {"state": endpoint.state, "model": endpoint.settings.model}
    if now is not None:
        row |= {"version": now.number, "digest": now.digest, "format": now.format, "swaps": endpoint.swaps}
        if now.choice:
            row["format_choice"] = now.choice
        if now.runtime:
            row["runtime"] = now.runtime
        row["run_ms"] = round(now.cost.estimate_s(1) * 1000, 4)
        row["batch_items"] = now.batching.best_items
        row["golden_requests"] = now.golden_requests
        if now.batching.refusal is not None:
            row["not_batched"] = now.batching.refusal
    if endpoint.settings.cache is not None:
        cached = endpoint.cache_counts
        row["cache"] = {"hits": cached.hits, "misses": cached.misses, "passed": cached.passed}
    if endpoint.waiting_for is not None:
        row["waiting_for"] = endpoint.waiting_for
    if endpoint.probation is not None:
        row["on_probation"] = {"instead_of": endpoint.probation.before.number}
    if (rejected := endpoint.rejected) is not None:
        row["rolled_back"] = {
            "version": rejected.content.number,
            "digest": rejected.content.digest,
            "reason": rejected.reason,
            "registry_knows": not endpoint.is_rejection_pending,
        }
    if failure is not None:
        row["refused"] = {
            "version": failure.number,
            "digest": failure.digest,
            "reason": failure.reason,
            "attempts": failure.attempts,
        }
    if endpoint.traffic is not None:
        row |= _describe_traffic(endpoint.traffic)
    return row


def _describe_traffic(traffic: Traffic) -> dict[str, object]:
    arms: dict[str, object] = {}
    for arm in traffic.arms:
        takes = traffic.generation_of(arm.name) is not None
        table = {**describe(arm.endpoint), "mode": arm.settings.mode, "share": arm.settings.share, "takes": takes}
        if (problem := traffic.problem_of(arm.name)) is not None:
            table["problem"] = problem
        arms[arm.name] = table
    found: dict[str, object] = {"arms": arms} if arms else {}
    if traffic.fallback is not None:
        problem = traffic.problem_of(FALLBACK_ARM)
        found["fallback"] = {
            **describe(traffic.fallback),
            "took": sum(traffic.fallbacks.values()),
            **({} if problem is None else {"problem": problem}),
        }
    return found


def pool_size(settings: ServingSettings) -> int:
    """Return how many models may compute at once outside the event loop: at least 2, so that none waits behind a
    giant."""
    return max(2, compute_threads(settings))


def compute_threads(settings: ServingSettings) -> int:
    """Return the compute threads of one worker: as set, else the cores this process may use divided by the workers."""
    return settings.threads or max(1, len(os.sched_getaffinity(0)) // settings.workers)


def _key_ring(settings: ServingSettings, names: Iterable[str], own_key: str | None, seen_file: Path | None) -> KeyRing:
    keys = [key.get_secret_value() for key in settings.api_keys]
    is_guarded = settings.allow_unauthenticated or settings.tls_client_ca is not None
    is_required = not is_loopback(settings.host) and not is_guarded
    file = KeyFile(settings.keys_file) if settings.has_keys_file else None
    return KeyRing(
        keys,
        file,
        names=names,
        is_required=is_required,
        own_key=own_key,
        tokens=reader_of(settings, names),
        seen_file=seen_file,
        limits_of=partial(Limits.of, settings),
    )


def _index(view: View) -> Response:
    rows = {
        name: {"model": one.settings.model, "state": one.state, "predict": f"/predict/{name}"}
        for name, one in view.endpoints.items()
    }
    return json_response({"name": "noa", "version": __version__, "endpoints": rows, "docs": "/docs"})


def _answer_model(view: View, method: str, parts: list[str]) -> Response:
    name, version, rest = parts[0], "", parts[1:]
    if parts == ["stats"] and "stats" not in view.endpoints:
        _require_method(method, "GET")
        return json_response(view.models.statistics())
    endpoint = view.models.find(name)
    if len(rest) >= 2 and rest[0] == "versions":
        version, rest = rest[1], rest[2:]
    answer: Callable[[], Response] | None = {
        "": lambda: _model_metadata(view.models, name, version),
        "ready": lambda: _model_ready(view.models, name, version),
        "stats": lambda: json_response(view.models.statistics(name, version)),
        "config": lambda: json_response(view.models.config(name, version)),
    }.get("/".join(rest))
    if answer is None:
        if rest == ["generate_stream"]:
            parse_version(name, version)
            raise no_streams(endpoint.name)
        raise NotFoundError(f"no route `{'/'.join(rest)[:80]}` below model `{endpoint.name}`")
    _require_method(method, "GET")
    return answer()


def _model_metadata(models: Models, name: str, version: str) -> Response:
    return json_response(models.metadata(name, version), headers=models.require(name, version).headers)


def _model_ready(models: Models, name: str, version: str) -> Response:
    if not models.is_ready(name, version):
        return json_response({"name": name, "ready": False}, status=503)
    return json_response({"name": name, "ready": True}, headers=models.require(name).headers)


def _answer_repository(models: Models, parts: list[str], body: bytes) -> Response:
    if parts == ["index"]:
        only_ready = parse_object(body).get("ready", False) if body.strip() else False
        if not isinstance(only_ready, bool):
            raise RequestRefusedError(
                "`ready` is no flag", status=400, expected="true or false", received=json_kind(only_ready)
            )
        return json_response(models.index(only_ready=only_ready))
    if len(parts) == 3 and parts[0] == "models" and parts[2] in ("load", "unload"):
        raise models.refuse_change(parts[1])
    raise NotFoundError(f"no route `{'/'.join(parts)[:80]}` below the repository")


def _no_predict_route(view: View, parts: list[str]) -> NotFoundError:
    known = ", ".join(f"`/{parts[0]}/{one}`" for one in view.endpoints)
    if len(parts) == 2:
        return NotFoundError(f"no endpoint `{parts[1][:128]}`", expected=known, received=f"`{parts[1][:128]}`")
    return NotFoundError(f"`/{parts[0]}` names no endpoint, and there are several", expected=known)


def _require_method(method: str, allowed: str) -> None:
    if method != allowed and not (method == "HEAD" and allowed == "GET"):
        raise RequestRefusedError("the route takes another method", status=405, expected=allowed, received=method[:20])


__all__ = ["JSON_TYPE", "Application", "HotRoute", "compute_threads", "describe", "pool_size"]
