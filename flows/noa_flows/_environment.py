"""The environment of the processes we start, rendered from the settings.

A child inherits this process's environment less everything that would configure the tools past our settings; what the
tools need is then written from the settings. Loopback is never sent through a proxy.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import cast

from noa.settings import Settings, load_settings
from noa_flows._process_tree import MARKER_VARIABLE

SETTINGS_VARIABLE = "NOA_FLOW_SETTINGS"
"""JSON list of `section.key=value`: what the settings in force at the start differ in from the project's file."""
WORKER_PID_VARIABLE = "NOA_WORKER_PID"
_TOOL_PREFIXES = ("PREFECT_", "MLFLOW_", "NOA__")
_SECRET_KEYS = frozenset({"serving.api_keys", "registry.s3.access_key", "registry.s3.secret_key"})
_SECRET_TABLES = ("webhooks.",)
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
    been changed in `noa.toml` (a gate, a recipe). Secrets are left out; no flow needs them.
    """
    base = _leaves(load_settings(settings.root).settings)
    now = _leaves(settings)
    pairs = [
        f"{key}={json.dumps(value)}"
        for key, value in now.items()
        if _is_carried(key) and value is not None and base.get(key) != value
    ]
    return json.dumps(sorted(pairs))


def carried_settings(root: Path, text: str | None) -> Settings:
    """Return the settings of a project with what `settings_to_carry` wrote laid on top.

    Raises:
        SettingsError: the project's file is no longer valid.
    """
    pairs = cast("list[str]", json.loads(text)) if text else []
    return load_settings(root, overrides=pairs).settings


def _is_carried(key: str) -> bool:
    return key not in _SECRET_KEYS and key != "root" and not key.startswith(_SECRET_TABLES)


def _leaves(settings: Settings) -> dict[str, object]:
    found: dict[str, object] = {}

    def walk(table: dict[str, object], prefix: str) -> None:
        for key, value in table.items():
            if isinstance(value, dict) and value:
                walk(cast("dict[str, object]", value), f"{prefix}{key}.")
            elif not isinstance(value, dict):
                found[f"{prefix}{key}"] = value

    walk(cast("dict[str, object]", settings.model_dump(mode="json")), "")
    return found
