from __future__ import annotations

import math

import pytest

from noa.metric_bounds import is_fraction, is_possible


@pytest.mark.parametrize(
    "name",
    ["accuracy", "f1", "F1-score", "f1_macro", "val/accuracy", "recall@10", "top5_accuracy", "roc_auc", "precision"],
)
def test_known_fractions_are_between_0_and_1(name: str) -> None:
    assert is_fraction(name)
    assert all(is_possible(name, value) for value in (0.0, 0.5, 1.0, 1 + 1e-12, math.nan, math.inf))
    assert not any(is_possible(name, value) for value in (-0.1, 1.01, 97.3, 1e308))


@pytest.mark.parametrize(
    "name", ["loss", "score", "accuracy_percent", "neg_accuracy", "accuracy_loss", "latency", "r2", "10", "", "map"]
)
def test_of_other_names_nothing_is_said(name: str) -> None:
    assert not is_fraction(name)
    assert is_possible(name, -1e300)
