"""The ports that a project's services listen on, as its settings say."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations

from noa.errors import SettingsError
from noa.settings import Settings

_EVERY_ADDRESS = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listener:
    service: str
    setting: str
    host: str
    port: int


def refuse_shared_ports(settings: Settings, services: Collection[str] | None = None) -> None:
    """Refuse settings by which two of these services (None: of all that the project has) would listen on one port.

    Raises:
        SettingsError: two do; names both settings.
    """
    found = [one for one in _listeners(settings) if services is None or one.service in services]
    for one, other in combinations(found, 2):
        if _meet(one, other):
            raise SettingsError(
                f"`{one.setting}` and `{other.setting}` are the same port {one.port}",
                expected="a port of its own for each",
                remedy="Change one of them, or set it to 0 for a free one",
                key=other.setting,
            )


def _listeners(settings: Settings) -> list[_Listener]:
    flows, tracking, serving = settings.flows, settings.tracking, settings.serving
    found = [
        ("prefect", "flows.port", flows.host, flows.port),
        ("mlflow", "tracking.port", tracking.host, tracking.port),
    ]
    if settings.endpoints:
        found.append(("serving", "serving.port", serving.host, serving.port))
        found.append(("serving", "serving.grpc_port", serving.host, serving.grpc_port or 0))
    return [_Listener(service=name, setting=key, host=host, port=port) for name, key, host, port in found if port]


def _meet(one: _Listener, other: _Listener) -> bool:
    hosts = {"127.0.0.1" if each.host == "localhost" else each.host for each in (one, other)}
    return one.port == other.port and (len(hosts) == 1 or not hosts.isdisjoint(_EVERY_ADDRESS))
