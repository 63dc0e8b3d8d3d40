"""What runs in a Bento that `noa package` made: `service.py` there calls `packed_service`.

BentoML's `serve` imports `service.py` in its arbiter, which starts the workers, and in each worker. The arbiter lays
out the server's private folder when it begins to serve; building a Bento imports the same and leaves nothing behind.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bentoml
import click

from noa.errors import NoaError, SettingsError
from noa.settings import ServingSettings, Settings, load_settings
from noa_serving.__main__ import GRACE_S, KEEP_ALIVE_S, require_engine
from noa_serving._bento_arbiter import look_for_dead_workers_often, stay_connected
from noa_serving._bento_frame import configure_logging, make_service
from noa_serving._exposure import check_exposure, is_open
from noa_serving._launch_request import ARBITER_VARIABLE, LaunchRequest, load_request
from noa_serving.packaging.bento_folder import WHEELS_FOLDER
from noa_serving.packaging.packed_model import MODEL_FOLDER, PackedModel

if TYPE_CHECKING:
    from _bentoml_sdk import Service

    from noa_serving._application import Application

PACKED_VARIABLE = "NOA_SERVING_PACKED"
"""The file of the launch request, which the arbiter tells its workers."""

log = logging.getLogger("noa.serving")


def packed_service(service_file: str, *, digest: str) -> Service[Any]:
    """Return the service of the package around `service_file`; `digest` is that of its `packed.json`.

    Raises:
        NoaError: the package's settings, or those in the environment, are not valid.
    """
    folder = Path(service_file).resolve().parent
    settings = packed_settings(folder, os.environ)
    look_for_dead_workers_often()
    grace_s = math.ceil(settings.serving.timeout_s) + GRACE_S
    stay_connected(keep_alive_s=KEEP_ALIVE_S, grace_s=grace_s)

    class Noa:
        """Serves one endpoint, pinned to its version."""

        @bentoml.on_deployment
        @staticmethod
        def prepare() -> None:
            """Lay out the private folder of a server that begins."""
            _prepare(settings)

    def build(request: LaunchRequest) -> Application:
        from noa_serving._bento_worker import build_application, listening_address

        _refuse_exposure(request.settings.serving, listening_address()[0])
        model = folder / MODEL_FOLDER
        return build_application(request, lambda: PackedModel(model, digest=digest), open_for_leases=None)

    options: dict[str, object] = {"http": {"host": settings.serving.host, "port": settings.serving.port}}
    if not _is_serving():
        options["image"] = _image(folder)
    return make_service(_read_request, build, workers=settings.serving.workers, inner=Noa, options=options)


def packed_settings(folder: Path, environ: Mapping[str, str]) -> Settings:
    """Return the settings of a package: its own `noa.toml`, over which the environment may set what is in `serving`.

    Raises:
        SettingsError: they are not valid; names the place.
    """
    allowed = {f"serving.{name}" for name in ServingSettings.model_fields}
    nowhere = folder / "no-settings-of-a-user"
    return load_settings(folder, environ=environ, user_file=nowhere, outside=allowed).settings


def _image(folder: Path) -> object:
    """Return what `bentoml build` makes an image of: exactly the packages of this package, noa's wheel among them."""
    from bentoml.images import Image

    image = Image(python_version=f"{sys.version_info.major}.{sys.version_info.minor}", lock_python_packages=False)
    # Without `build_include` the Dockerfile installs packages before it copies the wheel.
    packages = (folder / "requirements.txt").read_text().split()
    return image.python_packages(*packages).build_include(WHEELS_FOLDER)


def _is_serving() -> bool:
    """Tell whether this process serves, where an image is of no use and its import takes a good part of the start."""
    context = _command()
    return PACKED_VARIABLE in os.environ or (context is not None and context.info_name == "serve")


def _prepare(settings: Settings) -> None:
    configure_logging()
    try:
        serving = settings.serving
        require_engine(grpc=serving.grpc_port is not None, traces=bool(serving.trace_endpoint))
        _check_host(settings.serving, _host_asked_for())
    except NoaError as exc:
        print(f"error: {exc}", file=sys.stderr, flush=True)
        raise SystemExit(1) from exc
    parent = Path(tempfile.mkdtemp(prefix="noa-"))
    arbiter = os.getpid()
    atexit.register(_remove, parent, arbiter)
    request = LaunchRequest(settings=settings, folder=parent / "server", die_with_parent=False)
    request.save()
    if settings.serving.grpc_port is not None:
        request.grpc_file.write_text(str(settings.serving.grpc_port))
    os.environ[PACKED_VARIABLE] = str(request.path)
    os.environ[ARBITER_VARIABLE] = str(arbiter)


def _remove(folder: Path, arbiter: int) -> None:
    if os.getpid() == arbiter:
        shutil.rmtree(folder, ignore_errors=True)


def _read_request() -> LaunchRequest:
    path = os.environ.get(PACKED_VARIABLE)
    if path is None:
        raise SettingsError(f"`{PACKED_VARIABLE}` is not set", remedy="Start the server with `bentoml serve`")
    return load_request(Path(path))


def _host_asked_for() -> str | None:
    """Return the address in the command line that runs, None where it does not say."""
    context = _command()
    return None if context is None else context.params.get("host")


def _command() -> click.Context | None:
    return click.get_current_context(silent=True)


def _check_host(serving: ServingSettings, host: str | None) -> None:
    if host is None:
        return
    whole = ServingSettings.model_validate({**dict(serving), "host": host})
    check_exposure(whole)
    if is_open(whole):
        log.warning("anybody who reaches %s is answered without a key (serving.allow_unauthenticated)", host)


def _refuse_exposure(serving: ServingSettings, host: str) -> None:
    """End the whole server if it listens where it may not: started again, a worker would find the same."""
    try:
        _check_host(serving, host)
    except NoaError as exc:
        print(f"error: {exc}", file=sys.stderr, flush=True)
        os.kill(os.getppid(), signal.SIGTERM)
        raise SystemExit(1) from exc
