"""What can be set: one frozen model per concern, each field with its meaning and unit.

Paths may be relative in files; the loader makes them absolute against the project's root before the rooms see them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import (
    Field,
    StrictFloat,
    StrictInt,
    model_validator,
)

from noa.settings.endpoints import EndpointSettings, PipelineSettings
from noa.settings.registry import (
    PUBLIC_KEY_PREFIX,
    GateSettings,
    RegistrySettings,
    RetentionSettings,
    WebhookSettings,
    resolve_gate,
    resolve_webhook,
)
from noa.settings.section import (
    Alias,
    Name,
    Port,
    Section,
    absolute,
    require_loopback,
)
from noa.settings.serving import ServingSettings, resolve_serving
from noa.settings.sweeps import SweepSettings


class ProjectSettings(Section):
    """The project itself."""

    name: Name = Field(
        default="project", description="Name of the project; used for the MLflow experiment and Prefect objects."
    )
    state_dir: Path = Field(
        default=Path(".noa"), description="Folder that holds everything noa writes for this project."
    )


class TrainingSettings(Section):
    """How jobs run."""

    jobs_dir: Path = Field(
        default=Path(), description="Folder of jobs and their checkpoints; empty: `<state_dir>/jobs`."
    )
    checkpoint_every_s: StrictFloat = Field(
        default=30.0, ge=0, description="Least time between checkpoints within an epoch, seconds."
    )
    keep_checkpoints: StrictInt = Field(default=2, ge=1, description="How many newest checkpoints of a job are kept.")
    threads: StrictInt = Field(
        default=0, ge=0, description="Compute threads of one job; 0: all cores divided by parallel jobs."
    )
    log_every_steps: StrictInt = Field(default=20, ge=1, description="Steps between two metric records.")
    latency_s: StrictFloat = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="How long one batch size may be measured whose `p99` the gate limits; others take 2; seconds.",
    )


class ConversionSettings(Section):
    """How formats are written and compared."""

    opset: StrictInt = Field(default=20, ge=18, le=23, description="ONNX opset of exported graphs.")
    absolute_tolerance: StrictFloat = Field(
        default=1e-4, gt=0, description="Largest allowed absolute difference of float32 outputs between two formats."
    )
    relative_tolerance: StrictFloat = Field(
        default=1e-3, gt=0, description="Largest allowed difference relative to the native output's magnitude."
    )
    max_value_bytes: int = Field(
        default=4 << 30,
        ge=1 << 20,
        description="Largest value that an imported ONNX graph may compute, bytes; free axes count as small.",
    )
    max_work_s: StrictFloat = Field(
        default=900.0, gt=0, description="How long one import, or all runs of one comparison, may take, seconds."
    )
    max_work_bytes: int = Field(
        default=16 << 30,
        ge=1 << 20,
        description="How much more memory one run of an ONNX graph may take while models are compared, bytes.",
    )


class RecipeSettings(Section):
    """Where a recipe is."""

    path: str = Field(description="`recipe.py`, `recipe.py:name` or an import path `package.module:name`.")
    promote_to: Alias = Field(default="champion", description="Alias the flow promotes to.")
    backends: tuple[Literal["torch", "jax"], ...] = Field(
        default=("torch",), min_length=1, description="Backends the flow trains."
    )
    primary_metric: str = Field(
        default="accuracy", description="Metric by which the flow chooses between the backends."
    )


class FlowsSettings(Section):
    """Prefect: flows, schedules and the worker."""

    host: str = Field(default="127.0.0.1", description="Address of the managed Prefect server; loopback only.")
    port: Port = Field(default=4200, description="Port of the managed Prefect server; 0: a free one.")
    start_timeout_s: StrictFloat = Field(
        default=120.0,
        gt=0,
        description="How long `noa up` waits for a service to be healthy; what needs another one counts from then, "
        "seconds.",
    )
    stop_timeout_s: StrictFloat = Field(
        default=10.0, gt=0, description="How long `noa down` waits before it kills, seconds."
    )
    parallel_runs: StrictInt = Field(default=1, ge=1, description="Flow runs the worker executes at once.")

    @model_validator(mode="after")
    def _loopback_only(self) -> Self:
        return require_loopback(self, self.host, "flows.host")


class TrackingSettings(Section):
    """The MLflow user interface."""

    host: str = Field(default="127.0.0.1", description="Address of the MLflow UI; loopback only.")
    port: Port = Field(default=5000, description="Port of the MLflow UI; 0: a free one.")

    @model_validator(mode="after")
    def _loopback_only(self) -> Self:
        return require_loopback(self, self.host, "tracking.host")


class Settings(Section):
    """All settings of a project. `root` is the folder of `noa.toml`."""

    root: Path = Field(default=Path(), description="The project's folder; set by the loader.")
    project: ProjectSettings = Field(default_factory=ProjectSettings)
    registry: RegistrySettings = Field(default_factory=RegistrySettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    conversion: ConversionSettings = Field(default_factory=ConversionSettings)
    serving: ServingSettings = Field(default_factory=ServingSettings)
    flows: FlowsSettings = Field(default_factory=FlowsSettings)
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)
    endpoints: dict[Name, EndpointSettings] = Field(default={}, description="Endpoints by name.")
    pipelines: dict[Name, PipelineSettings] = Field(
        default={}, description="Names that compute with several endpoints one after another."
    )
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    gates: dict[Name, GateSettings] = Field(default={}, description="Gates by model name.")
    webhooks: dict[Alias, WebhookSettings] = Field(default={}, description="Webhooks by name.")
    recipes: dict[Name, RecipeSettings] = Field(default={}, description="Recipes by model name.")
    sweeps: dict[Name, SweepSettings] = Field(
        default={}, description="Searches for the best settings of recipes, by name."
    )

    @model_validator(mode="after")
    def _pipelines_have_their_endpoints(self) -> Self:
        for name, pipeline in self.pipelines.items():
            if name in self.endpoints:
                raise ValueError(f"`pipelines.{name}` has the name of an endpoint; choose another")
            for step in pipeline.steps:
                if step.endpoint not in self.endpoints:
                    known = ", ".join(f"`{one}`" for one in self.endpoints) or "none"
                    raise ValueError(
                        f"`pipelines.{name}` computes with `{step.endpoint}`, which is none; there are: {known}"
                    )
        return self

    @property
    def state_dir(self) -> Path:
        """Absolute folder of everything noa writes for this project."""
        return self.project.state_dir

    def resolved(self, root: Path) -> Self:
        """Return a copy with all paths absolute against `root` and the derived defaults filled in."""
        state = absolute(self.project.state_dir, root)
        cache = self.registry.cache_dir
        jobs = self.training.jobs_dir
        signing = self.registry.signing
        anchor = self.registry.ledger_anchor
        private_key = None if signing.private_key is None else absolute(signing.private_key, root)
        trusted_keys = tuple(absolute(path, root) for path in signing.trusted_keys)
        return self.model_copy(
            update={
                "root": root,
                "project": self.project.model_copy(update={"state_dir": state}),
                "registry": self.registry.model_copy(
                    update={
                        "database_url": self.registry.database_url or f"sqlite:///{state / 'noa.db'}",
                        "artifact_dir": self._artifact_dir(state, root),
                        "cache_dir": state / "cache" if cache == Path() else absolute(cache, root),
                        "signing": signing.model_copy(
                            update={"private_key": private_key, "trusted_keys": trusted_keys}
                        ),
                        "ledger_anchor": None if anchor is None else absolute(anchor, root),
                        "principals": {
                            name: key if key.startswith(PUBLIC_KEY_PREFIX) else str(absolute(Path(key), root))
                            for name, key in self.registry.principals.items()
                        },
                    }
                ),
                "gates": {name: resolve_gate(gate, root) for name, gate in self.gates.items()},
                "webhooks": {name: resolve_webhook(hook, root) for name, hook in self.webhooks.items()},
                "serving": resolve_serving(self.serving, state, root),
                "training": self.training.model_copy(
                    update={"jobs_dir": state / "jobs" if jobs == Path() else absolute(jobs, root)}
                ),
            }
        )

    def _artifact_dir(self, state: Path, root: Path) -> Path:
        given = self.registry.artifact_dir
        if self.registry.artifact_url:
            return Path()
        return state / "artifacts" if given == Path() else absolute(given, root)
