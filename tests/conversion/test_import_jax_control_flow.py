"""`If`, `Loop` and `Scan` in JAX: which form of `lax` they take, and that they compute what onnxruntime does."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from graph_kit import FLOAT, INT64, model, value
from onnx import helper

from noa.errors import ConversionError
from noa_conversion.importers.jax import import_onnx_to_jax

BOOL = onnx.TensorProto.BOOL
GO = value("go", BOOL, [])
X, Y = value("x", FLOAT, [3]), value("y", FLOAT, [3])
POINT = np.asarray([1.0, -2.0, 0.5], np.float32)


def graph(name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, inputs, outputs)


def branch(kind: str, output: str = "out", shape: Any = (3,)) -> onnx.GraphProto:
    return graph(kind, [helper.make_node(kind, ["x"], [output])], [], [value(output, FLOAT, shape)])


def choice(then: onnx.GraphProto, other: onnx.GraphProto) -> bytes:
    node = helper.make_node("If", ["go"], ["y"], then_branch=then, else_branch=other)
    return model([node], [GO, X], [value("y", FLOAT, ["n"])]).SerializeToString()


def primitives(imported: Any, *inputs: Any) -> set[str]:
    found: set[str] = set()

    def visit(jaxpr: Any) -> None:
        for equation in jaxpr.eqns:
            found.add(equation.primitive.name)
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
                if hasattr(inner, "jaxpr"):
                    visit(inner.jaxpr)

    visit(jax.make_jaxpr(imported.apply)(imported.params, *inputs).jaxpr)
    return found


def compare(data: bytes, feeds: dict[str, np.ndarray]) -> Any:
    imported = import_onnx_to_jax(data)
    expected = onnxruntime.InferenceSession(data).run(None, feeds)
    received = jax.jit(imported.apply)(imported.params, *feeds.values())
    for wanted, got in zip(expected, received if len(expected) > 1 else [received], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    return imported


def counted(body: list[Any], extra: list[Any], *, keeps: str = "keeps") -> onnx.GraphProto:
    """Return a loop's body: it takes the round, whether it goes on and `v`, and gives `keeps`, `next` and more."""
    nodes = [helper.make_node("Identity", ["on"], ["keeps"]), *body]
    inputs = [value("round", INT64, []), value("on", BOOL, []), value("v", FLOAT, ["n"])]
    return graph("body", nodes, inputs, [value(keeps, BOOL, []), value("next", FLOAT, ["n"]), *extra])


def looped(body: onnx.GraphProto, outputs: list[Any], *, most: str = "most") -> bytes:
    weights = {"most_known": np.asarray(4, np.int64), "step": np.asarray([0.5], np.float32)}
    node = helper.make_node("Loop", [most, "", "x"], [each.name for each in outputs], body=body)
    inputs = [X] if most != "most" else [value("most", INT64, []), X]
    return model([node], inputs, outputs, weights).SerializeToString()


@pytest.mark.parametrize("go", [True, False])
def test_a_condition_known_at_run_time_is_a_cond(go: bool) -> None:
    feeds = {"go": np.asarray(go), "x": POINT}
    imported = compare(choice(branch("Exp"), branch("Neg", "other")), feeds)
    assert "cond" in primitives(imported, *feeds.values())
    gradient = jax.grad(lambda x: imported.apply(imported.params, np.asarray(go), x).sum())(POINT)
    np.testing.assert_allclose(gradient, np.exp(POINT) if go else -np.ones(3), rtol=1e-5)


def test_branches_of_different_shapes_are_refused_by_name() -> None:
    flat = graph("sum", [helper.make_node("ReduceSum", ["x"], ["s"])], [], [value("s", FLOAT, [1])])
    with pytest.raises(ConversionError, match=r"`If`.*branches give different"):
        import_onnx_to_jax(choice(branch("Exp"), flat))


def test_a_known_number_of_rounds_is_a_scan_with_a_gradient() -> None:
    body = [helper.make_node("Mul", ["v", "step"], ["next"]), helper.make_node("Identity", ["next"], ["slice"])]
    outputs = [Y, value("slices", FLOAT, [4, 3])]
    imported = compare(looped(counted(body, [value("slice", FLOAT, [3])]), outputs, most="most_known"), {"x": POINT})
    assert "scan" in primitives(imported, POINT)
    gradient = jax.grad(lambda x: imported.apply(imported.params, x)[0].sum())(POINT)
    np.testing.assert_allclose(gradient, np.full(3, 0.5**4), rtol=1e-6)


def test_a_number_of_rounds_known_at_run_time_is_a_while() -> None:
    body = [helper.make_node("Mul", ["v", "step"], ["next"])]
    feeds = {"most": np.asarray(3, np.int64), "x": POINT}
    imported = compare(looped(counted(body, []), [Y]), feeds)
    assert "while" in primitives(imported, *feeds.values())


def test_a_condition_computed_in_the_body_ends_the_loop() -> None:
    body = [
        helper.make_node("Mul", ["v", "step"], ["next"]),
        helper.make_node("ReduceMax", ["next"], ["largest"], keepdims=0),
        helper.make_node("ReduceMin", ["step"], ["smallest"], keepdims=0),
        helper.make_node("Greater", ["largest", "smallest"], ["goes"]),
    ]
    data = looped(counted(body, [], keeps="goes"), [Y], most="most_known")
    imported = compare(data, {"x": POINT * 3})
    assert "while" in primitives(imported, POINT)


def test_values_that_grow_are_unrolled() -> None:
    body = [helper.make_node("Concat", ["v", "x"], ["next"], axis=0)]
    imported = compare(looped(counted(body, []), [value("y", FLOAT, ["n"])], most="most_known"), {"x": POINT})
    assert not primitives(imported, POINT) & {"scan", "while"}


def test_values_that_grow_for_unknown_rounds_are_refused() -> None:
    body = [helper.make_node("Concat", ["v", "x"], ["next"], axis=0)]
    with pytest.raises(ConversionError, match=r"`Loop`.*known only at run time.*changes from"):
        import_onnx_to_jax(looped(counted(body, []), [value("y", FLOAT, ["n"])]))


def test_a_scan_runs_both_ways_over_any_axis() -> None:
    nodes = [
        helper.make_node("Add", ["state", "part"], ["next"]),
        helper.make_node("Mul", ["next", "other"], ["made"]),
    ]
    inner = [value(name, FLOAT, [2]) for name in ("state", "part", "other")]
    body = graph("body", nodes, inner, [value("next", FLOAT, [2]), value("made", FLOAT, [2])])
    node = helper.make_node(
        "Scan",
        ["start", "a", "b"],
        ["end", "all"],
        body=body,
        num_scan_inputs=2,
        scan_input_axes=[1, 0],
        scan_input_directions=[0, 1],
        scan_output_axes=[1],
        scan_output_directions=[1],
    )
    inputs = [value("start", FLOAT, [2]), value("a", FLOAT, [2, 4]), value("b", FLOAT, [4, 2])]
    outputs = [value("end", FLOAT, [2]), value("all", FLOAT, [2, 4])]
    rng = np.random.default_rng(0)
    feeds = {
        each.name: rng.standard_normal(shape).astype(np.float32)
        for each, shape in zip(inputs, [(2,), (2, 4), (4, 2)], strict=True)
    }
    imported = compare(model([node], inputs, outputs).SerializeToString(), feeds)
    assert "scan" in primitives(imported, *feeds.values())
