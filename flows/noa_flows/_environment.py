"""The environment of the processes we start, rendered from the settings.

A child inherits this process's environment less everything that would configure the tools past our settings; what the
tools need is then written from the settings. Loopback is never sent through a proxy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from noa.settings import RegistrySettings, Settings, load_carried_settings, load_settings
from noa_flows._process_tree import MARKER_VARIABLE

if TYPE_CHECKING:
    from pydantic import SecretStr

SETTINGS_VARIABLE = "NOA_FLOW_SETTINGS"
"""JSON table of settings: what those in force at the start say otherwise than the project's file."""
WORKER_PID_VARIABLE = "NOA_WORKER_PID"
_TOOL_PREFIXES = ("PREFECT_", "MLFLOW_", "NOA__")
_SIGNING_SECRETS = ("private_key_pem", "private_key_password", "sigstore_token")
# What the environment may have to complete before it is valid: of this the file alone tells nothing. `serving` and
# `webhooks` have their own ways to the processes that need them.
_REPLACED = (
    *(f"registry.{name}" for name in RegistrySettings.model_fields if name != "principals"),
    *("serving.api_keys", "serving.client_key", "serving.host", "webhooks"),
)
_LOOPBACK = "127.0.0.1,localhost,::1"


def inherited_environment() -> dict[str, str]:
    """Return this process's environment without settings of tools, and with loopback exempt from proxies."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_TOOL_PREFIXES) and name != MARKER_VARIABLE
    }
    for name in ("NO_PROXY", "no_proxy"):
        present = environment.get(name)
        environment[name] = f"{present},{_LOOPBACK}" if present else _LOOPBACK
    return {**environment, "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}


def recipe_environment() -> dict[str, str]:
    """Return what a process is given that runs a recipe: as above, without the settings that a flow carries, which hold
    secrets."""
    return {name: value for name, value in inherited_environment().items() if name != SETTINGS_VARIABLE}


def prefect_environment(settings: Settings, api_url: str) -> dict[str, str]:
    """Return what every process that imports Prefect is given: server, worker and flow runs."""
    home = prefect_home(settings)
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": api_url,
        "PREFECT_UI_URL": api_url.removesuffix("/api"),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_SERVER_UI_API_URL": api_url,
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home / "ui"),
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        "PREFECT_LOGGING_COLORS": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }


def prefect_home(settings: Settings) -> Path:
    """Return the folder that holds everything of this project's Prefect."""
    return settings.state_dir / "prefect"


def mlflow_environment(settings: Settings) -> dict[str, str]:
    """Return what the MLflow UI is given beside its arguments.

    Where its data is goes in here: an address may hold a password, and arguments are seen by every user of the machine.
    """
    from noa_registry.artifacts import runs_uri, s3_environment
    from noa_registry.database_url import parse_database_url

    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_BACKEND_STORE_URI": parse_database_url(settings.registry.database_url).render(),
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": runs_uri(settings.registry),
        **s3_environment(settings.registry),
    }


def settings_to_carry(settings: Settings) -> str:
    """Return the value of NOA_FLOW_SETTINGS: a later process reads the project's file and lays this on top.

    So a flow sees what `-o`, the environment and the user's file said when the worker started, and also what has since
    been changed in `noa.toml` (a gate, a recipe). Of secrets it holds those that sign what a flow registers, and the
    database's password.
    """
    now = cast("dict[str, dict[str, object]]", settings.model_dump(mode="json", exclude={"root", "webhooks"}))
    for name in ("api_keys", "client_key", "host"):
        del now["serving"][name]
    registry = now.pop("registry")
    principals = registry.pop("principals")
    s3, signing = (cast("dict[str, object]", registry[name]) for name in ("s3", "signing"))
    del s3["access_key"], s3["secret_key"]  # these go where AWS looks for them
    for name in _SIGNING_SECRETS:
        secret = cast("SecretStr | None", getattr(settings.registry.signing, name))
        signing[name] = None if secret is None else secret.get_secret_value()
    base = load_carried_settings(settings.root, {"registry": registry}, replaced=_REPLACED).settings
    changed = _difference({**now, "registry": {"principals": principals}}, base.model_dump(mode="json"))
    return json.dumps({**changed, "registry": {**registry, **changed.get("registry", {})}})


def carried_settings(root: Path, text: str | None) -> Settings:
    """Return the settings of a project with what `settings_to_carry` wrote laid on top.

    Raises:
        SettingsError: the project's file is no longer valid.
    """
    if not text:
        return load_settings(root, outside=()).settings
    carried = cast("dict[str, object]", json.loads(text))
    return load_carried_settings(root, carried, replaced=_REPLACED).settings


def _difference(now: Mapping[str, object], base: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Return what `now` says otherwise than `base`, as nested tables."""
    found: dict[str, object] = {}
    for key, value in now.items():
        below = base.get(key)
        if isinstance(value, dict):
            table = cast("dict[str, object]", value)
            inner = _difference(table, cast("dict[str, object]", below) if isinstance(below, dict) else {})
            if inner:
                found[key] = inner
        elif key not in base or value != below:
            found[key] = value
    return cast("dict[str, dict[str, object]]", found)
