"""An importer that computes one operator wrongly is found out, and the node is named: in the middle of a deep graph."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import graph_kit as graphs
import numpy as np
import onnx
import pytest
from graph_kit import FLOAT
from onnx import helper

from noa.settings import ConversionSettings
from noa_conversion import ModelFiles, compare_models, open_model
from noa_conversion.importers.op import Op
from noa_conversion.importers.registry import Handlers

SETTINGS = ConversionSettings()
TABLES = {"torch": "noa_conversion.importers.torch.table", "jax": "noa_conversion.importers.jax.handlers"}


def deep_model() -> onnx.ModelProto:
    """Ten layers of a product, a sum and an activation; the sixth activation, `active5`, is the only `Softsign`."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray] = {}
    for layer in range(10):
        before, after = "x" if layer == 0 else f"a{layer - 1}", "y" if layer == 9 else f"a{layer}"
        weights[f"w{layer}"] = rng.normal(size=(6, 6)).astype(np.float32) / 2
        weights[f"b{layer}"] = rng.normal(size=6).astype(np.float32)
        kind = "Softsign" if layer == 5 else "Tanh"
        nodes += [
            helper.make_node("MatMul", [before, f"w{layer}"], [f"m{layer}"], name=f"product{layer}"),
            helper.make_node("Add", [f"m{layer}", f"b{layer}"], [f"s{layer}"], name=f"sum{layer}"),
            helper.make_node(kind, [f"s{layer}"], [after], name=f"active{layer}"),
        ]
    shape = ["batch", 6]
    return graphs.model(nodes, [graphs.value("x", FLOAT, shape)], [graphs.value("y", FLOAT, shape)], weights)


@pytest.mark.parametrize(
    "target", [pytest.param("torch", marks=pytest.mark.torch), pytest.param("jax", marks=pytest.mark.jax)]
)
@pytest.mark.parametrize("is_wrong", [True, False])
def test_the_node_that_an_importer_computes_wrongly_is_named(
    target: str, is_wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importer = importlib.import_module(f"noa_conversion.importers.{target}")
    importlib.import_module(f"noa_conversion.importers.{target}.importer")  # fills the table
    table: Handlers = importlib.import_module(TABLES[target]).HANDLERS
    entry = table.find("", "Softsign")
    assert entry is not None

    def slightly_off(op: Op, *inputs: Any) -> Any:
        result = entry.handler(op, *inputs)
        return result + 0.05 * result if is_wrong else result

    wrong = replace(entry, handler=slightly_off)
    monkeypatch.setattr(table, "_table", {**table._table, ("", "Softsign"): wrong})  # pyright: ignore[reportPrivateUsage]  # a table cannot be written twice on purpose
    (tmp_path / "out").mkdir()
    with open_model(graphs.save(deep_model(), tmp_path / "deep.onnx")) as source:
        getattr(importer, f"convert_onnx_to_{target}")(source.folder, tmp_path / "out", SETTINGS)
        made = ModelFiles(format=target, folder=tmp_path / "out", label="made")
        report = compare_models(source, made, settings=SETTINGS)

    assert report.passed is not is_wrong, report.problem
    if is_wrong:
        found = report.first_difference
        assert found is not None
        assert (found.node, found.kind, found.value) == ("active5", "Softsign", "a5"), found
        assert f"`{target}` importer" in found.explanation
        assert 0.001 < found.max_abs_error < 0.06
    else:
        assert report.first_difference is None
