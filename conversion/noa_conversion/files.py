"""Reading and writing the files of a format folder: staged writes, bounded reads, weights as safetensors.

Every reader checks a file's size before it reads, and turns a missing, truncated or malformed file into an
`InvalidInputError` that names it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from noa.atomic_write import publish_folder, set_usual_mode, translate_disk_errors
from noa.errors import InvalidInputError, StorageError

if TYPE_CHECKING:
    import numpy as np

WEIGHTS_FILE = "weights.safetensors"
MAX_GRAPH_BYTES = (1 << 31) - 1
"""Largest program or ONNX file read into memory: the limit of protobuf. Weights are mapped, not read."""
_MAX_JSON_BYTES = 16 << 20


@contextmanager
def staged_folder(folder: Path) -> Generator[Path]:
    """Give a temporary sibling of `folder` that takes its name when the block ends; an error leaves no trace.

    Raises:
        InvalidInputError: `folder` exists and holds something.
        StorageError: the disk refused.
    """
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise InvalidInputError(
            "a format needs a folder of its own",
            where=str(folder),
            expected="a new or empty folder",
            received="one that holds files",
            remedy="Choose another folder or remove this one",
        )
    with translate_disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        try:
            temporary.chmod(0o755)
            yield temporary
            publish_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def copy_folder(source: Path, target: Path, *, told: Path | None = None) -> None:
    """Copy all files of a folder. `told` is where they will be, for errors, where `target` is a temporary name.

    Raises:
        StorageError: the disk refused; names the file.
    """

    def copy(
        path: str, copied: str
    ) -> None:  # `copytree` would gather errors of the system into a list without a cause
        with translate_disk_errors((told or target) / Path(copied).relative_to(target)):
            shutil.copy2(path, copied)

    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=copy)


def read_bytes(folder: Path, name: str, *, limit: int = MAX_GRAPH_BYTES) -> bytes:
    """Read one file of a format.

    Raises:
        InvalidInputError: it is missing, not a plain file, empty or larger than `limit` bytes.
    """
    path = folder / name
    try:
        if not path.is_file():
            raise InvalidInputError(f"the format has no file `{name}`", where=str(folder), file=name)
        size = path.stat().st_size
        if not 0 < size <= limit:
            raise InvalidInputError(
                f"`{name}` has a size that cannot be right",
                where=str(path),
                expected=f"1 to {limit} bytes",
                received=f"{size} bytes",
                file=name,
            )
        return path.read_bytes()
    except OSError as exc:
        raise InvalidInputError(f"`{name}` cannot be read: {exc.strerror}", where=str(path), file=name) from exc


def read_json(folder: Path, name: str) -> dict[str, object]:
    """Read one JSON object of a format.

    Raises:
        InvalidInputError: missing, too large, or not a JSON object.
    """
    data = read_bytes(folder, name, limit=_MAX_JSON_BYTES)
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError(f"`{name}` is not JSON", where=str(folder / name), file=name) from exc
    if not isinstance(value, dict):
        raise InvalidInputError(f"`{name}` is not a JSON object", where=str(folder / name), file=name)
    return cast("dict[str, object]", value)


def write_weights(folder: Path, weights: Mapping[str, np.ndarray]) -> None:
    """Write arrays under their names, in the order of the names.

    Raises:
        StorageError: the disk refused.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    ordered = {name: np.ascontiguousarray(weights[name]).reshape(weights[name].shape) for name in sorted(weights)}
    try:
        save_file(ordered, folder / WEIGHTS_FILE)
        set_usual_mode(folder / WEIGHTS_FILE)
    except SafetensorError as exc:
        raise unwritable_weights(folder, exc) from exc


def unwritable_weights(folder: Path, error: Exception) -> StorageError:
    """Return the error for weights that the library could not write: it hides the disk's own error in its text."""
    return StorageError(
        f"cannot write `{WEIGHTS_FILE}`: {error}",
        where=str(folder),
        remedy="Free some space and run it again; nothing was lost",
    )


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """Read all arrays, sorted by name, as the library's own order is another each time.

    The library checks every claimed size against the file before it allocates.

    Raises:
        InvalidInputError: missing, truncated or malformed.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise InvalidInputError(f"the format has no file `{WEIGHTS_FILE}`", where=str(folder), file=WEIGHTS_FILE)
    try:
        return dict(sorted(load_file(path).items()))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as exc:
        raise InvalidInputError(
            f"`{WEIGHTS_FILE}` is not a whole safetensors file: {exc}", where=str(path), file=WEIGHTS_FILE
        ) from exc


def check_weight_names(folder: Path, weights: Mapping[str, object], expected: list[str]) -> None:
    """Check that the weights are exactly those the program takes.

    Raises:
        InvalidInputError: one is missing or unknown; names the first.
    """
    missing = [name for name in expected if name not in weights]
    unknown = [name for name in weights if name not in set(expected)]
    if missing or unknown:
        what = f"weight `{missing[0]}` is missing" if missing else f"weight `{unknown[0]}` is not one of the program's"
        raise InvalidInputError(
            what,
            where=str(folder / WEIGHTS_FILE),
            expected=f"{len(expected)} weights",
            received=f"{len(weights)} weights",
            file=WEIGHTS_FILE,
        )
