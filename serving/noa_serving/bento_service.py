"""The BentoML service of `noa serve`: endpoints that follow a registry.

The module is imported by the arbiter, which only asks for the worker count, and by each worker.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noa.errors import SettingsError
from noa_serving._bento_frame import make_service
from noa_serving._launch_request import REQUEST_VARIABLE, LaunchRequest, load_request

if TYPE_CHECKING:
    from noa_serving._application import Application

_LEASE_PATIENCE_S = 5.0


def follow_registry(request: LaunchRequest) -> Application:
    """Build the application of a worker whose endpoints are in the registry of the settings."""
    from noa_serving._bento_worker import build_application

    settings = request.settings

    def open_registry() -> Any:
        from noa_registry import Registry

        return Registry.open(settings.registry)

    patience_s = min(settings.registry.lock_timeout_s, _LEASE_PATIENCE_S)
    impatient = settings.registry.model_copy(update={"lock_timeout_s": patience_s})

    def open_for_leases() -> Any:
        from noa_registry import Registry

        return Registry.open(impatient)

    def open_for_verdicts() -> Any:
        from noa_registry import Registry

        return Registry.open(settings.model_copy(update={"registry": impatient}))  # the whole: with its gates

    return build_application(
        request, open_registry, open_for_leases=open_for_leases, open_for_verdicts=open_for_verdicts
    )


def _load() -> LaunchRequest:
    path = os.environ.get(REQUEST_VARIABLE)
    if path is None:
        raise SettingsError(f"`{REQUEST_VARIABLE}` is not set", remedy="Start the server with `noa serve`")
    return load_request(Path(path))


_REQUEST = _load()

SERVICE = make_service(
    lambda: _REQUEST,
    follow_registry,
    workers=_REQUEST.settings.serving.workers,
    inner=type("Noa", (), {"__doc__": "Serves the endpoints of a noa project."}),
)
