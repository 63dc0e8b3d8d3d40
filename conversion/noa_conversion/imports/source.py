"""What a path from outside is, and what it can become. Told from the scan, not from names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from noa.errors import InvalidInputError
from noa_conversion.files import MAX_GRAPH_BYTES
from noa_registry.scanning import TENSOR_DATA, ScanLimits, ScanReport, read_mlmodel
from noa_registry.scanning.blobs import FileBlob, MalformedError

SourceKind: TypeAlias = Literal["onnx", "torch", "safetensors", "mlflow", "pickle"]
MLMODEL = "MLmodel"
_PICKLED = {"pickle", "zip", "numpy", "gzip", "bz2", "xz", "zlib"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is imported. `kind` is the format it becomes; `file` the file that holds the model, below the path.

    `mlmodel` is the parsed MLmodel, where there is one.
    """

    kind: SourceKind
    file: str
    mlmodel: dict[str, Any] | None = None

    @property
    def runs_code(self) -> bool:
        """Whether somebody has to allow it by name."""
        return self.kind in ("mlflow", "pickle")


def classify(path: Path, report: ScanReport) -> Source:
    """Return what a scanned path becomes.

    Raises:
        InvalidInputError: it holds no model, several, or one that noa takes in no form; says why.
    """
    source = _classify_folder(path, report) if path.is_dir() else _classify_file(report, report.source)
    if report.code and not source.runs_code:
        if source.mlmodel is not None:
            return Source(kind="mlflow", file=source.file, mlmodel=source.mlmodel)
        raise InvalidInputError(
            f"`{report.source}` cannot be imported: {report.describe(report.code)}",
            remedy="Export the model anew, without Python objects inside",
        )
    if source.kind in ("onnx", "torch"):
        _check_size(report, source)
    return source


def _check_size(report: ScanReport, source: Source) -> None:
    """Refuse what one file of noa's cannot hold before a byte of it is copied."""
    belongs = [each for each in report.files if "!" not in each.file]
    size = sum(each.size_bytes for each in belongs if each.file == source.file or each.kind == TENSOR_DATA)
    if size > MAX_GRAPH_BYTES:
        raise InvalidInputError(
            f"`{source.file}` and its weights are larger than one file of the format `{source.kind}` can be",
            expected=f"at most {MAX_GRAPH_BYTES} bytes",
            received=f"{size} bytes",
        )


def _classify_file(report: ScanReport, file: str) -> Source:
    kind = report.kind_of(file)
    if kind == "onnx":
        return Source(kind="onnx", file=file)
    if kind == "safetensors":
        return Source(kind="safetensors", file=file)
    if kind == "zip" and _is_exported_program(report, file):
        return Source(kind="torch", file=file)
    if kind in _PICKLED and any("pickle" in finding.what for finding in report.findings):
        return Source(kind="pickle", file=file)
    raise InvalidInputError(
        f"`{file}` holds no model that noa can take",
        expected="an ONNX graph, safetensors, a PyTorch exported program (.pt2), a pickle or an MLflow model folder",
        received=f"a file of the kind `{kind}`" + (f": {report.describe(report.code)}" if report.code else ""),
    )


def _classify_folder(path: Path, report: ScanReport) -> Source:
    if report.kind_of(MLMODEL) == "mlmodel":
        return _classify_mlflow(path, report)
    found = [each for each in report.files if each.kind in ("onnx", "safetensors") and "!" not in each.file]
    found += [each for each in report.files if each.kind == "zip" and _is_exported_program(report, each.file)]
    if len(found) != 1:
        raise InvalidInputError(
            f"`{report.source}` holds no model" if not found else f"`{report.source}` holds several models",
            expected=f"an `{MLMODEL}` file, or exactly one ONNX, safetensors or .pt2 file",
            received=", ".join(f"`{each.file}`" for each in found[:5]) or "none",
            remedy="Name the file itself",
        )
    return _classify_file(report, found[0].file)


def _classify_mlflow(path: Path, report: ScanReport) -> Source:
    model = read_mlmodel_file(path / MLMODEL)
    flavors = cast("dict[str, dict[str, Any]]", model["flavors"])
    graph = str(flavors.get("onnx", {}).get("data", ""))
    if "onnx" in flavors and report.kind_of(graph) == "onnx":
        return Source(kind="onnx", file=graph, mlmodel=model)
    folder = str(flavors.get("pytorch", {}).get("model_data", ""))
    program = f"{folder}/model.pt2"
    if "pytorch" in flavors and report.kind_of(program) == "zip" and _is_exported_program(report, program):
        return Source(kind="torch", file=program, mlmodel=model)
    return Source(kind="mlflow", file=MLMODEL, mlmodel=model)


def read_mlmodel_file(path: Path) -> dict[str, Any]:
    """Parse an MLmodel file that was scanned.

    Raises:
        InvalidInputError: it is not what it was.
    """
    try:
        blob = FileBlob(path)
    except (MalformedError, OSError) as exc:
        raise InvalidInputError(f"`{path.name}` cannot be read: {exc}", where=str(path)) from exc
    try:
        return read_mlmodel(blob, ScanLimits().text_bytes)
    except MalformedError as exc:
        raise InvalidInputError(f"`{path.name}` {exc}", where=str(path)) from exc
    finally:
        blob.close()


def _is_exported_program(report: ScanReport, file: str) -> bool:
    inside = f"{file}!"
    return any(each.file.startswith(inside) and each.file.endswith("models/model.json") for each in report.files)
