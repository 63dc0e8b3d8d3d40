"""A packaged endpoint as a whole: what is planned, and how it becomes a folder.

`make_package` opens and verifies the version, and makes every file in memory but the model's own; `Package.write` puts
them beside each other under another name, verifies what it copied, and renames the folder into place.
"""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from noa.atomic_write import publish_folder, translate_disk_errors
from noa.digests import FileDigest, Manifest, sha256_bytes, sha256_file, short_digest, verify_folder
from noa.errors import ConflictError, IntegrityError, InvalidInputError
from noa.formats import refuse_kept
from noa_serving._format_choice import AUTO, choose_format
from noa_serving._runtimes import Runtimes
from noa_serving.packaging import bento_folder
from noa_serving.packaging.container import IGNORED, containerfile
from noa_serving.packaging.kubernetes import Deploying, endpoint_label, inference_service, manifests
from noa_serving.packaging.packed_model import (
    EXAMPLE_FILE,
    FACTS_FILE,
    FILES_FOLDER,
    MODEL_FOLDER,
    PackedFormat,
    PackedVersion,
)
from noa_serving.packaging.requirements import LeanSet, lean_set
from noa_serving.packaging.wheel import WHEEL_NAME, build_wheel
from noa_serving.stream_fit import fit_stream

if TYPE_CHECKING:
    from noa.settings import EndpointSettings, ServingSettings
    from noa_registry import Registry

_RUNS_CODE: Final = "mlflow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """An endpoint that is ready to be written. `texts` are the files that are made, `copies` those of the version."""

    endpoint: str
    version: PackedVersion
    lean: LeanSet
    image: str
    texts: Mapping[str, bytes] = field(repr=False)
    copies: Mapping[str, Path] = field(repr=False)

    @property
    def files(self) -> dict[str, int]:
        """The size of each file by its path in the folder, bytes."""
        sizes = {name: len(data) for name, data in self.texts.items()}
        sizes |= {name: path.stat().st_size for name, path in self.copies.items()}
        return dict(sorted(sizes.items()))

    def write(self, folder: Path) -> Manifest:
        """Write the folder whole, or nothing; returns what is in it.

        Raises:
            ConflictError: it is there already.
            IntegrityError: a file of the version is not what was sealed.
            StorageError: the disk refused.
        """
        _refuse_existing(folder)
        staging = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        try:
            with translate_disk_errors(staging):
                for name, data in self.texts.items():
                    path = _made(staging / name)
                    path.write_bytes(data)
                for name, source in self.copies.items():
                    shutil.copyfile(source, _made(staging / name))
            model = staging / MODEL_FOLDER
            sealed = self.version.format.manifest
            verify_folder(model / FILES_FOLDER, sealed)
            in_model = {f"{FILES_FOLDER}/{file.path}": file for file in sealed.files}
            facts = self.texts[f"{MODEL_FOLDER}/{FACTS_FILE}"]
            known = [replace(file, path=name) for name, file in in_model.items()]
            known.append(self.version.example)
            known.append(FileDigest(path=FACTS_FILE, size_bytes=len(facts), digest=sha256_bytes(facts)))
            verify_folder(model, Manifest.of(known))
            written = Manifest.of(
                FileDigest(path=name, size_bytes=size, digest=sha256_file(staging / name))
                for name, size in self.files.items()
            )
            _refuse_existing(folder)
            publish_folder(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return written


def make_package(
    registry: Registry,
    endpoint: str,
    rule: EndpointSettings,
    serving: ServingSettings,
    *,
    deploying: Deploying | None = None,
    extras: Iterable[str] = (),
    base_image: str | None = None,
) -> Package:
    """Plan a package of what `rule` points to now.

    Raises:
        NotFoundError: there is no such version or format.
        InvalidInputError: the format cannot be packaged, or an extra does not exist.
        SignatureError: the streams of the endpoint do not fit the model.
        IntegrityError: a file is not what was sealed.
        DependencyMissingError: what the format needs is not installed here.
    """
    version = registry.resolve(rule.model)
    if rule.format == AUTO:
        # A package runs no code from outside, whatever the settings of the project allow.
        runtimes = Runtimes(threads=serving.threads or 1, device="cpu")
        rule = rule.model_copy(update={"format": choose_format(registry, version, runtimes).format})
    if rule.stream.is_on:
        fit_stream(rule.stream, version.signature)
    sealed = version.sealed(rule.format)
    refuse_kept(rule.format, reference=version.reference)
    _refuse_code(rule.format, version.reference)
    _refuse_free_grpc_port(serving)
    folder = registry.open_format(version, rule.format)
    example_source = registry.open_wrapper(version) / EXAMPLE_FILE
    example = next((file for file in version.wrapper.files if file.path == EXAMPLE_FILE), None)
    if example is None:
        raise IntegrityError(f"`{version.reference}` was sealed without `{EXAMPLE_FILE}`")
    packed = PackedVersion(
        name=version.name,
        number=version.number,
        digest=version.digest,
        signature=version.signature,
        format=PackedFormat(name=rule.format, manifest=sealed.manifest),
        example=example,
    )
    lean = lean_set(rule.format, serving, extras=extras)
    image = f"{endpoint_label(endpoint)}:{version.number}-{short_digest(sealed.digest)}"
    deploying = deploying or Deploying(image=image)
    if not deploying.image:
        deploying = replace(deploying, image=image)
    texts = _texts(endpoint, packed, serving, lean, deploying=deploying, base_image=base_image)
    texts["noa.toml"] = bento_folder.project_file(endpoint, packed, serving, rule.cache, rule.stream).encode()
    prefix = f"{MODEL_FOLDER}/{FILES_FOLDER}"
    copies = {f"{prefix}/{file.path}": folder / file.path for file in sealed.manifest.files}
    copies[f"{MODEL_FOLDER}/{EXAMPLE_FILE}"] = example_source
    return Package(endpoint=endpoint, version=packed, lean=lean, image=deploying.image, texts=texts, copies=copies)


def _texts(
    endpoint: str,
    version: PackedVersion,
    serving: ServingSettings,
    lean: LeanSet,
    *,
    deploying: Deploying,
    base_image: str | None,
) -> dict[str, bytes]:
    facts = version.to_json()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    size_bytes = version.format.manifest.size_bytes
    wheel_place = f"{bento_folder.WHEELS_FOLDER}/{WHEEL_NAME}"
    texts = {
        "service.py": bento_folder.service_module(version, sha256_bytes(facts)),
        "bentofile.yaml": bento_folder.bentofile(endpoint, version),
        "README.md": bento_folder.readme(endpoint, version),
        "requirements.txt": f"{lean.to_text()}./{wheel_place}\n",
        "Containerfile": containerfile(python=python, base=base_image),
        ".containerignore": IGNORED,
        ".dockerignore": IGNORED,
        "kserve/inference-service.yaml": inference_service(
            endpoint, version, serving, deploying, size_bytes=size_bytes
        ),
    }
    for name, text in manifests(endpoint, version, serving, deploying, size_bytes=size_bytes).items():
        texts[f"kubernetes/{name}"] = text
    made = {name: text.encode() for name, text in texts.items()}
    made[f"{MODEL_FOLDER}/{FACTS_FILE}"] = facts
    made[wheel_place] = build_wheel(lean.roots)
    return made


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _refuse_existing(folder: Path) -> None:
    if folder.exists() or folder.is_symlink():
        raise ConflictError(
            f"`{folder.name}` is there already", where=str(folder), remedy="Choose another `--output`, or remove it"
        )


def _refuse_code(name: str, reference: str) -> None:
    if name == _RUNS_CODE:
        raise InvalidInputError(
            f"the format `{name}` of `{reference}` cannot be packaged: it runs code from outside",
            remedy="Package `onnx`, `torch` or `jax`, or serve it with `noa serve`",
        )


def _refuse_free_grpc_port(serving: ServingSettings) -> None:
    if serving.grpc_port == 0:
        raise InvalidInputError(
            "a package needs a gRPC port that is known before", received="serving.grpc_port = 0", remedy="Name one"
        )
