"""Fixtures of the registry's tests: drafts with a real ONNX graph, and databases that are built once and copied.

Every test that uses `settings`, `registry`, `version`, ... runs twice: on SQLite with files in a folder, and on
PostgreSQL with files in S3. Of a table of cases `make test` takes all on SQLite and every third on PostgreSQL, and
`make chaos` the others.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from fault_client import EVERY_POINT
from noa.digests import build_manifest
from noa.settings import RegistrySettings
from noa.signatures import Signature, TensorSpec
from noa_registry import (
    Evidence,
    ModelVersion,
    Registry,
    VersionDraft,
    equivalence_evidence,
    metrics_evidence,
)
from postgres_server import PostgresServer
from s3_server import S3Server, StoredFiles, s3_settings
from sql_access import execute_on

Dialect: TypeAlias = Literal["sqlite", "postgresql"]
Store: TypeAlias = Literal["folder", "s3"]
DATASET = "sha256:" + "d" * 64
HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before the tests of the long suites are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to `make chaos` two of three cases on PostgreSQL of each table whose test does not say itself which."""
    tables: dict[str, list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and item.path.parent == HERE:
            tables.setdefault(f"{item.path}::{item.originalname}", []).append(item)
    for cases in tables.values():
        if not any(case.get_closest_marker("chaos") for case in cases):
            on_postgresql = [case for case in cases if is_on_postgresql(case)]
            for number, case in enumerate(sorted(on_postgresql, key=lambda case: [*case.callspec.indices.items()])):
                if number % 3:
                    case.add_marker(pytest.mark.chaos)


def is_on_postgresql(case: pytest.Function) -> bool:
    return hasattr(case, "callspec") and case.callspec.params.get("dialect") == "postgresql"


@dataclass(frozen=True)
class Formats:
    """Prepared format folders of one linear model, `logits = x @ weights`."""

    folder: Path
    signature: Signature
    weights: np.ndarray

    @property
    def torch(self) -> Path:
        return self.folder / "torch"

    @property
    def onnx(self) -> Path:
        return self.folder / "onnx"

    def digest(self, name: str) -> str:
        return build_manifest(self.folder / name).digest

    def equivalence(self, *, passed: bool = True, target: str = "onnx", **changes: str) -> Evidence:
        facts = {
            "source": "torch",
            "source_digest": self.digest("torch"),
            "target": target,
            "target_digest": self.digest(target),
        }
        return equivalence_evidence(**{**facts, **changes}, passed=passed, values={"max_difference": 0.0})

    def metrics(
        self, *, format_name: str = "onnx", dataset: str = DATASET, split: str = "test", **values: float
    ) -> Evidence:
        return metrics_evidence(
            format=format_name, digest=self.digest(format_name), dataset_digest=dataset, split=split, values=values
        )

    def draft(
        self, *, name: str = "digits", evidence: Sequence[Evidence] | None = None, **changes: object
    ) -> VersionDraft:
        draft = VersionDraft(
            name=name,
            formats={"torch": self.torch, "onnx": self.onnx},
            native="torch",
            input_example={"x": np.arange(8, dtype=np.float32).reshape(2, 4)},
            dataset_digest=DATASET,
            evidence=(self.equivalence(),) if evidence is None else tuple(evidence),
            git_commit="0" * 40,
            environment={"python": "3.11.7"},
            params={"epochs": 3},
        )
        return replace(draft, **changes)  # type: ignore[arg-type]


def write_formats(folder: Path, seed: int) -> Formats:
    weights = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),),
    )
    formats = Formats(folder=folder, signature=signature, weights=weights)
    for path in (formats.torch, formats.onnx):
        path.mkdir(parents=True)
        signature.save(path)
    save_file({"weights": weights}, formats.torch / "weights.safetensors")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, formats.onnx / "model.onnx")
    return formats


@pytest.fixture(scope="session")
def format_writer() -> Callable[[Path, int], Formats]:
    """Writes format folders into a given place, for fixtures of a wider scope than a test."""
    return write_formats


@pytest.fixture
def make_formats(tmp_path: Path) -> Callable[[int], Formats]:
    def make(seed: int) -> Formats:
        return write_formats(tmp_path / f"formats-{seed}", seed)

    return make


@pytest.fixture
def formats(make_formats: Callable[[int], Formats]) -> Formats:
    return make_formats(0)


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> Dialect:
    """Each kind of database in turn: whoever uses it, or a fixture that does, runs once on each."""
    return request.param


@pytest.fixture
def artifact_dir(tmp_path: Path) -> Path:
    """Where sealed files are kept; made by whoever opens the registry."""
    (tmp_path / "state").mkdir(exist_ok=True)
    return tmp_path / "state" / "artifacts"


@pytest.fixture(scope="session")
def empty_postgres_database(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a complete, empty database, to be copied."""
    name = postgres_server.create_database()
    folder = tmp_path_factory.mktemp("registry-template")
    Registry.open(make_settings(postgres_url(postgres_server, name), folder)).close()
    return name


@pytest.fixture
def database_url(request: pytest.FixtureRequest, dialect: Dialect, tmp_path: Path) -> Iterator[str]:
    """The URL of an initialised, empty database."""
    if dialect == "sqlite":
        yield copied_sqlite_url(tmp_path, request.getfixturevalue("empty_sqlite_file"))
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create_database(template=request.getfixturevalue("empty_postgres_database"))
    yield postgres_url(server, name)
    server.drop_database(name)


@pytest.fixture
def fresh_database_url(request: pytest.FixtureRequest, dialect: Dialect, tmp_path: Path) -> Iterator[str]:
    """The URL of a database in which nothing is yet."""
    if dialect == "sqlite":
        yield f"sqlite:///{tmp_path / 'fresh' / 'noa.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create_database()
    yield postgres_url(server, name)
    server.drop_database(name)


def postgres_url(server: PostgresServer, name: str) -> str:
    """Return a URL that also stock MLflow takes: it names the driver."""
    return server.url(name).replace("postgresql://", "postgresql+psycopg://")


def copied_sqlite_url(folder: Path, template: Path) -> str:
    target = folder / "state" / "noa.db"
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(template, target)
    return f"sqlite:///{target}"


def make_settings(database_url: str, artifact_dir: Path) -> RegistrySettings:
    return RegistrySettings(database_url=database_url, artifact_dir=artifact_dir, lock_timeout_s=60.0)


@pytest.fixture
def store(request: pytest.FixtureRequest, dialect: Dialect) -> Store:
    """Where sealed files are: beside SQLite in a folder, beside PostgreSQL in S3.

    In a folder also where a test asks for `artifact_dir`, or is marked `local_files` because it goes past noa to them.
    """
    wants_folder = "artifact_dir" in request.fixturenames or request.node.get_closest_marker("local_files")
    return "folder" if dialect == "sqlite" or wants_folder else "s3"


def make_s3_settings(database_url: str, server: S3Server, cache_dir: Path) -> RegistrySettings:
    return RegistrySettings(
        database_url=database_url,
        artifact_url=f"s3://{server.create_bucket()}/models",
        s3=s3_settings(server.url),
        cache_dir=cache_dir,
        lock_timeout_s=60.0,
    )


@pytest.fixture
def settings(request: pytest.FixtureRequest, database_url: str, store: Store, tmp_path: Path) -> RegistrySettings:
    """Settings of an initialised, empty registry."""
    if store == "folder":
        return make_settings(database_url, request.getfixturevalue("artifact_dir"))
    return make_s3_settings(database_url, request.getfixturevalue("s3_server"), tmp_path / "cache")


@pytest.fixture
def fresh_settings(
    request: pytest.FixtureRequest, fresh_database_url: str, store: Store, tmp_path: Path
) -> RegistrySettings:
    """Settings of a registry in which nothing is yet."""
    if store == "folder":
        return make_settings(fresh_database_url, tmp_path / "fresh" / "artifacts")
    return make_s3_settings(fresh_database_url, request.getfixturevalue("s3_server"), tmp_path / "fresh" / "cache")


@pytest.fixture
def stored(settings: RegistrySettings) -> StoredFiles:
    """Sealed files as somebody sees them who goes past noa."""
    return StoredFiles(settings)


@pytest.fixture
def sqlite_settings(tmp_path: Path, empty_sqlite_file: Path, artifact_dir: Path) -> RegistrySettings:
    """Settings of an initialised, empty registry in a SQLite file, for tests about exactly that."""
    return make_settings(copied_sqlite_url(tmp_path, empty_sqlite_file), artifact_dir)


@pytest.fixture
def fresh_sqlite_settings(tmp_path: Path) -> RegistrySettings:
    """Settings of a folder in which nothing is yet, not even the SQLite file."""
    return make_settings(f"sqlite:///{tmp_path / 'fresh' / 'noa.db'}", tmp_path / "fresh" / "artifacts")


@pytest.fixture
def fresh_postgres_settings(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[RegistrySettings]:
    """Settings of a PostgreSQL database in which nothing is yet."""
    name = postgres_server.create_database()
    yield make_settings(postgres_url(postgres_server, name), tmp_path / "fresh" / "artifacts")
    postgres_server.drop_database(name)


@dataclass(frozen=True)
class Opening:
    """How a process ended that opened a registry: its exit code, negative for a signal, and what it said."""

    code: int
    said: str


class OpeningProcesses:
    """Opens registries in processes of their own, all at the same instant; see `opening_child.py`."""

    def __init__(self) -> None:
        child = Path(__file__).with_name("opening_child.py")
        self._process = subprocess.Popen(
            [sys.executable, str(child)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def open(self, settings: RegistrySettings, *, processes: int = 1, killed_in: str | None = None) -> list[Opening]:
        """Open a registry; `killed_in`, as `module.function`, ends each process when this has done its work."""
        order = {"settings": settings.model_dump(mode="json"), "processes": processes, "killed_in": killed_in}
        stdin, stdout = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        return [Opening(**answer) for answer in json.loads(stdout.readline())]

    def close(self) -> None:
        """End it."""
        cast("IO[str]", self._process.stdin).close()
        self._process.wait(60)
        cast("IO[str]", self._process.stdout).close()


@pytest.fixture(scope="session")
def opening_processes() -> Iterator[OpeningProcesses]:
    """Started when the first test asks for it: its import of MLflow, three seconds, is that of all."""
    server = OpeningProcesses()
    yield server
    server.close()


Execute: TypeAlias = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def execute(settings: RegistrySettings) -> Execute:
    """Run SQL statements in one transaction, as any other program could; return the rows of the last one.

    Raises `sqlalchemy.exc.IntegrityError` if a trigger refuses.
    """
    return lambda *statements: execute_on(settings, *statements)


@pytest.fixture
def tamper(settings: RegistrySettings) -> Execute:
    """As `execute`, for somebody who may change the database itself: no trigger and no foreign key is in the way."""

    def tamper(*statements: str) -> list[tuple[Any, ...]]:
        if settings.database_url.startswith("postgresql"):
            return execute_on(settings, "SET session_replication_role = replica", *statements)
        triggers = execute_on(settings, "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'noa%'")
        return execute_on(settings, *(f"DROP TRIGGER {name}" for (name,) in triggers), *statements)

    return tamper


@pytest.fixture
def registry(settings: RegistrySettings) -> Iterator[Registry]:
    with Registry.open(settings) as opened:
        yield opened


@pytest.fixture
def version(registry: Registry, formats: Formats) -> ModelVersion:
    """`digits/1`, ready to be promoted."""
    return registry.register(formats.draft(), actor="ada")


@pytest.fixture
def promoted(registry: Registry, formats: Formats) -> list[ModelVersion]:
    """`digits/1` to `digits/3`, promoted to champion in this order."""
    made = [registry.register(formats.draft(), actor="ada") for _ in range(3)]
    for entry in made:
        registry.promote("digits", entry.number, reason=f"release {entry.number}", actor="ada")
    return made


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print past pytest's capturing in the long run, whose figures are what it is for."""

    def show(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", flush=True)

    return show if EVERY_POINT else print
