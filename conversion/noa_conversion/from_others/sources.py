"""The libraries that noa takes models from: what each needs, and which of its files hold no code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

from noa.errors import ConversionError, DependencyMissingError, InvalidInputError, NotFoundError
from noa.settings import ConversionSettings
from noa_conversion.files import staged_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherLibrary:
    """A library. `module` holds `convert_file(path, folder, settings)`; `suffixes` are of files that hold data only."""

    name: str
    packages: tuple[str, ...]
    extra: str
    reads: str
    suffixes: tuple[str, ...]
    module: str | None
    refusal: str | None = None
    """Why its files are not taken, where they are not."""
    not_to: tuple[str, ...] = ()
    """Formats that no model of it becomes."""

    @property
    def missing(self) -> tuple[str, ...]:
        """The packages that are not installed."""
        return tuple(package for package in self.packages if find_spec(package) is None)

    def to_dict(self) -> dict[str, object]:
        """Return JSON values."""
        return {
            "name": self.name,
            "installed": not self.missing,
            "packages": list(self.packages),
            "missing": list(self.missing),
            "extra": self.extra,
            "reads": self.reads,
            "not_to": list(self.not_to),
        }


_MODULES: Final = "noa_conversion.from_others"
_NO_TREES: Final = ("torch", "jax")
"""Trees are operators of `ai.onnx.ml` (`TreeEnsembleRegressor`, `TreeEnsembleClassifier`), which no importer has."""
_LIBRARIES: Final[Mapping[str, OtherLibrary]] = MappingProxyType(
    {
        library.name: library
        for library in (
            OtherLibrary(
                name="keras",
                packages=("keras",),
                extra="keras",
                reads="a .keras file, loaded in safe mode; live models in Python",
                suffixes=(".keras",),
                module=f"{_MODULES}.keras_file",
            ),
            OtherLibrary(
                name="lightgbm",
                packages=("lightgbm", "onnxmltools"),
                extra="lightgbm",
                reads="a .txt file of Booster.save_model; live boosters in Python",
                suffixes=(".txt",),
                module=f"{_MODULES}.lightgbm_to_onnx",
                not_to=_NO_TREES,
            ),
            OtherLibrary(
                name="sklearn",
                packages=("sklearn", "skl2onnx"),
                extra="sklearn",
                reads="live estimators and pipelines in Python: its files are pickles",
                suffixes=(),
                module=None,
                refusal="scikit-learn's files are pickles, which run code when they are loaded",
            ),
            OtherLibrary(
                name="tflite",
                packages=("tflite2onnx", "ai_edge_litert"),
                extra="tflite",
                reads="a .tflite file of float32 layers",
                suffixes=(".tflite",),
                module=f"{_MODULES}.tflite_to_onnx",
            ),
            OtherLibrary(
                name="xgboost",
                packages=("xgboost", "onnxmltools"),
                extra="xgboost",
                reads="a .json or .ubj file of Booster.save_model; live boosters in Python",
                suffixes=(".json", ".ubj"),
                module=f"{_MODULES}.xgboost_to_onnx",
                not_to=_NO_TREES,
            ),
        )
    }
)


def list_sources() -> list[OtherLibrary]:
    """Return all libraries by name."""
    return list(_LIBRARIES.values())


def refuse_targets(name: str, targets: Sequence[str]) -> None:
    """Check, before a file is read, that its graph can become all of `targets`.

    Raises:
        ConversionError: no model of the library can.
    """
    library = _LIBRARIES.get(name)
    refused = next((target for target in targets if library is not None and target in library.not_to), None)
    if refused is not None:
        raise ConversionError(
            f"a model of `{name}` cannot become `{refused}`: its trees are operators of `ai.onnx.ml` "
            "(TreeEnsembleRegressor, TreeEnsembleClassifier), which onnxruntime computes and noa has for no framework",
            expected="--to onnx",
            received=f"--to {targets[-1]}",
            remedy="Convert it with `--to onnx`; that is served and compared as it is",
        )


def convert_library_file(name: str, path: Path, folder: Path, *, settings: ConversionSettings) -> dict[str, object]:
    """Write the format `onnx` from a file of another library, and return how it compares with the library itself.

    Raises:
        NotFoundError: there is no such library or file.
        InvalidInputError: the file is of a kind that holds code, or is not readable.
        ConversionError: the library's converter cannot express the model, or the result computes something else.
        DependencyMissingError: the library or its converter is not installed.
    """
    library = _LIBRARIES.get(name)
    if library is None:
        raise NotFoundError(f"no library `{name}` to convert from", expected=", ".join(_LIBRARIES), received=name)
    if library.module is None:
        raise InvalidInputError(
            f"`{path.name}` is not loaded: {library.refusal}",
            where=str(path),
            expected="a live object",
            remedy="Convert it in Python where it was trained, see docs/convert.md",
        )
    if not path.is_file():
        raise NotFoundError("no such model file", where=str(path))
    if path.suffix.lower() not in library.suffixes:
        raise InvalidInputError(
            f"the file's kind is not one that `{name}` keeps models in without code",
            where=str(path),
            expected=" or ".join(library.suffixes),
            received=path.suffix or "no ending",
        )
    if library.missing:
        raise DependencyMissingError(library.missing[0], extra=library.extra, purpose=f"converting from `{name}`")
    convert = cast("Any", import_module(library.module)).convert_file
    with staged_folder(folder) as staged:
        return cast("dict[str, object]", convert(path, staged, settings))
