"""What is measured of a model on a split: metrics per slice, predictions, calibration."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from noa.errors import RecipeError
from noa.signatures import Signature, TensorSpec
from noa_registry import (
    CalibrationEvidence,
    Evidence,
    MetricsEvidence,
    PredictionsEvidence,
)
from noa_registry.evidence import check_evidence, decode_predictions
from noa_training import Dataset, Objective, Recipe, Split, measure, mlp
from noa_training.calibration import BINS, measure_calibration
from noa_training.datasets import check_dataset
from noa_training.metrics import compute_metrics


class Same:
    """A runnable that returns its input."""

    def __init__(self, width: int) -> None:
        spec = TensorSpec(name="x", dtype="float32", shape=("batch", width))
        self.signature = Signature(
            inputs=(spec,), outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", width)),)
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits": inputs["x"]}


def recipe(objective: Objective = "cross_entropy", metrics: tuple[str, ...] = ("accuracy", "f1")) -> Recipe:
    def data() -> Dataset:
        raise AssertionError("not called")

    return Recipe(name="m", data=data, model=mlp(), objective=objective, metrics=metrics)


def split_of(rows: int, width: int = 3, classes: int = 3, **slices: np.ndarray) -> Split:
    random = np.random.default_rng(rows)
    inputs = random.normal(size=(rows, width)).astype(np.float32)
    return Split(inputs={"x": inputs}, targets=random.integers(0, classes, rows), slices=slices)


def of_kind(facts: tuple[Evidence, ...], kind: str) -> Evidence:
    return next(fact for fact in facts if fact.kind == kind)


def test_a_classifier_is_measured_per_class_and_per_slice_of_the_recipe() -> None:
    early = np.arange(60) < 20
    split = split_of(60, early=early, nothing=np.zeros(60, bool))
    found = measure(recipe(), Same(3), split, subject="onnx", digest="sha256:" + "a" * 64)
    facts = MetricsEvidence.from_evidence(of_kind(found.evidence, "metrics"))
    assert found.metrics == facts.metrics
    assert (facts.rows, facts.dataset_digest, facts.split) == (60, split.digest, "test")
    assert sorted(facts.slices) == ["class=0", "class=1", "class=2", "early"]  # a slice without rows has no metrics
    outputs = split.inputs["x"]
    assert facts.slices["early"].rows == 20
    expected = compute_metrics(
        ("loss", "accuracy", "f1"), outputs[early], split.targets[early], objective="cross_entropy"
    )
    assert dict(facts.slices["early"].metrics) == expected
    for label in range(3):
        part = facts.slices[f"class={label}"]
        here = split.targets == label
        assert part.rows == here.sum()
        assert set(part.metrics) == {"loss", "accuracy"}  # an f1 of one class alone means nothing
        assert part.metrics["accuracy"] == np.mean(outputs[here].argmax(1) == label)
    for fact in found.evidence:
        check_evidence(fact)


def test_predictions_are_those_of_all_rows_in_order_with_the_recipes_slices() -> None:
    split = split_of(50, even=np.arange(50) % 2 == 0)
    fact = of_kind(
        measure(recipe(), Same(3), split, subject="onnx", digest="sha256:" + "a" * 64).evidence, "predictions"
    )
    described = PredictionsEvidence.from_evidence(fact)
    found = decode_predictions(fact.attachments[0].content, described)
    assert np.array_equal(found.outputs, split.inputs["x"])
    assert np.array_equal(found.targets, split.targets)
    assert np.array_equal(found.slices["even"], split.slices["even"])
    assert (described.output, described.objective, described.dataset_digest) == (
        "logits",
        "cross_entropy",
        split.digest,
    )
    class_rows = found.mask_of("class=1")
    assert class_rows is not None
    assert np.array_equal(class_rows, split.targets == 1)


def test_a_format_that_is_not_served_gets_metrics_only() -> None:
    facts = measure(
        recipe(), Same(3), split_of(9), subject="torch", digest="sha256:" + "a" * 64, with_predictions=False
    ).evidence
    assert [fact.kind for fact in facts] == ["metrics"]


def test_a_regression_has_no_classes_and_no_calibration() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(20, 2)).astype(np.float32)
    split = Split(inputs={"x": values}, targets=values + 1, slices={"early": np.arange(20) < 5})
    found = measure(recipe("mse", ("mae",)), Same(2), split, subject="onnx", digest="sha256:" + "a" * 64)
    assert [fact.kind for fact in found.evidence] == ["metrics", "predictions"]
    facts = MetricsEvidence.from_evidence(found.evidence[0])
    assert list(facts.slices) == ["early"]
    assert facts.slices["early"].metrics["mae"] == pytest.approx(1.0)


def test_very_many_classes_are_not_measured_one_by_one() -> None:
    split = split_of(600, width=200, classes=200)
    facts = MetricsEvidence.from_evidence(
        measure(recipe(), Same(200), split, subject="onnx", digest="sha256:" + "a" * 64).evidence[0]
    )
    assert dict(facts.slices) == {}


def test_naming_a_slice_does_not_make_other_data_of_it() -> None:
    assert split_of(9).digest == split_of(9, early=np.arange(9) < 3).digest
    assert list(split_of(9, early=np.arange(9) < 3).head(4).slices["early"]) == [True, True, True, False]


@pytest.mark.parametrize(
    ("slices", "said"),
    [
        ({"a": np.ones(9)}, "is no mask"),
        ({"a": np.ones(8, bool)}, "is no mask"),
        ({"a": np.ones((9, 1), bool)}, "is no mask"),
        ({"a": [True] * 9}, "is no mask"),
        ({"": np.ones(9, bool)}, "cannot be shown"),
        ({"a\n": np.ones(9, bool)}, "cannot be shown"),
        ({str(i): np.ones(9, bool) for i in range(101)}, "too many"),
    ],
)
def test_slices_that_cannot_be_are_refused_before_any_work(slices: dict[str, np.ndarray], said: str) -> None:
    good, bad = split_of(9), split_of(9, **slices)
    with pytest.raises(RecipeError, match=said):
        check_dataset(Dataset(train=good, validation=good, test=bad), objective="cross_entropy", where="recipe.py")


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 80), classes=st.integers(2, 5), sharpness=st.floats(0, 30))
def test_calibration_is_what_its_definition_says(seed: int, rows: int, classes: int, sharpness: float) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, classes)) * sharpness
    targets = random.integers(0, classes, rows)
    found = measure_calibration(logits, targets, objective="cross_entropy")
    assert found is not None
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    confidence, right = chances.max(1), chances.argmax(1) == targets
    ece = 0.0
    for index in range(BINS):
        inside = (confidence > index / BINS) & (confidence <= (index + 1) / BINS)
        if inside.any():
            ece += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert found.ece == pytest.approx(ece, abs=1e-9)
    assert found.brier == pytest.approx(((chances - np.eye(classes)[targets]) ** 2).sum(1).mean())
    assert sum(entry.rows for entry in found.bins) == rows
    fact = CalibrationEvidence(
        subject="onnx",
        digest="sha256:" + "a" * 64,
        dataset_digest="sha256:" + "b" * 64,
        split="test",
        rows=rows,
        binning="15",
        ece=found.ece,
        brier=found.brier,
        bins=found.bins,
    )
    check_evidence(fact.to_evidence())


def test_the_calibration_of_two_classes_is_that_of_class_one() -> None:
    random = np.random.default_rng(1)
    logits, targets = random.normal(0, 2, 200), random.integers(0, 2, 200)
    found = measure_calibration(logits, targets, objective="binary_cross_entropy")
    assert found is not None
    assert found.brier == pytest.approx(reference.brier_score_loss(targets, 1 / (1 + np.exp(-logits))))
    assert all(entry.lower >= 0.4 for entry in found.bins)  # the predicted class has at least half


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_have_no_calibration(value: float) -> None:
    logits = np.zeros((3, 2))
    logits[1, 1] = value
    assert measure_calibration(logits, np.zeros(3, int), objective="cross_entropy") is None


def test_a_model_that_is_always_right_and_sure_is_calibrated() -> None:
    found = measure_calibration(np.eye(3)[[0, 1, 2]] * 1000, np.arange(3), objective="cross_entropy")
    assert found is not None
    assert (found.ece, found.brier) == (0.0, 0.0)
