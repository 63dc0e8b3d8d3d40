from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from noa.errors import RecipeError
from noa_training import SGD, AdamW, Dataset, EarlyStopping, Factories, Recipe, WarmupCosine, cnn, mlp
from noa_training.overrides import describe, override
from noa_training.recipe_checks import check_recipe


def load(fraction: float = 1.0) -> Dataset:
    raise AssertionError("a check must not load data")


GOOD = Recipe(
    name="m",
    data=load,
    model=mlp(),
    objective="cross_entropy",
    metrics=("accuracy",),
    data_params={"fraction": 1.0},
    early_stopping=EarlyStopping(),
    schedule=WarmupCosine(warmup_steps=3),
)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("name", {"name": "a b"}),
        ("name", {"name": 3}),
        ("objective", {"objective": "hinge"}),
        ("model", {"model": "mpl"}),
        ("model", {"model": Factories()}),
        ("model.hidden", {"model": mlp(hidden=(0,))}),
        ("model.channels", {"model": cnn(channels=(-1,))}),
        ("model.dropout", {"model": mlp(dropout=1.0)}),
        ("model.activation", {"model": mlp(activation="swish")}),  # type: ignore[arg-type]
        ("model.outputs", {"model": mlp(outputs=-1)}),
        ("metrics", {"metrics": ("auc",)}),
        ("metrics", {"metrics": "accuracy"}),
        ("best_by", {"best_by": "f1"}),
        ("epochs", {"epochs": 0}),
        ("epochs", {"epochs": 1.5}),
        ("epochs", {"epochs": True}),
        ("batch_size", {"batch_size": "64"}),
        ("seed", {"seed": -1}),
        ("gradient_clip", {"gradient_clip": 0.0}),
        ("optimizer", {"optimizer": "adamw"}),
        ("optimizer.learning_rate", {"optimizer": AdamW(learning_rate=float("nan"))}),
        ("optimizer.beta2", {"optimizer": AdamW(beta2=1.0)}),
        ("optimizer.nesterov", {"optimizer": SGD(nesterov=True)}),
        ("schedule", {"schedule": None}),
        ("schedule.final_fraction", {"schedule": WarmupCosine(final_fraction=2)}),
        ("early_stopping.patience", {"early_stopping": EarlyStopping(patience=0)}),
        ("data", {"data": "recipe.csv"}),
        ("data_params", {"data_params": {"fracton": 1.0}}),
        ("data_params", {"data_params": {"fraction": [1]}}),
    ],
)
def test_a_wrong_field_is_refused_by_name(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        check_recipe(replace(GOOD, **changes), where="recipe.py:9")
    assert f"`{field}" in caught.value.what
    assert caught.value.where == "recipe.py:9"


def test_a_near_miss_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="Did you mean `cross_entropy`"):
        check_recipe(replace(GOOD, objective="crossentropy"), where="here")  # type: ignore[arg-type]


def test_overrides_reach_every_part_and_read_text_as_the_fields_type() -> None:
    changed = override(
        GOOD,
        {
            "epochs": "7",
            "data.fraction": "0.5",
            "optimizer.learning_rate": 1,
            "model.hidden": "[8, 4]",
            "schedule.warmup_steps": "9",
            "early_stopping.patience": 2,
            "gradient_clip": "2",
            "metrics": ["accuracy", "f1"],
            "best_by": "accuracy",
        },
        where="here",
    )
    assert (changed.epochs, changed.data_params["fraction"], changed.gradient_clip) == (7, 0.5, 2.0)
    assert changed.optimizer == AdamW(learning_rate=1.0)
    assert changed.model == mlp(hidden=(8, 4))
    assert (changed.metrics, changed.best_by) == (("accuracy", "f1"), "accuracy")
    assert GOOD.epochs == 10


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("epoch", 3, "Did you mean `epochs`"),
        ("data.fracton", 0.5, "Did you mean `data.fraction`"),
        ("optimizer.lr", 0.5, "`optimizer.lr` is nothing that can be set"),
        ("name", "other", "`name` is nothing"),
        ("data", "x", "`data` is nothing"),
        ("epochs", "many", "`epochs` cannot be set to this"),
        ("epochs", 2.5, "`epochs` cannot be set"),
        ("data.fraction", True, "`data.fraction` cannot be set"),
        ("epochs", -1, "`epochs` is not valid"),
        ("model", "cnn", "`model` is nothing"),
    ],
)
def test_a_wrong_override_is_refused_by_name(key: str, value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        override(GOOD, {key: value}, where="here")


def test_a_description_is_plain_json_with_dotted_keys() -> None:
    flat = describe(GOOD)
    assert flat["optimizer"] == "AdamW"
    assert flat["optimizer.weight_decay"] == 1e-2
    assert flat["data.fraction"] == 1.0
    assert flat["model.hidden"] == [128]
    assert flat["data"] == "load"
