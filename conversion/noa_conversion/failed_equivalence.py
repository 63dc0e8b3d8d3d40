"""Why two formats are not equal, in one line for people, from the values of the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast


def describe_failure(values: Mapping[str, object]) -> str:
    """Return the worst output that failed, its batch, how far it is off and what was allowed; else what else was wrong.

    `values` are those of the evidence of `measure_equivalence`.
    """
    runs = cast("Sequence[Mapping[str, object]]", values.get("outputs") or ())
    failed = [run for run in runs if not run["passed"]]
    worst = [run for run in failed if run["output"] == values.get("worst_output")] or failed
    problem = str(values.get("problem"))
    if not worst or not problem.startswith("output "):  # then something else than a difference was found first
        return problem
    run = max(worst, key=lambda run: _size_of(run["max_abs_error"]))
    text = f"output `{run['output']}` in a batch of {run['batch']}: {run['problem']}"
    if _is_number(run["max_abs_error"]):
        text += f": {run['max_abs_error']:.3g} apart, allowed {_allowed(run)} ({run['tolerance_reason']})"
    first = values.get("first_difference")
    if isinstance(first, dict) and cast("Mapping[str, object]", first).get("node"):
        text += f"; the first node that differs is `{first['node']}`"
    return text


def _allowed(run: Mapping[str, object]) -> str:
    parts = [(run["absolute_tolerance"], ""), (run["relative_tolerance"], "·|x|")]
    parts.append((run["tolerance_of_largest"], "·max|x|"))
    return " + ".join(f"{number:.3g}{of}" for number, of in parts if number) or "0"


def _size_of(error: object) -> float:
    return float(error) if _is_number(error) and isinstance(error, (int, float)) else float("inf")


def _is_number(error: object) -> bool:
    return isinstance(error, (int, float))
