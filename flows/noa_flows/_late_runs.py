"""Skip what a schedule makes faster than it can run, so that no backlog grows.

A deployment's own collision strategy, `CANCEL_NEW`, does not do it: it is looked at when a run is about to start, and
Prefect's worker asks for none while all its places are taken (one, by default), so late runs would wait for a place and
run one after the other. It would also cancel what somebody has asked for with `noa flows run`, which waits its turn.
"""

from __future__ import annotations

from datetime import datetime

from noa_flows._prefect_api import PrefectApi

_UNDER_WAY = "Skipped: a run of the same recipe was under way when this one was due."
_NEWER = "Skipped: it could not start in time, and a newer run of the same schedule is due."


def skip_late_runs(api: PrefectApi, pool: str, *, now: datetime) -> list[str]:
    """Cancel the scheduled runs that are due while a run of their deployment is under way; returns their ids.

    Where none is, but they had to wait for another recipe or the worker was away, the newest one stays.
    """
    due = [run for run in api.due_runs(pool, until=now.isoformat()) if run.get("auto_scheduled")]
    if not due:
        return []
    busy = {run.get("deployment_id") for run in api.started_runs(pool)}
    newest = {run.get("deployment_id"): run["id"] for run in due}
    skipped: list[str] = []
    for run in due:
        is_busy = run.get("deployment_id") in busy
        if is_busy or newest[run.get("deployment_id")] != run["id"]:
            api.set_state(str(run["id"]), "CANCELLED", _UNDER_WAY if is_busy else _NEWER, force=False)
            skipped.append(str(run["id"]))
    return skipped
