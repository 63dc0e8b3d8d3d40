"""What is told of a recipe while it trains all the same, and the one thing that only its model can show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from noa.digests import sha256_file
from noa.errors import RecipeError
from noa_training.datasets import Dataset, unseen_classes
from noa_training.evaluation import EVALUATION_ROWS
from noa_training.model_specs import Factories

if TYPE_CHECKING:
    from noa_training.backends.interface import Trainer
    from noa_training.model_specs import BackendName, ModelShape
    from noa_training.recipes import Recipe

_LISTED = 10
_SETTINGS_FILE = "noa.toml"


def warn_of_unseen_classes(recipe: Recipe, dataset: Dataset, warn: Callable[[str, str], None]) -> None:
    """Name the classes on which the model is measured though no training row shows them."""
    for name, labels in unseen_classes(dataset, recipe.objective).items():
        listed = ", ".join(map(str, labels[:_LISTED])) + (", ..." if len(labels) > _LISTED else "")
        count = f"class {listed} occurs" if len(labels) == 1 else f"{len(labels)} classes ({listed}) occur"
        warn(f"data().{name}", f"{count} here and in no training row: the model cannot know them")


def check_outputs(
    recipe: Recipe, shape: ModelShape, dataset: Dataset, trainer: Trainer, *, backend: BackendName, where: str
) -> None:
    """Let the user's own model answer some rows, and compare what it gives with what the targets need.

    The rows are as many as in every later evaluation, so that a compiled model sees no shape of its own here.

    Raises:
        RecipeError: it gives another number of outputs per row than `shape.outputs`; names the factory.
    """
    model = recipe.spec
    if not isinstance(model, Factories):
        return
    outputs = trainer.predict(dataset.validation.head(EVALUATION_ROWS))
    of_row = outputs.shape[-1:] if recipe.objective == "token_cross_entropy" else outputs.shape[1:]
    received = int(np.prod(of_row, dtype=np.int64))
    if received == shape.outputs:
        return
    factory = model.torch if backend == "torch" else model.jax
    name = getattr(factory, "__qualname__", backend)
    raise RecipeError(
        f"the model of `{name}` gives another number of outputs than `shape.outputs`",
        where=where,
        expected=f"(batch, {shape.outputs}), one for each {_unit(recipe)}",
        received=str(("batch", *outputs.shape[1:])).replace("'", ""),
        remedy="Build its last layer with `shape.outputs`",
        field="model",
    )


class ProjectFiles:
    """The files that said what to train, as they were when the job began."""

    def __init__(self, root: Path, recipe_file: Path, recipe_digest: str) -> None:
        settings = root / _SETTINGS_FILE
        self._digests = {recipe_file: recipe_digest, settings: _digest(settings)}

    def changed(self) -> Iterator[tuple[str, str]]:
        """Give each file that is another now, with what that means."""
        for file, digest in self._digests.items():
            now = _digest(file)
            if now != digest:
                how = "is gone since" if now is None else "has changed since"
                yield (
                    file.name,
                    f"it {how} the job began: the job and its record are of the file as it was at the start",
                )


def _digest(file: Path) -> str | None:
    try:
        return sha256_file(file)
    except OSError:
        return None


def _unit(recipe: Recipe) -> str:
    return "class" if recipe.objective == "cross_entropy" else "number of the target"
