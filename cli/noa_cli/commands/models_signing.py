"""`noa models sign` and `signatures`: who vouches for a version, said with a key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._command import add_command
from noa_cli._invocation import actor
from noa_cli._options import DryRunOption, JsonOption
from noa_cli._registry import open_registry

if TYPE_CHECKING:
    from noa_registry import ModelVersion, Registry
    from noa_registry.signing import StoredSignature

_ReferenceArgument = Annotated[str, typer.Argument(help="`name`, `name@alias` or `name/number`.")]


def add_signing(group: typer.Typer) -> None:
    """Add the commands to `noa models`."""
    for function in (sign, signatures):
        add_command(group, function)


def sign(reference: _ReferenceArgument, dry_run: DryRunOption = False, as_json: JsonOption = False) -> None:
    """Hash a version again and sign it, with all its formats, by the key of the settings."""
    with open_registry() as registry:
        version = registry.resolve(reference)
        with console.step(f"Hashing {version.reference}"):
            problems = registry.find_problems(version)
        _refuse_changed(version, [str(problem) for problem in problems])
        made = [] if dry_run else registry.signatures.sign(version, actor=actor())
    if as_json:
        console.print_json({"reference": version.reference, "signed": [_row(row) for row in made], "dry_run": dry_run})
    elif dry_run:
        console.print_line(f"would sign {version.reference}: its record and {', '.join(version.formats)}")
    elif not made:
        console.print_line(f"{version.reference} was signed by this key already")
    else:
        console.print_line(f"{version.reference}: signed {', '.join(row.subject for row in made)}")
        console.print_line(f"by {made[0].identity}")


def signatures(
    reference: _ReferenceArgument,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="DIR", help="Write the bundles there, for `model_signing verify`."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the signatures of a version, and say whether they verify; exit code 1 if it would be refused."""
    from noa.errors import IntegrityError

    with open_registry() as registry:
        version = registry.resolve(reference)
        rows = registry.signatures.stored(version)
        problem = None
        try:
            registry.signatures.verify(version)
        except IntegrityError as exc:
            problem = str(exc)
        written = [] if export is None else _export(registry, version, rows, export)
        checks = registry.signatures.checks
    verdict = "not checked: no key is trusted" if not checks else problem or "accepted"
    if as_json:
        console.print_json(
            {
                "reference": version.reference,
                "verdict": verdict,
                "accepted": problem is None,
                "signatures": [_row(row) for row in rows],
                "exported": [str(path) for path in written],
            }
        )
    else:
        console.print_table(
            ["of", "digest", "by", "when"],
            [
                [row.subject, console.short_digest(row.digest), row.identity, console.short_time(row.created_at)]
                for row in rows
            ],
            title=f"Signatures of {version.reference}",
        )
        console.print_line(verdict, "red" if problem else "green" if checks else "dim")
        for path in written:
            console.print_line(str(path))
    if problem is not None:
        raise typer.Exit(1)


def _export(registry: Registry, version: ModelVersion, rows: list[StoredSignature], folder: Path) -> list[Path]:
    """Write the newest bundle of each subject, and the record that the version's own bundle is about."""
    from noa.atomic_write import write_file
    from noa_registry.signing import RECORD_FILE, WHOLE_VERSION, record_of

    written: list[Path] = []
    for row in rows:
        path = folder / f"{row.subject}.sig"
        write_file(path, row.bundle)
        written = [*(each for each in written if each != path), path]
    if any(row.subject == WHOLE_VERSION for row in rows):
        record = folder / "record" / RECORD_FILE
        write_file(record, record_of(version))
        written.append(record)
    return written


def _refuse_changed(version: ModelVersion, problems: list[str]) -> None:
    from noa.errors import IntegrityError

    if problems:
        raise IntegrityError(
            f"`{version.reference}` is not what was sealed, so it is not signed: {', '.join(problems)}",
            where=str(version.folder),
        )


def _row(row: StoredSignature) -> dict[str, object]:
    return {
        "subject": row.subject,
        "digest": row.digest,
        "identity": row.identity,
        "created_at": row.created_at,
    }
