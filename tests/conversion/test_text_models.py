"""Graphs of texts: imported, kept with their example, run, compared, and refused by name where texts cannot go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from noa.errors import ConversionError, InvalidInputError
from noa.settings import ConversionSettings, RegistrySettings
from noa.signatures import Signature, TensorSpec
from noa_conversion import JaxModel, TorchModel, compare_models, convert_folder, load_format, measure_equivalence
from noa_conversion.comparison import compare_output
from noa_conversion.imports import import_model
from noa_conversion.model_files import ModelFiles
from noa_registry import Registry

KEYS = ("red", "blue")
SETTINGS = ConversionSettings()


def encoder(path: Path, *, numbers: tuple[int, ...] = (1, 2), values: tuple[str, ...] = ("rot", "blau")) -> Path:
    """`word` string(batch): `number` int64(batch) and `german` string(batch)."""
    nodes = [
        helper.make_node(
            "LabelEncoder", ["word"], ["number"], domain="ai.onnx.ml",
            keys_strings=KEYS, values_int64s=numbers, default_int64=-1,
        ),
        helper.make_node(
            "LabelEncoder", ["word"], ["german"], domain="ai.onnx.ml",
            keys_strings=KEYS, values_strings=values, default_string="unbekannt",
        ),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("word", TensorProto.STRING, ["batch"])],
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("german", TensorProto.STRING, ["batch"]),
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.fixture
def registry(tmp_path: Path, empty_sqlite_file: Path) -> Iterator[Registry]:
    shutil.copyfile(empty_sqlite_file, tmp_path / "noa.db")
    settings = RegistrySettings(database_url=f"sqlite:///{tmp_path / 'noa.db'}", artifact_dir=tmp_path / "artifacts")
    with Registry.open(settings) as opened:
        yield opened


def folder_of(tmp_path: Path, name: str, **changes: Any) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    encoder(folder / "model.onnx", **changes)
    spec = TensorSpec(name="word", dtype="string", shape=("batch",))
    number = TensorSpec(name="number", dtype="int64", shape=("batch",))
    Signature(inputs=(spec,), outputs=(number, TensorSpec(name="german", dtype="string", shape=("batch",)))).save(
        folder
    )
    return folder


@pytest.mark.parametrize("example", [None, "npz", "json"])
def test_an_imported_graph_of_texts_is_kept_with_its_example_and_runs(
    registry: Registry, tmp_path: Path, example: str | None
) -> None:
    given = None
    words = ["blue", "grün", "red"]
    if example is not None:
        given = tmp_path / f"example.{example}"
        if example == "json":
            given.write_text(json.dumps({"word": words}))
        else:
            np.savez(given, word=np.array(words))
    result = import_model(registry, encoder(tmp_path / "m.onnx"), name="words", actor="ada", example=given)
    version = result.version
    assert version.signature.inputs[0].describe() == "string(batch)"
    kept = registry.input_example(version)["word"]
    assert kept.dtype == object
    if example is not None:
        assert kept.tolist() == words
    wrapper = registry.open_wrapper(version)
    served = json.loads((wrapper / "serving_input_example.json").read_text())
    assert served == {"inputs": kept.tolist()}
    assert '"dtype": "str"' in (wrapper / "MLmodel").read_text()
    outputs = registry.load(version.reference).run({"word": np.array(words, dtype=object)})
    assert outputs["number"].tolist() == [2, -1, 1]
    assert outputs["german"].tolist() == ["blau", "unbekannt", "rot"]


@pytest.mark.filterwarnings("ignore")
def test_stock_mlflow_runs_a_version_of_texts(registry: Registry, tmp_path: Path) -> None:
    from mlflow import pyfunc

    version = import_model(registry, encoder(tmp_path / "m.onnx"), name="words", actor="ada").version
    model = pyfunc.load_model(str(registry.open_wrapper(version)))
    assert model.predict(np.array(["red", "blue"]))["number"].tolist() == [1, 2]


def test_examples_that_are_no_texts_are_refused(registry: Registry, tmp_path: Path) -> None:
    example = tmp_path / "example.json"
    for values in ([1, 2], ["a", None], [["a"], ["b", "c"]]):
        example.write_text(json.dumps({"word": values}))
        with pytest.raises(InvalidInputError, match="`word`"):
            import_model(registry, encoder(tmp_path / "m.onnx"), name="words", actor="ada", example=example)


def test_graphs_of_texts_are_compared_exactly(tmp_path: Path) -> None:
    one, same = folder_of(tmp_path, "one"), folder_of(tmp_path, "same")
    other = folder_of(tmp_path, "other", values=("rot", "lila"))
    words = {"word": np.array(["red", "blue", "x"], dtype=object)}
    common: dict[str, Any] = {"source": "onnx", "source_folder": one, "target": "onnx", "settings": SETTINGS}
    assert measure_equivalence(target_folder=same, samples=words, **common).passed
    evidence = measure_equivalence(target_folder=other, samples=words, **common)
    assert not evidence.passed
    assert "german" in json.dumps(dict(evidence.values))
    report = compare_models(
        ModelFiles(format="onnx", folder=one, label="one"),
        ModelFiles(format="onnx", folder=same, label="same"),
        settings=SETTINGS,
    )
    assert report.passed, report


def test_texts_that_differ_count_as_one_each() -> None:
    spec = TensorSpec(name="y", dtype="string", shape=("batch",))
    left, right = np.array(["a", "b"], dtype=object), np.array(["a", "c"], dtype=object)
    found = compare_output(spec, left, right, batch=2, settings=SETTINGS)
    assert (found.passed, found.max_abs_error, found.worst_sample) == (False, 1.0, 1)
    assert compare_output(spec, left, left.copy(), batch=2, settings=SETTINGS).passed
    problem = compare_output(spec, left, np.zeros(2), batch=2, settings=SETTINGS).problem
    assert problem == "dtypes differ: expected string, native string, target float64"


@pytest.mark.parametrize(("target", "library"), [("torch", "PyTorch"), ("jax", "JAX")])
def test_formats_without_texts_refuse_them_by_name(tmp_path: Path, target: str, library: str) -> None:
    with pytest.raises(ConversionError, match=f"tensor `word` holds texts, and {library} has no tensors of them"):
        convert_folder("onnx", folder_of(tmp_path, "source"), target, tmp_path / "target", settings=SETTINGS)
    assert not (tmp_path / "target").exists()
    signature = Signature.load(tmp_path / "source")
    with pytest.raises(ConversionError, match="holds texts"):
        if target == "jax":
            JaxModel(apply=lambda _params, x: x, params={}, signature=signature)
        else:
            TorchModel(module=object(), signature=signature)  # type: ignore[arg-type]  # refused before it is looked at


@pytest.mark.parametrize("target", ["onnx-fp16", "onnx-bf16", "onnx-int8", "onnx-int4"])
def test_a_graph_of_texts_is_refused_or_made_right_in_reduced_precision(tmp_path: Path, target: str) -> None:
    source = folder_of(tmp_path, "source")
    try:
        convert_folder("onnx", source, target, tmp_path / "target", settings=SETTINGS)
    except ConversionError as exc:
        assert str(exc)
        return
    words = {"word": np.array(["red", "blue"], dtype=object)}
    found = load_format(target, tmp_path / "target").run(words)
    assert found["german"].tolist() == ["rot", "blau"]
