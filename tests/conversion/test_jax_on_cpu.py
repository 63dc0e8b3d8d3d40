"""What XLA's CPU backend computes wrongly by itself: noa's imported and stored models are right there all the same.

What XLA gives changes with each compilation, so each test compiles several times.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph_kit import FLOAT, INT64, model, value
from onnx import helper, numpy_helper

from noa.signatures import Signature, TensorSpec
from noa_conversion import JaxModel, load_format, save_native
from noa_conversion.importers.jax import import_onnx_to_jax
from noa_conversion.importers.jax.softmaxes import log_softmax, log_sum_exp, softmax

COMPILATIONS = 4
ROWS = np.random.default_rng(0).uniform(0, 1, (169, 32)).astype(np.float32)
SUMS = np.full(64, ROWS.astype(np.float64).sum() * 0.02)
VALUE = np.asarray([0.02], np.float32)


def filled(how: str) -> bytes:
    """The sum over all rows of a product with a matrix that is 0.02 everywhere, made in one of the ways of ONNX."""
    fills = {
        "ConstantOfShape": helper.make_node(
            "ConstantOfShape", ["shape"], ["filled"], value=numpy_helper.from_array(VALUE)
        ),
        "Expand": helper.make_node("Expand", ["value", "shape"], ["filled"]),
        "Constant": helper.make_node(
            "Constant", [], ["filled"], value=numpy_helper.from_array(np.full((32, 64), VALUE[0]))
        ),
    }
    nodes = [
        fills[how],
        helper.make_node("MatMul", ["x", "filled"], ["product"]),
        helper.make_node("ReduceSum", ["product", "axis"], ["y"], keepdims=0),
    ]
    weights = {"shape": np.asarray([32, 64], np.int64), "axis": np.zeros(1, np.int64), "value": VALUE}
    return model(nodes, [value("x", FLOAT, [169, 32])], [value("y", FLOAT, [64])], weights).SerializeToString()


@pytest.mark.parametrize("how", ["ConstantOfShape", "Expand", "Constant"])
def test_a_product_with_one_number_everywhere_is_summed_right(how: str) -> None:
    imported = import_onnx_to_jax(filled(how))
    for _ in range(COMPILATIONS):
        jax.clear_caches()
        np.testing.assert_allclose(jax.jit(imported.apply)(imported.params, ROWS), SUMS, rtol=1e-4)


def test_a_stored_program_with_such_a_product_is_right(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(169, 32)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(64,)),),
    )
    stored = JaxModel(
        apply=lambda params, x: jnp.sum(x @ jnp.full((32, 64), params["value"][0]), 0),
        params={"value": jnp.asarray(VALUE)},
        signature=signature,
    )
    save_native(stored, tmp_path / "jax")
    for threads in (None, 1) * (COMPILATIONS // 2):
        given = load_format("jax", tmp_path / "jax", threads=threads).run({"x": ROWS})
        np.testing.assert_allclose(given["y"], SUMS, rtol=1e-4)


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_a_softmax_of_huge_scores_is_a_number(kind: str) -> None:
    """A mean is a sum times 1/169, which XLA fuses into the subtraction of the largest: one rounding less."""
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["mean"]), helper.make_node(kind, ["mean"], ["y"], axis=1)]
    shapes = [value("x", FLOAT, [1, 8, 13, 13])], [value("y", FLOAT, [1, 8, 1, 1])]
    imported = import_onnx_to_jax(model(nodes, *shapes).SerializeToString())
    wanted = np.full((1, 8, 1, 1), 1 / 8 if kind == "Softmax" else -np.log(8))
    for scale in (4.8e9, 5.1e9, 6.3e9, 7.7e9):
        plane = np.random.default_rng(int(scale)).uniform(0.9, 1, (13, 13)) * scale
        x = np.broadcast_to(plane, (1, 8, 13, 13)).astype(np.float32)
        np.testing.assert_allclose(imported.run({"x": x})["y"], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("ours", "of_jax"),
    [
        (lambda x: softmax(x, 1), lambda x: jax.nn.softmax(x, 1)),
        (lambda x: log_softmax(x, 1), lambda x: jax.nn.log_softmax(x, 1)),
        (lambda x: log_sum_exp(x, (0, 1)), lambda x: jax.nn.logsumexp(x, (0, 1), keepdims=True)),
    ],
    ids=["softmax", "log_softmax", "log_sum_exp"],
)
def test_the_softmax_family_and_its_gradients_are_those_of_jax(
    ours: Callable[[Any], Any], of_jax: Callable[[Any], Any]
) -> None:
    usual = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    masked = np.where(usual > 1, -np.inf, usual)
    infinite = np.where(usual > 1, np.inf, usual)
    for x in (usual, masked, infinite, np.full((3, 5), -np.inf, np.float32), usual.astype(np.float16)):
        tolerance = 2e-3 if x.dtype == np.float16 else 1e-6
        np.testing.assert_allclose(ours(x), of_jax(x), rtol=tolerance, atol=tolerance)
    weights = np.arange(15, dtype=np.float32).reshape(3, 5)
    for x in (usual, masked):
        gradients = [jax.grad(lambda x, each=each: (each(x) * weights)[0].sum())(x) for each in (ours, of_jax)]
        np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-6)


def test_a_fill_of_a_free_axis_has_its_size() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["y"], value=numpy_helper.from_array(VALUE)),
    ]
    imported = import_onnx_to_jax(
        model(nodes, [value("x", INT64, ["rows", 3])], [value("y", FLOAT, ["rows", 3])]).SerializeToString()
    )
    assert imported.signature.outputs[0].shape == ("rows", 3)
    np.testing.assert_array_equal(imported.run({"x": np.zeros((4, 3), np.int64)})["y"], np.full((4, 3), VALUE[0]))
