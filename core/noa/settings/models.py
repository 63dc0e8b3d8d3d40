"""What can be set: one frozen model per concern, each field with its meaning and unit.

Paths may be relative in files; the loader makes them absolute against the project's root before the rooms see them.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from noa.errors import InvalidInputError
from noa.references import check_alias, check_name, parse_reference


def _name(text: str) -> str:
    return _checked(check_name, text)


def _alias(text: str) -> str:
    return _checked(check_alias, text)


def _checked(check: Callable[[str], str], text: str) -> str:
    try:
        return check(text)
    except InvalidInputError as exc:  # pydantic collects ValueError only
        raise ValueError(str(exc)) from exc


Name = Annotated[str, AfterValidator(_name)]
Alias = Annotated[str, AfterValidator(_alias)]
Port = Annotated[int, Field(ge=0, le=65535)]


class Section(BaseModel):
    """Base of all settings: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


_SectionT = TypeVar("_SectionT", bound=Section)


class ProjectSettings(Section):
    """The project itself."""

    name: Name = Field(
        default="project", description="Name of the project; used for the MLflow experiment and Prefect objects."
    )
    state_dir: Path = Field(
        default=Path(".noa"), description="Folder that holds everything noa writes for this project."
    )


class RegistrySettings(Section):
    """Where versions are kept."""

    database_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite at `<state_dir>/noa.db`.")
    artifact_dir: Path = Field(
        default=Path(), description="Folder of sealed model files; empty: `<state_dir>/artifacts`."
    )
    lock_timeout_s: float = Field(
        default=60.0, gt=0, description="How long to wait for the database or another process, seconds."
    )


class TrainingSettings(Section):
    """How jobs run."""

    jobs_dir: Path = Field(
        default=Path(), description="Folder of jobs and their checkpoints; empty: `<state_dir>/jobs`."
    )
    checkpoint_every_s: float = Field(
        default=30.0, ge=0, description="Least time between checkpoints within an epoch, seconds."
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="How many newest checkpoints of a job are kept.")
    threads: int = Field(
        default=0, ge=0, description="Compute threads of one job; 0: all cores divided by parallel jobs."
    )
    log_every_steps: int = Field(default=20, ge=1, description="Steps between two metric records.")


class ConversionSettings(Section):
    """How formats are written and compared."""

    opset: int = Field(default=20, ge=18, le=23, description="ONNX opset of exported graphs.")
    absolute_tolerance: float = Field(
        default=1e-4, gt=0, description="Largest allowed absolute difference of float32 outputs between two formats."
    )
    relative_tolerance: float = Field(
        default=1e-3, gt=0, description="Largest allowed difference relative to the native output's magnitude."
    )


class EndpointSettings(Section):
    """A name that clients call, and what answers."""

    model: str = Field(description="Which model answers: `name@alias` or `name/number`.")
    format: str = Field(default="onnx", description="Which format of the version computes.")

    @model_validator(mode="after")
    def _names_a_version(self) -> Self:
        try:
            reference = parse_reference(self.model)
        except InvalidInputError as exc:
            raise ValueError(str(exc)) from exc
        if reference.alias is None and reference.number is None:
            raise ValueError(f"`{self.model}` names no version; write `{self.model}@champion` or `{self.model}/1`")
        return self


class ServingSettings(Section):
    """The inference server."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; anything but loopback needs `api_keys`.")
    port: Port = Field(default=3000, description="Port to listen on; 0: a free one.")
    workers: int = Field(default=1, ge=1, le=256, description="Worker processes.")
    threads: int = Field(default=0, ge=0, description="Compute threads per worker; 0: cores divided by workers.")
    api_keys: tuple[SecretStr, ...] = Field(
        default=(), description="Bearer tokens that may call; empty: no authentication."
    )
    poll_interval_s: float = Field(
        default=0.5, gt=0, description="How often an alias is looked up for a swap, seconds."
    )
    max_in_flight: int = Field(
        default=256, ge=1, description="Requests computed or waiting at once; more get 503 and Retry-After."
    )
    timeout_s: float = Field(
        default=30.0, gt=0, description="Time after which a request is answered with 504, seconds."
    )
    max_body_bytes: int = Field(default=64 << 20, ge=1, description="Largest accepted request body, bytes.")
    max_batch_items: int = Field(
        default=4096, ge=1, description="Largest accepted size of the batch axis of one request."
    )

    @model_validator(mode="after")
    def _public_needs_keys(self) -> Self:
        if not is_loopback(self.host) and not self.api_keys:
            raise ValueError(
                f"host `{self.host}` is reachable from other machines and `serving.api_keys` is empty; "
                "set at least one key or use 127.0.0.1"
            )
        if any(len(key.get_secret_value()) < 16 for key in self.api_keys):
            raise ValueError("every key in `serving.api_keys` must have at least 16 characters")
        return self


class GateSettings(Section):
    """What a version must show before an alias of its model may move to it. Equivalence is always required."""

    min_metrics: dict[str, float] = Field(default={}, description="Least value of a metric on the test split, by name.")
    max_metrics: dict[str, float] = Field(
        default={}, description="Largest value of a metric (losses, errors), by name."
    )
    max_regression: dict[str, float] = Field(
        default={}, description="How much worse than the present holder of the alias a metric may be, by name."
    )
    aliases: tuple[Alias, ...] = Field(default=(), description="Aliases this gate guards; empty: all.")


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
    start_timeout_s: float = Field(
        default=120.0, gt=0, description="How long `noa up` waits for a service to be healthy, seconds."
    )
    stop_timeout_s: float = Field(default=10.0, gt=0, description="How long `noa down` waits before it kills, seconds.")
    parallel_runs: int = Field(default=1, ge=1, description="Flow runs the worker executes at once.")

    @model_validator(mode="after")
    def _loopback_only(self) -> Self:
        return _require_loopback(self, self.host, "flows.host")


class TrackingSettings(Section):
    """The MLflow user interface."""

    host: str = Field(default="127.0.0.1", description="Address of the MLflow UI; loopback only.")
    port: Port = Field(default=5000, description="Port of the MLflow UI; 0: a free one.")

    @model_validator(mode="after")
    def _loopback_only(self) -> Self:
        return _require_loopback(self, self.host, "tracking.host")


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
    gates: dict[Name, GateSettings] = Field(default={}, description="Gates by model name.")
    recipes: dict[Name, RecipeSettings] = Field(default={}, description="Recipes by model name.")

    @property
    def state_dir(self) -> Path:
        """Absolute folder of everything noa writes for this project."""
        return self.project.state_dir

    def resolved(self, root: Path) -> Self:
        """Return a copy with all paths absolute against `root` and the derived defaults filled in."""
        state = _absolute(self.project.state_dir, root)
        artifacts = self.registry.artifact_dir
        jobs = self.training.jobs_dir
        return self.model_copy(
            update={
                "root": root,
                "project": self.project.model_copy(update={"state_dir": state}),
                "registry": self.registry.model_copy(
                    update={
                        "database_url": self.registry.database_url or f"sqlite:///{state / 'noa.db'}",
                        "artifact_dir": state / "artifacts" if artifacts == Path() else _absolute(artifacts, root),
                    }
                ),
                "training": self.training.model_copy(
                    update={"jobs_dir": state / "jobs" if jobs == Path() else _absolute(jobs, root)}
                ),
            }
        )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _absolute(path: Path, root: Path) -> Path:
    return Path(path).expanduser() if Path(path).expanduser().is_absolute() else root / path


def _require_loopback(section: _SectionT, host: str, key: str) -> _SectionT:
    if not is_loopback(host):
        raise ValueError(f"`{key}` is `{host}`; this server has no authentication and listens on loopback only")
    return section
