"""Check the rows of a dataset against the built-in model that will read them, before any work."""

from __future__ import annotations

from typing import get_args

import numpy as np

from noa.errors import RecipeError
from noa_training.datasets import Dataset, SplitName
from noa_training.model_specs import Factories, ModelShape
from noa_training.models.library import normalises_batches
from noa_training.models.recurrent import Recurrent
from noa_training.models.weights import layout_of
from noa_training.recipes import Recipe


def check_inputs(recipe: Recipe, shape: ModelShape, dataset: Dataset, *, where: str) -> None:
    """Check what only the data can show: shapes, tokens, masks, and enough rows for a batch that is normalised.

    A backend would raise in the middle of training, or compute something else without a word.

    Raises:
        RecipeError: the model cannot be trained on these rows; names the array and the row.
    """
    model = recipe.spec
    if isinstance(model, Factories):
        return
    layout_of(model, shape)
    if normalises_batches(model) and min(recipe.batch_size, dataset.train.rows) < 2:
        raise RecipeError(
            "`data().train` is too small for batch normalisation",
            where=where,
            expected="at least 2 rows in a batch",
            received=f"{min(recipe.batch_size, dataset.train.rows)}",
            field="data",
        )
    vocabulary: int = getattr(model, "vocabulary", 0)
    if vocabulary:
        _check_tokens(dataset, vocabulary=vocabulary, where=where)
    if hasattr(model, "input_of"):
        _check_masks(dataset, is_right_padded=isinstance(model, Recurrent), where=where)


def _check_tokens(dataset: Dataset, *, vocabulary: int, where: str) -> None:
    for name in get_args(SplitName):
        label, tokens = next(iter(dataset.split(name).inputs.items()))
        wrong = np.argwhere((tokens < 0) | (tokens >= vocabulary))
        if len(wrong):
            row, step = wrong[0]
            raise RecipeError(
                f"`data().{name}.inputs[{label!r}]` holds a token that `model.vocabulary` does not",
                where=where,
                expected=f"0 to {vocabulary - 1}",
                received=f"{int(tokens[row, step])} in row {int(row)}, step {int(step)}",
                field="model.vocabulary",
            )


def _check_masks(dataset: Dataset, *, is_right_padded: bool, where: str) -> None:
    """Each row of a mask has a real step; with `is_right_padded` no padding stands before a real one."""
    for name in get_args(SplitName):
        inputs = dataset.split(name).inputs
        for label in list(inputs)[1:]:
            mask, place = inputs[label] != 0, f"data().{name}.inputs[{label!r}]"
            _refuse_rows(~mask.any(axis=1), place, "at least one real step", where)
            if is_right_padded:
                early = (~mask[:, :-1] & mask[:, 1:]).any(axis=1)
                _refuse_rows(early, place, "padding only after the last real step", where)


def _refuse_rows(wrong: np.ndarray, place: str, expected: str, where: str) -> None:
    if wrong.any():
        raise RecipeError(
            f"`{place}` is no mask of padding",
            where=where,
            expected=expected,
            received=f"something else in row {int(wrong.argmax())}",
            field=place,
        )
