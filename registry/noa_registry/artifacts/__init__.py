"""Model files: where they are kept, in a local folder or in S3, behind one protocol (see `store.py`).

`open_artifacts` chooses by the settings. Files are read only after `ArtifactStore.open_part`, which verifies them.
"""

from __future__ import annotations

from noa_registry.artifacts.choice import check_artifact_settings, open_artifacts, runs_uri, s3_environment
from noa_registry.artifacts.copying import make_folder, regular_files
from noa_registry.artifacts.ownership import OWNER_MARK
from noa_registry.artifacts.store import (
    FORMATS_FOLDER,
    LOADED_MARK,
    RUNS_FOLDER,
    ArtifactStore,
    CachedUnit,
    Part,
    Seals,
    StagedUnit,
    UnitFacts,
    UnitKey,
    UnitLeftover,
)

__all__ = [
    "FORMATS_FOLDER",
    "LOADED_MARK",
    "OWNER_MARK",
    "RUNS_FOLDER",
    "ArtifactStore",
    "CachedUnit",
    "Part",
    "Seals",
    "StagedUnit",
    "UnitFacts",
    "UnitKey",
    "UnitLeftover",
    "check_artifact_settings",
    "make_folder",
    "open_artifacts",
    "regular_files",
    "runs_uri",
    "s3_environment",
]
