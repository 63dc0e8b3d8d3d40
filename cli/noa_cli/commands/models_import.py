"""`noa models import`: a model from outside, scanned and sealed as a version."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._command import add_command
from noa_cli._invocation import actor, current
from noa_cli._options import DryRunOption, JsonOption
from noa_cli._registry import open_registry, version_to_dict

if TYPE_CHECKING:
    from noa_registry import ModelVersion
    from noa_registry.scanning import ScanReport

_MOST_ROWS = 40


def add_import(group: typer.Typer) -> None:
    """Add the command to `noa models`."""
    add_command(group, import_model, name="import")


def import_model(
    path: Annotated[
        Path,
        typer.Argument(help="An ONNX, safetensors, .pt2 or pickle file, an MLflow model folder, or a .noa archive."),
    ],
    name: Annotated[
        str | None, typer.Option("--name", "-n", metavar="NAME", help="The model's name; a .noa archive has its own.")
    ] = None,
    allow_pickle: Annotated[
        str | None,
        typer.Option(
            "--allow-pickle", metavar="NAME", help="Take what may run code when it is loaded; repeat the model's name."
        ),
    ] = None,
    example: Annotated[
        Path | None,
        typer.Option("--example", metavar="FILE", help="Real inputs: .npz, .safetensors or .json; else made up."),
    ] = None,
    exist_ok: Annotated[
        bool, typer.Option("--exist-ok", help="A .noa archive: a version that is here already is checked and repaired.")
    ] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Scan a model from outside and register it as a sealed version. Nothing of it runs on the way."""
    from noa.errors import InvalidInputError

    if path.suffix == ".noa":
        _import_archive(path, name=name, allow_pickle=allow_pickle, exist_ok=exist_ok, dry_run=dry_run, as_json=as_json)
        return
    if name is None:
        raise InvalidInputError(
            "the model needs a name",
            expected="--name NAME",
            remedy=f"noa models import {shlex.quote(str(path))} --name NAME",
        )
    from noa_conversion.imports import import_model as run_import
    from noa_conversion.imports import plan_import
    from noa_conversion.imports.child import ChildLimits

    if dry_run:
        with console.step(f"Scanning {path.name}"):
            plan = plan_import(path, name=name, allow_pickle=allow_pickle)
        _print_scan(plan.report, as_json=as_json, extra={"format": plan.source.kind, "dry_run": True})
        if not as_json:
            console.print_line(f"would register `{name}` in the format {plan.source.kind}")
        return
    with open_registry(makes=True) as registry, console.step(f"Importing {path.name}") as step:
        limits = ChildLimits(seconds=current().settings().conversion.max_work_s)
        result = run_import(
            registry,
            path,
            name=name,
            actor=actor(),
            allow_pickle=allow_pickle,
            example=example,
            child_limits=limits,
            tell=step,
        )
    if as_json:
        extra: dict[str, object] = {
            "version": version_to_dict(result.version),
            "source_digest": result.source_digest,
            "dry_run": False,
        }
        _print_scan(result.report, as_json=True, extra=extra)
        return
    _print_scan(result.report, as_json=False, extra={})
    _print_version(result.version, result.source_digest)


def _import_archive(
    path: Path, *, name: str | None, allow_pickle: str | None, exist_ok: bool, dry_run: bool, as_json: bool
) -> None:
    """Register the version in a .noa archive, after its bytes were checked and looked through."""
    from noa.errors import InvalidInputError
    from noa_conversion.imports.importer import scan_archive

    with open_registry(makes=True) as registry:
        with console.step(f"Scanning {path.name}"):
            _, archived = registry.archives.inspect(path)
            report = scan_archive(path, name=archived.name, allow_pickle=allow_pickle)
        if name is not None and name != archived.name:
            raise InvalidInputError(
                "an archive has the name of its model, which its digest is made of",
                expected=archived.name,
                received=name,
            )
        if dry_run:
            _print_scan(report, as_json=as_json, extra={"reference": archived.reference, "dry_run": True})
            return
        with console.step(f"Importing {path.name}") as step:
            taken = registry.archives.take(
                path,
                actor=actor(),
                allow_pickle=() if allow_pickle is None else (allow_pickle,),
                exist_ok=exist_ok,
                on_progress=lambda done, total: step(f"{done >> 20} of {total >> 20} MiB"),
            )
    if as_json:
        extra: dict[str, object] = {
            "version": version_to_dict(taken.version),
            "dry_run": False,
            "outcome": "registered" if taken.is_new else "repaired" if taken.repairs else "unchanged",
            "repaired": [str(repair) for repair in taken.repairs],
        }
        _print_scan(report, as_json=True, extra=extra)
        return
    _print_scan(report, as_json=False, extra={})
    if taken.is_new:
        _print_version(taken.version, None)
    elif taken.repairs:
        for repair in taken.repairs:
            console.print_line(str(repair))
        files = console.count(len(taken.repairs), "file")
        console.print_line(f"repaired {files} of {taken.version.reference}", "green")
    else:
        console.print_line(f"{taken.version.reference} is here already, unchanged", "green")


def _print_scan(report: ScanReport, *, as_json: bool, extra: dict[str, object]) -> None:
    if as_json:
        console.print_json({"scan": report.to_dict(), **extra})
        return
    if not report.findings and "dry_run" not in extra:
        console.print_line(f"{console.count(len(report.files), 'file')} scanned, none runs code (each one with --json)")
        return
    console.print_table(
        ["file", "is", "bytes"],
        [[each.file, each.kind, each.size_bytes] for each in report.files[:_MOST_ROWS]],
        title=f"Scan of {report.source}",
    )
    if len(report.files) > _MOST_ROWS:
        console.print_line(f"and {len(report.files) - _MOST_ROWS} more files (all of them with --json)")
    for finding in report.findings:
        console.print_line(f"{finding.severity}: {finding}", {"code": "yellow", "note": "dim"}.get(finding.severity))


def _print_version(version: ModelVersion, source_digest: str | None) -> None:
    console.print_line(f"registered {version.reference} ({console.short_digest(version.digest)})", "green")
    if source_digest is not None:
        console.print_line(f"source: {source_digest}")
    console.print_line(f"formats: {', '.join(version.formats)}")
    console.note(f"Look at it with: noa models show {version.reference}")
