"""What a schedule makes faster than it can run is skipped; on a Prefect server of its own, without a worker."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from flows_helpers import make_project

import noa_flows
from noa_flows import schedule
from noa_flows._late_runs import skip_late_runs
from noa_flows._prefect_api import PrefectApi
from noa_flows._service_plans import WORK_POOL, api_url

pytestmark = [pytest.mark.prefect, pytest.mark.torch, pytest.mark.slow]


@pytest.fixture
def scheduled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PrefectApi, str]]:
    """The server of a project, and the deployment of a schedule that makes a run a minute."""
    settings = make_project(tmp_path_factory.mktemp("late") / "project")
    noa_flows.up(settings, services=["prefect"])
    try:
        deployment = schedule(settings, "tiny", "* * * * *")
        yield PrefectApi(url=api_url(str(noa_flows.address_of(settings, "prefect")))), deployment
    finally:
        noa_flows.down(settings)


def test_what_is_due_while_a_run_of_the_recipe_is_under_way_is_skipped(scheduled: tuple[PrefectApi, str]) -> None:
    api, deployment = scheduled
    now = datetime.now(UTC) + timedelta(minutes=2, seconds=30)
    due = [str(run["id"]) for run in api.due_runs(WORK_POOL, until=now.isoformat())]
    assert len(due) >= 2
    asked = api.create_run(deployment, {"parameters": {"recipe": "tiny"}, "state": {"type": "SCHEDULED"}})

    assert skip_late_runs(api, WORK_POOL, now=now) == due[:-1]
    assert "newer" in str(api.run(due[0])["state"])
    assert api.run(due[-1])["state_type"] == "SCHEDULED"

    api.set_state(due[-1], "PENDING", "", force=True)
    api.set_state(due[-1], "RUNNING", "", force=True)
    later = now + timedelta(minutes=2)
    skipped = skip_late_runs(api, WORK_POOL, now=later)
    assert len(skipped) == 2
    rows = [api.run(run) for run in skipped]
    assert {row["state_type"] for row in rows} == {"CANCELLED"}
    assert all("was under way" in str(row["state"]) for row in rows)
    assert api.run(str(asked["id"]))["state_type"] == "SCHEDULED", "what somebody asked for waits its turn"
    assert skip_late_runs(api, WORK_POOL, now=later) == []

    api.set_state(due[-1], "COMPLETED", "", force=True)
    much_later = later + timedelta(minutes=1)
    assert skip_late_runs(api, WORK_POOL, now=much_later) == []
    assert api.started_runs(WORK_POOL) == []
