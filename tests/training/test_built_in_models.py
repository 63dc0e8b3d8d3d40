"""The built-in models are the same on both backends: parameters, outputs, and ten steps of training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from noa.errors import RecipeError
from noa.signatures import TensorSpec
from noa_training import SGD, AdamW, Dataset, Factories, ModelShape, Recipe, Split, WarmupCosine, cnn, mlp
from noa_training.backends.interface import Trainer, find_backend
from noa_training.jobs import model_shape
from noa_training.models.weights import initial_weights
from noa_training.schedules import learning_rates, make_plan

pytestmark = [pytest.mark.torch, pytest.mark.jax]

RANDOM = np.random.default_rng(0)
IMAGES = Split(
    inputs={"image": RANDOM.normal(size=(96, 3, 9, 8)).astype(np.float32)}, targets=RANDOM.integers(0, 5, 96)
)
TABLE = Split(inputs={"x": RANDOM.normal(size=(96, 12)).astype(np.float32)}, targets=RANDOM.integers(0, 5, 96))
MIXED = Split(
    inputs={
        "x": RANDOM.normal(size=(96, 4)).astype(np.float32),
        "codes": RANDOM.integers(0, 9, (96, 2)).astype(np.int32),
    },
    targets=RANDOM.normal(size=(96, 3)).astype(np.float32),
)
MODELS = {
    "mlp": (mlp(hidden=(32, 16)), TABLE),
    "mlp-gelu": (mlp(hidden=(32,), activation="gelu"), TABLE),
    "mlp-linear": (mlp(hidden=()), TABLE),
    "mlp-two-inputs": (mlp(hidden=(8,)), MIXED),
    "cnn": (cnn(channels=(4, 8), hidden=16), IMAGES),
    "cnn-gelu": (cnn(channels=(4,), hidden=16, activation="gelu"), IMAGES),
}
OPTIMIZERS = {
    "adamw": AdamW(learning_rate=1e-3),
    "adamw-decay": AdamW(learning_rate=1e-3, weight_decay=0.3, beta1=0.8, beta2=0.95),
    "sgd": SGD(learning_rate=0.05),
    "sgd-nesterov": SGD(learning_rate=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "sgd-momentum": SGD(learning_rate=0.05, momentum=0.9),
}


def recipe_for(name: str, **changes: Any) -> tuple[Recipe, ModelShape, Split]:
    model, split = MODELS[name]
    dataset = Dataset(train=split, validation=split, test=split)
    recipe = Recipe(
        name="m",
        data=lambda: dataset,
        model=model,
        objective="mse" if split is MIXED else "cross_entropy",
        batch_size=24,
        epochs=5,
        schedule=WarmupCosine(warmup_steps=3),
    )
    recipe = replace(recipe, **changes)
    return recipe, model_shape(recipe, dataset), split


def trainer_of(backend: str, name: str, **changes: Any) -> Trainer:
    recipe, shape, split = recipe_for(name, **changes)
    return find_backend(backend).trainer(recipe, shape, split, threads=1)


def run_steps(trainer: Trainer, name: str, count: int, *, first_epoch: int = 0, **changes: Any) -> np.ndarray:
    recipe, _, split = recipe_for(name, **changes)
    plan = make_plan(recipe, split.rows)
    losses: list[np.ndarray] = []
    for epoch in range(first_epoch, first_epoch + -(-count // plan.steps_per_epoch)):
        first, size = epoch * plan.steps_per_epoch, plan.steps_per_epoch
        rate = recipe.optimizer.learning_rate
        rates = learning_rates(recipe.schedule, rate, first=first, count=size, total=plan.total_steps)
        trainer.begin_epoch(plan.order(epoch), rates, 0)
        for _ in range(plan.steps_per_epoch):
            trainer.step()
        losses.append(trainer.take_losses())
    return np.concatenate(losses)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_have_the_same_names_shapes_and_first_values(name: str) -> None:
    torch_state, jax_state = trainer_of("torch", name).state(), trainer_of("jax", name).state()
    recipe, shape, _ = recipe_for(name)
    expected = initial_weights(recipe.model, shape, seed=recipe.seed)  # type: ignore[arg-type]
    assert set(torch_state.weights) == set(jax_state.weights) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(torch_state.weights[key], value)
        np.testing.assert_array_equal(jax_state.weights[key], value)
        assert value.dtype == np.float32


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_equal_within_rounding(name: str) -> None:
    split = MODELS[name][1]
    outputs = [trainer_of(backend, name).predict(split) for backend in ("torch", "jax")]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "optimizer", "clip"),
    [
        *(("mlp", optimizer, None) for optimizer in OPTIMIZERS),
        ("mlp", "adamw", 0.05),
        ("cnn", "adamw", None),
        ("cnn", "sgd-nesterov", 0.05),
        ("cnn-gelu", "adamw-decay", None),
    ],
)
def test_the_first_ten_losses_agree_to_a_millionth(name: str, optimizer: str, clip: float | None) -> None:
    changes = {"optimizer": OPTIMIZERS[optimizer], "gradient_clip": clip}
    first, second = (
        run_steps(trainer_of(backend, name, **changes), name, 10, **changes) for backend in ("torch", "jax")
    )
    np.testing.assert_allclose(first[:10], second[:10], rtol=1e-6)
    assert first[-1] != first[0]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "sgd-momentum"])
@pytest.mark.parametrize(("source", "target"), [("torch", "jax"), ("jax", "torch")])
def test_a_model_is_continued_on_the_other_backend(source: str, target: str, optimizer: str) -> None:
    changes = {"optimizer": OPTIMIZERS[optimizer]}
    there, here = trainer_of(source, "cnn", **changes), trainer_of(target, "cnn", **changes)
    run_steps(there, "cnn", 8, **changes)
    here.restore(there.state())
    for key, value in there.state().weights.items():
        np.testing.assert_array_equal(here.state().weights[key], value)
    expected = run_steps(there, "cnn", 4, first_epoch=2, **changes)
    np.testing.assert_allclose(run_steps(here, "cnn", 4, first_epoch=2, **changes), expected, rtol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_dropout_is_off_in_evaluation_and_drawn_anew_each_step(backend: str) -> None:
    changes = {"model": mlp(hidden=(32,), dropout=0.5), "optimizer": SGD(learning_rate=1e-12), "batch_size": 96}
    trainer = trainer_of(backend, "mlp", **changes)
    assert (trainer.predict(TABLE) == trainer.predict(TABLE)).all()
    losses = run_steps(trainer, "mlp", 5, **changes)
    assert len(set(losses.tolist())) == 5
    again = run_steps(trainer_of(backend, "mlp", **changes), "mlp", 5, **changes)
    np.testing.assert_array_equal(losses, again)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_dropout_keeps_the_mean(backend: str) -> None:
    """The training loss of a linear readout under dropout is unbiased only if what is kept is scaled up."""
    model = mlp(hidden=(512,), dropout=0.25)
    changes = {"model": model, "optimizer": SGD(learning_rate=1e-12), "batch_size": 96, "epochs": 40}
    trainer = trainer_of(backend, "mlp", **changes)
    recipe, _, _ = recipe_for("mlp", **changes)
    from noa_training.evaluation import evaluate_outputs

    plain = evaluate_outputs(recipe, trainer.predict(TABLE), TABLE)["loss"]
    assert run_steps(trainer, "mlp", 40, **changes).mean() == pytest.approx(plain, rel=0.03)


def test_a_cnn_refuses_a_table_and_too_many_stages() -> None:
    table = ModelShape(inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 12)),), outputs=2)
    with pytest.raises(RecipeError, match="`cnn` takes images"):
        initial_weights(cnn(), table, seed=0)
    image = ModelShape(inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 1, 4, 4)),), outputs=2)
    with pytest.raises(RecipeError, match="more stages") as caught:
        initial_weights(cnn(channels=(2, 2, 2)), image, seed=0)
    assert caught.value.expected is not None and "at most 2" in caught.value.expected


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("objective", ["binary_cross_entropy", "mse"])
def test_one_number_per_row_trains_on_flat_targets(backend: str, objective: str) -> None:
    targets = (TABLE.inputs["x"][:, 0] > 0).astype(np.int64 if objective != "mse" else np.float32)
    split = Split(inputs=TABLE.inputs, targets=targets)
    dataset = Dataset(train=split, validation=split, test=split)
    recipe = replace(recipe_for("mlp")[0], objective=objective, optimizer=AdamW(learning_rate=1e-2), epochs=20)  # type: ignore[arg-type]
    trainer = find_backend(backend).trainer(recipe, model_shape(recipe, dataset), split, threads=1)
    assert trainer.predict(split).shape == (96, 1)
    changes = {"objective": objective, "optimizer": recipe.optimizer, "epochs": 20}
    losses = run_steps(trainer, "mlp", 60, **changes)
    assert losses[-1] < losses[0] / 2


def torch_factory(shape: ModelShape) -> Any:
    import torch

    return torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, shape.outputs))


def jax_factory(shape: ModelShape) -> Any:
    def init(seed: int) -> dict[str, Any]:
        return {"head": {"w": np.random.default_rng(seed).normal(size=(12, shape.outputs)).astype(np.float32)}}

    return init, lambda params, x: x @ params["head"]["w"]


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_users_own_factories_train_and_restore(backend: str) -> None:
    changes = {"model": Factories(torch=torch_factory, jax=jax_factory), "optimizer": SGD(learning_rate=0.1)}
    trainer = trainer_of(backend, "mlp", **changes)
    losses = run_steps(trainer, "mlp", 12, **changes)
    assert losses[-4:].mean() < losses[0]
    other = trainer_of(backend, "mlp", **changes)
    other.restore(trainer.state())
    np.testing.assert_array_equal(other.predict(TABLE), trainer.predict(TABLE))


@pytest.mark.parametrize(
    ("backend", "factories", "message"),
    [
        ("torch", Factories(jax=jax_factory), "no factory for the backend `torch`"),
        ("jax", Factories(torch=torch_factory), "no factory for the backend `jax`"),
        ("torch", Factories(torch=lambda shape: 3), "returned no module"),
        ("jax", Factories(jax=lambda shape: (lambda seed: 3, print)), "returned no params"),
        ("jax", Factories(jax=lambda shape: (lambda seed: {"a.b": np.zeros(1)}, print)), "holds a dot"),
    ],
)
def test_a_wrong_factory_is_refused(backend: str, factories: Factories, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        trainer_of(backend, "mlp", model=factories).state()


def test_jax_compiles_a_step_and_a_prediction_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """Each small program takes XLA some 50 ms, and what is copied to the device has as many shapes as a model."""
    import jax

    jax.clear_caches()
    with jax.log_compiles():
        trainer = trainer_of("jax", "cnn")
        run_steps(trainer, "cnn", 3)
        trainer.predict(recipe_for("cnn")[2])
        other = trainer_of("jax", "cnn")
        other.restore(trainer.state())
    found = [text for text in caplog.messages if text.startswith("Finished XLA compilation")]
    assert sorted({text.split()[4] for text in found}) == ["jit(run)", "jit(step)"]


@pytest.mark.parametrize("shape", [(), (5,), (16, 32), (96, 24), (300, 300)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_what_jax_trains_on_is_nobody_elses(shape: tuple[int, ...], dtype: str) -> None:
    """A step takes the buffers of the state before it: they must not be those of the caller's arrays."""
    import jax

    from noa_training.backends.jax_optimizers import own_copy

    overwrite = jax.jit(lambda values: values * 0 + 9, donate_argnums=0)
    kept: list[tuple[np.ndarray, Any]] = []
    for _ in range(40):  # numpy's memory is aligned as JAX likes it now and then
        array = np.full(shape, 3, dtype)
        copy = own_copy(array)
        array[...] = 5
        np.testing.assert_array_equal(np.asarray(copy), np.full(shape, 3))
        given = own_copy(array)
        kept.append((array, overwrite(given)))
        on_device = own_copy(copy)
        overwrite(on_device)
        assert given.is_deleted() and on_device.is_deleted() and not copy.is_deleted()
    for array, result in kept:
        np.testing.assert_array_equal(array, np.full(shape, 5))
        np.testing.assert_array_equal(np.asarray(result), np.full(shape, 9))
