"""Reproduce: train a version again from what is recorded about it, and say how near the result comes.

The files are those of the recorded commit, laid out in a folder of their own; seed, overrides, backend and threads are
the recorded ones; the data must have the recorded digest before anything is trained. All of the user's code runs in
child processes. What came out is compared with the sealed native format and kept as evidence of kind `reproduction`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from noa.digests import build_manifest
from noa.errors import ConflictError, IntegrityError, InvalidInputError, NotFoundError
from noa.settings import Settings
from noa_conversion import load_format
from noa_flows._private_files import private_files
from noa_flows._source_checkout import check_out
from noa_flows.provenance import capture_environment
from noa_flows.recipe_process import ask_recipe
from noa_flows.reproduction import (
    PackageDifference,
    Reproduction,
    Tolerance,
    compare_environments,
    compare_weights,
    difference,
    judge,
)
from noa_flows.training_job import train_in_child
from noa_registry import Evidence, ModelVersion, Registry, check_signing
from noa_registry.archives.workspace import workspace
from noa_training import BACKENDS, JobEvent, JobRequest
from noa_training.git_state import read_git_state

if TYPE_CHECKING:
    from noa_training import BackendName, TrainedJob

REPRODUCTION: Final = "reproduction"
_FOLDER = "reproductions"
_DIRTY = "-dirty"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproduceOptions:
    """`present_files`: train from what is in the project now. `strict`: refuse another environment."""

    present_files: bool = False
    strict: bool = False
    tolerance: Tolerance = field(default_factory=Tolerance)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    project: Path
    says: str
    notes: tuple[str, ...] = ()
    linked: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorded:
    """What a version's record says about its training."""

    recipe: str
    backend: BackendName
    overrides: Mapping[str, object]
    seed: int | None
    threads: int
    commit: str | None
    is_dirty: bool
    diff_digest: str | None
    path: str


def reproduce_version(
    settings: Settings,
    reference: str,
    *,
    options: ReproduceOptions | None = None,
    on_event: Callable[[JobEvent], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Reproduction:
    """Train a version again, compare, and attach the result to it as evidence. `tell` gets each step's name.

    Raises:
        NotFoundError: no such version or commit, or nothing is recorded about how it was trained.
        ConflictError: it was trained from files that no commit holds, or, with `strict`, in another environment.
        IntegrityError: the recipe's data is not what the version was trained on; nothing was trained.
        RecipeError, TrainingError: the recipe of that commit cannot be trained here.
    """
    chosen, say = options or ReproduceOptions(), tell or _say_nothing
    begun = time.monotonic()
    check_signing(settings.registry.signing)
    with Registry.open(settings) as registry:
        version = registry.resolve(reference)
        recorded = _read_record(version)
        say("checking what was sealed")
        registry.open_format(version, version.native)  # else a key that does not fit is told after the training only
        environment = compare_environments(version.environment, capture_environment(recorded.backend))
        if chosen.strict and environment:
            raise _other_environment(version, environment)
        with workspace(settings.state_dir / _FOLDER) as folder:
            say("laying out the files")
            source = _lay_out(settings, version, recorded, folder / "source", present_files=chosen.present_files)
            request = _request(settings, version, recorded, source)
            say("checking the data")
            _check_data(settings, version, request, folder)
            say("training")
            job = train_in_child(request, _settings_for(settings, source, folder), on_event=on_event or _hear_nothing)
            say("comparing")
            result = _compare(registry, settings, version, source, job, folder, environment, chosen, begun)
        registry.attach(version.name, version.number, _to_evidence(version, result), by_pipeline=True)
    return result


def _read_record(version: ModelVersion) -> _Recorded:
    tags = version.tags
    backend = tags.get("noa.backend", version.native)
    if "noa.recipe" not in tags or "noa.overrides" not in tags or backend not in BACKENDS:
        raise NotFoundError(
            f"too little is recorded about how `{version.reference}` was trained",
            expected="tags `noa.recipe`, `noa.overrides`, `noa.seed`, as `noa train` writes them",
            received=", ".join(f"`{key}`" for key in tags) or "no tags",
            remedy="Only versions that were trained with noa can be reproduced; train it again with `noa train`",
        )
    try:
        overrides = cast("dict[str, object]", json.loads(tags["noa.overrides"]))
        commit = version.git_commit
        return _Recorded(
            recipe=tags["noa.recipe"],
            backend=backend,
            overrides={**overrides},
            seed=int(tags["noa.seed"]) if "noa.seed" in tags else None,
            threads=int(tags.get("noa.threads", "0")),
            commit=None if commit is None else commit.removesuffix(_DIRTY),
            is_dirty=tags.get("noa.git.dirty") == "true" or (commit or "").endswith(_DIRTY),
            diff_digest=tags.get("noa.git.diff"),
            path=tags.get("noa.git.path", ""),
        )
    except (ValueError, TypeError) as exc:
        raise InvalidInputError(f"the record of how `{version.reference}` was trained is not readable") from exc


def _lay_out(
    settings: Settings, version: ModelVersion, recorded: _Recorded, target: Path, *, present_files: bool
) -> _Source:
    if present_files:
        return _present_files(settings, recorded)
    remedy = "Train from the files that are here with --present-files"
    if recorded.commit is None:
        raise NotFoundError(f"`{version.reference}` was trained outside of a git repository", remedy=remedy)
    if recorded.is_dirty:
        raise ConflictError(
            f"`{version.reference}` was trained from files that no commit holds: "
            f"`{recorded.commit[:12]}` with changes ({recorded.diff_digest or 'not named'})",
            remedy=remedy,
        )
    made = check_out(settings.root, recorded.commit, recorded.path, target, private=private_files(settings))
    says = f"commit {recorded.commit[:12]}"
    return _Source(project=made.project, says=says, linked=made.linked, left_out=made.left_out)


def _present_files(settings: Settings, recorded: _Recorded) -> _Source:
    state = read_git_state(settings.root)
    was = f"commit {(recorded.commit or 'none')[:12]}" + (
        f" with changes {recorded.diff_digest}" if recorded.is_dirty else ""
    )
    if state is None:
        return _Source(
            project=settings.root, says="the present files", notes=(f"the files are in no repository; they were {was}",)
        )
    now = f"commit {state.commit[:12]}" + (f" with changes {state.diff_digest}" if state.diff_digest else "")
    is_same = (state.commit, state.diff_digest) == (recorded.commit, recorded.diff_digest)
    notes = () if is_same else (f"the files are {now}; they were {was}",)
    return _Source(project=settings.root, says=f"the present files ({now})", notes=notes)


def _request(settings: Settings, version: ModelVersion, recorded: _Recorded, source: _Source) -> JobRequest:
    return JobRequest(
        recipe=recorded.recipe,
        root=source.project,
        backend=recorded.backend,
        name=version.name,
        overrides=recorded.overrides,
        seed=recorded.seed,
        threads=recorded.threads,
        project=settings.project.name,
    )


def _settings_for(settings: Settings, source: _Source, folder: Path) -> Settings:
    training = settings.training.model_copy(update={"jobs_dir": folder / "jobs"})
    return settings.model_copy(update={"root": source.project, "training": training})


def _check_data(settings: Settings, version: ModelVersion, request: JobRequest, folder: Path) -> None:
    found = ask_recipe(request, "data", {"request": json.loads(request.to_json())})
    if found["digest"] == version.dataset_digest:
        return
    recorded = {name: version.tags.get(f"noa.data.{name}") for name in found["splits"]}
    changed = [name for name, digest in found["splits"].items() if recorded[name] not in (None, digest)]
    raise IntegrityError(
        f"the data is not what `{version.reference}` was trained on"
        + (f": the split `{'`, `'.join(changed)}` differs" if changed else ""),
        where=request.recipe,
        expected=version.dataset_digest,
        received=found["digest"],
        remedy="Bring back the data of that time; nothing was trained",
        file=request.recipe,
    )


def _compare(
    registry: Registry,
    settings: Settings,
    version: ModelVersion,
    source: _Source,
    job: TrainedJob,
    folder: Path,
    environment: tuple[PackageDifference, ...],
    options: ReproduceOptions,
    begun: float,
) -> Reproduction:
    sealed = registry.open_format(version, version.native)
    is_same, weights = compare_weights(sealed, job.native_folder)
    example = registry.input_example(version)
    first = load_format(version.native, sealed).run(example)
    second = load_format(version.native, job.native_folder).run(example)
    outputs = difference(first, second)
    asked = {"request": json.loads(job.request.to_json()), "format": version.native, "folder": str(job.native_folder)}
    measured = ask_recipe(job.request, "metrics", asked, folder=job.folder)
    known = _recorded_metrics(registry, version, str(measured["dataset_digest"]))
    received = {name: float(value) for name, value in measured["metrics"].items()}
    metrics = {name: (known.get(name), value) for name, value in received.items()}
    verdict = judge(is_same=is_same, weights=weights, outputs=outputs, metrics=metrics, tolerance=options.tolerance)
    return Reproduction(
        reference=version.reference,
        verdict=verdict,
        source=source.says,
        recorded_digest=version.formats[version.native].digest,
        received_digest=build_manifest(job.native_folder).digest,
        weights=weights,
        outputs=outputs,
        metrics=metrics,
        tolerance=options.tolerance,
        environment=environment,
        notes=source.notes,
        linked=source.linked,
        left_out=source.left_out,
        seconds=time.monotonic() - begun,
    )


def _recorded_metrics(registry: Registry, version: ModelVersion, dataset_digest: str) -> dict[str, float]:
    """Return the native format's metrics on the same rows, as they were measured when it was registered."""
    found: dict[str, float] = {}
    for fact in registry.evidence(version.name, version.number):
        is_meant = fact.kind == "metrics" and fact.subject == version.native
        if is_meant and fact.values.get("dataset_digest") == dataset_digest:
            values = cast("Mapping[str, object]", fact.values.get("metrics", {}))
            found |= {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _to_evidence(version: ModelVersion, result: Reproduction) -> Evidence:
    return Evidence(
        kind=REPRODUCTION,
        subject=version.native,
        digest=version.formats[version.native].digest,
        passed=result.verdict != "different",
        values=result.to_dict(),
    )


def _other_environment(version: ModelVersion, found: tuple[PackageDifference, ...]) -> ConflictError:
    return ConflictError(
        f"`{version.reference}` was trained in another environment",
        expected=", ".join(f"{entry.name} {entry.recorded or 'not installed'}" for entry in found),
        received=", ".join(f"{entry.name} {entry.present or 'not installed'}" for entry in found),
        remedy="Install these versions, or leave out --strict and see how near it comes",
        differences=found,
    )


def _say_nothing(_text: str) -> None:
    """Take a step's name."""


def _hear_nothing(_event: JobEvent) -> None:
    """Take an event."""
