"""Which store: chosen by the settings. boto3 is imported only where S3 is chosen, and there on first use."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from noa.errors import DependencyMissingError, InvalidInputError
from noa_registry.artifacts.local_artifacts import LocalArtifacts
from noa_registry.artifacts.store import RUNS_FOLDER, ArtifactStore, Seals
from noa_registry.artifacts.verified_files import VerifiedFiles

if TYPE_CHECKING:
    from noa.settings import RegistrySettings

_LOCAL_CACHE = "_cache"


def open_artifacts(settings: RegistrySettings, *, seals: Seals) -> ArtifactStore:
    """Return the store that the settings name; writes and connects to nothing yet.

    Raises:
        InvalidInputError: a folder is not absolute.
        DependencyMissingError: S3 is chosen, and boto3 is not installed.
    """
    check_artifact_settings(settings)
    cache_dir = _cache_dir(settings)
    verified = VerifiedFiles(cache_dir)
    if not settings.artifact_url:
        return LocalArtifacts(artifact_root(settings), seals=seals, verified=verified)
    from noa_registry.artifacts.s3_artifacts import S3Artifacts
    from noa_registry.artifacts.unit_cache import UnitCache

    cache = UnitCache(cache_dir, max_bytes=settings.cache_max_bytes, verified=verified)
    return S3Artifacts(settings.artifact_url, settings.s3, seals=seals, cache=cache)


def check_artifact_settings(settings: RegistrySettings) -> None:
    """Check that the settings name a place that does not depend on the folder in which a process happens to be.

    And that what reaches it is installed: whoever makes a database for it asks before.

    Raises:
        InvalidInputError: a folder is not absolute.
        DependencyMissingError: S3 is chosen, and boto3 is not installed.
    """
    for package in ("boto3", "botocore") if settings.artifact_url else ():
        if find_spec(package) is None:
            raise DependencyMissingError(package, extra="s3", purpose="keeping model files in S3")
    if settings.artifact_url:
        checked = {"cache_dir": settings.cache_dir}
    else:
        checked = {"artifact_dir": settings.artifact_dir}
        if settings.cache_dir != Path():
            checked["cache_dir"] = settings.cache_dir
    for key, value in checked.items():
        if not value.is_absolute():
            raise InvalidInputError(
                f"`registry.{key}` is not absolute",
                received=str(value),
                remedy="Load the settings with `load_settings`, or call `Settings.resolved`",
            )


def runs_uri(settings: RegistrySettings) -> str:
    """Return where MLflow's runs put their artifacts."""
    if settings.artifact_url:
        return f"{settings.artifact_url.rstrip('/')}/{RUNS_FOLDER}"
    return (artifact_root(settings) / RUNS_FOLDER).as_uri()


def artifact_root(settings: RegistrySettings) -> Path:
    """Return the one name of the folder of all units: what is recorded must not depend on how somebody spelled it."""
    return settings.artifact_dir.resolve()


def s3_environment(settings: RegistrySettings) -> dict[str, str]:
    """Return the environment by which MLflow's own S3 client, in this or another process, finds the same S3.

    Empty for a local store. What the settings leave to the usual AWS chain is left to it.
    """
    if not settings.artifact_url:
        return {}
    s3 = settings.s3
    values = {
        "MLFLOW_S3_ENDPOINT_URL": s3.endpoint_url,
        "AWS_DEFAULT_REGION": s3.region,
        "AWS_ACCESS_KEY_ID": s3.access_key.get_secret_value(),
        "AWS_SECRET_ACCESS_KEY": s3.secret_key.get_secret_value(),
    }
    return {name: value for name, value in values.items() if value}


def _cache_dir(settings: RegistrySettings) -> Path:
    if settings.cache_dir == Path():  # settings that were not resolved against a project
        return settings.artifact_dir / _LOCAL_CACHE
    return settings.cache_dir
