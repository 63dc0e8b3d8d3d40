"""How BentoML knows a server: it packages and supervises it, the stack inside is ours.

`to_asgi` of the service replaces BentoML's whole ASGI stack (its tracing, metrics, access log and timeouts cost twenty
times what a small model does). Two modules make such a service: `bento_service`, which follows a registry, and the
`service.py` of a package, through `packaging.bento_packed`. The arbiter imports them too and needs no more than this:
what a worker is made of is imported by the workers, which shortens each start by a tenth of a second.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import bentoml
from _bentoml_sdk import Service

if TYPE_CHECKING:
    from noa_serving._application import Application
    from noa_serving._launch_request import LaunchRequest


def make_service(
    read_request: Callable[[], LaunchRequest],
    build: Callable[[LaunchRequest], Application],
    *,
    workers: int,
    inner: type,
    options: Mapping[str, Any] | None = None,
) -> Service[Any]:
    """Return a BentoML service whose ASGI application is noa's own.

    Each worker calls `read_request` and `build` once, when it starts; `inner` is the class that BentoML shows,
    and `options` are further ones of its own.
    """

    class NoaService(Service[Any]):
        """A BentoML service whose ASGI application is noa's own."""

        def to_asgi(self, is_main: bool = True) -> Any:
            """Return the application of one worker, which dies with its arbiter."""
            del is_main
            from noa_serving._bento_worker import start_worker

            return start_worker(read_request(), build)

    config: dict[str, Any] = {
        "name": "noa",
        "service_class": NoaService,
        "workers": workers,
        "tracing": {"excluded_urls": ".*"},
        "metrics": {"enabled": False},
        "logging": {"access": {"enabled": False}},
    }
    decorate: Any = bentoml.service  # its type names each option and takes no table
    return decorate(**config, **(options or {}))(inner)


def configure_logging() -> None:
    """Let this process say what happens on standard error, and the audit trail there too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"))
    logger = logging.getLogger("noa")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    trail = logging.StreamHandler(sys.stderr)  # lines of JSON and nothing else on them
    trail.setFormatter(logging.Formatter("%(message)s"))
    audit = logging.getLogger("noa.audit")
    audit.handlers = [trail]
    audit.propagate = False
