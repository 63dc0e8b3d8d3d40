"""What the run of a job holds from its start: parameters, configuration and its hash, data, environment, git's state.

All under the names that MLflow's pages and `noa runs` look for (`noa_registry.runs.tags`). Values that may be secret
are masked in all of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, cast, get_args

from noa.current_user import current_user
from noa.digests import digest_json
from noa.settings import TrainingSettings
from noa_registry.runs import tags
from noa_registry.runs.datasets import DatasetInput
from noa_training.datasets import Dataset, Split, SplitName
from noa_training.environment import capture_machine, capture_packages
from noa_training.git_diff import read_git_diff
from noa_training.git_state import read_git_state
from noa_training.overrides import describe
from noa_training.recipes import Recipe
from noa_training.requests import JobRequest
from noa_training.run_writer import RunFacts, RunInfo
from noa_training.schedules import make_plan
from noa_training.secret_masking import mask_value, own_secrets

CONFIG_FILE: Final = "config.json"
ENVIRONMENT_FILE: Final = "environment.json"
DIFF_FILE: Final = "git/diff.patch"
_MOST_PACKAGE_CHARS: Final = 5500  # MLflow's tags have room for 8000, noa's for 6000
_DIGEST_DIGITS: Final = 32  # MLflow's have room for 36
_CONTEXTS: Final[dict[SplitName, str]] = {"train": "training", "validation": "validation", "test": "testing"}


def gather_facts(request: JobRequest, threads: int) -> RunFacts:
    """Look at git and at the machine; takes tens of milliseconds, most of them in `git`."""
    found: dict[str, str] = {}
    files: dict[str, bytes] = {}
    state = read_git_state(request.root)
    if state is not None:
        found |= {tags.COMMIT: state.commit, tags.DIRTY: str(state.diff_digest is not None).lower()}
        found |= {} if state.branch is None else {tags.BRANCH: state.branch}
        found |= {} if state.diff_digest is None else {tags.GIT_DIFF: state.diff_digest}
        diff = read_git_diff(request.root, state)
        files |= {} if diff is None else {DIFF_FILE: diff.encode("utf-8", "replace")}
    machine, packages = capture_machine(threads), capture_packages(request.backend)
    found |= {f"{tags.ENVIRONMENT}{key}": value for key, value in machine.items()}
    found[tags.PACKAGES] = _packages_text(packages)
    files[ENVIRONMENT_FILE] = _json({**machine, "packages": packages})
    return RunFacts(tags=found, files=files)


def run_info(
    request: JobRequest,
    recipe: Recipe,
    *,
    name: str,
    job_tags: Mapping[str, str],
    dataset: Dataset,
    settings: TrainingSettings,
    run_id: str | None,
) -> RunInfo:
    """Return what the run of a job is started with, or continued if there is a `run_id` already."""
    config = _config(request, recipe, settings)
    steps = make_plan(recipe, dataset.train.rows).steps_per_epoch
    labels = {
        **job_tags,
        tags.MODEL: recipe.name,
        tags.BACKEND: request.backend,
        tags.RECIPE: request.recipe,
        tags.DATASET_DIGEST: dataset.digest,
        tags.BEST_BY: recipe.best_by,
        tags.STEPS_PER_EPOCH: str(steps),
        tags.CONFIG_DIGEST: digest_json(config),
        tags.SOURCE_NAME: request.recipe,
        tags.SOURCE_TYPE: "LOCAL",
        tags.USER: current_user(),
    }
    params = describe(recipe) | {"backend": request.backend, "rows": dataset.train.rows}
    params |= {f"training.{key}": value for key, value in _settings(request, settings).items()}
    return RunInfo(
        name=name,
        params=_masked(params),
        tags={key: str(value) for key, value in _masked(labels).items()},
        run_id=run_id,
        datasets=_inputs(request, recipe, dataset),
        files={CONFIG_FILE: _json(_masked(config))},
    )


def _config(request: JobRequest, recipe: Recipe, settings: TrainingSettings) -> dict[str, object]:
    return {
        "recipe": describe(recipe),
        "backend": request.backend,
        "overrides": dict(request.overrides),
        "training": _settings(request, settings),
    }


def _settings(request: JobRequest, settings: TrainingSettings) -> dict[str, object]:
    """Return the settings that a job obeys, but for where it is kept."""
    found: dict[str, object] = settings.model_dump(mode="json", exclude={"jobs_dir", "latency_s"})
    return found | {"threads": request.threads or settings.threads}


def _inputs(request: JobRequest, recipe: Recipe, dataset: Dataset) -> tuple[DatasetInput, ...]:
    source = json.dumps({"tags": {tags.SOURCE_NAME: request.recipe, tags.DATASET_DIGEST: dataset.digest}})
    return tuple(
        DatasetInput(
            name=f"{recipe.name}-{name}",
            digest=dataset.split_digests[name].removeprefix("sha256:")[:_DIGEST_DIGITS],
            context=_CONTEXTS[name],
            source_type="code",
            source=source,
            schema=_schema(dataset.split(name)),
            profile=_profile(dataset.split(name), dataset.split_digests[name]),
        )
        for name in get_args(SplitName)
    )


def _schema(split: Split) -> str:
    """Return MLflow's `TensorDatasetSchema`, which holds JSON texts in JSON."""
    inputs = [_tensor(name, array.dtype.name, array.shape) for name, array in split.inputs.items()]
    targets = [_tensor(None, split.targets.dtype.name, split.targets.shape)]
    return json.dumps({"mlflow_tensorspec": {"features": json.dumps(inputs), "targets": json.dumps(targets)}})


def _tensor(name: str | None, dtype: str, shape: tuple[int, ...]) -> dict[str, object]:
    spec: dict[str, object] = {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": [-1, *shape[1:]]}}
    return spec if name is None else {"name": name, **spec}


def _profile(split: Split, digest: str) -> str:
    """Return the numbers that MLflow keeps of NumPy data, and the whole digest."""
    arrays = split.inputs
    return json.dumps(
        {
            "num_rows": split.rows,
            "features_shape": {name: list(array.shape) for name, array in arrays.items()},
            "features_size": {name: int(array.size) for name, array in arrays.items()},
            "features_nbytes": {name: int(array.nbytes) for name, array in arrays.items()},
            "targets_shape": list(split.targets.shape),
            "targets_size": int(split.targets.size),
            "targets_nbytes": int(split.targets.nbytes),
            "digest": digest,
        }
    )


def _packages_text(packages: Mapping[str, str]) -> str:
    """Return the versions as JSON that fits into a tag; the file has all of them."""
    kept = dict(packages)
    while len(text := json.dumps(kept, separators=(",", ":"))) > _MOST_PACKAGE_CHARS:
        kept.popitem()
    return text


def _masked(table: Mapping[str, object]) -> dict[str, object]:
    secrets = own_secrets()

    def masked(value: object) -> object:
        if isinstance(value, str):
            return mask_value(value, secrets=secrets)
        if isinstance(value, Mapping):
            return {key: masked(part) for key, part in cast("Mapping[str, object]", value).items()}
        return [masked(part) for part in cast("list[object]", value)] if isinstance(value, list) else value

    return {key: masked(value) for key, value in table.items()}


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, default=str) + "\n").encode()
