"""A model by name and arguments in a recipe: found, checked before any work, and refused with the field's name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from noa.errors import RecipeError
from noa_training import (
    MODELS,
    Dataset,
    Factories,
    Mlp,
    Recipe,
    ResNet,
    Split,
    cnn,
    decoder_lm,
    gru,
    load_recipe,
    lstm,
    mlp,
    resnet,
    tabular_resnet,
    transformer_encoder,
    vit,
)
from noa_training.input_checks import check_inputs
from noa_training.jobs import model_shape
from noa_training.overrides import describe, override
from noa_training.recipe_checks import check_recipe

if TYPE_CHECKING:
    from tests.training.conftest import Jobs


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "m",
        "data": lambda: None,
        "model": mlp(),
        "objective": "cross_entropy",
    }
    return Recipe(**(fields | changes))


def checked(**changes: Any) -> Recipe:
    return check_recipe(recipe(**changes), where="recipe.py:3")


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("mlp", mlp()),
        ("cnn", cnn()),
        ("resnet", resnet()),
        ("tabular_resnet", tabular_resnet()),
        ("gru", gru()),
        ("lstm", lstm()),
        ("transformer_encoder", transformer_encoder()),
        ("vit", vit()),
    ],
)
def test_a_name_is_what_the_function_of_that_name_makes(name: str, made: object) -> None:
    assert checked(model=name).model == made == recipe(model=name).spec
    assert describe(checked(model=name)) == describe(checked(model=made))


def test_each_model_can_be_named() -> None:
    assert len(MODELS) == 9
    named = checked(model="decoder_lm", model_params={"vocabulary": 5}, objective="token_cross_entropy")
    assert named.model == decoder_lm(vocabulary=5)


def test_fields_are_set_and_lists_are_taken_as_tuples() -> None:
    found = checked(model="resnet", model_params={"channels": [4, 8], "blocks": 1})
    assert found.model == ResNet(channels=(4, 8), blocks=1)
    assert not found.model_params
    assert override(found, {"model.blocks": "3"}, where="w").model == ResNet(channels=(4, 8), blocks=3)


@pytest.mark.parametrize(
    ("changes", "message", "remedy"),
    [
        ({"model": "resnt"}, "`model` names no built-in model", "Did you mean `resnet`?"),
        ({"model": "resnet", "model_params": {"chanels": [4]}}, "`model_params` names `chanels`", "`channels`?"),
        ({"model": "gru", "model_params": {"cell": "lstm"}}, "`model_params` names `cell`", None),
        ({"model": "decoder_lm"}, "`model_params.vocabulary` is missing", None),
        ({"model": "resnet", "model_params": {"channels": 16}}, "`model_params.channels` is not valid", None),
        ({"model": "resnet", "model_params": {"channels": [16, 0]}}, "`model_params.channels` is not valid", None),
        ({"model": "resnet", "model_params": {"channels": []}}, "`model_params.channels` is not valid", None),
        ({"model": "resnet", "model_params": {"blocks": True}}, "`model_params.blocks` is not valid", None),
        ({"model": "vit", "model_params": {"dropout": 1.0}}, "`model_params.dropout` is not valid", None),
        ({"model": "mlp", "model_params": {"activation": "rlu"}}, "`model_params.activation` is not known", "relu"),
        ({"model": "mlp", "model_params": ["hidden"]}, "`model_params` is no table", None),
        ({"model": mlp(), "model_params": {"hidden": [4]}}, "`model_params` is for a model that is named", None),
        ({"model": 3}, "`model` is no model", None),
        ({"model": Factories()}, "`model` has no factory", None),
        ({"model": transformer_encoder(width=30, heads=4)}, "`model.width` is not valid", None),
        ({"model": transformer_encoder(pooling="first")}, "`model.pooling` is not known", None),  # type: ignore[arg-type]
        ({"model": gru(hidden=0)}, "`model.hidden` is not valid", None),
        ({"model": lstm(vocabulary=-1)}, "`model.vocabulary` is not valid", None),
        ({"model": vit(patch=0)}, "`model.patch` is not valid", None),
        ({"model": tabular_resnet(residual_dropout=-0.1)}, "`model.residual_dropout` is not valid", None),
        ({"model": decoder_lm(vocabulary=1)}, "`model.vocabulary` is not valid", None),
        ({"model": decoder_lm(vocabulary=9, heads=4, kv_heads=3)}, "`model.heads` is not valid", None),
        ({"model": decoder_lm(vocabulary=9, width=12, heads=4)}, "`model.width` is not valid", None),
        ({"model": decoder_lm(vocabulary=9, rotary_base=float("inf"))}, "`model.rotary_base` is not valid", None),
        ({"model": resnet(), "batch_size": 1}, "`batch_size` is too small", None),
        ({"model": decoder_lm(vocabulary=9)}, "`objective` does not fit `DecoderLm`", None),
        ({"model": gru(), "objective": "token_cross_entropy"}, "`objective` does not fit `Recurrent`", "decoder_lm"),
    ],
)
def test_a_wrong_model_is_refused_by_the_name_of_its_field(
    changes: dict[str, Any], message: str, remedy: str | None
) -> None:
    with pytest.raises(RecipeError) as caught:
        checked(**changes)
    assert caught.value.what.startswith(message)
    assert caught.value.where == "recipe.py:3"
    assert remedy is None or remedy in (caught.value.remedy or "")


NAMED = """
from noa_training import Recipe


def data():
    raise AssertionError("no work was to be done")


recipe = Recipe(
    name="m",
    data=data,
    model="resnet",
    model_params={"chanels": (4,)},
    objective="cross_entropy",
)
"""


def test_the_line_of_a_wrong_field_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(NAMED)
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipe.py", root=tmp_path)
    assert caught.value.where == f"{tmp_path / 'recipe.py'}:13"


@pytest.mark.torch
def test_a_named_model_is_trained_and_loaded_again(jobs: Jobs) -> None:
    from noa_training import load_trained

    text = (jobs.root / "recipe.py").read_text()
    named = text.replace(
        "model=cnn(channels=(4, 8), hidden=16, dropout=0.2)", 'model="mlp", model_params={"hidden": [8]}'
    )
    assert named != text
    (jobs.root / "recipe.py").write_text(named)
    trained = jobs.run("torch", overrides={"epochs": 1, "model.dropout": 0.1})
    assert trained.params["model"] == "Mlp" and trained.params["model.hidden"] == [8]
    assert trained.params["model.dropout"] == 0.1 and "model_params" not in trained.params
    assert load_trained(trained).signature.outputs[0].name == "logits"


# What only the rows can show.


def split_of(rows: int = 6, *, tokens: Any = None, mask: Any = None, targets: Any = None) -> Split:
    inputs = {"tokens": np.zeros((rows, 4), np.int32) if tokens is None else tokens}
    inputs |= {} if mask is None else {"mask": mask}
    return Split(inputs=inputs, targets=np.arange(rows) % 2 if targets is None else targets)


def check(model: Any, train: Split, test: Split | None = None, **changes: Any) -> None:
    dataset = Dataset(train=train, validation=train, test=test or train)
    made = recipe(model=model, **changes)
    check_inputs(made, model_shape(made, dataset), dataset, where="recipe.py:3")


def test_a_token_beyond_the_vocabulary_is_named() -> None:
    tokens = np.zeros((6, 4), np.int32)
    tokens[2, 3] = 9
    check(gru(vocabulary=10), split_of(), split_of(tokens=tokens))
    with pytest.raises(RecipeError, match=r"`data\(\)\.test\.inputs\['tokens'\]` holds a token") as caught:
        check(gru(vocabulary=9), split_of(), split_of(tokens=tokens))
    assert caught.value.received == "9 in row 2, step 3"
    tokens[2, 3] = -1
    with pytest.raises(RecipeError, match="holds a token"):
        check(gru(vocabulary=9), split_of(tokens=tokens))


def test_a_mask_needs_a_real_step_in_each_row_and_of_recurrent_models_padding_at_the_end() -> None:
    mask = np.ones((6, 4), bool)
    mask[3] = False
    for model in (gru(vocabulary=9), transformer_encoder(vocabulary=9)):
        with pytest.raises(RecipeError, match="is no mask of padding") as caught:
            check(model, split_of(mask=mask))
        assert "row 3" in (caught.value.received or "")
    mask[3] = [False, True, True, False]
    check(transformer_encoder(vocabulary=9), split_of(mask=mask))
    with pytest.raises(RecipeError, match="is no mask of padding"):
        check(lstm(vocabulary=9), split_of(mask=mask))
    mask[3] = [True, True, False, False]
    check(lstm(vocabulary=9), split_of(mask=mask))


def test_one_row_cannot_be_normalised() -> None:
    table = Split(inputs={"x": np.zeros((1, 4), np.float32)}, targets=np.zeros(1))
    with pytest.raises(RecipeError, match="too small for batch normalisation"):
        check(tabular_resnet(), table, objective="mse")
    check(Mlp(), table, objective="mse")


def test_the_shapes_are_checked_before_the_rows() -> None:
    images = Split(inputs={"x": np.zeros((6, 1, 4, 4), np.float32)}, targets=np.arange(6) % 2)
    with pytest.raises(RecipeError, match="with a `vocabulary` takes tokens"):
        check(gru(vocabulary=9), images)
