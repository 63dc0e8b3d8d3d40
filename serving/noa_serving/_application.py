"""The application apart from any server: which path is what, and the answers that need no compute.

Hot routes (inference) are looked up by their whole path; everything else is answered by `answer`, a plain function
from a request to a response.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from noa import __version__
from noa.errors import NotFoundError
from noa_serving import _oip, _openapi, _plain
from noa_serving._admission import Admission, KeyRing
from noa_serving._computing import Computing
from noa_serving._http import JSON_TYPE, RequestRefusedError, Response, json_response, refuse
from noa_serving._json_body import json_kind, parse_object
from noa_serving._metrics import RouteMetrics, render

if TYPE_CHECKING:
    from noa.settings import ServingSettings
    from noa_serving._endpoint import Endpoint
    from noa_serving._follower import Follower
    from noa_serving._generation import Generation
    from noa_serving._http import Headers
    from noa_serving._prepared import Prepared

_OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready", "/health/startup"})
_MAX_DIGITS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class HotRoute:
    """One path on which models compute. `version` is the number that the path asks for, if it does."""

    endpoint: Endpoint
    metrics: RouteMetrics
    read: Callable[..., Prepared]
    max_batch_items: int
    version: int | None = None

    def require(self) -> Generation:
        """Return the generation that answers now.

        Raises:
            RequestRefusedError: 503, nothing is loaded yet.
            NotFoundError: another version than the one in the path is served.
        """
        generation = self.endpoint.require()
        if self.version is not None and generation.number != self.version:
            raise NotFoundError(
                f"version `{self.version}` of endpoint `{self.endpoint.name}` is not loaded",
                expected=f"`{generation.number}`",
                received=f"`{self.version}`",
            )
        return generation

    def prepare(self, headers: Headers, body: bytes) -> Prepared:
        """Understand a request with the generation of this moment."""
        return self.read(self.require(), headers, body, max_batch_items=self.max_batch_items)


class Application:
    """Everything one worker knows. Belongs to one event loop."""

    def __init__(self, settings: ServingSettings, endpoints: Sequence[Endpoint], follower: Follower) -> None:
        self.settings = settings
        self.follower = follower
        self.endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self.keys = KeyRing([key.get_secret_value() for key in settings.api_keys])
        self.admission = Admission(settings.max_in_flight)
        self.pool = ThreadPoolExecutor(max_workers=pool_size(settings), thread_name_prefix="noa-compute")
        self.computing = Computing(self.admission, self.pool, settings, pool_size(settings))
        self.fast_answers = 0
        self._metrics: list[RouteMetrics] = []
        self._hot = self._hot_routes()

    def find_hot(self, path: str) -> HotRoute | None:
        """Return the route on which a model computes for `POST path`, or None."""
        return self._hot.get(path) or self._find_versioned(path)

    def hot_paths(self) -> dict[str, HotRoute]:
        """Return all hot routes by path, but for those that name a version."""
        return self._hot

    def refuse_unknown(self, path: str, headers: Headers) -> Response | None:
        """Return the answer to `POST path` if no body could make it anything but a refusal, None else.

        It closes the connection: the body was not read to its end.
        """
        parts = path.strip("/").split("/")
        is_model = parts[:2] == ["v2", "models"] and len(parts) >= 3 and parts[2] not in self.endpoints
        is_predict = parts[0] == "predict" and len(parts) <= 2
        if not is_model and not is_predict:
            return None
        answer = self.answer("POST", path, headers, b"")
        return replace(answer, headers=(*answer.headers, (b"connection", b"close")))

    def answer(self, method: str, path: str, headers: Headers, body: bytes) -> Response:
        """Answer a request that needs no compute."""
        try:
            if path not in _OPEN_PATHS:
                self.keys.check(headers)
            return self._answer(method, path, body)
        except Exception as exc:  # noqa: BLE001  # the last border: whatever it is becomes an answer
            return refuse(exc)

    def close(self) -> None:
        """End the compute threads once their work is done."""
        self.pool.shutdown(wait=True, cancel_futures=True)

    def _hot_routes(self) -> dict[str, HotRoute]:
        routes: dict[str, HotRoute] = {}
        for name, endpoint in self.endpoints.items():
            routes[f"/v2/models/{name}/infer"] = self._route(endpoint, "infer", _oip.prepare)
            routes[f"/predict/{name}"] = self._route(endpoint, "predict", _plain.prepare)
        if len(self.endpoints) == 1:
            routes["/predict"] = routes[f"/predict/{next(iter(self.endpoints))}"]
        return routes

    def _route(self, endpoint: Endpoint, name: str, read: Callable[..., Prepared]) -> HotRoute:
        metrics = RouteMetrics(endpoint.name, name)
        self._metrics.append(metrics)
        return HotRoute(endpoint=endpoint, metrics=metrics, read=read, max_batch_items=self.settings.max_batch_items)

    def _find_versioned(self, path: str) -> HotRoute | None:
        parts = path.split("/")
        if len(parts) != 7 or parts[4] != "versions" or parts[6] != "infer":
            return None
        route = self._hot.get(f"/v2/models/{parts[3]}/infer") if parts[1:3] == ["v2", "models"] else None
        if route is None or not _is_number(parts[5]):
            return None
        return HotRoute(
            endpoint=route.endpoint,
            metrics=route.metrics,
            read=route.read,
            max_batch_items=route.max_batch_items,
            version=int(parts[5]),
        )

    def _answer(self, method: str, path: str, body: bytes) -> Response:
        parts = path.strip("/").split("/")
        if self.find_hot(path) is not None:
            _require_method(method, "POST")
        if parts[:2] == ["v2", "models"] and len(parts) >= 3:
            return self._answer_model(method, parts[2:])
        if parts[:2] == ["v2", "repository"]:
            _require_method(method, "POST")
            return self._answer_repository(parts[2:], body)
        if parts[0] == "predict" and len(parts) <= 2:
            raise self._no_predict_route(parts)
        answer = {
            "": self._index,
            "v2": self._server,
            "v2/health/live": lambda: json_response({"live": True}),
            "v2/health/ready": self._ready,
            "health/startup": self._startup,
            "status": self._status,
            "metrics": self._render_metrics,
            "openapi.json": lambda: json_response(_openapi.document(list(self.endpoints.values()))),
            "docs": lambda: _openapi.page(list(self.endpoints.values())),
        }.get("/".join(parts))
        if answer is None:
            raise NotFoundError(f"no route `{path[:120]}`", remedy="`GET /` lists the endpoints")
        _require_method(method, "GET")
        return answer()

    def _index(self) -> Response:
        rows = {
            name: {"model": one.settings.model, "state": one.state, "predict": f"/predict/{name}"}
            for name, one in self.endpoints.items()
        }
        return json_response({"name": "noa", "version": __version__, "endpoints": rows, "docs": "/docs"})

    def _server(self) -> Response:
        return json_response({"name": "noa", "version": __version__, "extensions": _oip.EXTENSIONS})

    def _ready(self) -> Response:
        waiting = [name for name, one in self.endpoints.items() if one.current is None]
        table: dict[str, object] = {"ready": not waiting, "live": True}
        if waiting:
            table["error"] = "not ready: " + ", ".join(f"`{name}`" for name in waiting)
        return json_response(table, status=503 if waiting else 200)

    def _startup(self) -> Response:
        is_settled = self.follower.is_settled
        return json_response({"started": is_settled}, status=200 if is_settled else 503)

    def _status(self) -> Response:
        rows = {name: describe(one) for name, one in self.endpoints.items()}
        return json_response(
            {
                "ready": all(one.current is not None for one in self.endpoints.values()),
                "registry_reachable": self.follower.problem is None,
                "in_flight": self.admission.in_flight,
                "worker": os.getpid(),
                "endpoints": rows,
            }
        )

    def _render_metrics(self) -> Response:
        text = render(
            self._metrics,
            self.endpoints.values(),
            admission=self.admission,
            follower=self.follower,
            fast_answers=self.fast_answers,
            worker=os.getpid(),
        )
        return Response(200, text, ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),))

    def _answer_model(self, method: str, parts: list[str]) -> Response:
        endpoint = self._endpoint(parts[0])
        rest = parts[1:]
        version: int | None = None
        if len(rest) >= 2 and rest[0] == "versions":
            if not _is_number(rest[1]):
                raise NotFoundError(f"no version `{rest[1][:40]}` of endpoint `{endpoint.name}`")
            version, rest = int(rest[1]), rest[2:]
        if rest in ([], ["ready"]):
            _require_method(method, "GET")
        else:
            raise NotFoundError(f"no route `{'/'.join(rest)[:80]}` below model `{endpoint.name}`")
        route = HotRoute(
            endpoint=endpoint,
            metrics=RouteMetrics(endpoint.name, "metadata"),
            read=_oip.prepare,
            max_batch_items=self.settings.max_batch_items,
            version=version,
        )
        if rest == ["ready"] and endpoint.current is None:
            return json_response({"name": endpoint.name, "ready": False}, status=503)
        generation = route.require()
        if rest == ["ready"]:
            return json_response({"name": endpoint.name, "ready": True}, headers=generation.headers)
        return json_response(_oip.metadata(generation), headers=generation.headers)

    def _answer_repository(self, parts: list[str], body: bytes) -> Response:
        if parts == ["index"]:
            only_ready = parse_object(body).get("ready", False) if body.strip() else False
            if not isinstance(only_ready, bool):
                raise RequestRefusedError(
                    "`ready` is no flag", status=400, expected="true or false", received=json_kind(only_ready)
                )
            rows = [_index_row(one) for one in self.endpoints.values() if one.current is not None or not only_ready]
            return json_response(rows)
        if len(parts) == 3 and parts[0] == "models" and parts[2] in ("load", "unload"):
            self._endpoint(parts[1])
            raise RequestRefusedError(
                "models are not loaded or unloaded by hand here",
                status=400,
                remedy="Endpoints follow the registry: promote or roll back a version",
            )
        raise NotFoundError(f"no route `{'/'.join(parts)[:80]}` below the repository")

    def _endpoint(self, name: str) -> Endpoint:
        endpoint = self.endpoints.get(name)
        if endpoint is None:
            known = ", ".join(f"`{one}`" for one in self.endpoints)
            raise NotFoundError(f"no model `{name[:128]}` is served here", expected=known, received=f"`{name[:128]}`")
        return endpoint

    def _no_predict_route(self, parts: list[str]) -> NotFoundError:
        known = ", ".join(f"`/predict/{one}`" for one in self.endpoints)
        if len(parts) == 2:
            return NotFoundError(f"no endpoint `{parts[1][:128]}`", expected=known, received=f"`{parts[1][:128]}`")
        return NotFoundError("`/predict` names no endpoint, and there are several", expected=known)


def describe(endpoint: Endpoint) -> dict[str, object]:
    """Return what is known about an endpoint, as `/status` shows it. Reasons of failures have no paths."""
    now, failure = endpoint.current, endpoint.failure
    row: dict[str, object] = {"state": endpoint.state, "model": endpoint.settings.model}
    if now is not None:
        row |= {"version": now.number, "digest": now.digest, "format": now.format, "swaps": endpoint.swaps}
        row["run_ms"] = round(now.cost.estimate_s(1) * 1000, 4)
    if endpoint.waiting_for is not None:
        row["waiting_for"] = endpoint.waiting_for
    if failure is not None:
        row["refused"] = {
            "version": failure.number,
            "digest": failure.digest,
            "reason": failure.reason,
            "attempts": failure.attempts,
        }
    return row


def pool_size(settings: ServingSettings) -> int:
    """Return how many models may compute at once outside the event loop: at least 2, so that none waits behind a
    giant."""
    return max(2, compute_threads(settings))


def compute_threads(settings: ServingSettings) -> int:
    """Return the compute threads of one worker: as set, else the cores this process may use divided by the workers."""
    return settings.threads or max(1, len(os.sched_getaffinity(0)) // settings.workers)


def _index_row(endpoint: Endpoint) -> dict[str, object]:
    now = endpoint.current
    if now is not None:
        return {"name": endpoint.name, "version": str(now.number), "state": "READY", "reason": ""}
    reason = endpoint.waiting_for or ("its model could not be loaded" if endpoint.failure else "loading")
    return {"name": endpoint.name, "version": "", "state": "UNAVAILABLE", "reason": reason}


def _require_method(method: str, allowed: str) -> None:
    if method != allowed and not (method == "HEAD" and allowed == "GET"):
        raise RequestRefusedError("the route takes another method", status=405, expected=allowed, received=method[:20])


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS


__all__ = ["JSON_TYPE", "Application", "HotRoute", "compute_threads", "describe", "pool_size"]
