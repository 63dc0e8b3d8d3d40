"""Evaluate a model on a split, whatever its backend or format: batches in, numpy metrics out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from noa.errors import InvalidInputError
from noa.formats import Runnable
from noa_training.datasets import Split
from noa_training.metrics import compute_metrics
from noa_training.recipes import Recipe

EVALUATION_ROWS = 1024


def evaluate(recipe: Recipe, runnable: Runnable, split: Split) -> dict[str, float]:
    """Return the recipe's metrics and `loss` of a loaded model on `split`. The first output is the one that is
    measured.

    Raises:
        InvalidInputError: the model's inputs or outputs do not fit the split.
    """
    return evaluate_outputs(recipe, checked_predictions(runnable, split), split)


def checked_predictions(runnable: Runnable, split: Split) -> np.ndarray:
    """Return the first output of a loaded model for all rows of `split`, after checking that its inputs fit.

    Raises:
        InvalidInputError: the model's inputs or outputs do not fit the split.
    """
    output = runnable.signature.outputs[0].name
    head = split.head(1)
    runnable.signature.validate({name: np.asarray(array) for name, array in head.inputs.items()})
    return predict(lambda inputs: runnable.run(inputs)[output], split)


def evaluate_outputs(recipe: Recipe, outputs: np.ndarray, split: Split) -> dict[str, float]:
    """Return the recipe's metrics and `loss` from a model's outputs for all rows of `split`."""
    names = tuple(dict.fromkeys(("loss", *recipe.metrics)))
    return compute_metrics(names, outputs, split.targets, objective=recipe.objective)


def predict(
    run: Callable[[Mapping[str, np.ndarray]], np.ndarray], split: Split, *, batch_rows: int = EVALUATION_ROWS
) -> np.ndarray:
    """Run all rows of `split` in batches of one size and return the outputs, (rows, ...).

    The last batch is filled up with its first row, so that a compiled model sees one shape only; the filling is cut
    off.
    """
    size = min(batch_rows, split.rows)
    parts: list[np.ndarray] = []
    for start in range(0, split.rows, size):
        batch = {name: array[start : start + size] for name, array in split.inputs.items()}
        count = len(next(iter(batch.values())))
        if count < size:
            batch = {name: np.concatenate([array, array[:1].repeat(size - count, 0)]) for name, array in batch.items()}
        output = np.asarray(run(batch))
        if output.shape[:1] != (size,):
            raise InvalidInputError(
                "the model's output has no row per input row", expected=f"({size}, ...)", received=str(output.shape)
            )
        parts.append(output[:count])
    return np.concatenate(parts)
