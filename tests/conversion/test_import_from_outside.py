"""Good models from outside become sealed versions that compute the same, with the scan as evidence."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from noa.digests import digest_json, sha256_file
from noa.errors import ConversionError, DependencyMissingError, IntegrityError, InvalidInputError, SignatureError
from noa.formats import MADE_FROM
from noa.settings import RegistrySettings, SigningSettings
from noa.signatures import Signature, TensorSpec
from noa_conversion import read_arrays
from noa_conversion.converters import find_converters
from noa_conversion.imports import ImportResult, child, import_model, plan_import
from noa_conversion.imports.child import ChildLimits
from noa_conversion.imports.examples import make_example
from noa_registry import Registry, VersionDraft
from noa_registry.evidence import ScanEvidence
from noa_registry.model_signing_adapter import new_key
from noa_registry.outside import AllowedMark
from noa_registry.scanning import ScanLimits, scan_path

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)
INPUT = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def settings(tmp_path: Path, empty_sqlite_file: Path) -> RegistrySettings:
    """Settings of an initialised, empty registry."""
    folder = tmp_path / "state"
    folder.mkdir()
    shutil.copyfile(empty_sqlite_file, folder / "noa.db")
    return RegistrySettings(database_url=f"sqlite:///{folder / 'noa.db'}", artifact_dir=folder / "artifacts")


@pytest.fixture
def registry(settings: RegistrySettings) -> Iterator[Registry]:
    with Registry.open(settings) as opened:
        yield opened


def take(registry: Registry, path: Path, **more: Any) -> ImportResult:
    return import_model(registry, path, **{"name": "outside", "actor": "ada", **more})


def linear(*, batch: str | int | None = "batch", op: str = "MatMul") -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "weights"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(WEIGHTS, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "linear.onnx"
    onnx.save(linear(), path)
    return path


def test_an_onnx_file_becomes_a_version_that_computes_the_same(registry: Registry, graph: Path) -> None:
    result = take(registry, graph)

    version = result.version
    assert (version.reference, version.native, list(version.formats)) == ("outside/1", "onnx", ["onnx"])
    assert version.signature == Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 3)),),
    )
    np.testing.assert_allclose(registry.load("outside").run({"x": INPUT})["y"], INPUT @ WEIGHTS)
    stored = registry.open_format(version, "onnx") / "model.onnx"
    assert stored.read_bytes() == graph.read_bytes()


def test_functions_of_the_file_and_domains_that_it_only_names_are_no_foreign_code(
    registry: Registry, tmp_path: Path
) -> None:
    model = linear()
    model.graph.node[0].domain, model.graph.node[0].op_type = "own", "product"
    call = helper.make_node("MatMul", ["a", "b"], ["c"])
    opsets = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("own", "product", ["a", "b"], ["c"], [call], opsets))
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in ("own", "com.microsoft.nchwc", "nowhere"))
    path = tmp_path / "functions.onnx"
    onnx.save(model, path)

    version = take(registry, path).version

    result = registry.load(version.reference).run({"x": INPUT})
    np.testing.assert_allclose(result["y"], INPUT @ WEIGHTS)
    model.graph.node[0].op_type = "sum"
    onnx.save(model, path)
    with pytest.raises(InvalidInputError, match=r"'own'.*'sum' of node"):
        take(registry, path)


def test_the_scan_and_the_digest_of_the_source_are_kept_and_its_path_is_not(registry: Registry, graph: Path) -> None:
    result = take(registry, graph)
    version = result.version

    (fact,) = registry.evidence("outside", 1)
    scan = ScanEvidence.from_evidence(fact)
    assert (scan.subject, scan.digest, scan.passed) == ("onnx", version.formats["onnx"].digest, True)
    assert (scan.findings, scan.allowed_by, scan.files) == ((), None, 1)
    assert result.source_digest == sha256_file(graph)
    assert version.tags["noa.source_digest"] == result.source_digest
    assert version.dataset_digest == digest_json({"outside": result.source_digest})
    assert str(graph.parent) not in json.dumps([dict(version.tags), dict(version.params), version.description])


def test_the_made_up_example_is_the_same_every_time(registry: Registry, graph: Path) -> None:
    first, second = take(registry, graph).version, take(registry, graph).version

    examples = [registry.input_example(version)["x"] for version in (first, second)]
    np.testing.assert_array_equal(*examples)
    assert examples[0].shape == (2, 4)
    np.testing.assert_array_equal(examples[0], make_example(first.signature)["x"])


@pytest.mark.parametrize("form", ["json", "json by name", "npz", "safetensors"])
def test_a_real_example_is_kept_instead(registry: Registry, graph: Path, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"example.{form.split()[0]}"
    if form == "npz":
        np.savez(path, x=INPUT)
    elif form == "safetensors":
        save_file({"x": INPUT}, path)
    else:
        path.write_text(json.dumps({"x": INPUT.tolist()} if "name" in form else INPUT.tolist()))

    version = take(registry, graph, example=path).version

    np.testing.assert_array_equal(registry.input_example(version)["x"], INPUT)


def test_an_example_that_does_not_fit_or_holds_objects_is_refused(
    registry: Registry, graph: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "bad.npz", x=INPUT[:, :2])
    with pytest.raises(SignatureError, match="wrong shape"):
        take(registry, graph, example=tmp_path / "bad.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InvalidInputError, match=r"`objects\.npz` cannot be read"):
        take(registry, graph, example=tmp_path / "objects.npz")
    assert registry.models() == []


def test_weights_beside_the_graph_are_brought_into_one_file(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "split" / "model.onnx"
    path.parent.mkdir()
    onnx.save(linear(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    report = scan_path(path.parent)
    assert report.kind_of("weights.bin") == "tensor data"

    version = take(registry, path.parent).version

    assert [file.path for file in version.formats["onnx"].manifest.files] == ["model.onnx", "signature.json"]
    np.testing.assert_allclose(registry.load("outside").run({"x": INPUT})["y"], INPUT @ WEIGHTS)


def test_axes_without_a_name_get_one(registry: Registry, tmp_path: Path) -> None:
    onnx.save(linear(batch=None), tmp_path / "m.onnx")
    assert take(registry, tmp_path / "m.onnx").version.signature.inputs[0].shape == ("batch", 4)
    onnx.save(linear(batch=2), tmp_path / "fixed.onnx")
    assert take(registry, tmp_path / "fixed.onnx").version.signature.inputs[0].shape == (2, 4)


def test_a_graph_that_cannot_compute_is_refused_with_the_way_out(registry: Registry, tmp_path: Path) -> None:
    model = linear()
    model.graph.node.insert(0, helper.make_node("Reshape", ["x", "shape"], ["bad"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, 7], np.int64), "shape"))
    model.graph.output.append(helper.make_tensor_value_info("bad", TensorProto.FLOAT, [7, 7]))
    onnx.save(model, tmp_path / "m.onnx")

    with pytest.raises(InvalidInputError, match=r"cannot compute made-up inputs.*--example FILE"):
        take(registry, tmp_path / "m.onnx")
    assert registry.models() == []


def test_a_graph_without_end_is_stopped(registry: Registry, tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c_out"]), helper.make_node("Identity", ["s"], ["s_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, [None, 4]),
        ],
        [
            helper.make_tensor_value_info("c_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s_out", TensorProto.FLOAT, [None, 4]),
        ],
    )
    loop = helper.make_graph(
        [helper.make_node("Loop", ["trips", "go", "x"], ["y"], body=body)],
        "loop",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.array(2**62), "trips"), numpy_helper.from_array(np.array(True), "go")],
    )
    model = helper.make_model(loop, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")

    with pytest.raises(InvalidInputError, match=r"could not be prepared in 5 seconds.*conversion\.max_work_s"):
        take(registry, tmp_path / "m.onnx", child_limits=ChildLimits(seconds=5))
    assert registry.models() == []


@pytest.mark.parametrize("name", ["x\ny", "x\x1b[2J"])
def test_an_input_whose_name_a_terminal_would_obey_is_refused(registry: Registry, tmp_path: Path, name: str) -> None:
    onnx.save(renamed(name), tmp_path / "m.onnx")
    with pytest.raises(InvalidInputError, match="is no tensor with a plain name"):
        take(registry, tmp_path / "m.onnx")
    assert registry.models() == []


def test_a_name_that_looks_like_a_path_never_becomes_one(registry: Registry, tmp_path: Path) -> None:
    onnx.save(renamed("../../../../x"), tmp_path / "m.onnx")
    onnx.save(linear(), tmp_path / "plain.onnx")
    found, plain = (take(registry, tmp_path / file).version for file in ("m.onnx", "plain.onnx"))
    names = [sorted(str(p.relative_to(v.folder)) for p in v.folder.rglob("*")) for v in (found, plain)]
    assert names[0] == names[1]
    assert not list(tmp_path.rglob("x*"))
    loaded = registry.load("outside/1")
    assert loaded.run({"../../../../x": np.ones((2, 4), np.float32)})["y"].shape == (2, 3)


def renamed(name: str) -> onnx.ModelProto:
    """Return a model whose input has another name."""
    model = linear()
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    return model


def test_a_graph_that_asks_for_more_memory_than_allowed_is_stopped(registry: Registry, tmp_path: Path) -> None:
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Expand", ["x", "big"], ["wide"]),
                helper.make_node("ReduceSum", ["wide"], ["y"], keepdims=1),
            ],
            "wide",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
            [numpy_helper.from_array(np.array([2, 2_000_000_000], np.int64), "big")],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InvalidInputError):
        take(registry, tmp_path / "m.onnx", child_limits=ChildLimits(seconds=60, memory_bytes=4 << 30))
    assert registry.models() == []


MLMODEL = """\
flavors:
  onnx:
    code: null
    data: model.onnx
  python_function:
    data: model.onnx
    loader_module: mlflow.onnx
mlflow_version: 3.17.2
signature:
  inputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 4]}}]'
  outputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3]}}]'
"""


def test_an_mlflow_folder_around_onnx_becomes_onnx(registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(linear(), folder / "model.onnx")
    (folder / "MLmodel").write_text(MLMODEL)
    (folder / "requirements.txt").write_text("onnx\n")
    (folder / "README.md").write_text("# A model\n\nimport it with noa\n")

    version = take(registry, folder).version

    assert (version.native, sorted(version.formats)) == ("onnx", ["onnx"])
    np.testing.assert_allclose(registry.load("outside").run({"x": INPUT})["y"], INPUT @ WEIGHTS)


@pytest.mark.torch
def test_an_exported_program_becomes_torch_without_unpickling(registry: Registry, tmp_path: Path) -> None:
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(4)
            self.act = torch.nn.ReLU(inplace=True)
            self.fc = torch.nn.Linear(4, 3)
            self.scale = torch.tensor([2.0])

        def forward(self, x: Any, gain: Any) -> Any:
            return self.fc(self.act(self.norm(x))) * self.scale * gain["by"]

    net = Net().eval()
    gain = {"by": torch.tensor([3.0])}
    shapes = ({0: torch.export.Dim("rows")}, {"by": None})
    program = torch.export.export(net, (torch.zeros(5, 4), gain), dynamic_shapes=shapes)
    path = tmp_path / "net.pt2"
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as archive:
        assert any("sample_inputs" in name for name in archive.namelist())  # the pickle that is left out

    version = take(registry, path).version

    assert version.native == "torch"
    names = [spec.name for spec in version.signature.inputs]
    assert version.signature.inputs[0].shape == ("batch", 4)
    found = registry.load("outside").run({names[0]: INPUT, names[1]: np.array([3.0], np.float32)})["output"]
    with torch.inference_mode():
        expected = net(torch.from_numpy(INPUT), gain).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert "fc.weight" in read_arrays(registry.open_format(version, "torch"))


@pytest.mark.torch
def test_a_program_that_writes_to_its_buffers_is_refused_by_name(registry: Registry, tmp_path: Path) -> None:
    import torch

    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Any) -> Any:
            self.count.add_(1)
            return x + self.count

    torch.export.save(torch.export.export(Counter(), (torch.zeros(2),)), tmp_path / "m.pt2")
    with pytest.raises(ConversionError, match="writes to"):
        take(registry, tmp_path / "m.pt2")
    assert registry.models() == []


def test_safetensors_are_kept_and_read_and_not_run(registry: Registry, tmp_path: Path) -> None:
    save_file({"layer.weight": WEIGHTS, "layer.bias": np.zeros(3, np.int64)}, tmp_path / "w.safetensors")

    version = take(registry, tmp_path / "w.safetensors").version

    assert [spec.name for spec in version.signature.outputs] == ["layer.bias", "layer.weight"]
    with pytest.raises(InvalidInputError, match=r"weights without a program.*read_arrays"):
        registry.load("outside")
    arrays = read_arrays(registry.open_format(version, "safetensors"))
    np.testing.assert_array_equal(arrays["layer.weight"], WEIGHTS)


def test_a_pickle_is_taken_only_by_the_models_very_name_and_never_loaded(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"weights": WEIGHTS}))

    for allow in (None, "", "Outside", "outside ", "*", "yes"):
        with pytest.raises(InvalidInputError, match="--allow-pickle outside"):
            take(registry, path, allow_pickle=allow)
    assert registry.models() == []
    version = take(registry, path, allow_pickle="outside").version

    assert version.native == "pickle"
    scan = ScanEvidence.from_evidence(registry.evidence("outside", 1)[0])
    assert (scan.passed, scan.allowed_by) == (True, "ada")
    assert "is a pickle" in scan.findings[0].what
    mark = AllowedMark.load(registry.open_format(version, "pickle"))
    assert (mark.model, mark.allowed_by) == ("outside", "ada")
    with pytest.raises(InvalidInputError, match="never loads them"):
        registry.load("outside")


def test_what_was_allowed_for_one_model_is_not_registered_as_another(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps([1]))
    first = take(registry, path, allow_pickle="outside").version
    folder = registry.open_format(first, "pickle")
    draft = VersionDraft(
        name="other",
        formats={"pickle": folder},
        native="pickle",
        input_example=registry.input_example(first),
        dataset_digest=first.dataset_digest,
    )
    with pytest.raises(InvalidInputError, match="allowed for another model"):
        registry.register(draft, actor="eve")

    bare = tmp_path / "bare"
    bare.mkdir()
    first.signature.save(bare)
    (bare / "content.bin").write_bytes(path.read_bytes())
    with pytest.raises(InvalidInputError, match="nobody has allowed it by name"):
        registry.register(VersionDraft(**{**_fields(draft), "formats": {"pickle": bare}}), actor="eve")


def _fields(draft: VersionDraft) -> dict[str, Any]:
    return {name: getattr(draft, name) for name in ("name", "formats", "native", "input_example", "dataset_digest")}


def test_an_mlflow_flavor_that_unpickles_runs_only_if_it_was_allowed(registry: Registry, tmp_path: Path) -> None:
    from sklearn.linear_model import LinearRegression

    model = LinearRegression().fit(np.eye(4), np.arange(4.0))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.pkl").write_bytes(pickle.dumps(model))
    (folder / "MLmodel").write_text(
        "flavors:\n"
        "  python_function:\n"
        "    loader_module: mlflow.sklearn\n"
        "    model_path: model.pkl\n"
        "    predict_fn: predict\n"
        "    env: {virtualenv: python_env.yaml}\n"
        "  sklearn:\n"
        "    code: null\n"
        "    pickled_model: model.pkl\n"
        "    serialization_format: pickle\n"
        "signature:\n"
        '  inputs: \'[{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 4]}}]\'\n'
        '  outputs: \'[{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1]}}]\'\n'
    )
    (folder / "python_env.yaml").write_text("python: 3.11.7\n")

    with pytest.raises(InvalidInputError, match="may run code when it is loaded"):
        take(registry, folder)
    version = take(registry, folder, allow_pickle="outside").version
    data = np.random.default_rng(0).normal(size=(3, 4))
    found = registry.load("outside").run({"input": data})["output"]

    np.testing.assert_allclose(found, model.predict(data))
    assert version.native == "mlflow"
    assert {
        finding.severity for finding in ScanEvidence.from_evidence(registry.evidence("outside", 1)[0]).findings
    } == {"code"}


def test_signed_registries_sign_what_they_import(settings: RegistrySettings, tmp_path: Path, graph: Path) -> None:
    private, public, _ = new_key(tmp_path / "keys", "release")
    base = settings.model_copy(update={"signing": SigningSettings(private_key=private)})
    with Registry.open(base) as registry:
        version = take(registry, graph).version
    strict = base.model_copy(update={"signing": SigningSettings(trusted_keys=(public,), required=True)})
    with Registry.open(strict) as registry:
        assert registry.load("outside").run({"x": INPUT})["y"].shape == (2, 3)
    _, other, _ = new_key(tmp_path / "keys", "other")
    distrusting = base.model_copy(update={"signing": SigningSettings(trusted_keys=(other,))})
    with Registry.open(distrusting) as registry, pytest.raises(IntegrityError, match="key `release`"):
        registry.open_format(version, "onnx")


def test_a_plan_says_what_would_happen_and_changes_nothing(registry: Registry, graph: Path) -> None:
    plan = plan_import(graph, name="outside")
    assert (plan.source.kind, plan.report.hostile, plan.report.code) == ("onnx", (), ())
    assert registry.models() == []


def test_a_path_that_is_not_there_or_holds_no_model_is_named(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no such file"):
        take(registry, tmp_path / "missing.onnx")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InvalidInputError, match=r"`notes\.txt` holds no model"):
        take(registry, tmp_path / "notes.txt")
    (tmp_path / "two").mkdir()
    for name in ("a.onnx", "b.onnx"):
        onnx.save(linear(), tmp_path / "two" / name)
    with pytest.raises(InvalidInputError, match=r"holds several models.*`a\.onnx`, `b\.onnx`"):
        take(registry, tmp_path / "two")
    with pytest.raises(InvalidInputError, match="name"):
        take(registry, tmp_path / "two" / "a.onnx", name="../evil")
    assert registry.models() == []


def test_a_source_that_changes_after_the_scan_is_not_what_is_registered(
    registry: Registry, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swap(text: str) -> None:
        if text == "copying":
            graph.write_bytes(pickle.dumps([1]))

    with pytest.raises(InvalidInputError, match="is a pickle"):
        take(registry, graph, tell=swap)
    assert registry.models() == []


def test_good_files_of_every_kind_are_recognised_and_not_called_hostile(tmp_path: Path) -> None:
    import joblib
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(3, random_state=0).fit(np.random.default_rng(0).normal(size=(40, 3)), [0, 1] * 20)
    arrays = {"a": WEIGHTS, "b": np.array(["x", "yy"]), "when": np.array(["2026-01-01"], dtype="M8[D]")}
    joblib.dump(forest, tmp_path / "forest.joblib")
    joblib.dump({"forest": forest, **arrays}, tmp_path / "packed.joblib", compress=3)
    joblib.dump([np.arange(1e5), np.asfortranarray(WEIGHTS)], tmp_path / "arrays.joblib")
    (tmp_path / "forest.pkl").write_bytes(pickle.dumps(forest))
    (tmp_path / "plain.pkl.gz").write_bytes(gzip.compress(pickle.dumps(arrays)))
    np.savez(tmp_path / "arrays.npz", **arrays)
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    np.save(tmp_path / "record.npy", np.zeros(3, dtype=[("a", "f4"), ("b", "i8", (2,))]))
    np.save(tmp_path / "scalar.npy", np.float64(1))
    save_file({"w": WEIGHTS}, tmp_path / "w.safetensors")
    (tmp_path / "notes.md").write_text("# Notes\n\n    import numpy\n")
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")

    report = scan_path(tmp_path)

    kinds = {file.file: file.kind for file in report.files if "!" not in file.file}
    assert report.hostile == ()
    assert kinds == {
        "forest.joblib": "pickle", "packed.joblib": "zlib", "arrays.joblib": "pickle", "forest.pkl": "pickle",
        "plain.pkl.gz": "gzip", "arrays.npz": "zip", "packed.npz": "zip", "record.npy": "numpy", "scalar.npy": "numpy",
        "w.safetensors": "safetensors", "notes.md": "text", "data.csv": "text",
    }  # fmt: skip
    assert {finding.file.partition("!")[0] for finding in report.code} == {
        "forest.joblib", "packed.joblib", "arrays.joblib", "forest.pkl", "plain.pkl.gz"
    }  # fmt: skip


@pytest.mark.torch
def test_files_of_pytorch_are_recognised_and_not_called_hostile(tmp_path: Path) -> None:
    import torch

    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    torch.save(state, tmp_path / "state.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")

    report = scan_path(tmp_path)

    assert report.hostile == ()
    assert {finding.file.partition("!")[0] for finding in report.code} == {"state.pt", "old.pt", "module.pt"}


def test_a_large_pickle_is_read_in_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "large.pkl"
    path.write_bytes(pickle.dumps({f"layer.{index}": bytes(1 << 20) for index in range(60)}))
    tracemalloc.start()
    try:
        report = scan_path(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.hostile == ()
    assert peak < 20 << 20


def test_a_scan_that_takes_too_long_refuses(tmp_path: Path) -> None:
    path = tmp_path / "slow.pkl"
    path.write_bytes(pickle.dumps([[index] for index in range(200_000)]))
    report = scan_path(path, ScanLimits(seconds=0.05))
    assert "could not be looked through in 0.05 seconds" in report.describe(report.hostile)


def test_more_files_than_allowed_refuse(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(50):
            archive.writestr(f"{index}.txt", b"x")
    (tmp_path / "many.zip").write_bytes(buffer.getvalue())
    report = scan_path(tmp_path / "many.zip", ScanLimits(files=20))
    assert report.hostile != ()


def test_an_import_without_onnx_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(DependencyMissingError, match=r"noa\[onnx\]"):
        child.prepare({"kind": "onnx", "source": "model.onnx", "folder": "."})


def test_a_key_that_cannot_sign_is_found_before_an_import_begins(settings: RegistrySettings, tmp_path: Path) -> None:
    signing = SigningSettings(private_key=tmp_path / "missing.pem")
    told: list[str] = []
    unsigned = settings.model_copy(update={"signing": signing})
    with Registry.open(unsigned) as registry, pytest.raises(InvalidInputError, match=r"missing\.pem"):
        import_model(registry, tmp_path / "m.onnx", name="m", actor="ada", tell=told.append)
    assert told == []


def test_a_loaded_version_says_which_input_does_not_fit(registry: Registry, graph: Path) -> None:
    take(registry, graph)
    model = registry.load("outside/1")
    for inputs, field, expected, received in (
        ({"x": INPUT.astype(np.float64)}, "x", "float32", "float64"),
        ({"x": INPUT[0]}, "x", "(batch, 4)", "(4,)"),
        ({"x": INPUT.tolist()}, "x", "float32(batch, 4)", "list"),
        ({"y": INPUT}, "y", "`x`", "`y`"),
        ({}, "x", "float32(batch, 4)", "nothing"),
    ):
        with pytest.raises(SignatureError) as caught:
            model.run(inputs)  # pyright: ignore[reportArgumentType]  # what a beginner gives
        assert (caught.value.facts["field"], caught.value.expected, caught.value.received) == (
            field,
            expected,
            received,
        )


def test_what_the_core_says_about_converters_is_what_there_is() -> None:
    steps = {(c.source.removeprefix("live:"), c.target) for c in find_converters().values()}
    reached = {source: {source} for source, _ in steps}
    for _ in steps:  # as often as the longest chain could be
        for source, found in reached.items():
            found |= {target for here, target in steps if here in found}
            found.discard(source)
            found |= {target for here, target in steps if here == source and target != source}
    assert {(source, target) for target, sources in MADE_FROM.items() for source in sources} == {
        (source, target) for source, found in reached.items() for target in found
    }


def test_what_a_killed_import_left_goes_when_the_registry_is_opened_next(
    registry: Registry, settings: RegistrySettings, tmp_path: Path
) -> None:
    onnx.save(linear(), tmp_path / "m.onnx")
    work = tmp_path / "state" / "artifacts" / "_imports"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code = (
        "import os, sys; from pathlib import Path; from noa.settings import RegistrySettings; "
        "from noa_registry import Registry; from noa_conversion.imports import import_model; "
        "registry = Registry.open(RegistrySettings.model_validate_json(sys.argv[1])); "
        "registry.register = lambda *args, **more: os.kill(os.getpid(), 9); "
        "import_model(registry, Path(sys.argv[2]), name='outside', actor='eve')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, settings.model_dump_json(), str(tmp_path / "m.onnx")],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    assert list(temporary.glob("noa-*")) == []
    assert len(list(work.glob("*/source/m.onnx"))) == 1
    with registry.workspace() as alive:
        (alive / "mine").write_text("x")
        with Registry.open(settings):
            assert sorted(path.name for path in work.iterdir()) == sorted([alive.name, f"{alive.name}.lock"])
        assert (alive / "mine").read_text() == "x"
    assert list(work.iterdir()) == []
