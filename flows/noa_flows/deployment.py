"""The last step: wait until the serving process answers with the version that was promoted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from noa.errors import ServiceError
from noa.references import parse_reference
from noa.settings import Settings
from noa_flows._loopback import ask
from noa_flows.pipeline_values import Deployment
from noa_flows.services import address_of

if TYPE_CHECKING:
    from noa_registry import ModelVersion

_ANSWERS_PER_WORKER = 4  # each worker process answers for itself, and the kernel chooses who does
_POLL_S = 0.1
_TIMEOUT_S = 60.0


def deploy(settings: Settings, version: ModelVersion, alias: str, *, timeout_s: float = _TIMEOUT_S) -> Deployment:
    """Wait until every endpoint of this alias answers with the promoted version; returns at once if nothing serves it.

    The server follows the alias by itself; this step is the proof that it has.

    Raises:
        ServiceError: an endpoint still answers with another version after `timeout_s`.
    """
    begun = time.monotonic()
    address = address_of(settings, "serving")
    names = tuple(name for name, rule in settings.endpoints.items() if _follows(rule.model, version.name, alias))
    if address is None or not names:
        return Deployment(reference=version.reference, endpoints=(), address=address, seconds=0.0)
    agreed = 0
    while agreed < _ANSWERS_PER_WORKER * settings.serving.workers:
        reports = _read_reports(settings, address)
        late = next((name for name in names if reports.get(name, {}).get("digest") != version.digest), None)
        agreed = agreed + 1 if late is None else 0
        if late is not None and time.monotonic() - begun > timeout_s:
            raise _late(late, reports.get(late), version, address, timeout_s)
        time.sleep(_POLL_S if late is not None else 0.0)
    return Deployment(reference=version.reference, endpoints=names, address=address, seconds=time.monotonic() - begun)


def _follows(model: str, name: str, alias: str) -> bool:
    reference = parse_reference(model)
    return (reference.name, reference.alias) == (name, alias)


def _read_reports(settings: Settings, address: str) -> dict[str, dict[str, object]]:
    """Return what one worker of the server says about each endpoint; nothing if it does not answer."""
    from noa_serving import key_to_call_own, own_server_context

    try:
        tls = own_server_context(settings.serving)
        answer = ask(f"{address}/status", token=key_to_call_own(settings, address), tls=tls)
    except ConnectionError:
        return {}
    if answer.status != 200 or not isinstance(answer.body, dict):
        return {}
    return cast("dict[str, dict[str, dict[str, object]]]", answer.body).get("endpoints", {})


def _late(
    endpoint: str, report: dict[str, object] | None, version: ModelVersion, address: str, timeout_s: float
) -> ServiceError:
    return ServiceError(
        f"endpoint `{endpoint}` does not answer with the promoted version",
        where=address,
        expected=f"version {version.number} within {timeout_s:g} s",
        received="no answer" if report is None else ", ".join(f"{key} {value}" for key, value in report.items()),
        remedy="The alias has moved; see the log of `serving` in `noa status`, and roll back if clients fail",
    )
