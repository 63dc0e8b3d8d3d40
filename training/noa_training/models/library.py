"""The built-in models by name, and what a recipe may say of its model: one of them, or the user's factories.

A model of the library is a frozen value with the fields that are a choice, `check` that refuses a wrong one, and
`layout` that gives its parameter tree for the shapes of a dataset. The modules in `torch/` and `jax/` compute it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias, cast, get_args

from noa.errors import RecipeError
from noa_training.model_specs import Factories
from noa_training.models.checks import FieldChecks
from noa_training.models.cnn import Cnn
from noa_training.models.decoder_lm import DecoderLm
from noa_training.models.mlp import Mlp
from noa_training.models.recurrent import Recurrent
from noa_training.models.resnet import ResNet
from noa_training.models.tabular_resnet import TabularResNet
from noa_training.models.transformer_encoder import TransformerEncoder
from noa_training.models.vision_transformer import Vit

BuiltIn: TypeAlias = Mlp | Cnn | ResNet | TabularResNet | Recurrent | TransformerEncoder | Vit | DecoderLm
ModelSpec: TypeAlias = BuiltIn | Factories
MODELS: Mapping[str, Callable[..., BuiltIn]] = MappingProxyType(
    {
        "mlp": Mlp,
        "tabular_resnet": TabularResNet,
        "cnn": Cnn,
        "resnet": ResNet,
        "vit": Vit,
        "gru": partial(Recurrent, cell="gru"),
        "lstm": partial(Recurrent, cell="lstm"),
        "transformer_encoder": TransformerEncoder,
        "decoder_lm": DecoderLm,
    }
)
"""What a recipe can name, and what makes it from `model_params`."""


def model_named(name: str, params: Mapping[str, object], *, where: str) -> BuiltIn:
    """Return the built-in model of a name with its fields set from `params`; lists are taken as tuples.

    Raises:
        RecipeError: there is no such model, it has no such field, or a field's value cannot be built; names the field.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        raise RecipeError(
            "`model` names no built-in model",
            where=where,
            expected=", ".join(MODELS),
            received=name,
            remedy=f"Did you mean `{close[0]}`?" if close else None,
            field="model",
        )
    make = MODELS[name]
    known = _fields_of(make)
    for key in params:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            raise RecipeError(
                f"`model_params` names `{key}`, which `{name}` does not have",
                where=where,
                expected=", ".join(known),
                received=str(key),
                remedy=f"Did you mean `{close[0]}`?" if close else None,
                field=f"model_params.{key}",
            )
    for key, is_required in known.items():
        if is_required and key not in params:
            raise RecipeError(
                f"`model_params.{key}` is missing",
                where=where,
                expected=f"`{name}` needs it",
                field=f"model_params.{key}",
            )
    model = make(**{key: _as_field(value) for key, value in params.items()})
    model.check(FieldChecks(where=where, prefix="model_params"))
    return model


def check_model(model: object, *, where: str) -> ModelSpec:
    """Return `model` if it is well-formed.

    Raises:
        RecipeError: it is no model, or one of its fields has a value that cannot be built; names the field.
    """
    if isinstance(model, Factories):
        if not any(callable(factory) for factory in (model.torch, model.jax)):
            raise RecipeError("`model` has no factory", where=where, expected="Factories(torch=..., jax=...)")
        return model
    if not isinstance(model, get_args(BuiltIn)):
        raise RecipeError(
            "`model` is no model",
            where=where,
            expected=f"{', '.join(f'{name}(...)' for name in MODELS)}, one of these names, or Factories(...)",
            received=repr(model)[:80],
        )
    built_in = cast("BuiltIn", model)
    built_in.check(FieldChecks(where=where))
    return built_in


def normalises_batches(model: ModelSpec) -> bool:
    """Tell whether a built-in model normalises over the batch, which a batch of one row does not allow."""
    return bool(getattr(model, "normalises_batches", False))


def answers_steps(model: ModelSpec) -> bool:
    """Tell whether a built-in model gives outputs for each step of a sequence."""
    return bool(getattr(model, "answers_steps", False))


def _fields_of(make: Callable[..., BuiltIn]) -> dict[str, bool]:
    """Return the fields that `model_params` may set, and whether one must."""
    kind = cast("type[Any]", make.func if isinstance(make, partial) else make)
    fixed = make.keywords if isinstance(make, partial) else {}
    return {entry.name: entry.default is MISSING for entry in fields(kind) if entry.name not in fixed}


def _as_field(value: object) -> object:
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value
