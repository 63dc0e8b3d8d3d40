"""The files of versions: opened only after they were verified, and named one by one when they are not what was sealed.

Opening hashes a file once per machine (see `artifacts/verified_files.py`); verifying hashes everything anew, where it
is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from noa.digests import FileProblem, Manifest
from noa.errors import IntegrityError
from noa_registry.artifacts import FORMATS_FOLDER, ArtifactStore, Part, UnitKey
from noa_registry.mlflow_model import INPUT_EXAMPLE_FILE, parse_example
from noa_registry.signing import WHOLE_VERSION, Signatures
from noa_registry.versions import ModelVersion

if TYPE_CHECKING:
    import numpy as np


_UNREADABLE: Final = "Give this user the permission to read it, or look at the disk"


@dataclass(frozen=True, slots=True)
class SealedFiles:
    """Opens and verifies what the store keeps; `signatures` says whose bytes they must be."""

    artifacts: ArtifactStore
    signatures: Signatures

    def open_format(self, version: ModelVersion, format: str) -> Path:  # our word
        """Return the local folder of a format, verified. See `Registry.open_format`."""
        sealed = version.sealed(format)
        self.signatures.verify(version, format=sealed.name)
        return self.artifacts.open_part(_format_part(version, format))

    def open_wrapper(self, version: ModelVersion) -> Path:
        """Return the local folder of the files around the formats, verified. See `Registry.open_wrapper`."""
        self.signatures.verify(version, format=WHOLE_VERSION)
        return self.artifacts.open_part(_wrapper_part(version))

    def input_example(self, version: ModelVersion) -> dict[str, np.ndarray]:
        """Return the input example that was sealed with a version, by input name.

        Raises:
            IntegrityError: it is not what was sealed.
        """
        self.signatures.verify(version, format=WHOLE_VERSION)
        entry = next((file for file in version.wrapper.files if file.path == INPUT_EXAMPLE_FILE), None)
        if entry is None:
            raise IntegrityError(f"`{version.reference}` was sealed without `{INPUT_EXAMPLE_FILE}`")
        path = self.artifacts.open_file(UnitKey(name=version.name, uid=version.uid), entry)
        return parse_example(path, entry)

    def find_problems(self, version: ModelVersion, *, format: str | None = None) -> list[FileProblem]:  # our word
        """Hash a version, or one of its formats, anew; return every file that differs, is missing or is extra.

        Paths are those inside the version, e.g. `formats/onnx/model.onnx`.
        """
        problems = self.artifacts.find_problems(*_parts(version, format))
        return sorted(problems, key=lambda problem: problem.path)

    def verify(self, version: ModelVersion, *, format: str | None = None) -> None:  # our word
        """Hash a version, or one of its formats, anew, and check its signatures.

        Raises:
            IntegrityError: names every file that is not what was sealed; `facts["files"]` holds their paths. Or a
                signature does not verify, is by nobody who is trusted, or is missing where it is required.
        """
        self.signatures.verify(version, format=format)
        problems = self.find_problems(version, format=format)
        if problems:
            raise IntegrityError(
                f"sealed files of `{version.reference}` are not what was sealed: "
                + ", ".join(str(problem) for problem in problems),
                where=self._place_of(version, problems[0].path),
                remedy=_UNREADABLE if all(problem.change == "unreadable" for problem in problems) else None,
                file=problems[0].path,
                files=tuple(problem.path for problem in problems),
            )

    def _place_of(self, version: ModelVersion, path: str) -> str:
        """Return the folder or URI that holds a file: a format that was added later has a unit of its own."""
        first, _, rest = path.partition("/")
        sealed = version.formats.get(rest.split("/")[0]) if first == FORMATS_FOLDER else None
        uid = version.uid if sealed is None else sealed.uid
        uri = self.artifacts.unit_uri(UnitKey(name=version.name, uid=uid))
        return str(self.artifacts.root / version.name / uid) if uri.startswith("file:") else uri


def _parts(version: ModelVersion, format: str | None) -> Iterator[Part]:
    if format is not None:
        yield _format_part(version, format)
        return
    yield from parts_of(version)


def parts_of(version: ModelVersion) -> Iterator[Part]:
    """Give all that a version's units hold: what is in none of these parts does not belong there."""
    for unit in {version.uid: None} | {sealed.uid: None for sealed in version.formats.values()}:
        yield _outside_formats(version, unit)
    for name in version.formats:
        yield _format_part(version, name)


def _format_part(version: ModelVersion, format: str) -> Part:
    sealed = version.sealed(format)
    unit = UnitKey(name=version.name, uid=sealed.uid)
    return Part(unit=unit, prefix=f"{FORMATS_FOLDER}/{format}", manifest=sealed.manifest)


def _wrapper_part(version: ModelVersion) -> Part:
    return _outside_formats(version, version.uid)


def _outside_formats(version: ModelVersion, uid: str) -> Part:
    """Return what one unit holds beside its formats: the wrapper, or nothing where a format was added later."""
    return Part(
        unit=UnitKey(name=version.name, uid=uid),
        prefix="",
        manifest=version.wrapper if uid == version.uid else Manifest.of(()),
        formats=frozenset(sealed.name for sealed in version.formats.values() if sealed.uid == uid),
    )
