"""`noa models import`, `sign`, `signatures` and `noa keys new-signing`, as people type them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from noa_cli.__main__ import run


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, add_empty_registry: Callable[[Path], None]) -> Path:
    folder = tmp_path / "project"
    add_empty_registry(folder)
    (folder / "noa.toml").write_text("")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    import numpy as np

    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(np.ones((2, 1), np.float32), "w")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_dry_run_shows_the_scan_and_registers_nothing(
    project: Path, graph: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, "models", "import", str(graph), "--name", "ranker", "--dry-run")
    assert code == 0
    assert "model.onnx  onnx" in out
    assert "would register `ranker` in the format onnx" in out
    assert as_json(capsys, "models", "list") == []


def test_an_import_is_listed_and_its_scan_shown(project: Path, graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = as_json(capsys, "models", "import", str(graph), "--name", "ranker")
    assert result["version"]["reference"] == "ranker/1"
    assert result["scan"]["files"] == [{"file": "model.onnx", "kind": "onnx", "size_bytes": graph.stat().st_size}]
    evidence = as_json(capsys, "models", "show", "ranker/1")["evidence"]
    assert [fact["kind"] for fact in evidence] == ["scan"]


def test_a_pickle_needs_the_models_name_again(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    code, out, err = call(capsys, "models", "import", str(path), "--name", "old")
    assert (code, out) == (1, "")
    assert "--allow-pickle old" in err
    assert (
        as_json(capsys, "models", "import", str(path), "--name", "old", "--allow-pickle", "old")["version"]["native"]
        == "pickle"
    )


def test_a_name_is_asked_for(project: Path, graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "models", "import", str(graph))
    assert code == 1
    assert "--name NAME" in err


def test_an_archive_of_another_registry_is_scanned_and_taken_in(
    project: Path, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = as_json(capsys, "models", "import", str(graph), "--name", "ranker")["version"]["digest"]
    archive = tmp_path / "ranker.noa"
    assert call(capsys, "models", "export", "ranker/1", "-o", str(archive))[0] == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "noa.toml").write_text("")
    monkeypatch.chdir(other)

    code, _, err = call(capsys, "models", "import", str(archive), "--name", "else")
    assert code == 1
    assert "has the name of its model" in err
    assert as_json(capsys, "models", "import", str(archive), "--dry-run")["reference"] == "ranker/1"
    assert as_json(capsys, "models", "list") == []
    assert as_json(capsys, "models", "import", str(archive))["version"]["digest"] == digest


def test_an_archive_with_code_needs_permission_here_too(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(pickle.dumps({"a": 1}))
    as_json(capsys, "models", "import", str(path), "--name", "old", "--allow-pickle", "old")
    archive = tmp_path / "old.noa"
    assert call(capsys, "models", "export", "old/1", "-o", str(archive))[0] == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "noa.toml").write_text("")
    monkeypatch.chdir(other)

    code, _, err = call(capsys, "models", "import", str(archive))
    assert code == 1
    assert "--allow-pickle old" in err
    taken = as_json(capsys, "models", "import", str(archive), "--allow-pickle", "old")
    assert taken["version"]["reference"] == "old/1"


def test_keys_sign_and_strangers_are_refused(project: Path, graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = as_json(capsys, "keys", "new-signing", "release", "--folder", "keys")
    as_json(capsys, "models", "import", str(graph), "--name", "ranker")
    code, out, _ = call(capsys, "models", "signatures", "ranker/1")
    assert code == 0
    assert "not checked" in out

    (project / "noa.toml").write_text('[registry.signing]\nprivate_key = "keys/release.pem"\nrequired = true\n')
    code, out, _ = call(capsys, "models", "verify", "ranker/1")
    assert code == 1
    assert "is not signed" in out
    assert as_json(capsys, "models", "sign", "ranker/1", "--dry-run")["signed"] == []
    signed = as_json(capsys, "models", "sign", "ranker/1")["signed"]
    assert [row["subject"] for row in signed] == ["version", "onnx"]
    assert made["fingerprint"] in signed[0]["identity"]
    assert as_json(capsys, "models", "sign", "ranker/1")["signed"] == []
    exported = as_json(capsys, "models", "signatures", "ranker/1", "--export", "sigs")
    assert exported["verdict"] == "accepted"
    assert sorted(Path(path).name for path in exported["exported"]) == ["onnx.sig", "version.json", "version.sig"]
    assert call(capsys, "models", "verify", "ranker/1")[0] == 0

    call(capsys, "keys", "new-signing", "other", "--folder", "keys")
    (project / "noa.toml").write_text('[registry.signing]\ntrusted_keys = ["keys/other.pub.pem"]\n')
    code, out, _ = call(capsys, "models", "signatures", "ranker/1")
    assert code == 1
    assert "signed by nobody who is trusted" in out
    assert made["fingerprint"] in out


def test_a_changed_version_is_not_signed(project: Path, graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_json(capsys, "models", "import", str(graph), "--name", "ranker")
    call(capsys, "keys", "new-signing", "release", "--folder", "keys")
    (project / "noa.toml").write_text('[registry.signing]\nprivate_key = "keys/release.pem"\n')
    (sealed,) = (project / ".noa" / "artifacts" / "ranker").glob("*/formats/onnx/signature.json")
    sealed.chmod(0o644)
    sealed.write_text(sealed.read_text() + " ")

    code, _, err = call(capsys, "models", "sign", "ranker/1")

    assert code == 1
    assert "formats/onnx/signature.json" in err


def test_a_version_that_is_kept_and_never_loaded_says_so_everywhere(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    as_json(capsys, "models", "import", str(path), "--name", "old", "--allow-pickle", "old")
    (project / "in.json").write_text("[[1]]")
    told = "the format `pickle` of `old/1` is kept, never loaded"
    for command in (
        ("predict", "old/1", "-i", "in.json"),
        ("predict", "old/1", "-i", "in.json", "--format", "onnx"),
        ("serve", "old/1"),
    ):
        code, _, err = call(capsys, *command)
        assert code == 1
        assert told in err or "has no format `onnx`" in err or "asks for the format `onnx`" in err
        assert "noa models import model.onnx --name old" in err
        assert "noa convert" not in err
