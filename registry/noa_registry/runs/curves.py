"""Curves of metrics over the steps of runs, thinned where they are longer than anybody can see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from sqlalchemy import Connection, func, select

from noa.errors import InvalidInputError, NotFoundError
from noa_registry.runs import tags
from noa_registry.runs.cells import to_number, to_text
from noa_registry.runs.hints import known_names, list_names
from noa_registry.runs.listing import load_tags
from noa_registry.tables import mlflow_latest_metrics, mlflow_metrics, mlflow_runs

Axis: TypeAlias = Literal["step", "epoch"]
MOST_RUNS: Final = 20
_MOST_CURVES: Final = 40
_MOST_ROWS: Final = 100_000  # of one curve; a longer one is thinned
_FAMILIES: Final = (tags.TRAIN, tags.VALIDATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A metric of a run: `x` (steps or epochs, ascending) and `values`, where NaN is a gap. `every`: 1 if it is whole,
    else the distance in steps of what is left of it."""

    run_id: str
    run_name: str
    key: str
    axis: Axis
    x: tuple[float, ...]
    values: tuple[float, ...]
    every: int = 1

    def to_dict(self) -> dict[str, object]:
        """Return the curve as plain JSON values; a gap is null."""
        return {
            "run_id": self.run_id,
            "run_name": self.run_name,
            "key": self.key,
            "axis": self.axis,
            "x": list(self.x),
            "values": [value if math.isfinite(value) else None for value in self.values],
            "every": self.every,
        }


def load_curves(connection: Connection, run_ids: Sequence[str], metric: str, *, axis: Axis) -> list[Curve]:
    """Return the curves of a metric: of a key, or, where no run has this very key, of training and validation.

    `loss` is both `train.loss` and `validation.loss`. Of several values at one step, as a job leaves them that was
    killed and went on from an earlier step, the last one counts.

    Raises:
        NotFoundError: none of the runs has it; names what they have.
        InvalidInputError: there are too many curves, or a run does not say how many steps an epoch has.
    """
    keys = _keys(connection, run_ids, metric)
    names = _names(connection, run_ids)
    found = [
        curve
        for run in run_ids
        for key in keys
        if (curve := _load_curve(connection, run, names.get(run, ""), key)) is not None
    ]
    return found if axis == "step" else _over_epochs(connection, found)


def _keys(connection: Connection, run_ids: Sequence[str], metric: str) -> list[str]:
    candidates = (metric, *(f"{family}{metric}" for family in _FAMILIES))
    m = mlflow_latest_metrics.c
    query = select(m.run_uuid, m.key).where(m.run_uuid.in_(run_ids), m.key.in_(candidates))
    having = [(row.run_uuid, row.key) for row in connection.execute(query)]
    there = {key for _, key in having}
    if not there:
        known = known_names(connection, mlflow_latest_metrics, run_ids=tuple(run_ids))
        raise NotFoundError(
            f"no metric `{metric}` in {'this run' if len(run_ids) == 1 else 'these runs'}",
            received=f"`{metric}`",
            remedy=list_names(known).capitalize() or "No metric was logged yet",
        )
    keys = [metric] if metric in there else [key for key in candidates if key in there]
    if sum(key in keys for _, key in having) > _MOST_CURVES:
        raise InvalidInputError(
            "these are too many curves for one picture", expected=f"at most {_MOST_CURVES}", received=len(having)
        )
    return keys


def _names(connection: Connection, run_ids: Sequence[str]) -> dict[str, str]:
    c = mlflow_runs.c
    rows = connection.execute(select(c.run_uuid, c.name).where(c.run_uuid.in_(run_ids)))
    return {row.run_uuid: to_text(row.name) for row in rows}


def _load_curve(connection: Connection, run_id: str, name: str, key: str) -> Curve | None:
    m = mlflow_metrics.c
    here = (m.run_uuid == run_id, m.key == key)
    rows = connection.execute(select(func.count()).select_from(mlflow_metrics).where(*here)).scalar_one()
    query = select(m.step, m.timestamp, m.value, m.is_nan).where(*here).order_by(m.step, m.timestamp, m.value)
    every = 1
    if rows > _MOST_ROWS:
        first, last = connection.execute(select(func.min(m.step), func.max(m.step)).where(*here)).one()
        every = max(1, -(-(last - first + 1) // _MOST_ROWS), -(-rows // _MOST_ROWS))
        query = query.where((m.step - first) % every == 0).limit(2 * _MOST_ROWS)
    points: dict[int, float] = {}
    for row in connection.execute(query):
        points[row.step] = to_number(row.value, row.is_nan)  # the last one at a step
    if not points:
        return None
    return Curve(
        run_id=run_id,
        run_name=name,
        key=key,
        axis="step",
        x=tuple(float(step) for step in points),
        values=tuple(points.values()),
        every=every,
    )


def _over_epochs(connection: Connection, curves: Sequence[Curve]) -> list[Curve]:
    ids = sorted({curve.run_id for curve in curves})
    tagged = load_tags(connection, ids, (tags.STEPS_PER_EPOCH,))
    found: list[Curve] = []
    for curve in curves:
        said = tagged.get(curve.run_id, {}).get(tags.STEPS_PER_EPOCH, "")
        if not said.isdecimal() or int(said) < 1:
            raise InvalidInputError(
                f"run `{curve.run_id}` does not say how many steps an epoch has",
                expected=f"the tag `{tags.STEPS_PER_EPOCH}`, as jobs of noa have it",
                remedy="Leave out `--over epoch`",
            )
        found.append(replace(curve, axis="epoch", x=tuple(step / int(said) for step in curve.x)))
    return found
