"""Which scope a path asks of a key, and what a key with a narrow scope sees of the server. One table for all routes.

Names of endpoints that a key does not cover are told to nobody: what lists several lists those that it may read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from noa_serving._endpoint import Endpoint
    from noa_serving._key_ring import Grant
    from noa_serving._models import Models

_LISTS = frozenset({"", "v2", "docs", "openapi.json", "v2/models/stats", "v2/repository/index"})
_WHOLE_SERVER = frozenset({"status", "metrics"})
_SHARED_MEMORY = "v2/systemsharedmemory"


class View(NamedTuple):
    """The endpoints that a caller may read of."""

    endpoints: Mapping[str, Endpoint]
    models: Models


def view_of(grant: Grant, endpoints: Mapping[str, Endpoint], models: Models) -> View:
    """Return what a caller sees."""
    if grant.sees_all:
        return View(endpoints, models)
    visible = {name: one for name, one in endpoints.items() if any(grant.allows(verb, name) for verb in grant.verbs)}
    return View(visible, models.only(visible))


def require_scope(grant: Grant, path: str) -> None:
    """Check that a caller may ask for `path`, which has no slash at its ends; unknown ones are left to the router.

    Raises:
        RequestRefusedError: 403, naming the scope.
    """
    parts = path.split("/")
    if path in _WHOLE_SERVER or path.startswith(_SHARED_MEMORY):
        grant.require("control")
    elif path in _LISTS:
        grant.require_verb("read")
    elif parts[:2] == ["v2", "models"] and len(parts) >= 3:
        grant.require("infer" if parts[-1] in ("infer", "generate_stream") else "read", parts[2])
    elif parts[:3] == ["v2", "repository", "models"] and len(parts) >= 4:
        grant.require("control", parts[3])
    elif parts[0] in ("predict", "invocations"):
        if len(parts) > 1:
            grant.require("infer", parts[1])
        else:
            grant.require_verb("infer")
