"""The service of `noa up` that delivers events: it is there with a webhook, works, keeps its secret, and stops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flows_helpers import wait_until

from noa.settings import Settings, load_settings
from noa_flows import down, status, up
from noa_flows._environment import carried_settings, settings_to_carry
from noa_flows._settings_digest import settings_digest
from noa_flows._webhook_deliverer import webhooks_to_carry
from noa_registry import Registry
from noa_registry.events.outbox import append_event
from webhook_receiver import SECRET, Receiver


def make_project(folder: Path, port: int, *, in_file: bool = True) -> Settings:
    values = {"url": f"http://127.0.0.1:{port}/", "secret": SECRET, "allow_private": True, "retry_base_s": 0.05}
    if in_file:
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        (folder / "noa.toml").write_text("\n".join(["[webhooks.ci]", *lines]))
        return load_settings(folder).settings
    (folder / "noa.toml").write_text("")
    pairs = [f"webhooks.ci.{key}={json.dumps(value)}" for key, value in values.items()]
    return load_settings(folder, overrides=pairs).settings


def test_the_service_delivers_and_keeps_the_secret_to_itself(tmp_path: Path) -> None:
    with Receiver() as receiver:
        settings = make_project(tmp_path, receiver.port, in_file=False)
        try:
            (found,) = up(settings, services=["webhooks"])
            assert (found.name, found.state, found.address) == ("webhooks", "running", None)
            with Registry.open(settings.registry) as registry:
                wait_until(registry.events.consumers)
                with registry._database.write() as connection:
                    append_event(connection, "alias.promoted", name="digits", payload={"to": 1})
                (request,) = receiver.wait_for(1)
                assert request.is_genuine
                wait_until(lambda: registry.events.consumers()[0].lag == 0)
            log = tmp_path / ".noa" / "logs" / "webhooks.log"
            wait_until(lambda: "event 1 alias.promoted of digits delivered" in log.read_text())
        finally:
            assert down(settings, services=["webhooks"]) == ["webhooks"]
        assert {entry.name: entry.state for entry in status(settings)}["webhooks"] == "stopped"
        written = [path for path in (tmp_path / ".noa").rglob("*") if path.is_file()]
        assert [path for path in written if SECRET.encode() in path.read_bytes()] == []


def test_a_service_with_old_settings_is_told_and_restarted_on_demand(tmp_path: Path) -> None:
    settings = make_project(tmp_path, 1)
    try:
        (first,) = up(settings, services=["webhooks"])
        assert not first.has_old_settings
        with (tmp_path / "noa.toml").open("a") as file:
            file.write("\nmax_attempts = 3\n[gates.digits]\n[training]\nthreads = 1\n")
        changed = load_settings(tmp_path).settings
        (kept,) = up(changed, services=["webhooks"])
        assert (kept.pid, kept.has_old_settings) == (first.pid, True)
        (anew,) = up(changed, services=["webhooks"], restart=True)
        assert anew.pid != first.pid
        assert not anew.has_old_settings
        (same,) = up(changed, services=["webhooks"], restart=True)
        assert same.pid == anew.pid
        record = (tmp_path / ".noa" / "services" / "webhooks.json").read_text()
        assert SECRET not in record
    finally:
        down(settings)


def test_what_a_flow_reads_when_it_runs_makes_no_worker_old(tmp_path: Path) -> None:
    (tmp_path / "noa.toml").write_text("")
    before = settings_digest(load_settings(tmp_path, overrides=["training.threads=2"]).settings, "worker")
    (tmp_path / "noa.toml").write_text("[gates.digits.min_metrics]\naccuracy = 0.5\n[training]\nlog_every_steps = 7\n")
    changed = load_settings(tmp_path, overrides=["training.threads=2"]).settings
    assert settings_digest(changed, "worker") == before
    for pair in ("training.threads=3", "flows.parallel_runs=2", "registry.lock_timeout_s=3"):
        other = load_settings(tmp_path, overrides=["training.threads=2", pair]).settings
        assert settings_digest(other, "worker") != before


@pytest.mark.parametrize("pair", ["flows.start_timeout_s=240", "flows.stop_timeout_s=3", "tracking.port=0"])
def test_what_only_concerns_who_starts_services_makes_no_worker_old(tmp_path: Path, pair: str) -> None:
    (tmp_path / "noa.toml").write_text("")
    started = load_settings(tmp_path, overrides=[pair]).settings
    assert settings_digest(started, "worker") == settings_digest(load_settings(tmp_path).settings, "worker")


def test_there_is_such_a_service_only_with_a_webhook(tmp_path: Path) -> None:
    settings = make_project(tmp_path, 1)
    assert [entry.name for entry in status(settings)] == ["prefect", "mlflow", "worker", "webhooks"]
    (tmp_path / "noa.toml").write_text("")
    assert [entry.name for entry in status(load_settings(tmp_path).settings)] == ["prefect", "mlflow", "worker"]


def test_flows_are_not_given_webhooks_and_the_deliverer_gets_all_of_them(tmp_path: Path) -> None:
    settings = make_project(tmp_path, 1, in_file=False)
    carried = settings_to_carry(settings)
    assert "webhooks" not in carried
    assert carried_settings(tmp_path, carried).webhooks == {}
    table = json.loads(webhooks_to_carry(settings))["ci"]
    assert (table["secret"], table["url"]) == (SECRET, settings.webhooks["ci"].url)
