"""Deployments, schedules and runs of the flow `retrain` on the project's Prefect server.

A schedule lives in the server's database, so the server must run to make, list or change one; what was scheduled is
kept over `noa down` and taken up again by the next `noa up`. Each recipe has one deployment, of which one run executes
at a time.
"""

from __future__ import annotations

import json
import time
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from noa.errors import InvalidInputError, NotFoundError, ServiceError
from noa.settings import Settings
from noa_flows._environment import prefect_home
from noa_flows._prefect_api import PrefectApi, Row, is_finished
from noa_flows._prefect_cron import check_cron
from noa_flows._service_plans import WORK_POOL, ServiceName, api_url
from noa_flows.pipeline import plan_pipeline
from noa_flows.services import address_of
from noa_flows.supervisor import Supervisor
from noa_training import BackendName

FLOW_NAME = "retrain"
ENTRYPOINT = "noa_flows.prefect_flow.retrain"
_PARAMETER_SCHEMA: Row = {
    "type": "object",
    "properties": {
        "recipe": {"type": "string", "title": "recipe", "position": 0},
        "overrides": {"type": ["object", "null"], "title": "overrides", "position": 1, "default": None},
        "backends": {
            "type": ["array", "null"],
            "items": {"type": "string"},
            "title": "backends",
            "position": 2,
            "default": None,
        },
        "root": {"type": ["string", "null"], "title": "root", "position": 3, "default": None},
    },
    "required": ["recipe"],
}
_FAILED_PREFIX = "Flow run encountered an exception:"
_POLL_S = 0.5
_LOG_DELAY_S = 2.5  # a run's process sends its log in batches, the last one after its final state


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowDeployment:
    """A recipe that the worker can run; without a schedule `cron`, `timezone` and `next_run` are None."""

    id: str
    recipe: str
    cron: str | None
    timezone: str | None
    is_active: bool
    next_run: datetime | None
    overrides: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRun:
    """One execution. `state` is Prefect's (`Completed`, `Failed`, `Running`, ...); `message` is its reason."""

    id: str
    name: str
    recipe: str
    state: str
    message: str
    is_finished: bool
    is_success: bool
    started_at: datetime | None
    ended_at: datetime | None
    expected_at: datetime | None
    address: str


def schedule(
    settings: Settings,
    recipe: str,
    cron: str,
    *,
    timezone: str = "UTC",
    overrides: Mapping[str, object] | None = None,
    on_step: Callable[[str], None] | None = None,
) -> str:
    """Make the recipe's deployment run by a cron schedule, in place of an earlier one; returns the deployment's id.

    What is due while a run of the recipe is under way is skipped by the worker. `on_step` hears what is done now.

    Raises:
        InvalidInputError: the cron expression or the time zone is not valid.
        NotFoundError: no such recipe. `RecipeError`: the recipe or an override is not valid.
        ServiceError: the Prefect server is not running.
    """
    tell = on_step or _say_nothing
    tell("checking the schedule")
    cron = check_cron(cron, prefect_home=prefect_home(settings))
    _check_timezone(timezone)
    tell("reading the recipe")
    plan_pipeline(settings, recipe, overrides=overrides, promote=True)
    tell("waiting for the project's Prefect server")
    api = _connect(settings)
    entry: Row = {"active": True, "schedule": {"cron": cron, "timezone": timezone, "day_or": True}}
    deployment = _deploy(api, settings, recipe, overrides=overrides, schedules=[entry])
    api.plan_runs(deployment)
    return deployment


def unschedule(settings: Settings, recipe: str) -> None:
    """Delete the recipe's deployment with its schedule; runs that were made stay listed.

    Raises:
        NotFoundError: the recipe has no deployment.
        ServiceError: the Prefect server is not running.
    """
    api = _connect(settings)
    found = api.find_deployment(FLOW_NAME, recipe)
    if found is None:
        listed = ", ".join(f"`{entry.recipe}`" for entry in list_deployments(settings)) or "no deployment"
        raise NotFoundError(f"recipe `{recipe}` has no schedule", expected=listed, received=f"`{recipe}`")
    api.delete_deployment(str(found["id"]))


def list_deployments(settings: Settings) -> list[FlowDeployment]:
    """Return all deployments of the project, by recipe.

    Raises:
        ServiceError: the Prefect server is not running.
    """
    api = _connect(settings)
    found = api.deployments(FLOW_NAME)
    due = api.next_starts([str(row["id"]) for row in found])
    return [_deployment_of(row, due.get(str(row["id"]))) for row in found]


def list_runs(settings: Settings, *, recipe: str | None = None, limit: int = 20) -> list[FlowRun]:
    """Return the newest runs, of one recipe or of all; runs that are not due yet are left out.

    Raises:
        ServiceError: the Prefect server is not running.
    """
    api = _connect(settings)
    until = datetime.now(UTC).isoformat()
    return [_run_of(row, api) for row in api.runs(FLOW_NAME, limit=limit, until=until, deployment=recipe)]


def run(
    settings: Settings,
    recipe: str,
    *,
    wait: bool = False,
    overrides: Mapping[str, object] | None = None,
    backends: Sequence[BackendName] | None = None,
    on_log: Callable[[str], None] | None = None,
) -> FlowRun:
    """Let the worker run a recipe now; with `wait`, follow it to its end (its log lines go to `on_log`).

    Whether the returned run succeeded is in `is_success`. Interrupting the wait leaves it running.

    Raises:
        NotFoundError, RecipeError: as `schedule`.
        ServiceError: the Prefect server or the worker is not running.
    """
    plan_pipeline(settings, recipe, backends=backends, overrides=overrides, promote=True)
    api = _connect(settings)
    _require_worker(settings)
    present = api.find_deployment(FLOW_NAME, recipe)
    deployment = str(present["id"]) if present is not None else _deploy(api, settings, recipe)
    parameters: Row = {"recipe": recipe, "overrides": dict(overrides or {}) or None}
    parameters["backends"] = list(backends) if backends else None
    row = api.create_run(deployment, {"parameters": parameters, "state": {"type": "SCHEDULED"}})
    return _follow(settings, api, str(row["id"]), on_log) if wait else _run_of(row, api)


def follow(settings: Settings, run_id: str, *, on_log: Callable[[str], None] | None = None) -> FlowRun:
    """Wait until a run has ended and return it.

    Raises:
        NotFoundError: no such run.
        ServiceError: the Prefect server is not running, or the worker ended meanwhile.
    """
    return _follow(settings, _connect(settings), run_id, on_log)


def cancel(settings: Settings, run_id: str, *, timeout_s: float = 60.0) -> FlowRun:
    """Cancel a run and wait until the worker has ended its processes; a run that has ended stays as it is.

    Raises:
        NotFoundError: no such run.
        ServiceError: the server is not running, or the run does not end in `timeout_s`.
    """
    api = _connect(settings)
    give_up_at = time.monotonic() + timeout_s
    if not is_finished(str(api.run(run_id)["state_type"])):
        api.set_state(run_id, "CANCELLING", "Cancelled by the user.", force=False)
    while True:
        row = api.run(run_id)
        if is_finished(str(row["state_type"])):
            return _run_of(row, api)
        if time.monotonic() > give_up_at:
            raise ServiceError(
                f"run `{row['name']}` does not end",
                where=api.url,
                expected=f"a final state within {timeout_s:g} s",
                received=str(row["state_name"]),
                remedy="`noa down` ends its processes for certain",
            )
        time.sleep(_POLL_S)


def _follow(settings: Settings, api: PrefectApi, run_id: str, on_log: Callable[[str], None] | None) -> FlowRun:
    shown = 0
    while True:
        row = api.run(run_id)
        ended = is_finished(str(row["state_type"]))
        if on_log is not None:
            if ended:
                time.sleep(_LOG_DELAY_S)
            shown += _forward_logs(api, run_id, shown, on_log)
        if ended:
            return _run_of(row, api)
        _require_worker(settings)
        time.sleep(_POLL_S)


def _forward_logs(api: PrefectApi, run_id: str, shown: int, on_log: Callable[[str], None]) -> int:
    lines = api.logs(run_id, offset=shown)
    for line in lines:
        on_log(str(line["message"]))
    return len(lines)


def _connect(settings: Settings) -> PrefectApi:
    address = address_of(settings, "prefect")
    if address is None:
        raise ServiceError(
            "the project's Prefect server is not running",
            where=str(settings.root),
            expected="service `prefect` running",
            received=_state_of(settings, "prefect"),
            remedy="Start it with `noa up`",
        )
    return PrefectApi(url=api_url(address))


def _state_of(settings: Settings, service: ServiceName) -> str:
    """Return what is known of a service that does not run."""
    supervisor = Supervisor(settings.state_dir)
    record = supervisor.find(service)
    return "it was not started" if record is None else f"it died; {supervisor.log_tail(record, lines=1)}".rstrip("; ")


def _require_worker(settings: Settings) -> None:
    from noa_flows.services import is_running

    if not is_running(settings, "worker"):
        raise ServiceError(
            "the project's worker is not running, and it executes the flows",
            where=str(settings.root),
            expected="service `worker` running",
            received=_state_of(settings, "worker"),
            remedy="Start it with `noa up`; what is scheduled is taken up then",
        )


def _deploy(
    api: PrefectApi,
    settings: Settings,
    recipe: str,
    *,
    overrides: Mapping[str, object] | None = None,
    schedules: Sequence[Row] = (),
) -> str:
    api.ensure_pool(WORK_POOL)
    return api.create_deployment(
        {
            "name": recipe,
            "flow_id": api.ensure_flow(FLOW_NAME),
            "schedules": list(schedules),
            "parameters": {"recipe": recipe, "overrides": dict(overrides or {}) or None},
            "parameter_openapi_schema": _PARAMETER_SCHEMA,
            "enforce_parameter_schema": True,
            "entrypoint": ENTRYPOINT,
            "work_pool_name": WORK_POOL,
            "concurrency_limit": 1,
            "concurrency_options": {"collision_strategy": "ENQUEUE"},
            "tags": ["noa", settings.project.name, recipe],
            "description": f"Retrains `{recipe}` of the project at {settings.root}.",
        }
    )


def _deployment_of(row: Row, due: str | None) -> FlowDeployment:
    schedules = cast("list[Row]", row.get("schedules") or [])
    first = schedules[0] if schedules else {}
    rule = cast("Row", first.get("schedule") or {})
    parameters = cast("Row", row.get("parameters") or {})
    return FlowDeployment(
        id=str(row["id"]),
        recipe=str(row["name"]),
        cron=None if rule.get("cron") is None else str(rule["cron"]),
        timezone=None if rule.get("timezone") is None else str(rule["timezone"]),
        is_active=bool(first.get("active")) and not row.get("paused"),
        next_run=_time(due),
        overrides=cast("Mapping[str, object]", parameters.get("overrides") or {}),
    )


def _run_of(row: Row, api: PrefectApi) -> FlowRun:
    state = cast("Row", row.get("state") or {})
    kind = str(row.get("state_type") or state.get("type"))
    parameters = cast("Row", row.get("parameters") or {})
    return FlowRun(
        id=str(row["id"]),
        name=str(row["name"]),
        recipe=str(parameters.get("recipe", "")),
        state=str(row.get("state_name") or state.get("name")),
        message=str(state.get("message") or "").removeprefix(_FAILED_PREFIX).strip(),
        is_finished=is_finished(kind),
        is_success=kind == "COMPLETED",
        started_at=_time(row.get("start_time")),
        ended_at=_time(row.get("end_time")),
        expected_at=_time(row.get("expected_start_time")),
        address=f"{api.url.removesuffix('/api')}/runs/flow-run/{row['id']}",
    )


def _say_nothing(text: str) -> None:
    del text


def _time(value: object) -> datetime | None:
    return None if value is None else datetime.fromisoformat(str(value))


def _check_timezone(name: str) -> None:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise InvalidInputError(
            f"`{name}` is no time zone", expected="a name such as `UTC` or `Europe/Berlin`", received=json.dumps(name)
        ) from exc
