"""`noa predict` with a model that takes texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, add_empty_registry: Callable[[Path], None]) -> Path:
    """A project with `echo/1`, which gives back its texts."""
    root = tmp_path_factory.mktemp("texts")
    (root / "noa.toml").write_text('[project]\nname = "texts"\n')
    add_empty_registry(root)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["text"], ["echo"])],
        "echo",
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["batch"])],
        [helper.make_tensor_value_info("echo", TensorProto.STRING, ["batch"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), root / "echo.onnx")
    assert noa(root, "models", "import", "echo.onnx", "--name", "echo").returncode == 0
    return root


def noa(root: Path, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "noa_cli", *arguments]
    return subprocess.run(command, cwd=root, input=text, capture_output=True, text=True, env=os.environ, check=False)


def echo(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["outputs"]["echo"]


def test_texts_come_from_json_and_numpy_files(texts: Path) -> None:
    predict = ("predict", "echo/1", "--json", "--input")
    assert echo(noa(texts, *predict, "-", text='{"text": ["é", "a: b", ""]}')) == ["é", "a: b", ""]
    assert echo(noa(texts, *predict, "-", text='["one"]')) == ["one"]
    np.save(texts / "in.npy", np.array(["a", "bc"]))
    assert echo(noa(texts, *predict, "in.npy")) == ["a", "bc"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [('["a", 1]', "no text"), ("[1, 2]", "no text"), ('[["a"], ["b", "c"]]', "no text"), ('["\\ud800"]', "no UTF-8")],
)
def test_what_is_no_text_is_refused_by_name(texts: Path, given: str, reason: str) -> None:
    done = noa(texts, "predict", "echo/1", "--input", "-", text=given)
    assert done.returncode != 0
    assert "`text`" in done.stderr
    assert reason in done.stderr
