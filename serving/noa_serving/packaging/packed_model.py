"""A model in a package: the sealed files of one format, and what was sealed about them.

    model/packed.json                   which version it is, its signature, and a digest for each file
    model/files/...                     the format's files, byte for byte
    model/input_example.safetensors     the version's example, by which it is warmed

`PackedModel` answers in place of a registry: for its one version, it has the methods that an endpoint calls. The digest
of `packed.json` stands in the package's `service.py`, so that no file can be changed without another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from noa.digests import FileDigest, Manifest, canonical_json, sha256_bytes, sha256_file, verify_folder
from noa.errors import IntegrityError, NoaError, NotFoundError
from noa.signatures import Signature
from noa.tensor_files import load_tensors

if TYPE_CHECKING:
    import numpy as np

MODEL_FOLDER = "model"
FACTS_FILE = "packed.json"
FILES_FOLDER = "files"
EXAMPLE_FILE = "input_example.safetensors"
_LAYOUT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFormat:
    """The one format of a packed version."""

    name: str
    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedVersion:
    """What is known of a packed version: as `ModelVersion` of the registry, with one format."""

    name: str
    number: int
    digest: str
    signature: Signature
    format: PackedFormat
    example: FileDigest

    @property
    def reference(self) -> str:
        """Return e.g. `digits/3`."""
        return f"{self.name}/{self.number}"

    @property
    def formats(self) -> Mapping[str, PackedFormat]:
        """The one format by its name."""
        return {self.format.name: self.format}

    def to_json(self) -> bytes:
        """Return the content of `packed.json`, the same bytes for the same version."""
        table = {
            "layout": _LAYOUT,
            "model": self.name,
            "number": self.number,
            "digest": self.digest,
            "signature": self.signature.to_dict(),
            "format": self.format.name,
            "format_digest": self.format.manifest.digest,
            "files": [asdict(file) for file in self.format.manifest.files],
            "example": asdict(self.example),
        }
        return canonical_json(table) + b"\n"

    @staticmethod
    def from_json(text: bytes) -> PackedVersion:
        """Parse what `to_json` wrote.

        Raises:
            IntegrityError: it is not readable, or its files are not those of its digest.
        """
        try:
            table = cast("dict[str, object]", json.loads(text))
            if table["layout"] != _LAYOUT:
                raise ValueError(f"layout {table['layout']}")
            manifest = Manifest.from_json(json.dumps(table["files"]))
            if manifest.digest != table["format_digest"]:
                raise ValueError("its files have another digest")
            example = Manifest.from_json(json.dumps([table["example"]])).files[0]
            return PackedVersion(
                name=str(table["model"]),
                number=int(str(table["number"])),
                digest=str(table["digest"]),
                signature=Signature.from_dict(table["signature"]),
                format=PackedFormat(name=str(table["format"]), manifest=manifest),
                example=example,
            )
        except (ValueError, KeyError, TypeError, RecursionError, NoaError) as exc:
            raise IntegrityError(f"`{FACTS_FILE}` is not readable: {exc}", file=FACTS_FILE) from exc


class PackedModel:
    """The model of a package, verified whenever it is opened. In place of a `Registry`, for what an endpoint asks."""

    def __init__(self, folder: Path, *, digest: str) -> None:
        self._folder = folder
        self._digest = digest

    def read(self) -> PackedVersion:
        """Return the version.

        Raises:
            IntegrityError: `packed.json` is missing or not what was packed.
        """
        path = self._folder / FACTS_FILE
        try:
            text = path.read_bytes()
        except OSError as exc:
            raise IntegrityError(
                f"`{FACTS_FILE}` of a package cannot be read", where=str(path), file=FACTS_FILE
            ) from exc
        if sha256_bytes(text) != self._digest:
            raise IntegrityError(f"`{FACTS_FILE}` was changed", where=str(path), expected=self._digest, file=FACTS_FILE)
        return PackedVersion.from_json(text)

    def resolve(self, reference: str) -> PackedVersion:
        """Return the version.

        Raises:
            NotFoundError: another is asked for.
            IntegrityError: see `read`.
        """
        version = self.read()
        if reference != version.reference:
            raise NotFoundError(f"no `{reference}` in this package", expected=f"`{version.reference}`")
        return version

    def open_format(self, version: PackedVersion, format: str) -> Path:  # our word
        """Return the folder of the format, verified.

        Raises:
            NotFoundError: the package has another format.
            IntegrityError: names every file that is not what was sealed.
        """
        if format != version.format.name:
            raise NotFoundError(f"no format `{format}` in this package", expected=f"`{version.format.name}`")
        folder = self._folder / FILES_FOLDER
        verify_folder(folder, version.format.manifest)
        return folder

    def golden_requests(self, version: PackedVersion, format: str) -> None:  # our word
        """Return None: a package has the files of a version and its example, and none of its evidence."""

    def input_example(self, version: PackedVersion) -> dict[str, np.ndarray]:
        """Return the input example by input name.

        Raises:
            IntegrityError: it is not what was sealed.
        """
        path = self._folder / version.example.path
        if not path.is_file() or sha256_file(path) != version.example.digest:
            raise IntegrityError(f"`{version.example.path}` was changed", where=str(path), file=version.example.path)
        return load_tensors(path.read_bytes())

    @property
    def was_replaced(self) -> bool:
        """A package stays as it is."""
        return False

    def close(self) -> None:
        """Do nothing; a registry would close its database."""
