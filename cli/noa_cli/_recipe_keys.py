"""What `--set` can change of a recipe, read from the text of its file: a key press runs no recipe and loads no room."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

_FIELDS: Final = ("objective", "metrics", "epochs", "batch_size", "seed", "gradient_clip", "best_by")
_ADAMW: Final = ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay")
_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "AdamW": _ADAMW,
    "SGD": ("learning_rate", "momentum", "nesterov", "weight_decay"),
    "WarmupCosine": ("warmup_steps", "final_fraction"),
    "EarlyStopping": ("patience", "min_delta"),
}


def recipe_keys(file: Path) -> list[str]:
    """Return the keys of the recipes that a file makes; what it computes is not known."""
    keys: list[str] = list(_FIELDS)
    for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and _name(call.func) == "Recipe":
            keys += _keys_of({entry.arg: entry.value for entry in call.keywords if entry.arg is not None})
    return list(dict.fromkeys(keys))


def _keys_of(given: Mapping[str, ast.expr]) -> Iterator[str]:
    if isinstance(table := given.get("data_params"), ast.Dict):
        yield from (f"data.{key.value}" for key in table.keys if isinstance(key, ast.Constant))
    if "optimizer" not in given:
        yield from (f"optimizer.{name}" for name in _ADAMW)
    for part in ("optimizer", "schedule", "early_stopping"):
        value = given.get(part)
        if isinstance(value, ast.Call):
            yield from (f"{part}.{name}" for name in _PARTS.get(_name(value.func), ()))


def _name(expression: ast.expr) -> str:
    if isinstance(expression, ast.Attribute):
        return expression.attr
    return expression.id if isinstance(expression, ast.Name) else ""
