"""PyTorch and JAX train the same model: equal losses, gradients and updates from equal weights and batches.

Rounding grows while a model trains, on one backend too. So the first ten steps are compared with a fixed tolerance, and
two hundred with what torch does to itself when its weights are nudged by one rounding error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from library_kit import (
    BACKENDS,
    CASES,
    OPTIMIZERS,
    lent_trainer,
    recipe_of,
    relative,
    run_steps,
    state_after,
    trainer_of,
    worst_update,
)

from noa_training import SGD, AdamW, Split
from noa_training.backends.interface import TrainerState
from noa_training.models.library import normalises_batches
from samples import mostly

pytestmark = [pytest.mark.torch, pytest.mark.jax]
CLIPS = (None, 0.05)
NUDGE = 1.2e-7  # one rounding error of float32, relative
# JAX compiles for seconds: one of each kind of layer, and the kinds of optimizers shared among them.
SAMPLE = (
    ("tabular-resnet", "adamw", None),
    ("gru-text", "sgd-momentum-decay", 0.05),
    ("decoder", "adamw-decay", None),
)
NORMALISED = [name for name, case in CASES.items() if normalises_batches(case.model)]
BOTH_WAYS = tuple((NORMALISED[0], backend) for backend in BACKENDS)


@pytest.fixture(autouse=True)
def compile_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """In the suite's sample leave out XLA's optimisations, half of the compile time; `make conformance` has them."""
    import jax

    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("conformance") is None)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize(
    ("name", "optimizer", "clip"), mostly("conformance", product(CASES, OPTIMIZERS, CLIPS), sample=SAMPLE)
)
def test_ten_steps_agree_in_their_losses_and_in_where_they_lead(name: str, optimizer: str, clip: float | None) -> None:
    """With warm-up and cosine, so that every step has another rate."""
    # A recipe of the kit has this AdamW and no limit: nothing is changed then, and a compiled step is shared.
    changes = (
        {} if (optimizer, clip) == ("adamw", None) else {"optimizer": OPTIMIZERS[optimizer], "gradient_clip": clip}
    )
    trainers = [lent_trainer(backend, name, **changes) for backend in BACKENDS]
    before = [trainer.state() for trainer in trainers]
    first, second = (run_steps(trainer, name, 10, **changes) for trainer in trainers)
    assert relative(first, second) <= CASES[name].tolerance
    assert np.ptp(first) > 0
    states = [(state, trainer.state()) for state, trainer in zip(before, trainers, strict=True)]
    worst, share = worst_update(*states)
    assert share <= (2e-2 if name in NORMALISED or optimizer.startswith("adamw") else 2e-4), worst


@pytest.mark.parametrize("name", mostly("conformance", CASES, sample=("encoder-text",)))
def test_gradients_agree(name: str) -> None:
    """One step of plain gradient descent at rate 1 moves each array by its gradient; statistics move as well."""
    changes: dict[str, Any] = {"optimizer": SGD(learning_rate=1.0)}
    states = [_before_and_after(backend, name, 1, **changes) for backend in BACKENDS]
    worst, share = worst_update(*states)
    assert share <= 2e-4, worst


@pytest.mark.parametrize("rate", [1e-3, 1 / 3e3])
def test_adamw_moves_weights_as_pytorch_does(rate: float) -> None:
    """To one rounding of the weights, and on average not at all: a bias of one rounding adds up over the steps."""
    import jax
    import jax.numpy as jnp
    import torch

    from noa_training.backends.jax_optimizers import first_moments, make_update

    random = np.random.default_rng(0)
    first = random.normal(1, 0.01, 4096).astype(np.float32)
    slope = random.normal(0, 0.01, 4096).astype(np.float32)
    rate = float(np.float32(rate))
    parameter = torch.nn.Parameter(torch.from_numpy(first.copy()))
    theirs = torch.optim.AdamW([parameter], lr=rate, weight_decay=0.1, fused=True)
    optimizer = AdamW(learning_rate=rate, weight_decay=0.1)
    update = jax.jit(make_update(optimizer))
    weights, moments = jnp.asarray(first), first_moments(optimizer, jnp.asarray(first))
    for step in range(1, 8):
        gradient = slope * np.float32(step % 3 + 1)
        parameter.grad = torch.from_numpy(gradient.copy())
        theirs.step()
        weights, moments = update(weights, jnp.asarray(gradient), moments, jnp.float32(rate), jnp.int32(step))
    difference = np.asarray(weights, np.float64) - parameter.detach().numpy()
    assert np.abs(difference).max() <= 3 * NUDGE
    assert np.abs(difference.mean()) <= 3e-9


@pytest.mark.conformance
@pytest.mark.parametrize("name", CASES)
def test_two_hundred_steps_differ_no_more_than_torch_from_itself_when_nudged(name: str) -> None:
    first = run_steps(lent_trainer("torch", name), name, 200)
    second = run_steps(lent_trainer("jax", name), name, 200)
    spread = np.zeros(200)
    for seed in range(5):  # the spread of one nudge is a matter of luck
        nudged = lent_trainer("torch", name)
        nudged.restore(_nudged(nudged.state(), seed))
        spread = np.maximum(spread, np.abs(run_steps(nudged, name, 200) - first) / first)
    # Where the five happened to stay below what one summation in another order is, that is the measure.
    assert relative(first, second) <= max(float(spread.max()), 1e-6)


@pytest.mark.parametrize("backend", mostly("conformance", BACKENDS, sample=("torch",)))
def test_running_statistics_are_those_of_pytorchs_own_layer(backend: str) -> None:
    """One step at a rate of almost nothing leaves 0.9 of the first values and 0.1 of the batch's own."""
    import torch

    name = "tabular-resnet"
    changes: dict[str, Any] = {"optimizer": SGD(learning_rate=1e-12), "batch_size": CASES[name].split.rows}
    before, after = _before_and_after(backend, name, 1, **changes)
    split = CASES[name].split
    table = np.concatenate(
        [np.asarray(value, np.float32).reshape(split.rows, -1) for value in split.inputs.values()], 1
    )
    given = torch.from_numpy(table @ before.weights["input.weight"].T)
    layer = torch.nn.BatchNorm1d(given.shape[1])
    layer.train()(given)
    for kind in ("running_mean", "running_var"):
        found = after.weights[f"blocks.0.norm.{kind}"]
        np.testing.assert_allclose(found, getattr(layer, kind).numpy(), rtol=1e-5, atol=1e-6)
        assert np.abs(found - before.weights[f"blocks.0.norm.{kind}"]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "backend"), mostly("conformance", product(NORMALISED, BACKENDS), sample=(("tabular-resnet", "torch"),))
)
def test_evaluation_normalises_by_the_running_statistics_alone(name: str, backend: str) -> None:
    """A row has the same answer whatever stands beside it, and evaluating changes no state."""
    trainer = trainer_of(backend, name)
    run_steps(trainer, name, 4)
    before = trainer.state()
    split = CASES[name].split
    few = Split(inputs={name: array[:3] for name, array in split.inputs.items()}, targets=split.targets[:3])
    np.testing.assert_allclose(trainer.predict(split)[:3], trainer.predict(few), rtol=1e-5, atol=1e-6)
    for key, value in trainer.state().weights.items():
        np.testing.assert_array_equal(value, before.weights[key])


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_have_no_moments(backend: str) -> None:
    """They are part of the weights, and no optimizer decays them."""
    state = state_after(backend, NORMALISED[0], 6)
    moments = {name.partition("/")[2] for name in state.moments}
    states = {name for name in state.weights if ".running_" in name}
    assert states and not moments & states and moments | states == set(state.weights)


@pytest.mark.parametrize(("name", "source"), mostly("conformance", product(CASES, BACKENDS), sample=BOTH_WAYS))
def test_what_was_trained_on_one_backend_goes_on_on_the_other(name: str, source: str) -> None:
    """In mid-epoch, with the optimizer's moments and the running statistics."""
    target = BACKENDS[1 - BACKENDS.index(source)]
    state = state_after(source, name, 6)
    stays, goes = lent_trainer(source, name), lent_trainer(target, name)
    for trainer in (stays, goes):
        trainer.restore(state)
        for key, value in state.weights.items():
            np.testing.assert_array_equal(trainer.state().weights[key], value)
    losses = [run_steps(trainer, name, 8, first=6) for trainer in (stays, goes)]
    assert relative(*losses) <= CASES[name].tolerance


@pytest.mark.parametrize(
    ("name", "backend"), mostly("conformance", product(CASES, BACKENDS), sample=(("resnet", "torch"),))
)
def test_a_restored_trainer_goes_on_to_the_bit(name: str, backend: str) -> None:
    """With dropout, and running statistics where there are some, from the middle of an epoch."""
    changes = {"model": replace(CASES[name].model, dropout=0.3)}  # type: ignore[type-var]
    whole = trainer_of(backend, name, **changes)
    run_steps(whole, name, 6, **changes)
    other = trainer_of(backend, name, **changes)
    other.restore(whole.state())
    expected = run_steps(whole, name, 5, first=6, **changes)
    np.testing.assert_array_equal(run_steps(other, name, 5, first=6, **changes), expected)
    for key, value in whole.state().weights.items():
        np.testing.assert_array_equal(other.state().weights[key], value)


@pytest.mark.parametrize("backend", mostly("conformance", BACKENDS, sample=("torch",)))
@pytest.mark.parametrize("name", mostly("conformance", CASES, sample=("encoder-text", "decoder", "gru")))
def test_each_dropout_of_a_model_is_drawn_anew_and_is_off_in_evaluation(name: str, backend: str) -> None:
    model = replace(CASES[name].model, dropout=0.4)  # type: ignore[type-var]
    rows = CASES[name].split.rows
    changes = {"model": model, "optimizer": SGD(learning_rate=1e-12), "batch_size": rows}
    trainer = trainer_of(backend, name, **changes)
    split = CASES[name].split
    assert (trainer.predict(split) == trainer.predict(split)).all()
    losses = run_steps(trainer, name, 4, **changes)
    assert len(set(losses.tolist())) == 4
    again = run_steps(trainer_of(backend, name, **changes), name, 4, **changes)
    np.testing.assert_array_equal(losses, again)


@pytest.mark.conformance
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_model_learns(name: str, backend: str) -> None:
    changes: dict[str, Any] = {"optimizer": replace(recipe_of(name).optimizer, learning_rate=1e-2)}
    losses = run_steps(trainer_of(backend, name, **changes), name, 200, **changes)
    assert losses[-10:].mean() < 0.7 * losses[:10].mean()


def _before_and_after(backend: str, name: str, steps: int, **changes: Any) -> tuple[TrainerState, TrainerState]:
    trainer = trainer_of(backend, name, **changes)
    before = trainer.state()
    run_steps(trainer, name, steps, **changes)
    return before, trainer.state()


def _nudged(state: TrainerState, seed: int) -> TrainerState:
    """Return the state with each weight changed by about one rounding error, up or down."""
    random = np.random.default_rng(seed)
    weights = {
        name: (value * (1 + NUDGE * random.choice([-1.0, 1.0], value.shape))).astype(np.float32)
        for name, value in state.weights.items()
    }
    return replace(state, weights=weights)
