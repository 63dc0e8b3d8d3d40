"""The Open Inference Protocol over gRPC beside HTTP in each worker, with gRPC's health service and reflection.

The workers share one port (`SO_REUSEPORT`). Requests and answers pass as bytes, so that a message that cannot be read
is refused with a reason; a message beyond `serving.max_body_bytes` is refused by gRPC before it is taken in. Keys,
limits, errors, deadlines and counts are those of HTTP; a client's own deadline shortens ours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

import grpc
import grpc.aio
import orjson
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection

from noa.errors import InvalidInputError, NotFoundError, ServiceError
from noa_serving import _grpc_infer
from noa_serving._audit import grpc_action_of
from noa_serving._deadline import Deadline, asked_timeout_s
from noa_serving._grpc_messages import HEALTH_SERVICE, SERVICE, schema
from noa_serving._grpc_streams import StreamCalls
from noa_serving._http import Headers, RequestRefusedError, header_table, refuse, status_of
from noa_serving._key_ring import ANYBODY
from noa_serving._models import Models, parse_version
from noa_serving._scopes import view_of

if TYPE_CHECKING:
    from noa_serving._application import Application, HotRoute
    from noa_serving._guard import Peer
    from noa_serving._key_ring import Grant
    from noa_serving._observer import Watch
    from noa_serving._prepared import Prepared
    from noa_serving._served_tls import Identity
    from noa_serving.api_keys import Verb

_CODES: dict[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_OPEN_CALLS = frozenset({"ServerLive", "ServerReady"})
_WATCH_EVERY_S = 0.25
_MAX_METADATA_BYTES = 16 << 10

_SCOPES: Mapping[str, tuple[Verb, str | None]] = {
    "ModelReady": ("read", "name"),
    "ModelMetadata": ("read", "name"),
    "ModelConfig": ("read", "name"),
    "ModelStatistics": ("read", "name"),
    "RepositoryIndex": ("read", None),
    "RepositoryModelLoad": ("control", "model_name"),
    "RepositoryModelUnload": ("control", "model_name"),
    "SystemSharedMemoryStatus": ("control", "*"),
    "SystemSharedMemoryRegister": ("control", "*"),
    "SystemSharedMemoryUnregister": ("control", "*"),
}
"""The verb that a call asks of a key, and the field that names the endpoint; `*`: the server, None: any endpoint."""

Answer = Callable[[Any, Models], Mapping[str, object]]


class GrpcServer:
    """The gRPC side of one worker. Belongs to its event loop."""

    def __init__(self, application: Application, *, host: str, port: int) -> None:
        self.port = port
        self._application = application
        self._timeout_s = application.settings.timeout_s
        self._routes = application.add_routes("grpc", partial(_grpc_infer.prepare, regions=application.regions))
        self._streams = StreamCalls(application, self._compute)
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._server: Any = None

    async def start(self) -> None:
        """Listen and answer.

        Raises:
            ServiceError: the port cannot be had.
        """
        limit = self._application.settings.max_body_bytes
        server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
                ("grpc.so_reuseport", 1),
            )
        )
        server.add_generic_rpc_handlers((self._inference_handlers(), self._health_handlers()))
        names = (SERVICE, HEALTH_SERVICE, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server, pool=schema().pool)
        try:
            self._listen(server)
        except RuntimeError as exc:
            raise ServiceError(
                "the gRPC port cannot be had", where=self._address, remedy="Choose another `serving.grpc_port`"
            ) from exc
        await server.start()
        self._server = server

    def _listen(self, server: Any) -> None:
        tls = self._application.tls
        if tls is None:
            server.add_insecure_port(self._address)
            return
        given = tls.identity

        def newer() -> Any:
            """Return what counts for a connection that begins, None if nothing has changed; any thread may ask."""
            nonlocal given
            identity = tls.identity
            if identity is given:
                return None
            given = identity
            return _certificates(identity)

        needs_certificate = given.authorities is not None
        credentials = grpc.dynamic_ssl_server_credentials(_certificates(given), newer, needs_certificate)
        server.add_secure_port(self._address, credentials)

    async def stop(self) -> None:
        """Take nothing new, and wait until what was begun is answered."""
        if self._server is not None:
            await self._server.stop(self._timeout_s)

    def _inference_handlers(self) -> Any:
        calls: dict[str, Answer] = {
            "ServerLive": lambda _, __: {"live": True},
            "ServerReady": lambda _, models: {"ready": not models.waiting()},
            "ModelReady": lambda message, models: {"ready": models.is_ready(message.name, message.version)},
            "ServerMetadata": lambda _, models: models.server(),
            "ModelMetadata": lambda message, models: models.metadata(message.name, message.version),
            "ModelConfig": lambda message, models: {"config": models.config(message.name, message.version)},
            "ModelStatistics": lambda message, models: models.statistics(message.name, message.version),
            "RepositoryIndex": lambda message, models: {"models": models.index(only_ready=message.ready)},
            "RepositoryModelLoad": self._refuse_change,
            "RepositoryModelUnload": self._refuse_change,
            "SystemSharedMemoryStatus": self._region_status,
            "SystemSharedMemoryRegister": self._register_region,
            "SystemSharedMemoryUnregister": self._unregister_region,
        }
        handlers = {name: grpc.unary_unary_rpc_method_handler(self._control(name, one)) for name, one in calls.items()}
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._infer)
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _refuse_change(self, message: Any, models: Models) -> Mapping[str, object]:
        raise models.refuse_change(message.model_name)

    def _region_status(self, message: Any, _: Models) -> Mapping[str, object]:
        rows = self._application.regions.status(message.name)
        return {"regions": {str(row["name"]): row for row in rows}}

    def _register_region(self, message: Any, _: Models) -> Mapping[str, object]:
        regions = self._application.regions
        regions.register(message.name, key=message.key, offset=message.offset, size=message.byte_size)
        return {}

    def _unregister_region(self, message: Any, _: Models) -> Mapping[str, object]:
        self._application.regions.unregister(message.name)
        return {}

    def _control(self, name: str, answer: Answer) -> Callable[[bytes, Any], Awaitable[bytes]]:
        """Return the handler of a call that needs no compute."""
        classes = schema().classes
        request_type, response_type = classes[f"{name}Request"], classes[f"{name}Response"]

        async def handle(body: bytes, context: Any) -> bytes:
            application, grant, message = self._application, None, None
            try:
                grant = ANYBODY if name in _OPEN_CALLS else application.guard.identify(_headers(context))
                message = _parse(request_type, body)
                _require_scope(grant, name, message)
                found = answer(message, view_of(grant, application.endpoints, application.models).models)
                reply = ParseDict(_plain(found), response_type()).SerializeToString()
            except Exception as exc:  # noqa: BLE001  # the last border: whatever it is becomes a status
                self._record(name, message, grant, context, exc)
                return await _abort(context, exc)
            self._record(name, message, grant, context, None)
            return reply

        return handle

    def _record(
        self, name: str, message: object, grant: Grant | None, context: Any, error: BaseException | None
    ) -> None:
        action = grpc_action_of(name, message)
        if action is not None:
            self._application.audit.record(action, grant=grant, peer=_peer(context), error=error)

    async def _infer(self, body: bytes, context: Any) -> bytes:
        try:
            return await self._compute(body, _headers(context), context.time_remaining(), _peer(context))
        except Exception as exc:  # noqa: BLE001  # the last border: whatever it is becomes a status
            return await _abort(context, exc)

    async def _stream(self, bodies: AsyncIterator[bytes], context: Any) -> None:
        await self._streams.answer(bodies, context, _headers(context), _peer(context))

    async def _compute(
        self, body: bytes, headers: Headers, left_s: float | None, peer: Peer, *, message: Any = None
    ) -> bytes:
        start, observer = time.perf_counter(), self._application.observer
        if observer is None:
            return await self._answer(body, headers, left_s, peer, start, None, message)
        watch = observer.watch("", "grpc", headers, peer=peer, started_s=start)
        try:
            answer = await self._answer(body, headers, left_s, peer, start, watch, message)
        except Exception as exc:
            watch.end(status_of(exc))
            raise
        watch.end(200)
        return answer

    async def _answer(
        self,
        body: bytes,
        headers: Headers,
        left_s: float | None,
        peer: Peer,
        start: float,
        watch: Watch | None,
        message: Any,
    ) -> bytes:
        application = self._application
        grant = application.guard.identify(headers)
        if watch is not None:
            watch.client = grant.who or watch.client
        message = _grpc_infer.parse_request(body) if message is None else message
        grant = application.guard.allow(headers, message.model_name)
        route = self._route(message)
        if watch is not None:
            watch.target = route.endpoint.name
        prepared: Prepared | None = None
        try:
            deadline = Deadline.after(self._timeout_s).within(left_s).within(asked_timeout_s(headers))
            with application.computing.enter() as place:
                application.guard.charge(grant, len(body), peer)
                prepared = route.prepare(headers, message, grant.who)
                if watch is not None:
                    watch.take(prepared)
                response = prepared.encode(await application.computing.run(prepared, place, deadline))
        except Exception as exc:
            metrics = route.metrics if prepared is None else prepared.counted_in(route.metrics)
            metrics.observe(status_of(exc), time.perf_counter() - start)
            raise
        prepared.counted_in(route.metrics).observe(200, time.perf_counter() - start)
        return response.body

    def _route(self, message: Any) -> HotRoute:
        route = self._routes.get(message.model_name)
        if route is None:
            self._application.models.find(message.model_name)  # says which there are
            raise NotFoundError(f"no model `{message.model_name[:128]}` is served here")
        if message.model_version:
            return replace(route, version=parse_version(message.model_name, message.model_version))
        return route

    def _health_handlers(self) -> Any:
        request_type, response_type = schema().classes["HealthCheckRequest"], schema().classes["HealthCheckResponse"]

        async def check(body: bytes, context: Any) -> bytes:
            try:
                status = self._health(_parse(request_type, body).service)
                if status == "SERVICE_UNKNOWN":
                    raise NotFoundError("no such service", expected=f"`{SERVICE}`, an endpoint's name, or nothing")
                return ParseDict({"status": status}, response_type()).SerializeToString()
            except Exception as exc:  # noqa: BLE001  # the last border: whatever it is becomes a status
                return await _abort(context, exc)

        async def watch(body: bytes, context: Any) -> AsyncIterator[bytes]:
            del context
            service, last = _parse(request_type, body).service, ""
            while True:
                status = self._health(service)
                if status != last:
                    yield ParseDict({"status": status}, response_type()).SerializeToString()
                last = status
                await asyncio.sleep(_WATCH_EVERY_S)

        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(check),
            "Watch": grpc.unary_stream_rpc_method_handler(watch),
        }
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, handlers)

    def _health(self, service: str) -> str:
        """Return the status of the whole server (``, the service's name) or of one endpoint by its name."""
        models = self._application.models
        if service in ("", SERVICE):
            return "NOT_SERVING" if models.waiting() else "SERVING"
        endpoint = self._application.endpoints.get(service)
        if endpoint is None:
            return "SERVICE_UNKNOWN"
        return "SERVING" if endpoint.is_ready else "NOT_SERVING"


def _certificates(identity: Identity) -> Any:
    pair = identity.key, identity.certificate
    return grpc.ssl_server_certificate_configuration([pair], identity.authorities)


def _require_scope(grant: Grant, name: str, message: Any) -> None:
    verb, field = _SCOPES.get(name, ("read", None))
    endpoint = field if field in (None, "*") else str(getattr(message, field))
    if endpoint:
        grant.require(verb, endpoint)
    else:  # the server's metadata, or what lists endpoints
        grant.require_verb(verb)


def _parse(kind: Any, body: bytes) -> Any:
    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError as exc:
        raise InvalidInputError("the message is not readable", expected=f"a {kind.DESCRIPTOR.name}") from exc
    return message


def _headers(context: Any) -> Headers:
    """Return the call's metadata as HTTP would have it."""
    return header_table(
        (name.encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in context.invocation_metadata() or ()
    )


def _peer(context: Any) -> Peer:
    """Return the other end's address: gRPC writes `ipv4:127.0.0.1:50000` or `ipv6:%5B::1%5D:50000`."""
    kind, _, rest = str(context.peer()).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return unquote(host).strip("[]"), int(port)


def _plain(value: object) -> Any:
    """Return JSON values as protobuf's reader takes them: lists, not tuples."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in cast("Mapping[str, object]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in cast("list[object]", value)]
    return value


def _describe(error: Exception) -> tuple[int, str]:
    """Return status and text of an error, as HTTP answers it."""
    answer = refuse(error)
    return answer.status, str(orjson.loads(answer.body)["error"])


async def _abort(context: Any, error: Exception) -> bytes:
    status, text = _describe(error)
    if isinstance(error, RequestRefusedError) and error.retry_after_s is not None:
        context.set_trailing_metadata((("retry-after", str(error.retry_after_s)),))
    await context.abort(_CODES.get(status, grpc.StatusCode.INTERNAL), text)
    raise AssertionError("gRPC's abort returned")
