"""Search for better formats of a version: make them, measure speed, size and the task, keep those worth keeping.

The task metric is measured on the version's own pinned test split, calibration uses its validation split, and latency
is measured in rounds over all formats, so that a burst of other work hits them alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from noa.digests import build_manifest
from noa.errors import IntegrityError, InvalidInputError, NoaError, NotFoundError
from noa.settings import Settings
from noa_conversion import convert_folder, find_converters, load_format, measure_equivalence
from noa_conversion.latency import describe_hardware
from noa_conversion.latency import measure_performance as measure_speed
from noa_conversion.optimise.pareto import LATENCY_NOISE, Measured, mark_front, metric_drop
from noa_flows.training_job import JOB_FOLDER_TAG
from noa_registry import Registry
from noa_registry.evidence import LATENCY, LatencyEvidence
from noa_training import is_larger_better, load_dataset, load_result, measure, recipe_of

if TYPE_CHECKING:
    import numpy as np

    from noa_registry import Evidence, ModelVersion
    from noa_training import Dataset, Recipe

BATCHES: Final = (1, 16)
BASELINE: Final = "onnx"
OPTIMISED: Final = ("onnx-slim", "onnx-fp16", "onnx-bf16", "onnx-int8", "onnx-int8-static", "onnx-int4")
_ROUNDS: Final = 3
_CALIBRATION_ROWS: Final = 256
_EQUIVALENCE_ROWS: Final = 256
_LATENCY_ROWS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimisationPlan:
    """What to search. `formats` are made beside the baseline `onnx`; a drop is in the metric's own unit."""

    formats: tuple[str, ...] = OPTIMISED
    metric: str | None = None
    """The task metric; None: the first of the recipe."""
    max_drop: float = 0.005
    seconds_per_batch: float = 0.3
    """How long each batch size of each format is timed in each of three rounds."""
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisation:
    """What was found. `evidence` are the facts of each format that was made, to be kept with it."""

    reference: str
    metric: str
    larger_is_better: bool
    baseline: float
    max_drop: float
    rows: int
    dataset_digest: str
    hardware: str
    measured: tuple[Measured, ...]
    evidence: Mapping[str, tuple[Evidence, ...]]
    folders: Mapping[str, Path]

    @property
    def least(self) -> float:
        """The worst value of the metric that is allowed."""
        return self.baseline - self.max_drop if self.larger_is_better else self.baseline + self.max_drop

    def to_dict(self) -> dict[str, object]:
        """Return JSON values."""
        return {
            "reference": self.reference,
            "metric": self.metric,
            "larger_is_better": self.larger_is_better,
            "baseline": self.baseline,
            "max_drop": self.max_drop,
            "rows": self.rows,
            "dataset_digest": self.dataset_digest,
            "hardware": self.hardware,
            "latency_noise": LATENCY_NOISE,
            "formats": [one.to_dict() for one in self.measured],
        }


def optimise(
    registry: Registry,
    version: ModelVersion,
    settings: Settings,
    plan: OptimisationPlan,
    scratch: Path,
    *,
    tell: Callable[[str], None] = lambda _text: None,
) -> Optimisation:
    """Make and measure the formats of a plan; nothing is registered. Folders of what was made are below `scratch`.

    Raises:
        NotFoundError: the job of the version is gone, or there is no such format or metric.
        IntegrityError: the recipe's data is not what the version was trained on.
        InvalidInputError: the version has no way to `onnx`.
    """
    tell("loading the test split")
    recipe, data = _data_of(version)
    metric = plan.metric or (recipe.metrics[0] if recipe.metrics else "loss")
    larger = is_larger_better(metric)
    if metric not in ("loss", *recipe.metrics):
        raise NotFoundError(
            f"the recipe does not measure `{metric}`", expected=", ".join(("loss", *recipe.metrics)), received=metric
        )
    search = _Search(registry, version, settings, plan, recipe, data, metric, scratch, tell)
    found = search.run()
    baseline = next(one.metric for one in found if one.format == BASELINE)
    if baseline is None:
        raise InvalidInputError(f"`{BASELINE}` of `{version.reference}` could not be measured")
    judged = [
        one if one.metric is None else _judge(one, baseline, plan.max_drop, metric, larger=larger) for one in found
    ]
    marked = mark_front(judged, larger_is_better=larger)
    chosen = [replace(one, is_chosen=one.on_front and not one.is_registered) for one in marked]
    return Optimisation(
        reference=version.reference,
        metric=metric,
        larger_is_better=larger,
        baseline=baseline,
        max_drop=plan.max_drop,
        rows=data.test.rows,
        dataset_digest=data.test.digest,
        hardware=describe_hardware(BASELINE, plan.threads).describe(),
        measured=tuple(chosen),
        evidence={name: tuple(facts) for name, facts in search.evidence.items()},
        folders=search.folders,
    )


def keep_chosen(registry: Registry, version: ModelVersion, found: Optimisation, *, actor: str) -> list[str]:
    """Seal the chosen formats into the version with all that was measured of them; return their names.

    Raises:
        ConflictError: somebody else added one meanwhile.
    """
    names = [one.format for one in found.measured if one.is_chosen]
    for name in names:
        registry.add_format(
            version.name, version.number, name, found.folders[name], evidence=found.evidence[name], actor=actor
        )
    return names


class _Search:
    """One run over the formats of a plan."""

    def __init__(
        self,
        registry: Registry,
        version: ModelVersion,
        settings: Settings,
        plan: OptimisationPlan,
        recipe: Recipe,
        data: Dataset,
        metric: str,
        scratch: Path,
        tell: Callable[[str], None],
    ) -> None:
        self._registry, self._version, self._settings = registry, version, settings
        self._plan, self._recipe, self._data, self._metric = plan, recipe, data, metric
        self._scratch, self._tell = scratch, tell
        self.folders: dict[str, Path] = {}
        self.evidence: dict[str, list[Evidence]] = {}

    def run(self) -> list[Measured]:
        self.folders[BASELINE] = self._baseline()
        found: list[Measured] = [self._measure(BASELINE)]
        for name in dict.fromkeys(self._plan.formats):
            if name == BASELINE:
                continue
            self._tell(f"making {name}")
            try:
                self.folders[name] = self._make(name)
            except NoaError as exc:
                found.append(Measured(format=name, latency_ms={}, metrics={}, problem=str(exc)))
                continue
            found.append(self._measure(name))
        speeds = self._time([one.format for one in found if one.metric is not None])
        return [replace(one, latency_ms=speeds.get(one.format, {})) for one in found]

    def _baseline(self) -> Path:
        version = self._version
        if BASELINE in version.formats:
            return self._registry.open_format(version, BASELINE)
        folder = self._scratch / BASELINE
        self._tell(f"making {BASELINE}")
        convert_folder(
            version.native,
            self._registry.open_format(version, version.native),
            BASELINE,
            folder,
            settings=self._settings.conversion,
        )
        return folder

    def _make(self, name: str) -> Path:
        if name in self._version.formats:
            return self._registry.open_format(self._version, name)
        folder = self._scratch / name
        convert_folder(
            BASELINE,
            self.folders[BASELINE],
            name,
            folder,
            settings=self._settings.conversion,
            samples=self._data.validation.head(_CALIBRATION_ROWS).inputs,
        )
        return folder

    def _measure(self, name: str) -> Measured:
        """Compare a format with the native one, and measure it on the task."""
        self._tell(f"measuring {name} on the test split")
        folder, version, test = self.folders[name], self._version, self._data.test
        manifest = build_manifest(folder)
        task = measure(
            self._recipe,
            load_format(name, folder, threads=self._plan.threads),
            test,
            subject=name,
            digest=manifest.digest,
            dataset_digest=test.digest,
            with_predictions=False,
        )
        self.evidence[name] = list(task.evidence)
        problem, error = None, None
        if name != version.native:
            equal = self._compare(name, folder)
            self.evidence[name].append(equal)
            value = equal.values.get("max_abs_error")
            error = value if isinstance(value, float) else None
            problem = None if equal.passed else f"outside its stated tolerance: {equal.values.get('problem')}"
        return Measured(
            format=name,
            size_bytes=manifest.size_bytes,
            latency_ms={},
            metric=task.metrics[self._metric],
            metrics=task.metrics,
            max_abs_error=error,
            problem=problem,
            is_registered=name in version.formats,
        )

    def _compare(self, name: str, folder: Path) -> Evidence:
        version = self._version
        converter = find_converters().get((BASELINE, name))
        return measure_equivalence(
            source=version.native,
            source_folder=self._registry.open_format(version, version.native),
            target=name,
            target_folder=folder,
            samples=self._data.test.head(_EQUIVALENCE_ROWS).inputs,
            settings=self._settings.conversion,
            allow=None if converter is None else converter.allow,
        )

    def _time(self, names: Sequence[str]) -> dict[str, dict[int, float]]:
        """Time all formats in rounds; of each format the round with the median time of one row counts."""
        samples: Mapping[str, np.ndarray] = self._data.test.head(_LATENCY_ROWS).inputs
        rounds: dict[str, list[tuple[Evidence, ...]]] = {name: [] for name in names}
        for number in range(_ROUNDS):
            for name in names:
                self._tell(f"timing {name}, round {number + 1} of {_ROUNDS}")
                rounds[name].append(
                    measure_speed(
                        name,
                        self.folders[name],
                        samples,
                        threads=self._plan.threads,
                        batches=BATCHES,
                        seconds_per_batch=self._plan.seconds_per_batch,
                    )
                )
        speeds: dict[str, dict[int, float]] = {}
        for name, facts in rounds.items():
            median = _median_round(facts)
            self.evidence[name] += median
            latency = next(LatencyEvidence.from_evidence(fact) for fact in median if fact.kind == LATENCY)
            speeds[name] = {row.batch: row.p50_ms for row in latency.batches}
        return speeds


def _median_round(rounds: Sequence[tuple[Evidence, ...]]) -> tuple[Evidence, ...]:
    def first_p50(facts: tuple[Evidence, ...]) -> float:
        return next(LatencyEvidence.from_evidence(fact).batches[0].p50_ms for fact in facts if fact.kind == LATENCY)

    middle = statistics.median_low(first_p50(facts) for facts in rounds)
    return next(facts for facts in rounds if first_p50(facts) == middle)


def _judge(one: Measured, baseline: float, max_drop: float, metric: str, *, larger: bool) -> Measured:
    drop = metric_drop(baseline, one.metric or 0.0, larger_is_better=larger)
    if one.problem is None and drop > max_drop and one.format != BASELINE:
        return replace(one, problem=f"`{metric}` is {drop:.4g} worse, and at most {max_drop:g} is allowed")
    return one


def _data_of(version: ModelVersion) -> tuple[Recipe, Dataset]:
    """Return the recipe and the rows that a version was trained on, proven by their digest."""
    job_folder = version.tags.get(JOB_FOLDER_TAG)
    if job_folder is None or not Path(job_folder).is_dir():
        raise NotFoundError(
            f"`{version.reference}` has no recipe here, so there is no test split to measure its task on",
            where=job_folder,
            expected="a version that `noa train` made in this project",
            remedy=f"Make one format without it: noa convert {version.reference} --to onnx-int8",
        )
    job = load_result(Path(job_folder))
    recipe = recipe_of(job.request)
    data = load_dataset(recipe, root=job.request.root)
    if data.digest != version.dataset_digest:
        raise IntegrityError(
            f"the recipe's data is not what `{version.reference}` was trained on",
            expected=version.dataset_digest,
            received=data.digest,
            remedy="`data` must give the same rows each time; train again",
            file=job.recipe,
        )
    return recipe, data
