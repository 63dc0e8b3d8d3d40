"""The import: scan, copy, scan the copy, prepare a format from it, and register it with the scan as evidence.

Nothing is registered unless all of it succeeded. A version from outside is tagged with the digest of its source; its
dataset is unknown, and its dataset digest says so: it is the digest of `{"outside": SOURCE DIGEST}`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noa.digests import build_manifest, digest_json
from noa.errors import InvalidInputError
from noa.references import check_name
from noa.signatures import Signature
from noa_conversion.imports.child import EXAMPLE_FILE, ChildLimits, run_child
from noa_conversion.imports.source import Source, classify
from noa_conversion.imports.staging import Staged, staged_copy
from noa_registry.evidence import Evidence, ScanEvidence, ScanFinding
from noa_registry.outside import AllowedMark
from noa_registry.scanning import ScanLimits, ScanReport, Severity, scan_path
from noa_registry.versions import ModelVersion, VersionDraft

if TYPE_CHECKING:
    import numpy as np

    from noa_registry import Registry

_MOST_KEPT_FINDINGS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportPlan:
    """What an import would do: the scan, and the format that the source becomes."""

    report: ScanReport
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportResult:
    """What an import did."""

    version: ModelVersion
    report: ScanReport
    source_digest: str


def plan_import(
    path: Path, *, name: str, allow_pickle: str | None = None, limits: ScanLimits | None = None
) -> ImportPlan:
    """Scan a path and say what it would become; changes nothing.

    Raises:
        InvalidInputError: it is hostile, holds nothing that can be imported, or needs `allow_pickle` to repeat `name`.
        DependencyMissingError: there are pickles, and picklescan is not installed.
    """
    check_name(name)
    if not path.exists() and not path.is_symlink():
        raise InvalidInputError("there is no such file or folder", where=str(path), received=path.name)
    report = scan_path(path, limits)
    _refuse_hostile(report)
    source = classify(path, report)
    if report.code:
        _require_allowed(report, name, allow_pickle)
    return ImportPlan(report=report, source=source)


def scan_archive(
    path: Path, *, name: str, allow_pickle: str | None = None, limits: ScanLimits | None = None
) -> ScanReport:
    """Scan a `.noa` archive of model `name` before it is read.

    Raises:
        InvalidInputError: it is hostile, or needs `allow_pickle` to repeat `name`.
        DependencyMissingError: there are pickles, and picklescan is not installed.
    """
    report = scan_path(path, limits)
    _refuse_hostile(report)
    if report.code:
        _require_allowed(report, name, allow_pickle)
    return report


def import_model(
    registry: Registry,
    path: Path,
    *,
    name: str,
    actor: str,
    allow_pickle: str | None = None,
    example: Path | None = None,
    limits: ScanLimits | None = None,
    child_limits: ChildLimits | None = None,
    tell: Callable[[str], None] = lambda _text: None,
) -> ImportResult:
    """Register a model from outside as the next version of `name`.

    `allow_pickle` must repeat `name` where reading the source runs code; it never allows what is hostile.

    Raises:
        InvalidInputError: as `plan_import`; or the graph cannot be read or computes nothing, or the registry's key
            cannot sign.
        ConversionError: an exported program cannot be exported anew.
        StorageError: the disk or database refused; nothing is left.
    """
    registry.signatures.check_ready()
    tell("scanning")
    plan_import(path, name=name, allow_pickle=allow_pickle, limits=limits)
    tell("copying")
    with registry.workspace() as scratch:
        staged = staged_copy(path, scratch / "source")
        tell("scanning the copy")
        plan = plan_import(staged.path, name=name, allow_pickle=allow_pickle, limits=limits)
        tell(f"preparing the format {plan.source.kind}")
        folder = scratch / "formats" / plan.source.kind
        folder.mkdir(parents=True)
        inputs = _prepare(plan, staged, folder, scratch, example, child_limits or ChildLimits())
        if plan.source.runs_code:
            findings = tuple(str(finding) for finding in plan.report.code[:_MOST_KEPT_FINDINGS])
            mark = AllowedMark(model=name, allowed_by=actor, source_digest=staged.digest, findings=findings)
            mark.save(folder)
        tell("registering")
        version = registry.register(_draft(name, plan, staged, folder, inputs, actor), actor=actor)
        return ImportResult(version=version, report=plan.report, source_digest=staged.digest)


def _prepare(
    plan: ImportPlan, staged: Staged, folder: Path, scratch: Path, example: Path | None, limits: ChildLimits
) -> dict[str, np.ndarray]:
    """Write the format's folder and return an input example."""
    from noa.tensor_files import load_tensors
    from noa_conversion.imports import plain_import
    from noa_conversion.imports.examples import make_example, read_example

    source = plan.source
    file = staged.path / source.file if staged.path.is_dir() else staged.path
    if source.kind in ("onnx", "torch"):
        target = scratch / EXAMPLE_FILE
        request: dict[str, object] = {
            "kind": source.kind,
            "source": str(file),
            "folder": str(folder),
            "example": None if example is None else str(example.absolute()),
            "example_target": str(target),
        }
        run_child(request, limits)
        return load_tensors(target.read_bytes())
    signature = _keep(plain_import, source, staged.path, file, folder)
    return make_example(signature) if example is None else read_example(example, signature)


def _keep(plain_import: Any, source: Source, root: Path, file: Path, folder: Path) -> Signature:
    """Write the folder of a format that is kept as it came."""
    if source.kind == "safetensors":
        return plain_import.prepare_weights(file, folder)
    if source.kind == "pickle":
        return plain_import.prepare_pickle(file, folder)
    return plain_import.prepare_mlflow(root, source.mlmodel or {}, folder)


def _draft(
    name: str, plan: ImportPlan, staged: Staged, folder: Path, inputs: dict[str, np.ndarray], actor: str
) -> VersionDraft:
    kind = plan.source.kind
    return VersionDraft(
        name=name,
        formats={kind: folder},
        native=kind,
        input_example=inputs,
        dataset_digest=digest_json({"outside": staged.digest}),
        evidence=(scan_evidence(plan.report, kind, build_manifest(folder).digest, actor),),
        environment={"python": platform.python_version()},
        tags={"noa.imported": kind, "noa.source_digest": staged.digest},
        description=f"Imported from outside: {kind}",
    )


def scan_evidence(report: ScanReport, subject: str, digest: str, actor: str) -> Evidence:
    """Return a scan as evidence about the format that was made of what was scanned."""
    findings = tuple(
        ScanFinding(file=each.file, severity=str(each.severity), what=each.what)
        for each in report.findings
        if each.severity is not Severity.NOTE
    )
    return ScanEvidence(
        subject=subject,
        digest=digest,
        scanner=report.scanner,
        version=report.version,
        files=len(report.files),
        findings=findings[:_MOST_KEPT_FINDINGS],
        allowed_by=actor if findings else None,
    ).to_evidence()


def _refuse_hostile(report: ScanReport) -> None:
    if report.hostile:
        raise InvalidInputError(
            f"`{report.source}` is refused: {report.describe(report.hostile)}",
            remedy="No option allows this",
            report=report,
        )


def _require_allowed(report: ScanReport, name: str, allow_pickle: str | None) -> None:
    if allow_pickle == name:
        return
    raise InvalidInputError(
        f"`{report.source}` may run code when it is loaded: {report.describe(report.code)}",
        expected=f"`--allow-pickle {name}`, which repeats the model's name",
        received="no permission" if allow_pickle is None else f"`--allow-pickle {allow_pickle}`",
        remedy="Allow it only if you trust where it came from; better export the model as ONNX",
        report=report,
    )
