"""One Prefect server, worker, MLflow UI and serving process for the whole file: they take half a minute to start."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flows_helpers import make_project, wait_until

import noa_flows
from noa.actors import flow_actor
from noa.errors import InvalidInputError, NotFoundError, ServiceError
from noa.settings import Settings, load_settings
from noa_cli.commands.flows import failure_of
from noa_flows import FlowRun, ServiceEvent, find_holder, list_deployments, list_runs, schedule, unschedule
from noa_flows._process_tree import ProcessId, is_alive, send_signal, signal
from noa_flows.schedules import follow
from noa_flows.supervisor import Supervisor
from noa_registry import Registry

pytestmark = [pytest.mark.prefect, pytest.mark.torch, pytest.mark.bentoml, pytest.mark.slow]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, add_empty_registry: Callable[[Path], None]) -> Iterator[Settings]:
    root = tmp_path_factory.mktemp("flows") / "project"
    add_empty_registry(root)
    settings = make_project(root)
    started = noa_flows.up(settings)
    try:
        assert [entry.state for entry in started] == ["running"] * 4
        yield settings
    finally:
        supervisor = Supervisor(settings.state_dir)
        records = [record for name in supervisor.names() if (record := supervisor.find(name)) is not None]
        stopped = noa_flows.down(settings)
        assert set(stopped) == {"prefect", "mlflow", "serving", "worker"}
        assert [supervisor.members(record) for record in records] == [[]] * 4
        assert supervisor.names() == []


def _members(settings: Settings) -> set[ProcessId]:
    supervisor = Supervisor(settings.state_dir)
    record = supervisor.find("worker")
    return set() if record is None else set(supervisor.members(record))


def _start_endless_run(settings: Settings) -> tuple[FlowRun, set[ProcessId]]:
    """Start a run that would train for hours; returns it and its processes once the training child is there."""
    idle = _members(settings)
    run = noa_flows.run(settings, "tiny", overrides={"epochs": 1_000_000})
    jobs = settings.training.jobs_dir
    before = set(jobs.glob("*/attempt-*/checkpoints/*"))
    wait_until(lambda: set(jobs.glob("*/attempt-*/checkpoints/*")) - before, deadline_s=120)
    return run, _members(settings) - idle


def test_addresses_answer_and_a_second_up_changes_nothing(project: Settings) -> None:
    seen: list[ServiceEvent] = []
    before = {entry.name: entry.pid for entry in noa_flows.status(project)}
    noa_flows.up(project, on_progress=seen.append)
    assert {entry.name: entry.pid for entry in noa_flows.status(project)} == before
    assert {event.phase for event in seen} == {"already running"}
    for name in ("prefect", "mlflow"):
        with urllib.request.urlopen(str(noa_flows.address_of(project, name)), timeout=10) as page:
            assert b"<html" in page.read().lower()


def test_a_schedule_is_a_deployment_with_its_next_run(project: Settings) -> None:
    deployment = schedule(project, "strict", "0 3 * * *", timezone="Europe/Berlin", overrides={"epochs": 2})
    found = next(entry for entry in list_deployments(project) if entry.recipe == "strict")
    assert (found.id, found.cron, found.timezone) == (deployment, "0 3 * * *", "Europe/Berlin")
    assert (found.is_active, found.overrides) == (True, {"epochs": 2})
    assert found.next_run is not None
    assert timedelta(0) < found.next_run - datetime.now(UTC) <= timedelta(days=1)

    assert schedule(project, "strict", "*/30 * * * *") == deployment
    assert next(entry for entry in list_deployments(project) if entry.recipe == "strict").cron == "*/30 * * * *"
    unschedule(project, "strict")
    assert all(entry.recipe != "strict" for entry in list_deployments(project))
    with pytest.raises(NotFoundError, match="`strict`"):
        unschedule(project, "strict")


def test_a_bad_time_zone_is_refused(project: Settings) -> None:
    with pytest.raises(InvalidInputError, match="`Mars/Base` is no time zone"):
        schedule(project, "tiny", "0 3 * * *", timezone="Mars/Base")


def test_an_unknown_recipe_is_refused(project: Settings) -> None:
    with pytest.raises(NotFoundError, match=r"no recipe `tinny`"):
        schedule(project, "tinny", "0 3 * * *")


def test_a_run_puts_a_new_champion_live_and_serves_it(project: Settings) -> None:
    before = find_holder(project, "tiny", "champion") or 0
    lines: list[str] = []
    run = noa_flows.run(project, "tiny", wait=True, on_log=lines.append)
    assert (run.state, run.is_success) == ("Completed", True), run.message
    number = find_holder(project, "tiny", "champion")
    assert number is not None
    assert number > before
    assert any(f"tiny/{number} is served by endpoints tiny" in line for line in lines)
    assert any("epoch 4/4" in line for line in lines)
    with urllib.request.urlopen(f"{noa_flows.address_of(project, 'serving')}/status", timeout=10) as answer:
        assert json.load(answer)["endpoints"]["tiny"]["version"] == number
    assert run.id in {entry.id for entry in list_runs(project, recipe="tiny")}


@pytest.mark.jax
def test_a_run_of_two_backends_measures_both_and_all_it_writes_names_it(project: Settings) -> None:
    with Registry.open(project) as registry:
        before = set(registry.numbers("tiny") if registry.models() else ())
        run = noa_flows.run(project, "tiny", backends=("torch", "jax"), wait=True)
        assert run.is_success, run.message
        made = sorted(set(registry.numbers("tiny")) - before)
        facts = {number: registry.evidence("tiny", number) for number in made}
    assert len(made) == 2
    for told in facts.values():
        assert {"metrics", "predictions", "equivalence", "latency", "size"} <= {fact.kind for fact in told}
        assert {fact.recording.by for fact in told if fact.recording} == {flow_actor(run.name)}


def test_a_gate_that_cannot_be_met_fails_the_run_with_its_reason(project: Settings) -> None:
    file = project.root / "noa.toml"
    text = file.read_text()
    file.write_text(text.replace("accuracy = 0.1", "accuracy = 2.0"))  # seen without a restart of the worker
    try:
        run = noa_flows.run(project, "strict", wait=True)
    finally:
        file.write_text(text)
    assert run.state == "Failed"
    assert run.message.startswith("GateRefusedError: the gate refuses `")
    assert "at least 2" in run.message
    assert find_holder(project, "strict", "champion") is None
    assert str(failure_of(run)).count("as it was") == 1
    assert str(failure_of(run)).endswith(". The whole log is in the Prefect UI")


def test_a_cancelled_run_leaves_no_process(project: Settings) -> None:
    run, processes = _start_endless_run(project)
    assert len(processes) >= 3
    ended = noa_flows.cancel(project, run.id)
    assert ended.state == "Cancelled"
    wait_until(lambda: not any(is_alive(process) for process in processes), deadline_s=30)


def test_a_killed_worker_leaves_no_run_behind_and_up_says_so(project: Settings) -> None:
    run, processes = _start_endless_run(project)
    worker = next(entry for entry in noa_flows.status(project) if entry.name == "worker")
    supervisor = Supervisor(project.state_dir)
    record = supervisor.find("worker")
    assert record is not None
    inner = [
        process for process in supervisor.members(record) if process not in processes and process.pid != worker.pid
    ]
    assert len(inner) == 1
    send_signal(inner[0], signal.SIGKILL)
    wait_until(lambda: not any(is_alive(process) for process in processes), deadline_s=30)

    with pytest.raises(ServiceError, match="worker is not running"):
        noa_flows.run(project, "tiny")
    noa_flows.up(project)
    ended = follow(project, run.id)
    assert ended.state == "Crashed"
    assert "worker" in ended.message


def test_a_server_that_is_restarted_alone_has_its_worker_again(project: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    moved = load_settings(project.root, overrides=[f"flows.port={port}"]).settings
    before = {entry.name: entry.pid for entry in noa_flows.status(project)}
    started = noa_flows.up(moved, services=["prefect"], restart=True)
    assert [(entry.name, entry.state) for entry in started] == [("prefect", "running"), ("worker", "running")]
    after = {entry.name: entry.pid for entry in noa_flows.status(moved)}
    assert {name for name in after if after[name] != before[name]} == {"prefect", "worker"}
    assert noa_flows.address_of(project, "prefect") == f"http://127.0.0.1:{port}"


def test_without_the_server_the_remedy_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = make_project(tmp_path_factory.mktemp("idle"))
    for call in (
        lambda: list_deployments(settings),
        lambda: schedule(settings, "tiny", "0 3 * * *"),
        lambda: noa_flows.run(settings, "tiny"),
    ):
        with pytest.raises(ServiceError, match="noa up"):
            call()
