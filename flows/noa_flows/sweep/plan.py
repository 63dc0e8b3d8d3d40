"""What a search will do, checked before anything starts: the recipe, the values of each key, the metric, the cores.

A search is named in `noa.toml` (`[sweeps.NAME]`) or made on the spot from a recipe and a space. The recipe's own
process tries the ends of every range and every choice, so that no trial is refused later for a value that was foreseen.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from pydantic import ValidationError

from noa.errors import InvalidInputError, NotFoundError
from noa.settings import ParameterSettings, Settings, SweepSettings
from noa_flows.pipeline import find_recipe_settings, plan_pipeline
from noa_flows.recipe_process import ask_recipe
from noa_flows.sweep.slots import available_cores
from noa_training import JobRequest, is_larger_better

BACKEND_KEY: Final = "backend"
"""The key under which the backend is searched where there are several."""
RESERVED_NAMES: Final = ("show",)
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """A search that can begin. `requests` hold what is the same for all trials of a backend, with their threads.

    `recipe` is its name or path as it was asked for; `space` holds the searched keys in order; `search` the limits and
    the way of the search, with all defaults filled in; `fixed` what is set for all trials; `source` the digest of the
    recipe's file; `cores` how many there are here.
    """

    name: str
    model: str
    recipe: str
    requests: Mapping[str, JobRequest]
    metric: str
    larger_is_better: bool
    space: Mapping[str, ParameterSettings]
    fixed: Mapping[str, object]
    search: SweepSettings
    source: str
    threads: int
    cores: int

    @property
    def points(self) -> float:
        """How many different trials there can be; infinite where a range has no step."""
        return math.prod((entry.size for entry in self.space.values()), start=float(len(self.requests)))

    def definition(self) -> dict[str, object]:
        """Return all that makes two trials comparable, and their order the same; plain JSON values."""
        return {
            "format": _FORMAT,
            "recipe": self.recipe,
            "model": self.model,
            "backends": list(self.requests),
            "metric": self.metric,
            "space": {key: entry.to_dict() for key, entry in self.space.items()},
            "fixed": dict(self.fixed),
            "sampler": self.search.sampler,
            "seed": self.search.seed,
            "source": self.source,
        }

    def request(self, backend: str, overrides: Mapping[str, object]) -> JobRequest:
        """Return the request of one trial."""
        base = self.requests[backend]
        return replace(base, overrides={**base.overrides, **overrides})


def plan_sweep(
    settings: Settings,
    what: str,
    *,
    name: str | None = None,
    space: Mapping[str, Mapping[str, object]] | None = None,
    overrides: Mapping[str, object] | None = None,
    changes: Mapping[str, object] | None = None,
) -> SweepPlan:
    """Find and check a search. `what` names one of `noa.toml`, or a recipe by name or path.

    `space` adds to the values of `noa.toml` or replaces them by key; `overrides` are set for all trials; `changes` are
    other fields of `SweepSettings`. Call it within `keep_recipe_processes`.

    Raises:
        NotFoundError: there is no such sweep or recipe; lists those that there are.
        InvalidInputError: nothing is searched, a range is not valid, or the metric is none that the recipe measures.
        RecipeError: the recipe, a key or a value is not valid; names the key.
    """
    found_name, base = _find(settings, what, has_space=bool(space))
    given_name = None if name is None else _check_name(name)
    search = _merge(base, found_name or what, space or {}, changes or {})
    parameters = dict(sorted(search.parameters.items()))
    fixed = dict(overrides or {})
    _refuse_empty(parameters, found_name, what)
    _refuse_contradictions(parameters, fixed)
    recipe_name, recipe = find_recipe_settings(settings, search.recipe)
    backends = tuple(sorted(set(search.backends or recipe.backends[:1])))
    pipeline = plan_pipeline(settings, search.recipe, backends=backends, overrides=fixed)
    cores = available_cores()
    threads = settings.training.threads or max(1, cores // search.parallel)
    requests = {request.backend: replace(request, threads=threads) for request in pipeline.requests}
    first = next(iter(requests.values()))
    asked = {
        "requests": [json.loads(request.to_json()) for request in requests.values()],
        "keys": list(parameters),
        "points": points_to_check(parameters),
    }
    answer = cast("dict[str, Any]", ask_recipe(first, "space", asked))
    metric = _check_metric(search.metric or str(answer["best_by"]), answer["metrics"], recipe_name or recipe.path)
    return SweepPlan(
        name=given_name or _check_name(found_name or pipeline.model),
        model=pipeline.model,
        recipe=search.recipe,
        requests=requests,
        metric=metric,
        larger_is_better=is_larger_better(metric),
        space=parameters,
        fixed=fixed,
        search=search,
        source=str(answer["source"]),
        threads=threads,
        cores=cores,
    )


def points_to_check(space: Mapping[str, ParameterSettings]) -> list[dict[str, object]]:
    """Return points that stand for all: each end and each choice of a key once, the other keys at their first."""
    first: dict[str, object] = {key: entry.ends()[0] for key, entry in space.items()}
    others = [{**first, key: value} for key, entry in space.items() for value in entry.ends()[1:]]
    return [first, *others]


def parse_space(text: str) -> tuple[str, dict[str, object]]:
    """Read `KEY=LOW..HIGH`, with `:log` or `:step=S` after it, or `KEY=A,B,C`; values as in JSON, else texts.

    Raises:
        InvalidInputError: it is neither.
    """
    key, mark, values = text.partition("=")
    key, values = key.strip(), values.strip()
    if not mark or not key or not values:
        raise _unreadable(text)
    if ".." not in values or values.startswith(("[", '"')):
        return key, {"choices": _choices(values)}
    limits, *marks = values.split(":")
    low, _, high = limits.partition("..")
    entry: dict[str, object] = {"low": _number(low, text), "high": _number(high, text)}
    for extra in marks:
        what, _, number = extra.partition("=")
        if extra == "log":
            entry["log"] = True
        elif what == "step" and number:
            entry["step"] = _number(number, text)
        else:
            raise _unreadable(text)
    return key, entry


def _choices(values: str) -> list[object]:
    """Read a list as in JSON without its brackets; what is no JSON is text, cut at its commas."""
    try:
        return cast("list[object]", json.loads(f"[{values}]"))
    except ValueError:
        return [_value(part.strip()) for part in values.split(",")]


def _value(text: str) -> object:
    try:
        return cast("object", json.loads(text))
    except ValueError:
        return text


def _number(text: str, whole: str) -> int | float:
    value = _value(text.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unreadable(whole)
    return value


def _unreadable(text: str) -> InvalidInputError:
    return InvalidInputError(
        "an entry of a space is not readable",
        where=f"--space {text}",
        expected="KEY=LOW..HIGH, KEY=LOW..HIGH:log, KEY=LOW..HIGH:step=S or KEY=A,B,C",
        received=text,
        remedy="E.g. --space optimizer.learning_rate=1e-4..1e-1:log",
    )


def _find(settings: Settings, what: str, *, has_space: bool) -> tuple[str | None, SweepSettings]:
    """Return a search of the settings with its name, or an empty one of a recipe."""
    if what in settings.sweeps:
        found = settings.sweeps[what]
        return what, found if found.recipe else found.model_copy(update={"recipe": what})
    if what not in settings.recipes and ":" not in what and not what.endswith(".py"):
        known = [*settings.sweeps, *settings.recipes]
        close = difflib.get_close_matches(what, known, n=1)
        raise NotFoundError(
            f"no sweep and no recipe `{what}`",
            where=str(settings.root / "noa.toml"),
            expected=", ".join(f"`{one}`" for one in dict.fromkeys(known)) or "a table [sweeps.NAME] or [recipes.NAME]",
            received=f"`{what}`",
            remedy=f"Did you mean `{close[0]}`?" if close else "Name a file such as `recipe.py`, with `--space`",
        )
    names = [name for name, sweep in settings.sweeps.items() if (sweep.recipe or name) == what]
    if has_space or not names:
        return None, SweepSettings(recipe=what)
    if len(names) > 1:
        raise InvalidInputError(
            f"`{what}` has several sweeps",
            where=str(settings.root / "noa.toml"),
            expected=f"one of {', '.join(f'`{name}`' for name in names)}",
            received=f"`{what}`",
            remedy=f"Run `noa sweep {names[0]}`",
        )
    return names[0], settings.sweeps[names[0]]


def _merge(
    base: SweepSettings, name: str, space: Mapping[str, Mapping[str, object]], changes: Mapping[str, object]
) -> SweepSettings:
    values = {
        **base.model_dump(),
        **changes,
        "space": {**base.space, **{key: dict(value) for key, value in space.items()}},
    }
    try:
        return SweepSettings.model_validate(values)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=True)[0]
        field = ".".join(str(part) for part in first["loc"][:1])
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidInputError(
            f"`{field}` of the sweep `{name}` is not valid: {message}",
            received=None if field == "space" else repr(first["input"]),
            field=field,
        ) from exc


def _refuse_empty(parameters: Mapping[str, ParameterSettings], name: str | None, what: str) -> None:
    if not parameters:
        raise InvalidInputError(
            "nothing is searched: the space is empty",
            where=f"sweeps.{name}.space" if name else f"the recipe `{what}`",
            expected="at least one key of the recipe with the values to try",
            remedy="E.g. --space optimizer.learning_rate=1e-4..1e-1:log, or a table [sweeps.NAME.space] in `noa.toml`",
            field="space",
        )


def _refuse_contradictions(parameters: Mapping[str, ParameterSettings], fixed: Mapping[str, object]) -> None:
    if BACKEND_KEY in parameters:
        raise InvalidInputError(
            f"`{BACKEND_KEY}` is no key of a recipe",
            expected="backends under `backends` of the sweep, or --backend torch,jax",
            received=f"`{BACKEND_KEY}` in the space",
            field=BACKEND_KEY,
        )
    both = [key for key in parameters if key in fixed]
    if both:
        raise InvalidInputError(
            f"`{both[0]}` is searched and set at once",
            expected="a key in the space, or under --set",
            received=f"--set {both[0]}={fixed[both[0]]}",
            field=both[0],
        )


def _check_metric(metric: str, measured: list[str], recipe: str) -> str:
    if metric not in ("loss", *measured):
        raise InvalidInputError(
            f"the metric `{metric}` is none that the recipe measures",
            where=recipe,
            expected=", ".join(("loss", *measured)),
            received=metric,
            remedy="Add it to the recipe's `metrics`, or choose another `metric` for the sweep",
            field="metric",
        )
    return metric


def _check_name(name: str) -> str:
    from noa.references import check_name

    if name in RESERVED_NAMES:
        raise InvalidInputError(
            f"a sweep cannot be called `{name}`",
            expected="another name",
            remedy="Give it one with --name",
            field="name",
        )
    return check_name(name)
