"""A project whose registry is on PostgreSQL, through the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from noa_cli.__main__ import run
from postgres_server import PostgresServer

SECRETS = ("s3cret", "of@noa", "of%40noa")


@pytest.fixture
def project(
    tmp_path: Path, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PostgresServer]:
    name = postgres_server.create_database()
    url = postgres_server.url(name)
    (tmp_path / "noa.toml").write_text(f'[project]\nname = "mine"\n[registry]\ndatabase_url = "{url}"\n')
    monkeypatch.chdir(tmp_path)
    yield postgres_server
    postgres_server.drop_database(name)


def said(capfd: pytest.CaptureFixture[str]) -> str:
    captured = capfd.readouterr()
    text = captured.out + captured.err
    assert not any(secret in text for secret in SECRETS)
    return text


@pytest.mark.usefixtures("project")
def test_a_project_on_postgresql_is_opened_looked_at_and_shows_no_password(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["models", "list", "--json"]) == 0
    assert json.loads(said(capfd).splitlines()[-1]) == []
    assert run(["doctor", "--json"]) in (0, 1)  # a port may be in use on this machine
    assert '"0 models, the ledger\'s chain holds"' in said(capfd)
    assert run(["config", "show"]) == 0
    assert "postgresql://noa:********@127.0.0.1" in said(capfd).replace("\n", "").replace(" ", "")
    assert run(["config", "show", "--json"]) == 0
    assert "********" in said(capfd)
    assert not (tmp_path / ".noa" / "noa.db").exists()


@pytest.mark.parametrize("arguments", [["models", "list"], ["--debug", "models", "list"], ["models", "list", "--json"]])
def test_a_wrong_password_is_refused_and_the_wrong_one_not_shown(
    project: PostgresServer, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    wrong = project.url("postgres").replace("s3cret", "wr0ng")
    assert run([*arguments, "-o", f"registry.database_url={wrong}"]) == 1
    text = said(capfd)
    assert "password authentication failed" in text
    assert "wr0ng" not in text
    assert "Check the user and password" in " ".join(text.split())
