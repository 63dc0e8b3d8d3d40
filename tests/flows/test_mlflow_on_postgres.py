"""The MLflow UI of a project whose registry is on PostgreSQL."""

from __future__ import annotations

import socket
from pathlib import Path

from flows_helpers import wait_until

from noa.settings import Settings, load_settings
from noa_flows._service_plans import plan_services
from noa_flows.supervisor import Supervisor
from noa_registry import Registry
from postgres_server import PostgresServer


def settings_on(url: str, folder: Path) -> Settings:
    folder.mkdir()
    (folder / "noa.toml").write_text(f'[project]\nname = "mine"\n[registry]\ndatabase_url = "{url}"\n')
    return load_settings(folder).settings


def test_the_address_of_the_database_is_in_no_argument(tmp_path: Path) -> None:
    settings = settings_on("postgresql://ada:s3cret@h/db", tmp_path / "mine")
    command = plan_services(settings)["mlflow"].build("http://127.0.0.1:5000", {})
    assert not any("s3cret" in argument or "postgresql" in argument for argument in command.arguments)
    assert command.environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg://ada:s3cret@h/db"


def test_the_user_interface_serves_what_noa_registered(
    tmp_path: Path, postgres_server: PostgresServer, supervisor: Supervisor
) -> None:
    from mlflow import MlflowClient

    name = postgres_server.create_database()
    settings = settings_on(postgres_server.url(name), tmp_path / "mine")
    Registry.open(settings.registry).close()
    postgres_server.execute(
        "INSERT INTO registered_models (name, creation_time, last_updated_time) VALUES ('digits', 1, 1)", database=name
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    plan = plan_services(settings)["mlflow"]
    record = supervisor.start(plan.build(address, {}))
    wait_until(lambda: plan.is_healthy(record, {}), deadline_s=120)
    client = MlflowClient(address, address)
    assert [model.name for model in client.search_registered_models()] == ["digits"]
    assert "s3cret" not in record.log_file.read_text()
    for file in (settings.state_dir / "services").glob("*"):
        assert "s3cret" not in file.read_text()
    supervisor.stop("mlflow", timeout_s=10)
    postgres_server.drop_database(name)
