"""Every model of the library in a tiny size, with data of its kind, and ways to train it step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from noa_training import (
    SGD,
    AdamW,
    Dataset,
    ModelShape,
    Objective,
    Recipe,
    Split,
    WarmupCosine,
    cnn,
    decoder_lm,
    gru,
    lstm,
    mlp,
    resnet,
    tabular_resnet,
    transformer_encoder,
    vit,
)
from noa_training.backends.interface import Trainer, TrainerState, find_backend
from noa_training.jobs import model_shape
from noa_training.models.library import BuiltIn, normalises_batches
from noa_training.schedules import learning_rates, make_plan

ROWS, LENGTH, VOCABULARY = 64, 7, 11
BACKENDS = ("torch", "jax")


def _random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _classes(rows: int = ROWS) -> np.ndarray:
    return _random(1).integers(0, 5, rows)


def _mask(*, padded_right: bool) -> np.ndarray:
    """Between one and all steps are real."""
    lengths = _random(2).integers(1, LENGTH + 1, ROWS)
    mask = np.arange(LENGTH)[None, :] < lengths[:, None]
    return mask if padded_right else _random(3).permuted(mask, axis=1)


def _tokens() -> np.ndarray:
    return _random(4).integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)


def _next_tokens() -> np.ndarray:
    """Of each row the last steps do not count: its own number of them."""
    targets = np.roll(_tokens(), -1, axis=1)
    return np.where(_mask(padded_right=True), targets, -1).astype(np.int32)


TABLE = Split(
    inputs={
        "x": _random().normal(size=(ROWS, 6)).astype(np.float32),
        "codes": _random(5).integers(0, 4, (ROWS, 2)).astype(np.int8),
    },
    targets=_classes(),
)
IMAGES = Split(inputs={"image": _random().normal(size=(ROWS, 3, 8, 12)).astype(np.float32)}, targets=_classes())
SERIES = Split(inputs={"values": _random().normal(size=(ROWS, LENGTH, 3)).astype(np.float32)}, targets=_classes())
PADDED_SERIES = Split(inputs={**SERIES.inputs, "mask": _mask(padded_right=True)}, targets=_classes())
TEXT = Split(inputs={"tokens": _tokens(), "mask": _mask(padded_right=False)}, targets=_classes())
RIGHT_PADDED_TEXT = Split(inputs={"tokens": _tokens(), "mask": _mask(padded_right=True)}, targets=_classes())
LANGUAGE = Split(inputs={"tokens": _tokens()}, targets=_next_tokens())
TAGS = Split(inputs={"tokens": _tokens(), "mask": _mask(padded_right=True)}, targets=_next_tokens())


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model and the rows it is trained on. `rate`: one at which it learns and does not run away."""

    model: BuiltIn
    split: Split
    objective: Objective = "cross_entropy"
    rate: float = 1e-3

    @property
    def tolerance(self) -> float:
        """Relative difference of the losses of the first ten steps: batch statistics carry rounding further."""
        return 2e-4 if normalises_batches(self.model) else 1e-6


CASES = {
    "mlp": Case(model=mlp(hidden=(16, 8)), split=TABLE),
    "tabular-resnet": Case(model=tabular_resnet(width=12, hidden=16, blocks=2), split=TABLE),
    "cnn": Case(model=cnn(channels=(4, 8), hidden=16), split=IMAGES),
    "resnet": Case(model=resnet(channels=(4, 8), blocks=1), split=IMAGES),
    "gru": Case(model=gru(hidden=8, layers=2), split=PADDED_SERIES),
    "gru-text": Case(model=gru(hidden=8, vocabulary=VOCABULARY, embedding=6), split=RIGHT_PADDED_TEXT),
    "lstm": Case(model=lstm(hidden=8, layers=2), split=SERIES),
    "encoder-text": Case(model=transformer_encoder(width=16, depth=1, heads=2, vocabulary=VOCABULARY), split=TEXT),
    "encoder-series": Case(model=transformer_encoder(width=16, depth=2, heads=4, feedforward=24), split=PADDED_SERIES),
    "encoder-tags": Case(
        model=transformer_encoder(width=16, depth=1, heads=2, vocabulary=VOCABULARY, pooling="none"),
        split=TAGS,
        objective="token_cross_entropy",
    ),
    "vit": Case(model=vit(patch=4, width=16, depth=2, heads=2), split=IMAGES),
    "decoder-deep": Case(
        model=decoder_lm(vocabulary=VOCABULARY, width=24, depth=3, heads=6, kv_heads=1, feedforward=20),
        split=LANGUAGE,
        objective="token_cross_entropy",
    ),
    "decoder": Case(
        model=decoder_lm(vocabulary=VOCABULARY, width=16, depth=1, heads=4, kv_heads=2),
        split=LANGUAGE,
        objective="token_cross_entropy",
    ),
}
OPTIMIZERS = {
    "adamw": AdamW(learning_rate=1e-3),
    "adamw-decay": AdamW(learning_rate=1e-3, weight_decay=0.3, beta1=0.8, beta2=0.95),
    "sgd": SGD(learning_rate=0.05),
    "sgd-momentum-decay": SGD(learning_rate=0.05, momentum=0.9, weight_decay=1e-2),
}


def dataset_of(name: str) -> Dataset:
    split = CASES[name].split
    return Dataset(train=split, validation=split, test=split)


def recipe_of(name: str, **changes: Any) -> Recipe:
    """Return a recipe with warm-up and cosine."""
    case = CASES[name]
    recipe = Recipe(
        name=name,
        data=lambda: dataset_of(name),
        model=case.model,
        objective=case.objective,
        optimizer=AdamW(learning_rate=case.rate),
        schedule=WarmupCosine(warmup_steps=3),
        batch_size=16,
        epochs=50,
    )
    return replace(recipe, **changes)


def shape_of(name: str) -> ModelShape:
    return model_shape(recipe_of(name), dataset_of(name))


def trainer_of(backend: str, name: str, **changes: Any) -> Trainer:
    recipe = recipe_of(name, **changes)
    return find_backend(backend).trainer(recipe, shape_of(name), CASES[name].split, threads=1)


_LENT: dict[tuple[str, str, str], tuple[Trainer, TrainerState]] = {}


def lent_trainer(backend: str, name: str, **changes: Any) -> Trainer:
    """Return a trainer at its first step that tests share, one after the other: JAX compiles a step for seconds."""
    key = (backend, name, repr(changes))
    if key not in _LENT:
        trainer = trainer_of(backend, name, **changes)
        _LENT[key] = (trainer, trainer.state())
    trainer, first = _LENT[key]
    trainer.restore(first)
    return trainer


def run_steps(trainer: Trainer, name: str, count: int, *, first: int = 0, **changes: Any) -> np.ndarray:
    """Do the steps `first .. first + count - 1` and return their losses."""
    recipe = recipe_of(name, **changes)
    plan = make_plan(recipe, CASES[name].split.rows)
    losses: list[np.ndarray] = []
    step = first
    while step < first + count:
        epoch, position = divmod(step, plan.steps_per_epoch)
        size = plan.steps_per_epoch
        rates = learning_rates(
            recipe.schedule, recipe.optimizer.learning_rate, first=epoch * size, count=size, total=plan.total_steps
        )
        trainer.begin_epoch(plan.order(epoch), rates, position)
        for _ in range(min(size - position, first + count - step)):
            trainer.step()
            step += 1
        losses.append(trainer.take_losses())
    return np.concatenate(losses)


@cache
def state_after(backend: str, name: str, steps: int) -> TrainerState:
    """Return the state of a case as it is after some steps; computed once for all tests of a process."""
    trainer = lent_trainer(backend, name)
    run_steps(trainer, name, steps)
    return trainer.state()


def relative(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest relative difference."""
    return float(np.max(np.abs(first - second) / np.maximum(np.abs(first), 1e-30)))


def worst_update(first: Sequence[TrainerState], second: Sequence[TrainerState]) -> tuple[str, float]:
    """Return the array whose update differs most between two pairs (before, after), as a share of its largest update.

    An array that hardly moves (of a gradient that is 0 but for rounding) is compared with the largest update of all.
    """
    updates = [
        {name: after.weights[name].astype(np.float64) - before.weights[name] for name in before.weights}
        for before, after in (first, second)
    ]
    overall = max(float(np.abs(value).max()) for value in updates[0].values())
    shares = {
        name: float(np.abs(value - updates[1][name]).max()) / max(float(np.abs(value).max()), 1e-3 * overall)
        for name, value in updates[0].items()
    }
    worst = max(shares, key=lambda name: shares[name])
    return worst, shares[worst]
