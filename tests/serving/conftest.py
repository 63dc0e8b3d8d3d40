"""Fixtures of the serving tests; what they are made of is in `serving_kit`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports test files by path, so a helper beside them needs this

from serving_kit import Project, affine_model, build_app, endpoint, make_project, mixed_model

from noa_serving import ServerProcess, start_server
from noa_serving._asgi import AsgiApplication

FEATURES = 4


@pytest.fixture(scope="session")
def empty_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of an empty registry; making its tables takes seconds, copying it does not."""
    project = make_project(tmp_path_factory.mktemp("empty"))
    project.registry().close()
    return project.settings.state_dir


@pytest.fixture
def project(tmp_path: Path, empty_state: Path) -> Project:
    return make_project(tmp_path, empty_state)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    """A project with `digits` 1 (scale 2) and 2 (scale 3, champion), and `mixed` 1."""
    project = make_project(tmp_path_factory.mktemp("content"), empty_state)
    project.publish("digits", affine_model(2.0, features=FEATURES))
    project.publish("digits", affine_model(3.0, features=FEATURES))
    project.publish("mixed", mixed_model)
    return project


@pytest.fixture(scope="module")
def app(content: Project) -> AsgiApplication:
    return build_app(
        content.settings, digits="digits@champion", first="digits/1", mixed="mixed@champion", absent="digits@nobody"
    )


@pytest.fixture(scope="module")
def server(content: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server with the endpoints `digits`, `first` (pinned) and `mixed`."""
    endpoints = {
        "digits": endpoint("digits@champion"),
        "first": endpoint("digits/1"),
        "mixed": endpoint("mixed@champion"),
    }
    log = tmp_path_factory.mktemp("log") / "server.log"
    with start_server(content.settings, endpoints=endpoints, log_file=log) as process:
        process.wait_ready()
        yield process


@pytest.fixture(scope="module")
def url(server: ServerProcess) -> str:
    address = server.command.read_address()
    assert address is not None
    return address.url
