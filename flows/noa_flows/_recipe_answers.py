"""Reading the answers of a recipe's process: it runs the user's code, so any line may come back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from noa.errors import InvalidInputError
from noa_flows._recipe_messages import (
    Message,
    conversion_from,
    error_from,
    evaluation_from,
    evidence_from,
    verification_from,
)
from noa_training import TrainedJob


def read_answer(step: str, line: str) -> Any:
    """Return the value of an answer, once what its step reads of it can be read; an error is returned, not raised.

    Raises:
        InvalidInputError: the line is no answer to this step.
    """
    try:
        answer = cast("Message", json.loads(line))
        if "error" in answer:
            return error_from(answer["error"])
        value = answer["value"]
        _READ[step](value)
    except Exception as exc:  # values of any form and depth
        raise InvalidInputError("no valid answer", received=f"{type(exc).__name__} while it was read") from exc
    return value


def _finished(value: Any) -> None:
    if value is not None:
        TrainedJob.from_json(json.dumps(value))


def _facts(value: Any) -> None:
    tuple(map(evidence_from, value))


def _has(*names: str) -> Callable[[Any], None]:
    def read(value: Any) -> None:
        for name in names:
            value[name]

    return read


def _plan(value: Any) -> None:
    _has("name")(value)
    tuple(value["metrics"])


def _space(value: Any) -> None:
    _has("best_by", "source")(value)
    tuple(value["metrics"])


def _data(value: Any) -> None:
    _has("digest", "rows")(value)
    dict(value["splits"])


def _metrics(value: Any) -> None:
    _has("dataset_digest")(value)
    tuple(map(float, value["metrics"].values()))


_READ: dict[str, Callable[[Any], object]] = {
    "plan": _plan,
    "space": _space,
    "finished": _finished,
    "rows": _has("digest"),
    "evaluate": evaluation_from,
    "convert": conversion_from,
    "verify": verification_from,
    "example": _has("names"),
    "measure": _facts,
    "latency": _facts,
    "data": _data,
    "metrics": _metrics,
}
