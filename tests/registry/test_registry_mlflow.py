from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy.exc
import yaml

from noa.errors import IntegrityError
from noa.settings import RegistrySettings
from noa.signatures import Signature, TensorSpec
from noa_registry import ModelVersion, Registry
from noa_registry.artifacts import s3_environment
from noa_registry.mlflow_schema import import_mlflow

STOCK = """
import json, sys
import mlflow
import numpy as np
from mlflow import MlflowClient
uri = sys.argv[1]
mlflow.set_tracking_uri(uri)
mlflow.set_registry_uri(uri)
client = MlflowClient(uri, uri)
model = mlflow.pyfunc.load_model("models:/digits@champion")
x = np.load(sys.argv[2])
signature = model.metadata.signature
print(json.dumps({
    "models": [m.name for m in client.search_registered_models()],
    "aliases": client.get_registered_model("digits").aliases,
    "versions": sorted(
        (int(v.version), v.status, v.tags["noa.digest"]) for v in client.search_model_versions("name='digits'")
    ),
    "champion": int(client.get_model_version_by_alias("digits", "champion").version),
    "run_id": client.get_model_version("digits", "1").run_id,
    "logits": np.asarray(model.predict(x)["logits"]).tolist(),
    "example": np.asarray(model.input_example).tolist(),
    "example_logits": np.asarray(model.predict(model.input_example)["logits"]).tolist(),
    "signature": signature.to_dict(),
    "requirements": mlflow.pyfunc.get_model_dependencies("models:/digits@champion"),
    "modules": [m for m in sys.modules if m.split(".")[0].startswith("noa")],
}))
"""


@pytest.fixture
def client(settings: RegistrySettings, registry: Registry) -> Any:
    import_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(settings.database_url, settings.database_url)


def test_stock_mlflow_sees_and_runs_what_noa_registered(
    registry: Registry, settings: RegistrySettings, promoted: list[ModelVersion], formats: Any, tmp_path: Path
) -> None:
    """In a process of its own that imports nothing of noa."""
    x = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    registry.rollback("digits", reason="r", actor="ada")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STOCK, settings.database_url, str(tmp_path / "x.npy")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **s3_environment(settings),
        },
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["models"], seen["aliases"], seen["champion"]) == (["digits"], {"champion": 2}, 2)
    assert seen["versions"] == [[v.number, "READY", v.digest] for v in promoted]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(registry.open_format(promoted[1], "onnx") / "model.onnx"))
    np.testing.assert_array_equal(np.float32(seen["logits"]), session.run(None, {"x": x})[0])
    np.testing.assert_array_equal(np.float32(seen["logits"]), registry.load("digits@champion").run({"x": x})["logits"])
    assert seen["example"] == np.arange(8, dtype=np.float32).reshape(2, 4).tolist()
    assert len(seen["example_logits"]) == 2
    assert json.loads(seen["signature"]["inputs"]) == [
        {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 4]}}
    ]
    assert Path(seen["requirements"]).is_file()
    assert seen["modules"] == []
    assert "ONNX model declares" not in done.stderr
    if not settings.artifact_url:
        assert (promoted[1].folder / "registered_model_meta").is_file()  # MLflow left its mark in the sealed folder
    registry.verify("digits", 2)
    registry.promote("digits", 3, reason="loading is no tampering", actor="ada")


def test_mlmodel_is_what_mlflow_itself_reads_and_writes(registry: Registry, version: ModelVersion) -> None:
    import_mlflow()
    from mlflow.models import Model

    ours = yaml.safe_load((registry.open_wrapper(version) / "MLmodel").read_text())
    read: Any = Model.load(str(version.folder))
    written = yaml.safe_load(read.to_yaml())
    # MLflow adds its own defaults; everything of ours comes back unchanged.
    assert {key: written[key] for key in ours} == ours
    assert set(written) - set(ours) <= {
        "is_signature_from_type_hint",
        "model_id",
        "prompts",
        "type_hint_from_example",
        "artifact_path",
        "run_id",
        "metadata",
        "auth_policy",
        "resources",
        "env_vars",
        "databricks_runtime",
        "logged_model_params",
    }
    assert read.flavors["python_function"]["loader_module"] == "mlflow.onnx"
    assert read.get_model_info().signature == read.signature


def test_our_mlmodel_agrees_with_one_that_mlflow_saves(
    registry: Registry, version: ModelVersion, formats: Any, tmp_path: Path
) -> None:
    """Save the same graph with `mlflow.onnx.save_model` in another process and compare what decides how it runs."""
    code = """
import sys, mlflow.onnx, numpy as np, onnx
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
f = np.dtype("float32")
signature = ModelSignature(Schema([TensorSpec(f, (-1, 4))]), Schema([TensorSpec(f, (-1, 3), name="logits")]))
mlflow.onnx.save_model(onnx.load(sys.argv[1]), sys.argv[2], signature=signature, save_as_external_data=False,
    onnx_execution_providers=["CPUExecutionProvider"], input_example=np.arange(8, dtype=f).reshape(2, 4),
    pip_requirements=["onnx"])
"""
    arguments = [str(formats.onnx / "model.onnx"), str(tmp_path / "theirs")]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], check=True, timeout=120, capture_output=True
    )
    theirs = yaml.safe_load((tmp_path / "theirs" / "MLmodel").read_text())
    ours = yaml.safe_load((registry.open_wrapper(version) / "MLmodel").read_text())
    assert ours["signature"] == theirs["signature"]
    assert ours["saved_input_example_info"] == theirs["saved_input_example_info"]
    assert ours["flavors"]["onnx"] == theirs["flavors"]["onnx"]
    assert ours["flavors"]["python_function"].keys() == theirs["flavors"]["python_function"].keys()
    for file in ("input_example.json", "serving_input_example.json"):
        assert json.loads((version.folder / file).read_text()) == json.loads((tmp_path / "theirs" / file).read_text())


def test_a_version_without_onnx_names_noas_loader(registry: Registry, formats: Any) -> None:
    version = registry.register(formats.draft(formats={"torch": formats.torch}, evidence=()), actor="ada")
    model = yaml.safe_load((registry.open_wrapper(version) / "MLmodel").read_text())
    assert list(model["flavors"]) == ["python_function"]
    assert model["flavors"]["python_function"]["loader_module"] == "noa_registry.mlflow_loader"
    assert model["flavors"]["python_function"]["data"] == "formats/torch"


def test_noas_loader_takes_arrays_and_dicts_and_refuses_the_rest(
    registry: Registry, version: ModelVersion, formats: Any
) -> None:
    from noa.errors import SignatureError
    from noa_registry import mlflow_loader

    model = mlflow_loader._load_pyfunc(str(registry.open_format(version, "onnx")))
    x = np.ones((3, 4), np.float32)
    np.testing.assert_allclose(model.predict(x)["logits"], x @ formats.weights, rtol=1e-6)
    np.testing.assert_array_equal(model.predict({"x": x})["logits"], model.predict(x)["logits"])
    for bad in (x.tolist(), {"y": x}, x.astype(np.float64), x[:, :3]):
        with pytest.raises(SignatureError):
            model.predict(bad)
    with pytest.raises(SignatureError, match="no params"):
        model.predict(x, params={"a": 1})


def test_several_inputs_are_named_in_mlflows_signature() -> None:
    from noa_registry.mlflow_model import mlflow_signature

    signature = Signature(
        inputs=(
            TensorSpec(name="a", dtype="float32", shape=("batch", 2)),
            TensorSpec(name="b", dtype="int64", shape=("batch",)),
        ),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 1)),),
    )
    names = [spec["name"] for spec in json.loads(str(mlflow_signature(signature)["inputs"]))]
    assert names == ["a", "b"]


def test_a_number_is_never_used_twice_even_if_mlflow_deletes_the_model(
    registry: Registry, version: ModelVersion, client: Any, formats: Any
) -> None:
    client.delete_registered_model("digits")
    assert registry.register(formats.draft(), actor="ada").number == 2
    assert registry.resolve("digits/1").digest == version.digest


def test_versions_that_stock_clients_made_keep_their_numbers(registry: Registry, client: Any, formats: Any) -> None:
    client.create_registered_model("digits")
    client.create_model_version("digits", "file:///somewhere")
    assert registry.register(formats.draft(), actor="ada").number == 2
    assert [entry.number for entry in registry.versions("digits")] == [2]
    assert [(one.field, one.number) for one in registry.mirror_discrepancies()] == [("foreign", 1)]


def test_an_alias_moved_in_mlflow_is_reported_and_never_followed(
    registry: Registry, promoted: list[ModelVersion], client: Any
) -> None:
    client.set_registered_model_alias("digits", "champion", "1")
    assert registry.resolve("digits@champion").number == 3
    assert registry.resolve_digest("digits", "champion") == (3, promoted[2].digest)
    assert [(d.subject, d.expected, d.received) for d in registry.mirror_discrepancies()] == [
        ("alias champion", "version 3", "version 1")
    ]
    for attempt in (
        lambda: registry.promote("digits", 2, reason="r", actor="a"),
        lambda: registry.rollback("digits", reason="r", actor="a"),
    ):
        with pytest.raises(IntegrityError, match="behind noa's back"):
            attempt()
    assert len(registry.repair_mirror()) == 1
    assert client.get_model_version_by_alias("digits", "champion").version == 3
    assert registry.mirror_discrepancies() == []
    assert registry.promote("digits", 2, reason="r", actor="a").from_number == 3


def test_an_alias_made_or_deleted_in_mlflow_is_reported_and_repaired(
    registry: Registry, promoted: list[ModelVersion], client: Any
) -> None:
    client.delete_registered_model_alias("digits", "champion")
    client.set_registered_model_alias("digits", "rogue", "1")
    assert {d.subject for d in registry.mirror_discrepancies()} == {"alias champion", "alias rogue"}
    registry.repair_mirror()
    assert client.get_registered_model("digits").aliases == {"champion": 3}


def test_what_a_live_alias_needs_cannot_be_deleted_by_stock_clients(
    registry: Registry, promoted: list[ModelVersion], client: Any
) -> None:
    from mlflow.exceptions import MlflowException

    for attempt in (
        lambda: client.delete_model_version("digits", "3"),
        lambda: client.delete_registered_model("digits"),
        lambda: client.rename_registered_model("digits", "other"),
    ):
        with pytest.raises(MlflowException, match="noa"):
            attempt()
    assert registry.mirror_discrepancies() == []
    client.delete_model_version("digits", "1")
    assert [d.subject for d in registry.mirror_discrepancies()] == ["version 1"]
    registry.verify("digits", 1)
    registry.repair_mirror()
    assert client.get_model_version("digits", "1").source == registry.location(promoted[0])


def test_the_source_of_a_sealed_version_cannot_be_changed(execute: Any, version: ModelVersion) -> None:
    with pytest.raises(sqlalchemy.exc.IntegrityError, match="sealed"):
        execute("UPDATE model_versions SET storage_location = 'file:///evil'")
