"""The settings that a service was started with, as one digest: whether they have changed since is a comparison.

Of the settings only those count that the service was given and uses: a flow reads gates and recipes when it runs, and
how long a service may take to start concerns who starts it, so a change of these needs no restart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import cast

from pydantic import SecretStr

from noa.settings import Settings
from noa_flows._environment import settings_to_carry
from noa_flows._service_plans import ServiceName

_PLACES = ("database_url", "artifact_dir", "artifact_url", "s3")
_REGISTRY = (*_PLACES, "cache_dir", "cache_max_bytes", "lock_timeout_s", "signing")
_USED: Mapping[ServiceName, tuple[tuple[str, str], ...]] = {
    "prefect": (("flows", "host"), ("flows", "port")),
    "mlflow": (("tracking", ""), *(("registry", name) for name in _PLACES)),
    "serving": (("serving", ""), ("endpoints", ""), *(("registry", name) for name in _REGISTRY)),
    "worker": (("flows", "parallel_runs"),),
    "webhooks": (("webhooks", ""), ("registry", "events_keep_days"), *(("registry", name) for name in _REGISTRY)),
}
# Who starts the services reads these; what the worker itself is given of them stands above.
_OF_OTHERS = ("flows", "tracking")


def settings_digest(settings: Settings, service: ServiceName) -> str:
    """Return the digest of what `service` is given of the settings."""
    values = settings.model_dump(mode="python")
    used = {f"{section}.{name}": values[section][name] if name else values[section] for section, name in _USED[service]}
    if service == "worker":
        carried = cast("dict[str, object]", json.loads(settings_to_carry(settings)))
        used["carried"] = {section: table for section, table in carried.items() if section not in _OF_OTHERS}
    text = json.dumps(used, sort_keys=True, default=_plain)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _plain(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
