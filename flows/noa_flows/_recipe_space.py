"""Check the space of a search against the recipe itself. Runs in the recipe's process only, never in noa's."""

from __future__ import annotations

import json

from noa.errors import RecipeError
from noa_flows._recipe_messages import Message
from noa_training import Factories, JobRequest
from noa_training.loading import find_recipe
from noa_training.overrides import override

_MEASURED = ("objective", "metrics", "best_by")


def check_space(values: Message) -> Message:
    """Try every point that stands for the space, and return what decides how it is searched.

    `points` are tables of values by key. The recipe's file is loaded once; its `data` is not called.

    Raises:
        RecipeError: a key is none, a value is not allowed, or a backend has no model; names the key.
    """
    requests = [JobRequest.from_json(json.dumps(value)) for value in values["requests"]]
    loaded = find_recipe(requests[0].recipe, root=requests[0].root)
    fixed = override(loaded.recipe, dict(requests[0].overrides), where=loaded.where)
    for key in values["keys"]:
        if key in _MEASURED:
            raise RecipeError(
                f"`{key}` cannot be searched: it says what is measured",
                where=loaded.where,
                expected="keys that change the training",
                received=f"`{key}`",
                remedy=f"Set it for all trials: --set {key}=...",
                field=key,
            )
    for point in values["points"]:
        override(fixed, point, where=loaded.where)
    for request in requests:
        if isinstance(fixed.model, Factories) and getattr(fixed.model, request.backend) is None:
            raise RecipeError(
                f"`model` has no factory for the backend `{request.backend}`",
                where=loaded.where,
                expected=f"Factories({request.backend}=...)",
                field="model",
            )
    return {"best_by": fixed.best_by, "metrics": list(fixed.metrics), "source": loaded.source_digest}
