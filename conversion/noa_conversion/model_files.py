"""What a path names: a format folder as it is, or an ONNX file that is laid out as one for as long as it is needed."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from noa.errors import InvalidInputError, NotFoundError
from noa.signatures import SIGNATURE_FILE

if TYPE_CHECKING:
    import numpy as np

# The file that tells a format; the first that is there counts.
_MARKS: Final = {
    "model.onnx": "onnx",
    "program.pt2": "torch",
    "program.stablehlo": "jax",
    "layout.json": "mlflow",
    "weights.safetensors": "safetensors",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model as files: its format, the folder that holds it, and how people call it."""

    format: str
    folder: Path
    label: str
    notes: tuple[str, ...] = ()
    """What the folder gives in another form than the file that it was laid out from, in words."""


def detect_format(folder: Path) -> str:
    """Return the format of a folder, told from its files.

    Raises:
        InvalidInputError: it holds none that noa writes.
    """
    if (folder / SIGNATURE_FILE).is_file():
        for file, name in _MARKS.items():
            if (folder / file).is_file():
                return name
    raise InvalidInputError(
        "the folder holds no format",
        where=str(folder),
        expected=f"`{SIGNATURE_FILE}` and one of {', '.join(f'`{file}`' for file in _MARKS)}",
        received=", ".join(sorted(f"`{path.name}`" for path in folder.iterdir())[:5]) or "nothing",
        remedy="Name a folder that `noa convert --output` wrote, an .onnx file, or a version such as `digits/3:onnx`",
    )


@contextmanager
def open_model(
    path: Path, *, bind: Mapping[str, np.ndarray] | None = None, sizes: Mapping[str, int] | None = None
) -> Generator[ModelFiles]:
    """Give the model at `path`; an ONNX file becomes a folder that is gone after the block.

    `bind` replaces inputs of an ONNX graph by constants, `sizes` fixes free axes by name.

    Raises:
        NotFoundError: there is nothing at `path`.
        InvalidInputError: it holds no model, is not safe to load, or cannot be bound.
    """
    if not path.exists():
        raise NotFoundError(
            "no such model", where=str(path), remedy="Name an .onnx file, a format folder, or a registered version"
        )
    if path.is_dir() and not bind and not sizes:
        yield ModelFiles(format=detect_format(path), folder=path, label=str(path))
        return
    if path.is_dir() and detect_format(path) != "onnx":
        raise InvalidInputError(
            f"inputs and axes of a stored `{detect_format(path)}` program cannot be fixed",
            where=str(path),
            expected="an ONNX graph",
            remedy="Fix them when the ONNX file is converted",
        )
    if path.is_file() and path.suffix.lower() != ".onnx":
        raise InvalidInputError(
            "the file's kind is not known",
            where=str(path),
            expected="an .onnx file or a format folder",
            received=path.suffix or "no ending",
            remedy="Say what it is with `noa convert --from`, or take it in with `noa models import`",
        )
    from noa_conversion.onnx_staging import stage_onnx

    with tempfile.TemporaryDirectory(prefix="noa-model-") as scratch:
        folder = Path(scratch) / "onnx"
        folder.mkdir()
        file = path / "model.onnx" if path.is_dir() else path
        notes = stage_onnx(file, folder, bind=bind or {}, sizes=sizes)
        yield ModelFiles(format="onnx", folder=folder, label=str(path), notes=notes)
