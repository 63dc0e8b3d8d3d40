from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from noa.errors import RecipeError
from noa_training import Dataset, Split
from noa_training.datasets import check_dataset


def split(rows: int = 4) -> Split:
    return Split(inputs={"x": np.zeros((rows, 2), np.float32)}, targets=np.arange(rows))


GOOD = Dataset(train=split(), validation=split(2), test=split(3))


def test_a_good_dataset_passes_unchanged() -> None:
    assert check_dataset(GOOD, objective="cross_entropy", where="here") is GOOD


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("train.inputs` is empty", {"inputs": {}}),
        ("train.inputs['x']` is no array", {"inputs": {"x": [[1.0]]}}),
        ("train.inputs['x']` is no array", {"inputs": {"x": np.float32(1)}}),
        ("train.inputs['x']` has the wrong number of rows", {"inputs": {"x": np.zeros((3, 2), np.float32)}}),
        ("train.inputs['x']` has a dtype", {"inputs": {"x": np.zeros((4, 2))}}),
        ("train.inputs['x']` has a dtype", {"inputs": {"x": np.zeros((4, 2), np.int64)}}),
        ("train.inputs['x']` holds no numbers", {"inputs": {"x": np.full((4, 2), "a")}}),
        ("train.inputs['x']` holds a value that is not finite", {"inputs": {"x": np.full((4, 2), np.nan, np.float32)}}),
        ("train.targets` has the wrong number of rows", {"inputs": {}, "targets": np.zeros(0, np.int64)}),
        ("train.targets` does not fit", {"targets": np.array([-1, 0, 1, 2])}),
        ("train.targets` does not fit", {"targets": np.array([0.5, 0, 1, 2])}),
        ("train.targets` does not fit", {"targets": np.zeros((4, 1), np.int64)}),
    ],
)
def test_a_wrong_array_is_refused_by_name(message: str, changes: dict[str, Any]) -> None:
    broken = replace(GOOD, train=replace(GOOD.train, **({"inputs": GOOD.train.inputs} | changes)))
    with pytest.raises(RecipeError) as caught:
        check_dataset(broken, objective="cross_entropy", where="here")
    if "is empty" not in message and not broken.train.inputs:
        message = "train.inputs` is empty"
    assert message in caught.value.what


@pytest.mark.parametrize("objective", ["cross_entropy", "binary_cross_entropy"])
def test_training_rows_of_one_class_are_refused(objective: Any) -> None:
    one = replace(GOOD.train, targets=np.ones(4, np.int64))
    others = Split(inputs={"x": np.zeros((2, 2), np.float32)}, targets=np.arange(2))
    with pytest.raises(RecipeError, match=r"one class.*at least two classes.*class 1 in all 4 rows"):
        check_dataset(Dataset(train=one, validation=others, test=others), objective=objective, where="here")
    numbers = Dataset(train=one, validation=others, test=others)
    assert check_dataset(numbers, objective="mse", where="here") is numbers


def test_splits_must_have_the_same_inputs() -> None:
    other = Split(inputs={"y": np.zeros((2, 2), np.float32)}, targets=np.zeros(2, np.int64))
    with pytest.raises(RecipeError, match=r"data\(\)\.test` differs"):
        check_dataset(replace(GOOD, test=other), objective="cross_entropy", where="here")


def test_binary_targets_are_zero_or_one() -> None:
    with pytest.raises(RecipeError, match="binary_cross_entropy"):
        check_dataset(GOOD, objective="binary_cross_entropy", where="here")


@pytest.mark.parametrize("value", [None, (1, 2), {"train": 1}])
def test_anything_else_is_no_dataset(value: object) -> None:
    with pytest.raises(RecipeError, match="no dataset"):
        check_dataset(value, objective="mse", where="here")


def test_the_digest_names_values_of_every_split() -> None:
    changed = replace(GOOD, test=replace(GOOD.test, targets=GOOD.test.targets + 1))
    assert GOOD.digest == Dataset(train=split(), validation=split(2), test=split(3)).digest
    assert GOOD.digest != changed.digest
