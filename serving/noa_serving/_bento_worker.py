"""One worker of a server: how its application is built, started and ended, whatever its endpoints follow."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from uvicorn.config import HTTP_PROTOCOLS

from noa.atomic_write import write_file
from noa_serving._application import Application, compute_threads
from noa_serving._arm_names import followed_names
from noa_serving._asgi import AsgiApplication
from noa_serving._bento_frame import configure_logging
from noa_serving._catch_up import catch_up
from noa_serving._crash_mark import CrashMark
from noa_serving._crew import BEAT_S, Crew, join_crew
from noa_serving._follower import Follower
from noa_serving._launch_request import LaunchRequest, arbiter_of
from noa_serving._leases import LeaseKeeper
from noa_serving._metrics_pages import MetricsPages
from noa_serving._observer import make_observer
from noa_serving._parent_death import die_with_parent
from noa_serving._pipeline import make_pipelines
from noa_serving._protocol import hot_protocol
from noa_serving._quotas import Quotas
from noa_serving._runtimes import Runtimes, bound_xla
from noa_serving._shadow_pages import ShadowPages
from noa_serving._shadows import Shadows
from noa_serving._shared_memory import SharedRegions
from noa_serving._traffic import make_endpoints, with_arms

if TYPE_CHECKING:
    from noa_serving._endpoint import Endpoint
    from noa_serving._grpc_server import GrpcServer

_YOUNG_OBJECTS = 20_000


def start_worker(request: LaunchRequest, build: Callable[[LaunchRequest], Application]) -> AsgiApplication:
    """Return the application of this process, which is a worker and dies with its arbiter."""
    die_with_parent(arbiter_of(os.environ))
    configure_logging()
    os.environ["FORWARDED_ALLOW_IPS"] = "nobody"  # a client is who it is to the socket, on both ways in
    application = build(request)
    if application.tls is not None:
        application.tls.guard_uvicorn()
    _calm_collector()
    # The worker makes its uvicorn configuration after this call and looks the protocol up in this table.
    HTTP_PROTOCOLS["auto"] = hot_protocol(application)  # pyright: ignore[reportArgumentType]  # uvicorn takes classes too
    return _with_crew(application, request)


def _calm_collector() -> None:
    """Let the garbage collector look less often, and never again at what lives as long as the worker.

    Requests leave no cycles. With Python's thresholds it takes 3% of a small model's time, and more of its p99. What is
    loaded later, generations above all, stays collectable.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)


def build_application(
    request: LaunchRequest,
    open_registry: Callable[[], Any],
    *,
    open_for_leases: Callable[[], Any] | None,
    open_for_verdicts: Callable[[], Any] | None = None,
) -> Application:
    """Build the application of one worker; it starts to follow the registry when the server starts it.

    Nobody is told what is served without `open_for_leases`, nor what shadows have shown without `open_for_verdicts`.
    """
    settings = request.settings
    threads = compute_threads(settings.serving)
    crew = join_crew(
        request.folder,
        followed_names(settings.endpoints),
        size=settings.serving.workers,
        timeout_s=settings.serving.swap_timeout_s,
    )
    bound_xla(threads)
    runtimes = Runtimes.of(settings.serving, threads=threads)
    endpoints = make_endpoints(settings.endpoints, threads=threads, crew=crew, runtimes=runtimes)
    followed = with_arms(endpoints)
    pipelines = make_pipelines(settings.pipelines, endpoints, crew=crew)
    leases = None
    if open_for_leases is not None:
        # The worker that takes a dead one's place takes over its lease, so that nobody waits for the dead one.
        replica = f"{socket.gethostname()[:80]}:{os.getppid()}.{crew.slot}:{request.folder.name[-8:]}"
        leases = LeaseKeeper(followed, open_for_leases, lease_s=settings.serving.lease_s, replica=replica)
    follower = Follower(
        followed,
        open_registry,
        poll_interval_s=settings.serving.poll_interval_s,
        leases=leases,
        pipelines=pipelines,
    )
    return Application(
        settings.serving,
        [*endpoints, *pipelines],
        follower,
        regions=SharedRegions(request.regions_folder),
        crew=crew,
        quotas=Quotas(settings.serving, request.quotas_file),
        own_key=request.own_key,
        keys_seen_file=request.keys_seen_file,
        observer=make_observer(settings),
        shadows=_make_shadows(request, endpoints, crew, open_for_verdicts),
        metrics_pages=MetricsPages(request.folder, crew.slot) if crew.size > 1 else None,
    )


def _make_shadows(
    request: LaunchRequest,
    endpoints: Sequence[Endpoint],
    crew: Crew,
    open_for_verdicts: Callable[[], Any] | None,
) -> Shadows | None:
    if not any(one.traffic is not None and one.traffic.shadows for one in endpoints):
        return None
    return Shadows(
        endpoints,
        request.settings,
        pages=ShadowPages(request.folder, crew.slot, crew.size),
        crew=crew,
        open_registry=open_for_verdicts,
        mark=CrashMark(request.folder / f"shadow-{crew.slot}.mark"),
    )


def _with_crew(application: Application, request: LaunchRequest) -> AsgiApplication:
    """Return the application of a worker that takes connections once it serves what the other workers serve."""
    grpc = _grpc_server(application, request)

    async def start() -> None:
        _keep_beating(application.crew)
        await catch_up(list(application.endpoints.values()), application.crew)
        if grpc is not None:
            await grpc.start()
        await _report_address(request, grpc_port=None if grpc is None else grpc.port)
        application.crew.accept()
        if application.tls is not None:
            application.tls.watch()
        if application.metrics_pages is not None:
            application.metrics_pages.start(application.render_own_metrics)

    async def stop() -> None:
        if application.metrics_pages is not None:
            application.metrics_pages.stop()
        if grpc is not None:
            await grpc.stop()
        if application.tls is not None:
            application.tls.close()
        application.crew.leave()

    return AsgiApplication(application, on_startup=start, on_shutdown=stop)


def _grpc_server(application: Application, request: LaunchRequest) -> GrpcServer | None:
    if request.settings.serving.grpc_port is None:
        return None
    from noa_serving._grpc_server import GrpcServer

    return GrpcServer(application, host=listening_address()[0], port=int(request.grpc_file.read_text()))


def _keep_beating(crew: Crew) -> None:
    crew.beat()
    asyncio.get_running_loop().call_later(BEAT_S, _keep_beating, crew)


async def _report_address(request: LaunchRequest, *, grpc_port: int | None = None) -> None:
    host, port = listening_address()
    workers = request.settings.serving.workers
    table = {"host": host, "port": port, "grpc_port": grpc_port, "pid": os.getppid(), "workers": workers}
    table["is_tls"] = request.settings.serving.tls_certificate is not None
    write_file(request.ready_file, json.dumps(table))


def listening_address() -> tuple[str, int]:
    """Return where this worker listens: BentoML hands it the open socket as `--fd`."""
    descriptor = int(sys.argv[sys.argv.index("--fd") + 1])
    with socket.socket(fileno=os.dup(descriptor)) as listener:
        name = listener.getsockname()
        return str(name[0]), int(name[1])
