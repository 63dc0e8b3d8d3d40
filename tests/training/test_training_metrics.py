from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from noa.errors import InvalidInputError, NotFoundError
from noa_training import is_larger_better, metrics_of
from noa_training.metrics import area_under_roc, compute_metrics

seeds = st.integers(0, 10_000)


@given(seed=seeds, rows=st.integers(1, 60), classes=st.integers(2, 6))
def test_class_metrics_equal_scikit_learn(seed: int, rows: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (rows, classes)).astype(np.float32)
    targets = random.integers(0, classes, rows)
    values = compute_metrics(metrics_of("cross_entropy"), logits, targets, objective="cross_entropy")
    predicted = logits.argmax(1)
    chances = np.exp(logits.astype(np.float64))
    chances /= chances.sum(1, keepdims=True)
    assert values["loss"] == pytest.approx(reference.log_loss(targets, chances, labels=range(classes)), rel=1e-9)
    assert values["accuracy"] == pytest.approx(reference.accuracy_score(targets, predicted))
    precision, recall, f1, _ = reference.precision_recall_fscore_support(
        targets, predicted, average="macro", zero_division=0
    )
    assert (values["precision"], values["recall"], values["f1"]) == pytest.approx((precision, recall, f1))


@given(seed=seeds, rows=st.integers(2, 60), has_ties=st.booleans(), column=st.booleans())
def test_binary_metrics_equal_scikit_learn(seed: int, rows: int, has_ties: bool, column: bool) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, rows)
    logits = logits.round() if has_ties else logits
    targets = random.integers(0, 2, rows)
    targets[:2] = (0, 1)
    outputs = logits[:, None] if column else logits
    values = compute_metrics(metrics_of("binary_cross_entropy"), outputs, targets, objective="binary_cross_entropy")
    chances = 1 / (1 + np.exp(-logits))
    predicted = logits > 0
    assert values["loss"] == pytest.approx(reference.log_loss(targets, chances), rel=1e-6)
    assert values["auc"] == pytest.approx(reference.roc_auc_score(targets, logits))
    assert values["brier"] == pytest.approx(reference.brier_score_loss(targets, chances))
    assert values["accuracy"] == pytest.approx(reference.accuracy_score(targets, predicted))
    assert values["precision"] == pytest.approx(reference.precision_score(targets, predicted, zero_division=0))
    assert values["recall"] == pytest.approx(reference.recall_score(targets, predicted))
    assert values["f1"] == pytest.approx(reference.f1_score(targets, predicted, zero_division=0))


@given(seed=seeds, rows=st.integers(1, 40), width=st.integers(0, 3))
def test_number_metrics_equal_scikit_learn(seed: int, rows: int, width: int) -> None:
    random = np.random.default_rng(seed)
    shape = (rows, width) if width else (rows,)
    outputs, targets = random.normal(size=shape), random.normal(size=shape)
    values = compute_metrics(metrics_of("mse"), outputs, targets, objective="mse")
    assert values["mse"] == values["loss"] == pytest.approx(reference.mean_squared_error(targets, outputs))
    assert values["mae"] == pytest.approx(reference.mean_absolute_error(targets, outputs))


def test_large_logits_give_finite_losses() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    assert compute_metrics(("loss",), logits, np.array([0, 1]), objective="cross_entropy")["loss"] == 0.0
    binary = compute_metrics(("loss", "brier"), logits[:, 0], np.array([0, 1]), objective="binary_cross_entropy")
    assert binary == {"loss": 10_000.0, "brier": 1.0}


def test_auc_of_one_class_is_one_half() -> None:
    assert area_under_roc(np.array([1.0, 2.0]), np.array([True, True])) == 0.5


@pytest.mark.parametrize("objective", ["cross_entropy", "binary_cross_entropy", "mse"])
def test_outputs_that_do_not_fit_are_refused(objective: str) -> None:
    with pytest.raises(InvalidInputError, match="do not fit"):
        compute_metrics(("loss",), np.zeros((3, 2)), np.array([0, 1, 5, 1]), objective=objective)  # type: ignore[arg-type]


def test_directions() -> None:
    assert is_larger_better("accuracy")
    assert not is_larger_better("brier")
    with pytest.raises(NotFoundError, match="accurcy"):
        is_larger_better("accurcy")
