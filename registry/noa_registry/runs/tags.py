"""The tags by which a job's run says what it is. Jobs write them; lists, comparisons and plots read them.

What MLflow has a tag for has MLflow's, so that its pages show it where people look for it.
"""

from __future__ import annotations

from typing import Final

JOB_ID: Final = "noa.job_id"
ATTEMPT: Final = "noa.attempt"
MODEL: Final = "noa.model"
"""The name under which the job's model is registered."""
BACKEND: Final = "noa.backend"
RECIPE: Final = "noa.recipe"
RECIPE_DIGEST: Final = "noa.recipe_digest"
OVERRIDES: Final = "noa.overrides"
CONFIG_DIGEST: Final = "noa.config_digest"
"""The digest of `config.json`: of the recipe with everything that was changed, and of the settings of the job."""
DATASET_DIGEST: Final = "noa.dataset_digest"
BEST_BY: Final = "noa.best_by"
"""The metric by which the best epoch is chosen; its value is that of the metric `best.NAME`."""
STEPS_PER_EPOCH: Final = "noa.steps_per_epoch"
JOB_COMMIT: Final = "noa.git_commit"
GIT_DIFF: Final = "noa.git_diff"
"""The digest of what differs from the commit."""

ENVIRONMENT: Final = "noa.env."
"""Begins the tags that say where the job ran: `noa.env.python`, ..."""
PACKAGES: Final = f"{ENVIRONMENT}packages"
"""Versions of the packages, as JSON."""

COMMIT: Final = "mlflow.source.git.commit"
BRANCH: Final = "mlflow.source.git.branch"
DIRTY: Final = "mlflow.source.git.dirty"
SOURCE_NAME: Final = "mlflow.source.name"
SOURCE_TYPE: Final = "mlflow.source.type"
USER: Final = "mlflow.user"
DATA_CONTEXT: Final = "mlflow.data.context"
"""A tag of a run's dataset: what it was used for."""

BEST: Final = "best."
VALIDATION: Final = "validation."
TRAIN: Final = "train."
SYSTEM: Final = "system/"
"""Begins the metrics that MLflow shows as those of the machine."""


def metric_keys(name: str) -> tuple[str, ...]:
    """Return the keys that `name` may mean, the first one that a run has: `accuracy` is that of its best epoch."""
    return (name, f"{BEST}{name}", f"{VALIDATION}{name}", f"{TRAIN}{name}")
