"""`noa convert`, `verify`, `formats` and `optimize`, as people type them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from noa_cli.__main__ import run


def _save(path: Path, *, shift: float = 0.0) -> Path:
    rng = np.random.default_rng(0)
    weights = {
        "w": (rng.normal(size=(64, 8)) + shift).astype(np.float32),
        "b": rng.normal(size=8).astype(np.float32),
    }
    body = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["a"], name="linear"),
            helper.make_node("Relu", ["a"], ["y"], name="act"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without a project, with `a.onnx` and `b.onnx`, whose weights differ."""
    monkeypatch.chdir(tmp_path)
    _save(tmp_path / "a.onnx")
    _save(tmp_path / "b.onnx", shift=0.1)
    return tmp_path


def _json(arguments: list[str], capsys: pytest.CaptureFixture[str], *, code: int = 0) -> Any:
    assert run([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_equal_files_are_equal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = _json(["verify", "a.onnx", "a.onnx"], capsys)
    assert answer["passed"] and [run["batch"] for run in answer["runs"]] == [1, 7]


def test_different_files_end_with_one_and_name_the_node(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "a.onnx", "b.onnx", "--keep", "worst.npz"]) == 1
    text = capsys.readouterr().out
    assert "`linear` (Gemm) is the first that differs" in text and "different: output `y`" in text
    with np.load("worst.npz") as kept:
        assert set(kept.files) == {"x"}
    answer = _json(["verify", "a.onnx", "b.onnx", "--input", "worst.npz"], capsys, code=1)
    assert answer["inputs"] == "given" and answer["first_difference"]["node"] == "linear"


def test_other_names_are_told_apart_on_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load("a.onnx")
    model.graph.node[-1].output[0] = model.graph.output[0].name = "relu_1"
    onnx.save(model, "again.onnx")
    answer = _json(["verify", "a.onnx", "again.onnx"], capsys, code=1)
    assert "--rename relu_1=y" in answer["problem"] and not answer["outputs"]
    answer = _json(["verify", "a.onnx", "again.onnx", "--rename", "relu_1=y"], capsys)
    assert answer["passed"] and {output["output"] for output in answer["outputs"]} == {"y"}
    assert run(["verify", "a.onnx", "again.onnx", "--rename", "relu_1"]) == 1
    assert "TARGET=SOURCE" in capsys.readouterr().err


def _classifier(path: Path, *, zipped: bool = True) -> Path:
    """A classifier as skl2onnx writes it: a matrix product, and a dictionary per row."""
    value = helper.make_tensor_value_info
    scores = "scores" if zipped else "probabilities"
    nodes = [helper.make_node("MatMul", ["x", "w"], ["s"], name="dot"), helper.make_node("Softmax", ["s"], [scores])]
    outputs = [value("probabilities", TensorProto.FLOAT, ["batch", 3])]
    if zipped:
        node = helper.make_node("ZipMap", ["scores"], ["probabilities"], name="zip", domain="ai.onnx.ml")
        node.attribute.append(helper.make_attribute("classlabels_int64s", [4, 5, 9]))
        nodes.append(node)
        rows = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        outputs = [helper.make_value_info("probabilities", helper.make_sequence_type_proto(rows))]
    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    inputs = [value("x", TensorProto.FLOAT, ["batch", 4])]
    body = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(weights, "w")])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(body, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_dictionary_per_row_at_the_end_becomes_a_plain_tensor_and_is_told(
    here: Path, capsys: pytest.CaptureFixture[str], framework: str
) -> None:
    _classifier(here / "zip.onnx")
    plain = _classifier(here / "plain.onnx", zipped=False)
    assert run(["convert", "zip.onnx", "--to", framework, "-o", "out"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "`ZipMap` at its end" in told and "classes 4, 5, 9" in told
    answer = _json(["verify", "out", plain.name], capsys)
    assert answer["passed"] and [entry["batch"] for entry in answer["runs"]] == [1, 7]


def test_a_dictionary_that_goes_on_is_refused_by_its_operator(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(_classifier(here / "zip.onnx"))
    model.graph.node.append(helper.make_node("Identity", ["probabilities"], ["again"]))
    onnx.save(model, "used.onnx")
    assert run(["convert", "used.onnx", "--to", "torch", "-o", "out"]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "`ZipMap` (node `zip`, ai.onnx.ml opset 3) makes it" in told and "zipmap=False" in told


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_trees_to_a_framework_are_refused_before_the_file_is_read(
    here: Path, capsys: pytest.CaptureFixture[str], library: str
) -> None:
    name = {"xgboost": "trees.json", "lightgbm": "trees.txt"}[library]
    Path(name).write_text("no model, which reading would find")
    assert run(["convert", name, "--from", library, "--to", "jax", "-o", "out"]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert f"`{library}` cannot become `jax`" in told and "`--to onnx`" in told and "Reading" not in told
    assert run(["convert", name, "--from", library, "--to", "onnx", "-o", "out"]) == 1
    assert "cannot become" not in capsys.readouterr().err
    table = {entry["name"]: entry["not_to"] for entry in _json(["formats"], capsys)["from_others"]}
    assert table[library] == ["torch", "jax"] and table["keras"] == []


def test_inputs_that_compare_nothing_are_refused_by_their_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(_kept_inputs()) as kept:
        x = kept["x"]
    for name, array in (("empty.npz", x[:0]), ("nan.npz", np.full_like(x, np.nan))):
        np.savez(name, x=array)
        for command in (["verify", "a.onnx", "a.onnx"], ["convert", "a.onnx", "--to", "onnx-bf16", "-o", "out"]):
            assert run([*command, "--input", name]) == 1
            text = capsys.readouterr().err
            assert "nothing was compared: " in text and name in text
    assert not Path("out").exists()


def _kept_inputs() -> str:
    assert run(["verify", "a.onnx", "b.onnx", "--keep", "some.npz"]) == 1
    return "some.npz"


def test_a_file_that_is_not_there_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "a.onnx", "c.onnx"]) == 1
    assert "no such model" in capsys.readouterr().err
    assert run(["verify", "a.onnx", "a.onnx", "--size", "batch"]) == 1
    assert "AXIS=NUMBER" in capsys.readouterr().err


def test_a_file_is_converted_into_a_folder_and_nothing_is_overwritten(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = _json(["convert", "a.onnx", "--to", "onnx-bf16", "-o", "out"], capsys)
    assert answer["chain"] == ["onnx", "onnx-bf16"] and answer["evidence"]["passed"]
    assert {path.name for path in Path("out").iterdir()} == {"model.onnx", "signature.json", "change.json"}
    assert run(["convert", "a.onnx", "--to", "onnx-bf16", "-o", "again"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "close to a.onnx" in text and "equal to" not in text
    assert run(["verify", "out", "a.onnx"]) == 1  # float32's tolerance is not the reduced format's
    assert run(["convert", "a.onnx", "--to", "onnx-bf16", "-o", "out"]) == 1
    assert "already there" in capsys.readouterr().err


def test_a_file_wants_an_output_and_another_format(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "a.onnx", "--to", "onnx-fp16"]) == 1
    assert "--output" in capsys.readouterr().err
    assert run(["convert", "a.onnx", "-o", "out"]) == 1
    assert "already is of the format `onnx`" in capsys.readouterr().err
    assert run(["convert", "a.onnx", "--to", "coreml", "-o", "out"]) == 1
    assert "no format `coreml`" in capsys.readouterr().err
    assert run(["convert", "a.onnx", "--to", "onnx-fp16", "--opset", "7", "-o", "out"]) == 1
    refused = capsys.readouterr().err
    assert "opset 7 cannot be written: `Split`, `Pad`, `Resize` and" in refused
    assert "operators had other forms before opset 18" in refused
    assert "(--opset)" in refused
    assert "expected an ONNX opset from 18 to 23; received 7. Leave `--opset` out for 20" in refused
    assert not Path("out").exists()


def test_another_librarys_file_is_taken_by_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("model.pkl").write_bytes(b"\x80\x04N.")
    assert run(["convert", "model.pkl", "--from", "sklearn", "-o", "out"]) == 1
    assert "pickles" in capsys.readouterr().err
    assert run(["convert", "a.onnx", "--from", "caffe", "-o", "out"]) == 1
    assert "no library `caffe`" in capsys.readouterr().err


def test_formats_are_listed_with_what_they_need(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = _json(["formats"], capsys)
    names = {entry["name"]: entry for entry in answer["formats"]}
    assert {"onnx", "torch", "jax", "onnx-int8"} <= set(names)
    assert names["torch"]["made_from"] == ["live:torch", "onnx"]
    edges = {(entry["source"], entry["target"]): entry for entry in answer["converters"]}
    assert edges["onnx", "onnx-int8-static"]["wants_samples"] and not edges["onnx", "onnx-int8"]["exact"]
    assert {entry["name"] for entry in answer["from_others"]} == {"keras", "lightgbm", "sklearn", "tflite", "xgboost"}
    assert run(["formats"]) == 0
    assert "onnx -> torch" in capsys.readouterr().out


def test_a_version_gets_a_reduced_format_with_its_proof(
    registered: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(registered)
    before = _json(["models", "show", "digits/3"], capsys)["formats"]
    assert run(["convert", "digits/3", "--to", "onnx"]) == 1
    assert "already has the format" in capsys.readouterr().err
    assert run(["convert", "digits/3:onnx", "--to", "onnx-int4", "--bind", "x=1", "-o", "copy"]) == 1
    assert "changes what a model takes" in capsys.readouterr().err
    assert run(["convert", "digits/3:tflite", "--to", "onnx-int4", "-o", "copy"]) == 1
    assert "has no format `tflite`" in capsys.readouterr().err
    assert "onnx-int4" not in before
    assert not Path("copy").exists()


def test_a_version_without_a_recipe_cannot_be_measured_on_its_task(
    registered: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(registered)
    assert run(["optimize", "digits/3"]) == 1
    assert "has no recipe here" in capsys.readouterr().err
    assert run(["optimize", "digits/3", "--formats", "onnx-int3"]) == 1
    assert "no format `onnx-int3`" in capsys.readouterr().err


RECIPE = """
import numpy as np
from noa_training import AdamW, Dataset, Recipe, Split, mlp


def data() -> Dataset:
    rng = np.random.default_rng(0)
    def split(rows: int) -> Split:
        x = rng.normal(size=(rows, 16)).astype(np.float32)
        return Split(inputs={"x": x}, targets=(x[:, 0] + x[:, 1] > 0).astype(np.int64))
    return Dataset(train=split(256), validation=split(64), test=split(64))


recipe = Recipe(name="small", data=data, model=mlp(hidden=(64,)), objective="cross_entropy", metrics=("accuracy",),
    optimizer=AdamW(learning_rate=0.02), epochs=3, batch_size=32)
"""


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.timeout(900)
def test_a_trained_version_is_optimised_and_converted_to_the_other_framework(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    add_empty_registry: Callable[[Path], None],
) -> None:
    """In this process, which loads the frameworks once; `noa train` starts one of its own all the same."""
    (tmp_path / "noa.toml").write_text(
        '[project]\nname = "p"\n[recipes.small]\npath = "recipe.py"\nbackends = ["torch"]\n'
    )
    (tmp_path / "recipe.py").write_text(RECIPE)

    add_empty_registry(tmp_path)
    monkeypatch.chdir(tmp_path)

    def noa(*arguments: str) -> Any:
        capfd.readouterr()
        code = run([*arguments])
        out, err = capfd.readouterr()
        assert code == 0, err
        return json.loads(out) if "--json" in arguments else out

    noa("train", "small", "--backend", "torch")
    options = ["--seconds", "0.02", "--max-drop", "1", "--formats", "onnx-bf16,onnx-int8,onnx-int8-static", "--json"]
    found = noa("optimize", "small/1", "--plot", "front.png", *options)
    formats = {one["format"]: one for one in found["formats"]}
    assert set(formats) == {"onnx", "onnx-bf16", "onnx-int8", "onnx-int8-static"}
    assert all(set(one["latency_ms"]) == {"1", "16"} and one["metric"] > 0.5 for one in formats.values())
    assert found["added"] and all(formats[name]["on_front"] for name in found["added"])
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    shown = noa("models", "show", "small/1", "--json")
    assert set(found["added"]) <= set(shown["formats"])
    facts = {(fact["kind"], fact["subject"]) for fact in shown["evidence"]}
    assert {(kind, name) for kind in ("equivalence", "latency", "metrics", "size") for name in found["added"]} <= facts
    answer = noa("convert", "small/1", "--to", "jax", "--json")
    assert answer["chain"] == ["onnx", "jax"] and answer["evidence"]["problem"] is None
    assert "equal" in noa("verify", "small/1:torch", "small/1:jax")


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_rounds_of_a_loop_are_bound_and_its_slices_counted(
    here: Path, capsys: pytest.CaptureFixture[str], framework: str
) -> None:
    """The file leaves the number of slices free; once the rounds are bound it is known."""
    value = helper.make_tensor_value_info
    bodied = [
        helper.make_node("Identity", ["c"], ["c_out"]),
        helper.make_node("Mul", ["a", "w"], ["a_out"]),
        helper.make_node("ReduceSum", ["a_out"], ["total"], keepdims=0),
    ]
    rows, flag = value("a", TensorProto.FLOAT, ["n", 3]), value("c", TensorProto.BOOL, [])
    body = helper.make_graph(
        bodied,
        "body",
        [value("i", TensorProto.INT64, []), flag, rows],
        [
            value("c_out", TensorProto.BOOL, []),
            value("a_out", TensorProto.FLOAT, ["n", 3]),
            value("total", TensorProto.FLOAT, []),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["trips", "go", "x"], ["y", "sums"], body=body)],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 3]), value("trips", TensorProto.INT64, [])],
        [value("y", TensorProto.FLOAT, ["n", 3]), value("sums", TensorProto.FLOAT, ["t"])],
        [numpy_helper.from_array(np.array(True), "go"), numpy_helper.from_array(np.full(3, 0.5, np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), "loop.onnx")
    assert run(["convert", "loop.onnx", "--to", framework, "-o", "free"]) == 1
    assert "operator `Loop` cannot be imported" in capsys.readouterr().err
    answer = _json(["convert", "loop.onnx", "--to", framework, "--bind", "trips=3", "-o", "out"], capsys)
    assert answer["evidence"]["passed"] and {one["output"] for one in answer["evidence"]["outputs"]} == {"y", "sums"}
