"""What a job says about itself while it runs: small typed events, one JSON line each.

They go to the caller of `run_job`, to `events.jsonl` in the job's folder and, from a worker process, to standard
output.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, fields
from typing import ClassVar, Final, Self, TypeAlias

from noa.errors import InvalidInputError

_ENCODER: Final = json.JSONEncoder(allow_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    kind: ClassVar[str] = ""

    job_id: str
    at: float  # seconds since the epoch

    def to_json(self) -> str:
        """Return one line of JSON; `parse_event` reads it back."""
        # Not `asdict`, which copies the metrics of every step.
        return _ENCODER.encode({"kind": self.kind, **{name: getattr(self, name) for name in _names(type(self))}})

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> Self:
        """Build the event from the JSON values of its fields; unknown ones are left out."""
        names = _names(cls)
        return cls(**{name: value for name, value in values.items() if name in names})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(_Event):
    """The job has its data and begins; also sent, before `Resumed`, when it continues."""

    kind: ClassVar[str] = "started"

    folder: str
    backend: str
    attempt: int
    dataset_digest: str
    rows: int
    epochs: int
    total_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(_Event):
    """The job continues after the steps of a checkpoint."""

    kind: ClassVar[str] = "resumed"

    step: int
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(_Event):
    """Progress within an epoch: mean training loss since the last one, samples per second, seconds left at this
    pace."""

    kind: ClassVar[str] = "step"

    step: int
    epoch: int
    total_steps: int
    loss: float
    learning_rate: float
    samples_per_s: float
    eta_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch(_Event):
    """An epoch ended; `metrics` are those of the validation split, `is_best` says whether its weights are kept."""

    kind: ClassVar[str] = "epoch"

    step: int
    epoch: int
    epochs: int
    metrics: dict[str, float]
    is_best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointWritten(_Event):
    """A checkpoint is durable."""

    kind: ClassVar[str] = "checkpoint"

    step: int
    checkpoint: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned(_Event):
    """Something is wrong and the job goes on; `subject` names the file or part."""

    kind: ClassVar[str] = "warning"

    subject: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStopped(_Event):
    """The metric did not improve for too long; the best epoch's weights are used."""

    kind: ClassVar[str] = "early_stopped"

    step: int
    epoch: int
    best_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(_Event):
    """The model is written; `folder` holds `result.json`."""

    kind: ClassVar[str] = "finished"

    folder: str
    metrics: dict[str, float]
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(_Event):
    """The job ended without a model. `state` is `failed` or `cancelled`; `error` holds the parts of the `NoaError`."""

    kind: ClassVar[str] = "failed"

    state: str
    message: str
    error: dict[str, str | None]


JobEvent: TypeAlias = Started | Resumed | Step | Epoch | CheckpointWritten | Warned | EarlyStopped | Finished | Failed
_KINDS: dict[str, type[JobEvent]] = {
    kind.kind: kind
    for kind in (Started, Resumed, Step, Epoch, CheckpointWritten, Warned, EarlyStopped, Finished, Failed)
}


@functools.cache
def _names(kind: type[_Event]) -> tuple[str, ...]:
    return tuple(entry.name for entry in fields(kind))


def parse_event(line: str | bytes) -> JobEvent:
    """Read one line that `to_json` wrote.

    Raises:
        InvalidInputError: the line is no event.
    """
    try:
        values = json.loads(line)
        return _KINDS[values["kind"]].from_dict(values)
    except (ValueError, KeyError, TypeError) as exc:
        raise InvalidInputError("a line is no job event", received=str(line)[:120]) from exc
