"""A command that only reads leaves a project as it is; one that writes says which folder it has made."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from noa.settings import load_settings
from noa_cli.__main__ import run
from noa_registry.database import Database
from noa_registry.empty_registry import open_empty_registry
from noa_registry.tables import mlflow_metadata


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = '[endpoints.digits]\nmodel = "digits@champion"\n[gates.digits]\n[serving]\nport = 0\n'
    (tmp_path / "noa.toml").write_text(f"{text}[flows]\nport = 0\n[tracking]\nport = 0\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("models list", 0),
        ("models search digits", 0),
        ("models show digits/1", 1),
        ("models history digits", 1),
        ("models check digits/1", 1),
        ("models verify", 0),
        ("models lineage digits", 1),
        ("runs list", 0),
        ("runs show abc", 1),
        ("runs compare abc abd", 1),
        ("runs plot abc", 1),
        ("models promote digits/1 --dry-run", 1),
        ("models delete digits/1 --reason old", 1),
        ("ledger verify", 0),
        ("ledger show", 0),
        ("events list", 0),
        ("events consumers", 0),
        ("events dead-letters", 0),
        ("gc --dry-run", 0),
        ("predict digits --input in.json", 1),
        ("flows list", 1),
        ("status", 0),
        ("endpoints list", 0),
        ("endpoints show digits", 1),
        ("down", 0),
        ("config show", 0),
        ("config validate", 0),
        ("doctor", 0),
    ],
)
def test_a_command_that_reads_makes_nothing(
    command: str, code: int, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(command.split()) == code, capfd.readouterr()
    assert [path.name for path in project.iterdir()] == ["noa.toml"]
    assert "made" not in capfd.readouterr().err


def test_a_command_that_writes_says_which_folder_it_made(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), "relu.onnx")
    assert run(["models", "import", "relu.onnx", "--name", "relu"]) == 0
    assert f"made {project / '.noa'}: " in capfd.readouterr().err
    assert run(["models", "list", "--json"]) == 0
    output = capfd.readouterr()
    assert [model["name"] for model in json.loads(output.out)] == ["relu"]
    assert "made" not in output.err


def test_an_empty_registry_is_whole_and_goes_with_its_folder(project: Path) -> None:
    with open_empty_registry(load_settings(project).settings) as registry:
        assert registry.models() == []
        registry.verify_ledger()
        assert registry.mirror_discrepancies() == []
        database: Database = registry._database  # pyright: ignore[reportPrivateUsage]  # to look where it is
        file = database.url.file
        assert file.is_file()
        assert mlflow_metadata.tables
    assert not file.parent.exists()
