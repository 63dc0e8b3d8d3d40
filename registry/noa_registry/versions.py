"""What the registry takes and gives: drafts of versions, sealed formats and versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from noa.digests import Manifest
from noa.errors import NotFoundError
from noa.formats import remedy_without
from noa.signatures import Signature

if TYPE_CHECKING:
    import numpy as np

    from noa_registry.evidence import Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDraft:
    """All that becomes a version. `formats` maps a format's name to a prepared folder, which is copied, not moved.

    `native` names the format that came out of training; the others must compute the same function. `input_example`
    holds real inputs by name that satisfy the signature. `environment` maps `python` and package names to versions.
    """

    name: str
    formats: Mapping[str, Path]
    native: str
    input_example: Mapping[str, np.ndarray]
    dataset_digest: str
    evidence: tuple[Evidence, ...] = ()
    run_id: str | None = None
    git_commit: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    params: Mapping[str, object] = field(default_factory=dict[str, object])
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedFormat:
    """One format whose files never change again.

    `folder` is where `Registry.open_format` puts them, and `uid` names the unit of the store that holds them.
    """

    name: str
    manifest: Manifest
    folder: Path
    uid: str

    @property
    def digest(self) -> str:
        """The name of the format's bytes."""
        return self.manifest.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A complete, sealed version. `digest` names what it computes; `wrapper` is the manifest of MLflow's files.

    `folder` is where `Registry.open_wrapper` puts them, and `uid` names the unit of the store that holds them.
    """

    name: str
    number: int
    digest: str
    native: str
    formats: Mapping[str, SealedFormat]
    wrapper: Manifest
    signature: Signature
    dataset_digest: str
    run_id: str | None
    git_commit: str | None
    environment: Mapping[str, str]
    params: Mapping[str, object]
    tags: Mapping[str, str]
    description: str
    created_at: datetime
    created_by: str
    aliases: tuple[str, ...]
    folder: Path
    uid: str

    @property
    def reference(self) -> str:
        """Return e.g. `digits/3`."""
        return f"{self.name}/{self.number}"

    @property
    def default_format(self) -> str:
        """The format used where none is asked for: `onnx` if there is one, else the native one."""
        return "onnx" if "onnx" in self.formats else self.native

    def sealed(self, format: str) -> SealedFormat:  # our word
        """Return one format.

        Raises:
            NotFoundError: this version has no such format; the message lists those it has.
        """
        if format not in self.formats:
            raise NotFoundError(
                f"`{self.reference}` has no format `{format}`",
                expected=", ".join(f"`{name}`" for name in self.formats),
                received=f"`{format}`",
                remedy=remedy_without(format, native=self.native, reference=self.reference),
            )
        return self.formats[format]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """One line about a model: how many versions, the newest number, and the number each alias points to.

    `problem` says what of its row cannot be read, None where nothing is wrong with it; such a time is None.
    """

    name: str
    versions: int
    newest: int
    aliases: Mapping[str, int]
    created_at: datetime | None
    updated_at: datetime | None
    problem: str | None = None
