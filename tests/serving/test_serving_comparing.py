"""Comparing the outputs of two versions: what counts as the same, what is counted, and that counts add up."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from noa.settings import CompareWay, ConversionSettings, VerdictSettings
from noa.signatures import Signature, TensorSpec
from noa_serving._comparing import Comparison, Rule, rules_of
from noa_serving._sketch import NOT_FINITE, Sketch, stability_index


def _signature(*outputs: TensorSpec) -> Signature:
    return Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),), outputs=outputs)


def _rules(*outputs: TensorSpec, **settings: object) -> dict[str, Rule]:
    return rules_of(_signature(*outputs), VerdictSettings.model_validate(settings), ConversionSettings())


def _share(main: np.ndarray, arm: np.ndarray, way: CompareWay, **tolerance: float) -> float:
    counts = Comparison()
    counts.add({"y": main}, {"y": arm}, len(main), {"y": Rule(way, **tolerance)})
    return counts.agreed


def test_class_scores_agree_by_class_floats_by_tolerance_and_others_by_value() -> None:
    rules = _rules(
        TensorSpec(name="logits", dtype="float32", shape=("batch", 10)),
        TensorSpec(name="embedding", dtype="float32", shape=("batch", 384)),
        TensorSpec(name="scores", dtype="float32", shape=("batch",)),
        TensorSpec(name="label", dtype="int64", shape=("batch",)),
        TensorSpec(name="is_fraud", dtype="bool", shape=("batch",)),
        TensorSpec(name="precise", dtype="float64", shape=("batch",)),
    )
    assert {name: rule.way for name, rule in rules.items()} == {
        "logits": "argmax",
        "embedding": "tolerance",
        "scores": "tolerance",
        "label": "equal",
        "is_fraud": "equal",
        "precise": "tolerance",
    }
    assert (rules["embedding"].absolute, rules["embedding"].relative) == (1e-4, 1e-3)
    assert rules["precise"].absolute == 1e-8


def test_settings_say_how_an_output_is_compared() -> None:
    outputs = (
        TensorSpec(name="logits", dtype="float32", shape=("batch", 10)),
        TensorSpec(name="price", dtype="float32", shape=("batch",)),
        TensorSpec(name="id", dtype="int64", shape=("batch",)),
    )
    rules = _rules(*outputs, compare={"logits": "tolerance", "id": "ignore"}, absolute_tolerance=0.5)
    assert rules == {"logits": Rule("tolerance", 0.5, 1e-3), "price": Rule("tolerance", 0.5, 1e-3)}


def test_an_item_agrees_if_every_output_of_it_does() -> None:
    counts = Comparison()
    main = {"a": np.array([1, 2, 3, 4]), "b": np.array([[0.0, 1.0]] * 4)}
    arm = {"a": np.array([1, 2, 3, 5]), "b": np.array([[0.0, 1.0], [1.0, 0.0], [0.2, 0.3], [0.0, 1.0]])}
    counts.add(main, arm, 4, {"a": Rule("equal"), "b": Rule("argmax")})
    assert counts.agreed == 0.5
    assert (counts.compared, counts.items) == (1, 4)
    assert counts.outputs["a"].agreed == 0.75
    assert counts.outputs["b"].agreed == 0.75
    assert counts.outputs["a"].difference_max == 1.0


@pytest.mark.parametrize(
    ("main", "arm", "way", "share"),
    [
        ([1.0, 2.0], [1.00005, 2.1], "tolerance", 0.5),
        ([math.nan, math.inf], [math.nan, math.inf], "tolerance", 1.0),
        ([math.nan, 1.0], [1.0, math.nan], "tolerance", 0.0),
        ([math.inf, 1.0], [-math.inf, 1.0], "tolerance", 0.5),
        ([math.nan, 1.0], [math.nan, 1.0], "equal", 1.0),
        ([True, False], [True, True], "equal", 0.5),
        (["yes", "no"], ["yes", "maybe"], "equal", 0.5),
        (["yes", "no"], ["yes", "maybe"], "tolerance", 0.5),
    ],
)
def test_what_counts_as_the_same(main: list[object], arm: list[object], way: CompareWay, share: float) -> None:
    assert _share(np.array(main), np.array(arm), way, absolute=1e-4) == share


def test_an_output_that_is_missing_or_has_another_shape_agrees_in_no_item() -> None:
    counts, rules = Comparison(), {"y": Rule("tolerance", 1e-4)}
    counts.add({"y": np.zeros((2, 3))}, {}, 2, rules)
    counts.add({"y": np.zeros((2, 3))}, {"y": np.zeros((2, 4))}, 2, rules)
    assert counts.agreed == 0.0
    assert counts.outputs["y"].mismatched == 2


def test_an_output_without_an_axis_of_items_counts_for_all_of_them() -> None:
    counts = Comparison()
    counts.add({"y": np.array(3.0)}, {"y": np.array(3.0)}, 4, {"y": Rule("equal")})
    counts.add({"y": np.array(3.0)}, {"y": np.array(4.0)}, 4, {"y": Rule("equal")})
    assert counts.agreed == 1.0


_FLOATS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=1, max_side=40), elements=st.floats(width=32))


@given(st.lists(_FLOATS, min_size=1, max_size=6), st.integers(0, 5))
def test_counts_of_workers_add_up_to_those_of_one(rows: list[np.ndarray], cut: int) -> None:
    rules = {"y": Rule("tolerance", 1e-4, 1e-3)}
    whole, first, second = Comparison(), Comparison(), Comparison()
    for index, row in enumerate(rows):
        for counts in (whole, first if index < cut else second):
            counts.offered += 1
            with np.errstate(over="ignore", invalid="ignore"):
                counts.add({"y": row}, {"y": row * np.float32(1.0005)}, len(row), rules)
            counts.add_times(0.001 * (index + 1), 0.002, most_ratio=1.5)
    merged = Comparison.from_json(json.loads(json.dumps(first.to_json())))
    merged.merge(Comparison.from_json(json.loads(json.dumps(second.to_json()))))
    assert merged.outputs["y"].main == whole.outputs["y"].main
    assert merged.outputs["y"].arm == whole.outputs["y"].arm
    assert merged.agreed == pytest.approx(whole.agreed)
    assert (merged.compared, merged.timed, merged.slower) == (whole.compared, whole.timed, whole.slower)
    assert merged.ratios == whole.ratios


@given(_FLOATS)
def test_a_sketch_knows_each_value_to_nine_percent(values: np.ndarray) -> None:
    sketch = Sketch()
    sketch.add(values)
    assert sketch.count == len(values)
    assert len(sketch.cells) <= len(values)
    assert all(abs(cell) <= 512 or cell == NOT_FINITE for cell in sketch.cells)
    assert Sketch.from_json(json.loads(json.dumps(sketch.to_json()))) == sketch
    finite = np.sort(values[np.isfinite(values)])
    found = sketch.quantile(0.5)
    if not len(finite):
        assert found is None
        return
    assert found is not None
    middle = float(finite[(len(finite) - 1) // 2])
    if 2.0**-31 < abs(middle) < 2.0**31 and len(finite) == 1:
        assert found == pytest.approx(middle, rel=0.0906)


def test_the_stability_index_is_near_zero_for_the_same_distribution_and_large_for_another() -> None:
    random = np.random.default_rng(3)
    main, same, other = Sketch(), Sketch(), Sketch()
    main.add(random.normal(size=20_000))
    same.add(random.normal(size=20_000))
    other.add(random.normal(1.0, 1.0, size=20_000))
    nan = Sketch()
    nan.add(np.full(20_000, np.nan))
    found = [stability_index(main, one) for one in (main, same, other, nan)]
    assert found[0] == 0.0
    assert found[1] is not None
    assert found[1] < 0.01
    assert found[2] is not None
    assert found[2] > 0.5
    assert found[3] is not None
    assert found[3] > found[2]
    assert stability_index(main, Sketch()) is None
