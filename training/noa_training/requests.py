"""What goes into a job and what comes out, as values that cross a process border as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast

from noa.errors import InvalidInputError
from noa.settings import RegistrySettings, TrainingSettings
from noa_training.model_specs import BackendName, ModelShape


def _no_overrides() -> dict[str, object]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """Train `recipe` (see `load_recipe`) of the project at `root` on `backend`.

    `name` overrides the recipe's own name (the model's name); `overrides` are dotted keys as in `override`; `seed`
    overrides the recipe's; `threads` bounds the compute threads (0: those of the settings, or the library's default);
    `project` names the experiment in which the run is tracked.
    """

    recipe: str
    root: Path
    backend: BackendName
    name: str | None = None
    overrides: Mapping[str, object] = field(default_factory=_no_overrides)
    seed: int | None = None
    threads: int = 0
    project: str = "project"

    def to_json(self) -> str:
        """Return JSON text; `from_json` reads it back."""
        return json.dumps(asdict(self) | {"root": str(self.root)}, allow_nan=False)

    @staticmethod
    def from_json(text: str | bytes) -> JobRequest:
        """Parse what `to_json` wrote.

        Raises:
            InvalidInputError: the text is no request.
        """
        values = _read(text, JobRequest)
        return _build(JobRequest, values | {"root": Path(str(values.get("root", ".")))})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedJob:
    """A finished job. `metrics` are the best epoch's on the validation split; `native_folder` holds the native format.

    `seconds` is the time of this process, `resumed_from_step` the step at which it took over (None: it did all).
    `provenance` is what somebody needs to train it again: seed, overrides, digests of recipe and splits, git's state.
    """

    job_id: str
    attempt: int
    request: JobRequest
    name: str
    folder: Path
    native_folder: Path
    shape: ModelShape
    run_id: str | None
    dataset_digest: str
    metrics: Mapping[str, float]
    epochs: int
    steps: int
    seconds: float
    resumed_from_step: int | None
    git_commit: str | None
    params: Mapping[str, object]
    provenance: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def recipe(self) -> str:
        """The recipe's path, as requested."""
        return self.request.recipe

    @property
    def backend(self) -> BackendName:
        """The backend that trained it."""
        return self.request.backend

    def to_json(self) -> str:
        """Return JSON text; `from_json` reads it back."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        values |= {"folder": str(self.folder), "native_folder": str(self.native_folder), "shape": self.shape.to_dict()}
        values |= {"request": json.loads(self.request.to_json()), "metrics": dict(self.metrics)}
        values |= {"provenance": dict(self.provenance)}
        return json.dumps(values | {"params": dict(self.params)}, allow_nan=False)

    @staticmethod
    def from_json(text: str | bytes) -> TrainedJob:
        """Parse what `to_json` wrote.

        Raises:
            InvalidInputError: the text is no finished job.
        """
        values = _read(text, TrainedJob)
        try:
            values |= {"folder": Path(values["folder"]), "native_folder": Path(values["native_folder"])}
            values |= {"request": JobRequest.from_json(json.dumps(values["request"]))}
            values |= {"shape": ModelShape.from_dict(values["shape"])}
        except (KeyError, TypeError) as exc:
            raise InvalidInputError("a finished job is not readable", received=str(text)[:120]) from exc
        return _build(TrainedJob, values)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRequest:
    """All that a worker process needs. `registry` None: the job is not tracked. `parent_pid` 0: any parent will do."""

    request: JobRequest
    settings: TrainingSettings
    registry: RegistrySettings | None = None
    parent_pid: int = 0

    def to_json(self) -> str:
        """Return JSON text for the worker's file; `from_json` reads it back."""
        return json.dumps(
            {
                "request": json.loads(self.request.to_json()),
                "settings": self.settings.model_dump(mode="json"),
                "registry": None if self.registry is None else self.registry.model_dump(mode="json"),
                "parent_pid": self.parent_pid,
            }
        )

    @staticmethod
    def from_json(text: str | bytes) -> WorkerRequest:
        """Parse what `to_json` wrote.

        Raises:
            InvalidInputError: the text is no worker request.
        """
        values = _read(text, WorkerRequest)
        try:
            registry = values.get("registry")
            return WorkerRequest(
                request=JobRequest.from_json(json.dumps(values["request"])),
                settings=TrainingSettings.model_validate(values["settings"]),
                registry=None if registry is None else RegistrySettings.model_validate(registry),
                parent_pid=int(values.get("parent_pid", 0)),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise InvalidInputError("a worker request is not readable", received=str(text)[:120]) from exc


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


_T = TypeVar("_T", bound=_Dataclass)


def _read(text: str | bytes, kind: type[_Dataclass]) -> dict[str, Any]:
    try:
        values = cast("object", json.loads(text))
    except ValueError as exc:
        raise InvalidInputError(f"this is no {kind.__name__}: malformed JSON", received=str(text)[:120]) from exc
    if not isinstance(values, dict):
        raise InvalidInputError(f"this is no {kind.__name__}", expected="a JSON object", received=str(text)[:120])
    table = cast("dict[str, Any]", values)
    unknown = sorted(set(table) - {entry.name for entry in fields(kind)})
    if unknown:
        raise InvalidInputError(f"this is no {kind.__name__}", received=f"unknown key `{unknown[0]}`")
    return table


def _build(kind: type[_T], values: dict[str, Any]) -> _T:
    try:
        return kind(**values)
    except TypeError as exc:
        raise InvalidInputError(f"this is no {kind.__name__}: {exc}", received=str(values)[:120]) from exc
