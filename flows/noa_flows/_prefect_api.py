"""The managed Prefect server, spoken to through its documented REST API.

The command line talks to the server without importing Prefect (1.2 s, and it would read the user's own profiles): a
listing takes milliseconds. Only what runs inside a flow or the worker imports the library.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from noa.errors import InvalidInputError, NotFoundError, ServiceError
from noa_flows._loopback import Answer, ask

Row = dict[str, object]
_UNFINISHED = ("SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "PAUSED")
_STARTED = ("PENDING", "RUNNING", "CANCELLING")
_PAGE = 200
_TIMEOUT_S = 30.0
_LOOK_AT_SERVER = "See its log: `noa status` says where it is"
_HANGS = "If `noa status` finds it unhealthy, stop it with `noa down --only prefect` and start it with `noa up`"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefectApi:
    """One server by its API's address, e.g. `http://127.0.0.1:4200/api`."""

    url: str

    def is_healthy(self) -> bool:
        """Tell whether the server answers and its database does."""
        try:
            return ask(f"{self.url}/health", timeout_s=2.0).body is True
        except ConnectionError:
            return False

    def has_worker(self, pool: str, worker: str, *, since: str) -> bool:
        """Tell whether a worker has reported to the server since a time (ISO 8601, UTC)."""
        try:
            rows = self._rows(f"/work_pools/{pool}/workers/filter", {})
        except (ServiceError, NotFoundError):
            return False
        return any(
            row.get("name") == worker and row.get("status") == "ONLINE" and str(row.get("last_heartbeat_time")) >= since
            for row in rows
        )

    def ensure_pool(self, name: str) -> None:
        """Create a work pool for processes if there is none; the worker fills in its defaults when it starts."""
        self._send("/work_pools/", {"name": name, "type": "process"}, allow=(409,))

    def next_starts(self, deployments: list[str]) -> dict[str, str]:
        """Return when the next scheduled run of each deployment is due, by deployment id."""
        due: dict[str, str] = {}
        body: Row = {
            "flow_runs": {"deployment_id": {"any_": deployments}, "state": {"type": {"any_": ["SCHEDULED"]}}},
            "sort": "EXPECTED_START_TIME_ASC",
            "limit": _PAGE,
        }
        for row in self._rows("/flow_runs/filter", body) if deployments else []:
            due.setdefault(str(row["deployment_id"]), str(row["expected_start_time"]))
        return due

    def ensure_flow(self, name: str) -> str:
        """Return the id of a flow, made if it does not exist."""
        return str(self._row(self._send("/flows/", {"name": name}))["id"])

    def find_deployment(self, flow: str, name: str) -> Row | None:
        """Return a deployment, or None."""
        answer = self._send(f"/deployments/name/{flow}/{name}", None, allow=(404,))
        return None if answer.status == 404 else self._row(answer)

    def deployments(self, flow: str) -> list[Row]:
        """Return all deployments of a flow."""
        return self._rows(
            "/deployments/filter", {"flows": {"name": {"any_": [flow]}}, "limit": _PAGE, "sort": "NAME_ASC"}
        )

    def create_deployment(self, table: Mapping[str, object]) -> str:
        """Create or replace a deployment and return its id.

        Raises:
            InvalidInputError: the server does not accept a value, such as a cron expression.
        """
        return str(self._row(self._send("/deployments/", dict(table)))["id"])

    def plan_runs(self, deployment_id: str) -> None:
        """Make the runs of a deployment's schedule now instead of when the server next looks."""
        self._send(f"/deployments/{deployment_id}/schedule", {})

    def delete_deployment(self, deployment_id: str) -> None:
        """Delete a deployment with its schedules."""
        self._send(f"/deployments/{deployment_id}", None, method="DELETE")

    def create_run(self, deployment_id: str, table: Mapping[str, object]) -> Row:
        """Create a run of a deployment, to be started by the worker as soon as it can."""
        return self._row(self._send(f"/deployments/{deployment_id}/create_flow_run", dict(table)))

    def run(self, run_id: str) -> Row:
        """Return one run.

        Raises:
            NotFoundError: there is none with this id.
        """
        return self._row(self._send(f"/flow_runs/{run_id}", None))

    def runs(self, flow: str, *, limit: int, until: str, deployment: str | None = None) -> list[Row]:
        """Return the newest runs of a flow, or of one of its deployments by name, that were due `until` a time."""
        body: Row = {
            "flows": {"name": {"any_": [flow]}},
            "flow_runs": {"expected_start_time": {"before_": until}},
            "limit": min(limit, _PAGE),
            "sort": "EXPECTED_START_TIME_DESC",
        }
        if deployment is not None:
            body["deployments"] = {"name": {"any_": [deployment]}}
        return self._rows("/flow_runs/filter", body)

    def started_runs(self, pool: str) -> list[Row]:
        """Return the runs of a work pool that should have a process now."""
        return self._rows(
            "/flow_runs/filter",
            {
                "flow_runs": {"state": {"type": {"any_": list(_STARTED)}}},
                "work_pools": {"name": {"any_": [pool]}},
                "limit": _PAGE,
            },
        )

    def due_runs(self, pool: str, *, until: str) -> list[Row]:
        """Return the runs of a work pool that were due `until` a time and have not started, oldest first."""
        return self._rows(
            "/flow_runs/filter",
            {
                "flow_runs": {
                    "state": {"type": {"any_": ["SCHEDULED"]}},
                    "expected_start_time": {"before_": until},
                },
                "work_pools": {"name": {"any_": [pool]}},
                "sort": "EXPECTED_START_TIME_ASC",
                "limit": _PAGE,
            },
        )

    def set_state(self, run_id: str, kind: str, message: str, *, force: bool) -> None:
        """Move a run to a state of this type (`CANCELLING`, `CRASHED`, ...)."""
        state = {"type": kind, "name": kind.capitalize(), "message": message}
        self._send(f"/flow_runs/{run_id}/set_state", {"state": state, "force": force})

    def logs(self, run_id: str, *, offset: int) -> list[Row]:
        """Return the log rows of a run from `offset` on, oldest first."""
        return self._rows(
            "/logs/filter",
            {
                "logs": {"flow_run_id": {"any_": [run_id]}},
                "offset": offset,
                "limit": _PAGE,
                "sort": "TIMESTAMP_ASC",
            },
        )

    def _rows(self, path: str, body: Row) -> list[Row]:
        found = self._send(path, body).body
        if not isinstance(found, list):
            raise _unexpected(self.url + path, "a list", found)
        return cast("list[Row]", found)

    def _row(self, answer: Answer) -> Row:
        if not isinstance(answer.body, dict):
            raise _unexpected(self.url, "an object", answer.body)
        return cast("Row", answer.body)

    def _send(self, path: str, body: Row | None, *, method: str | None = None, allow: tuple[int, ...] = ()) -> Answer:
        answer = self._ask_patiently(path, body, method)
        if 200 <= answer.status < 300 or answer.status in allow:
            return answer
        where, reason = f"{self.url}{path}", _reason(answer.body)
        if answer.status == 404:
            raise NotFoundError(
                f"the Prefect server knows no such thing: {reason}",
                where=where,
                remedy="See what there is: noa flows list",
            )
        if answer.status in (400, 409, 422):
            raise InvalidInputError(f"the Prefect server does not accept this: {reason}", where=where)
        raise ServiceError(
            "the Prefect server failed",
            where=where,
            expected="status 2xx",
            received=f"{answer.status}: {reason}",
            remedy=_LOOK_AT_SERVER,
        )

    def _ask_patiently(self, path: str, body: Row | None, method: str | None) -> Answer:
        """Ask again while SQLite is busy (503) or the connection breaks: the server may be writing a schedule."""
        for wait_s in (0.1, 0.3, 1.0, None):
            try:
                answer = ask(self.url + path, body=body, method=method, timeout_s=_TIMEOUT_S)
            except ConnectionError as exc:
                is_away = "refused" in str(exc)
                if wait_s is None or is_away:
                    raise ServiceError(
                        "the Prefect server does not answer",
                        where=self.url,
                        expected=f"an answer over HTTP within {_TIMEOUT_S:g} s",
                        received=str(exc.__cause__ or exc),
                        remedy="Start it with `noa up`" if is_away else _HANGS,
                    ) from exc
            else:
                if answer.status != 503 or wait_s is None:
                    return answer
            time.sleep(wait_s)
        raise AssertionError("unreachable")


def is_finished(state_type: str) -> bool:
    """Tell whether a state of this type is final."""
    return state_type not in _UNFINISHED


def _unexpected(where: str, expected: str, received: object) -> ServiceError:
    return ServiceError(
        "the Prefect server gave an unexpected answer",
        where=where,
        expected=f"{expected} in JSON",
        received=str(received)[:300],
        remedy=_LOOK_AT_SERVER,
    )


def _reason(body: object) -> str:
    """Return the server's own words from an error body."""
    if isinstance(body, dict):
        table = cast("Row", body)
        details = table.get("exception_detail")
        if isinstance(details, list) and details:
            return _clearest([cast("Row", entry) for entry in cast("list[object]", details) if isinstance(entry, dict)])
        for key in ("detail", "exception_message"):
            if table.get(key):
                return str(table[key])
    return str(body)[:300]


def _clearest(details: list[Row]) -> str:
    """Return the one complaint of a validator's list that is about a value; the others are alternatives not meant."""
    about_values = [entry for entry in details if entry.get("type") == "value_error"]
    return str((about_values or details)[0].get("msg")).removeprefix("Value error, ")
