"""Change a recipe by dotted names (`epochs`, `optimizer.learning_rate`, `data.fraction`), and describe it by them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import cast

from noa.errors import RecipeError
from noa_training.model_specs import Factories
from noa_training.recipe_checks import check_recipe
from noa_training.recipes import Recipe, Scalar

_OVERRIDABLE = ("objective", "metrics", "epochs", "batch_size", "seed", "gradient_clip", "best_by")


def override(recipe: Recipe, overrides: Mapping[str, object], *, where: str) -> Recipe:
    """Return a copy with the fields named by dotted keys replaced; text is read as the field's type.

    `data.KEY` changes `data_params[KEY]`; other keys are fields of the recipe or of its parts
    (`optimizer.learning_rate`).

    Raises:
        RecipeError: a key is unknown or its value does not fit; the recipe's own rules are checked too.
    """
    changed = recipe
    for key, value in overrides.items():
        changed = _override_one(changed, key, value, where)
    return check_recipe(changed, where=where)


def describe(recipe: Recipe) -> dict[str, object]:
    """Return the recipe as plain JSON values with dotted keys, functions by name: for tracking and job identity."""
    flat: dict[str, object] = {}
    for entry in fields(recipe):
        _flatten(entry.name if entry.name != "data_params" else "data", getattr(recipe, entry.name), flat)
    return flat


def _flatten(key: str, value: object, flat: dict[str, object]) -> None:
    if is_dataclass(value) and not isinstance(value, type):
        flat[key] = type(value).__name__
        for entry in fields(value):
            _flatten(f"{key}.{entry.name}", getattr(value, entry.name), flat)
    elif isinstance(value, Mapping):
        for name, part in cast("Mapping[str, object]", value).items():
            _flatten(f"{key}.{name}", part, flat)
    elif isinstance(value, tuple):
        flat[key] = list(cast("tuple[object, ...]", value))
    elif callable(value):
        flat[key] = str(getattr(value, "__qualname__", type(value).__qualname__))
    else:
        flat[key] = value


def _override_one(recipe: Recipe, key: str, value: object, where: str) -> Recipe:
    head, _, rest = key.partition(".")
    if head == "data" and rest:
        if rest not in recipe.data_params:
            raise _unknown_key(key, [f"data.{name}" for name in recipe.data_params], where)
        fitted = _fit(value, recipe.data_params[rest], key, where)
        return replace(recipe, data_params={**recipe.data_params, rest: cast("Scalar", fitted)})
    part = getattr(recipe, head, None) if head not in ("data", "data_params", "name", "model") or rest else None
    if not rest:
        if head not in _OVERRIDABLE:
            raise _unknown_key(key, _known_keys(recipe), where)
        fitted = _fit(value, 0.0 if head == "gradient_clip" else part, key, where)
        return replace(recipe, **{head: fitted})
    if not is_dataclass(part) or isinstance(part, (type, Factories)) or rest not in {f.name for f in fields(part)}:
        raise _unknown_key(key, _known_keys(recipe), where)
    fitted = _fit(value, getattr(part, rest), key, where)
    return replace(recipe, **{head: replace(part, **{rest: fitted})})


def _known_keys(recipe: Recipe) -> list[str]:
    parts = ("model", "optimizer", "schedule", "early_stopping")
    keys = [*_OVERRIDABLE, *(f"data.{name}" for name in recipe.data_params)]
    for part in parts:
        value = getattr(recipe, part)
        if is_dataclass(value) and not isinstance(value, (type, Factories)):
            keys += [f"{part}.{entry.name}" for entry in fields(value)]
    return keys


def _unknown_key(key: str, known: list[str], where: str) -> RecipeError:
    close = difflib.get_close_matches(key, known, n=1)
    return RecipeError(
        f"`{key}` is nothing that can be set",
        where=where,
        expected=", ".join(known) or "no key: the recipe has no `data_params`",
        remedy=f"Did you mean `{close[0]}`?" if close else None,
        field=key,
    )


def _fit(value: object, current: object, key: str, where: str) -> object:
    """Return `value` in the type of `current`; text is read as JSON first, unless text is what is wanted."""
    fitted: object = value
    if isinstance(value, str) and not isinstance(current, str):
        try:
            fitted = json.loads(value.lower() if value.lower() in ("true", "false") else value)
        except ValueError:
            fitted = value
    if isinstance(current, bool) != isinstance(fitted, bool):
        fitted = None
    elif isinstance(current, float) and isinstance(fitted, int):
        fitted = float(fitted)
    elif isinstance(current, tuple) and isinstance(fitted, (list, tuple)):
        fitted = tuple(cast("list[object]", fitted))
    if not isinstance(fitted, type(current)):
        expected = f"{type(current).__name__}, as {current!r}"
        raise RecipeError(
            f"`{key}` cannot be set to this", where=where, expected=expected, received=repr(value), field=key
        )
    return fitted
