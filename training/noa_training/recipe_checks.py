"""Refuse a wrong recipe before any work, naming the field, what is allowed and what was there."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, get_args

from noa.errors import InvalidInputError, RecipeError
from noa.references import check_name
from noa_training.datasets import Objective
from noa_training.metric_names import metrics_of
from noa_training.model_specs import Factories
from noa_training.models.library import answers_steps, check_model, model_named, normalises_batches
from noa_training.recipes import SGD, AdamW, Constant, EarlyStopping, Recipe, WarmupCosine


def check_recipe(recipe: Recipe, *, where: str) -> Recipe:
    """Return `recipe` if it can be trained as it is written, with the model itself where it names one.

    Raises:
        RecipeError: a field has a wrong type or value; names the field, what is allowed and what was there.
    """
    try:
        check_name(recipe.name)
    except (InvalidInputError, TypeError) as exc:
        raise RecipeError("`name` cannot name a model", where=where, received=repr(recipe.name)) from exc
    _check_choice(recipe.objective, get_args(Objective), "objective", where)
    recipe = _with_model(recipe, where)
    _check_metrics(recipe, where)
    _check_number(recipe.epochs, "epochs", where, whole=True, least=1, most=1_000_000)
    _check_number(recipe.batch_size, "batch_size", where, whole=True, least=1, most=1 << 24)
    _check_number(recipe.seed, "seed", where, whole=True, least=0, most=(1 << 32) - 1)
    if recipe.gradient_clip is not None:
        _check_number(recipe.gradient_clip, "gradient_clip", where, above=0.0)
    if normalises_batches(recipe.spec) and recipe.batch_size < 2:
        raise RecipeError(
            "`batch_size` is too small for a model with batch normalisation",
            where=where,
            expected="at least 2",
            received=str(recipe.batch_size),
            field="batch_size",
        )
    _check_optimizer(recipe.optimizer, where)
    _check_schedule(recipe.schedule, where)
    if recipe.early_stopping is not None:
        _check_type(recipe.early_stopping, (EarlyStopping,), "early_stopping", where)
        _check_number(recipe.early_stopping.patience, "early_stopping.patience", where, whole=True, least=1)
        _check_number(recipe.early_stopping.min_delta, "early_stopping.min_delta", where, least=0.0)
    _check_data(recipe, where)
    return recipe


def _with_model(recipe: Recipe, where: str) -> Recipe:
    """Check the model, and put the built-in one in the place of its name."""
    params = cast("object", recipe.model_params)
    if not isinstance(params, Mapping):
        raise RecipeError("`model_params` is no table", where=where, expected="a dict", received=repr(params)[:80])
    if isinstance(recipe.model, str):
        recipe = replace(recipe, model=model_named(recipe.model, recipe.model_params, where=where), model_params={})
    elif params:
        raise RecipeError(
            "`model_params` is for a model that is named",
            where=where,
            expected='e.g. `model="resnet"`, or the fields in `resnet(...)`',
            received=f"{type(recipe.model).__name__}(...) and `model_params`",
            field="model_params",
        )
    model = check_model(recipe.model, where=where)
    if isinstance(model, Factories):
        return recipe
    if answers_steps(model) != (recipe.objective == "token_cross_entropy"):
        raise RecipeError(
            f"`objective` does not fit `{type(model).__name__}`",
            where=where,
            expected="token_cross_entropy" if answers_steps(model) else "an objective with one answer a row",
            received=recipe.objective,
            remedy="`decoder_lm` and `transformer_encoder(pooling='none')` answer each step",
            field="objective",
        )
    return recipe


def _check_metrics(recipe: Recipe, where: str) -> None:
    known = metrics_of(recipe.objective)
    if isinstance(recipe.metrics, str):
        raise RecipeError("`metrics` is text", where=where, expected="a tuple of names", received=repr(recipe.metrics))
    for name in recipe.metrics:
        if name not in known:
            raise RecipeError(
                f"`metrics` names `{name}`, which is not measured for the objective `{recipe.objective}`",
                where=where,
                expected=", ".join(known),
                received=name,
            )
    _check_choice(recipe.best_by, ("loss", *recipe.metrics), "best_by", where)


def _check_optimizer(optimizer: object, where: str) -> None:
    _check_type(optimizer, (AdamW, SGD), "optimizer", where)
    rules: dict[str, dict[str, Any]] = {
        "learning_rate": {"above": 0.0},
        "weight_decay": {"least": 0.0},
        "beta1": {"least": 0.0, "below": 1.0},
        "beta2": {"least": 0.0, "below": 1.0},
        "epsilon": {"above": 0.0},
        "momentum": {"least": 0.0, "below": 1.0},
    }
    for name, rule in rules.items():
        if hasattr(optimizer, name):
            _check_number(getattr(optimizer, name), f"optimizer.{name}", where, **rule)
    if isinstance(optimizer, SGD) and optimizer.nesterov and optimizer.momentum == 0:
        raise RecipeError("`optimizer.nesterov` needs momentum", where=where, expected="`optimizer.momentum` above 0")


def _check_schedule(schedule: object, where: str) -> None:
    _check_type(schedule, (Constant, WarmupCosine), "schedule", where)
    if isinstance(schedule, WarmupCosine):
        _check_number(schedule.warmup_steps, "schedule.warmup_steps", where, whole=True, least=0)
        _check_number(schedule.final_fraction, "schedule.final_fraction", where, least=0.0, most=1.0)


def _check_data(recipe: Recipe, where: str) -> None:
    if not callable(recipe.data):
        raise RecipeError("`data` is no function", where=where, expected="a function", received=repr(recipe.data)[:80])
    for key, value in cast("Mapping[object, object]", recipe.data_params).items():
        if not isinstance(value, (str, int, float, bool)):
            raise RecipeError(
                f"`data_params[{key!r}]` is no plain value",
                where=where,
                expected="text or number",
                received=repr(value),
            )
    try:
        inspect.signature(recipe.data).bind(**recipe.data_params)
    except TypeError as exc:
        raise RecipeError(
            f"`data_params` does not fit the arguments of `data`: {exc}",
            where=where,
            expected=str(inspect.signature(recipe.data)),
            received=", ".join(recipe.data_params) or "no arguments",
        ) from exc


def _check_type(value: object, allowed: tuple[type, ...], name: str, where: str) -> None:
    if not isinstance(value, allowed):
        expected = ", ".join(kind.__name__ for kind in allowed)
        raise RecipeError(
            f"`{name}` is not valid", where=where, expected=expected, received=repr(value)[:80], field=name
        )


def _check_choice(value: object, allowed: tuple[str, ...], name: str, where: str) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1)
        raise RecipeError(
            f"`{name}` is not known",
            where=where,
            expected=", ".join(allowed),
            received=repr(value)[:80],
            remedy=f"Did you mean `{close[0]}`?" if close else None,
            field=name,
        )


def _check_number(
    value: object,
    name: str,
    where: str,
    *,
    whole: bool = False,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    kinds = (int,) if whole else (int, float)
    if (
        isinstance(value, bool)
        or not isinstance(value, kinds)
        or not math.isfinite(value)
        or not (least <= value <= most and above < value < below)
    ):
        limits = [f"at least {least}"] if least > -math.inf else []
        limits += [f"above {above}"] if above > -math.inf else []
        limits += [f"at most {most}"] if most < math.inf else []
        limits += [f"below {below}"] if below < math.inf else []
        expected = ("a whole number " if whole else "a number ") + " and ".join(limits)
        raise RecipeError(f"`{name}` is not valid", where=where, expected=expected, received=repr(value), field=name)
