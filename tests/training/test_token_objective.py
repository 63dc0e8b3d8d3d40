"""The objective `token_cross_entropy`: an answer for each step, and steps that do not count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from library_kit import CASES, LANGUAGE, dataset_of, recipe_of, run_steps, trainer_of

from noa.errors import InvalidInputError, RecipeError
from noa_training import Dataset, Split
from noa_training.calibration import measure_calibration
from noa_training.datasets import check_dataset, unseen_classes
from noa_training.evaluation import evaluate_outputs
from noa_training.measurement import slice_metrics
from noa_training.metric_adapters import ACCURACY, F1, LOSS
from noa_training.metrics import compute_metrics

OBJECTIVE = "token_cross_entropy"
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(3, 4, 5)).astype(np.float32)
TARGETS = np.array([[0, 1, 2, -1], [4, -1, -1, -1], [3, 3, 3, 3]])


def test_a_row_counts_with_the_mean_over_its_steps_that_count() -> None:
    scores = LOGITS.astype(np.float64)
    losses = np.log(np.exp(scores).sum(2)) - np.take_along_axis(scores, np.maximum(TARGETS, 0)[..., None], 2)[..., 0]
    expected = [losses[row][TARGETS[row] >= 0].mean() for row in range(3)]
    found = compute_metrics(("loss", "accuracy"), LOGITS, TARGETS, objective=OBJECTIVE)
    assert found["loss"] == pytest.approx(np.mean(expected), rel=1e-12)
    right = [(scores[row].argmax(1) == TARGETS[row])[TARGETS[row] >= 0].mean() for row in range(3)]
    assert found["accuracy"] == pytest.approx(np.mean(right))


def test_what_a_bootstrap_draws_are_rows() -> None:
    counts = np.array([[2, 0, 1], [1, 1, 1]])
    rows = LOSS.row_values(LOGITS, TARGETS, objective=OBJECTIVE)
    assert rows is not None and rows.shape == (3,)
    drawn = ACCURACY.weighted(LOGITS, TARGETS, counts, objective=OBJECTIVE)
    each = ACCURACY.row_values(LOGITS, TARGETS, objective=OBJECTIVE)
    assert each is not None
    np.testing.assert_allclose(drawn, [(2 * each[0] + each[2]) / 3, each.mean()])
    with pytest.raises(InvalidInputError, match="not defined for this objective"):
        F1.row_values(LOGITS, TARGETS, objective=OBJECTIVE)


@pytest.mark.parametrize("shape", [(3, 4), (3, 5, 5), (2, 4, 5), (3, 4, 4)])
def test_outputs_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="do not fit"):
        compute_metrics(("loss",), np.zeros(shape), TARGETS, objective=OBJECTIVE)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (np.zeros(3, np.int64), "rows, length"),
        (np.zeros((3, 4)), "rows, length"),
        (np.full((3, 4), -2), "rows, length"),
        (np.array([[0, 1], [-1, -1], [1, 1]]), "a step that counts"),
    ],
)
def test_targets_of_another_kind_are_refused(targets: np.ndarray, expected: str) -> None:
    split = Split(inputs={"tokens": np.zeros((3, 4), np.int32)}, targets=targets)
    with pytest.raises(RecipeError, match="does not fit the objective") as caught:
        check_dataset(Dataset(train=split, validation=split, test=split), objective=OBJECTIVE, where="w")
    assert expected in (caught.value.expected or "")


def test_steps_that_do_not_count_are_no_class() -> None:
    def split(targets: list[list[int]]) -> Split:
        return Split(inputs={"tokens": np.zeros((len(targets), 2), np.int32)}, targets=np.array(targets))

    train, other = split([[0, -1], [1, 0]]), split([[2, -1]])
    assert unseen_classes(Dataset(train=train, validation=train, test=other), OBJECTIVE) == {"test": [2]}
    alone = split([[1, -1], [1, 1]])
    with pytest.raises(RecipeError, match="all of one class"):
        check_dataset(Dataset(train=alone, validation=alone, test=alone), objective=OBJECTIVE, where="w")


def test_slices_are_those_of_the_rows_and_none_of_tokens() -> None:
    split = Split(inputs={"tokens": np.zeros((3, 4))}, targets=TARGETS, slices={"last": np.array([False, False, True])})
    found = slice_metrics(recipe_of("decoder", metrics=("accuracy",)), LOGITS, split)
    assert set(found) == {"last"} and found["last"].rows == 1
    assert measure_calibration(LOGITS, TARGETS, objective=OBJECTIVE) is None


@pytest.mark.torch
def test_the_training_loss_is_the_mean_over_all_steps_that_count() -> None:
    """Of a batch of all rows, before anything has moved."""
    changes: dict[str, Any] = {"batch_size": LANGUAGE.rows}
    trainer = trainer_of("torch", "decoder", **changes)
    outputs = trainer.predict(LANGUAGE)
    recipe = recipe_of("decoder")
    counted = (LANGUAGE.targets >= 0).sum(1)
    rows = LOSS.row_values(outputs, LANGUAGE.targets, objective=OBJECTIVE)
    assert rows is not None
    loss = run_steps(trainer, "decoder", 1, **changes)[0]
    assert loss == pytest.approx((rows * counted).sum() / counted.sum(), rel=1e-5)
    assert evaluate_outputs(recipe, outputs, LANGUAGE)["loss"] == pytest.approx(rows.mean())


def test_a_language_model_gives_as_many_outputs_as_it_has_tokens() -> None:
    from noa_training.jobs import model_shape

    assert model_shape(recipe_of("decoder"), dataset_of("decoder")).outputs == CASES["decoder"].model.outputs
    tags = model_shape(recipe_of("encoder-tags"), dataset_of("encoder-tags"))
    assert tags.outputs == 1 + int(CASES["encoder-tags"].split.targets.max())
