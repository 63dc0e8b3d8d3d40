"""What a model is called on the command line: a version, a format of it (`digits/3:onnx`), an .onnx file, a folder."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from noa_cli._registry import open_registry

if TYPE_CHECKING:
    import numpy as np

    from noa_conversion import ModelFiles
    from noa_registry import ModelVersion, Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A model's files, and the real inputs that its version keeps."""

    files: ModelFiles
    example: Mapping[str, np.ndarray] | None = None


def is_path(text: str) -> bool:
    """Tell whether a text names a file or folder rather than a version: it is there, or looks like nothing else."""
    return Path(text).exists() or text.startswith((".", "/", "~")) or Path(text).suffix.lower() in (".onnx", ".pt2")


def split_format(text: str) -> tuple[str, str | None]:
    """Return the reference and the format of `digits/3:onnx`."""
    reference, mark, name = text.rpartition(":")
    return (reference, name) if mark else (text, None)


@contextmanager
def open_models(texts: Sequence[str], *, bind: Mapping[str, np.ndarray] | None = None) -> Generator[list[OpenedModel]]:
    """Open models by what they are called. The registry is opened only if one of them is a version.

    Raises:
        NotFoundError: there is no such file, version or format.
        InvalidInputError: a file or folder holds no model.
    """
    from noa_conversion import open_model

    with ExitStack() as stack:
        references = [split_format(text)[0] for text in texts if not is_path(text)]
        registry = stack.enter_context(open_registry(about=references)) if references else None
        opened: list[OpenedModel] = []
        for text in texts:
            if registry is None or is_path(text):
                files = stack.enter_context(open_model(Path(text).expanduser(), bind=bind))
                opened.append(OpenedModel(files=files))
            else:
                opened.append(_open_version(registry, text))
        yield opened


def choose_format(version: ModelVersion, name: str | None) -> str:
    """Return the format that was asked for, or the one that is served.

    Raises:
        NotFoundError: the version has no such format.
    """
    from noa.errors import NotFoundError

    chosen = name or version.default_format
    if chosen not in version.formats:
        raise NotFoundError(
            f"`{version.reference}` has no format `{chosen}`",
            expected=", ".join(f"`{known}`" for known in version.formats),
            received=chosen,
            remedy=f"Add it with: noa convert {version.reference} --to {chosen}",
        )
    return chosen


def _open_version(registry: Registry, text: str) -> OpenedModel:
    from noa_conversion import ModelFiles

    reference, name = split_format(text)
    version = registry.resolve(reference)
    chosen = choose_format(version, name)
    folder = registry.open_format(version, chosen)
    files = ModelFiles(format=chosen, folder=folder, label=f"{version.reference}:{chosen}")
    return OpenedModel(files=files, example=registry.input_example(version))
