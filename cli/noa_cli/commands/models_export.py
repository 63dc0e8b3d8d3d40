"""`noa models export`: one version as one file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from noa.plain_paths import plain_path
from noa_cli import _console as console
from noa_cli._invocation import current
from noa_cli._options import JsonOption
from noa_cli._registry import open_registry


def export(
    reference: Annotated[str, typer.Argument(help="`name`, `name@alias` or `name/number`.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The archive (default: NAME-NUMBER.noa).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a version with its formats, evidence, signatures and history to one file, for `noa models import`."""
    with open_registry(about=[reference]) as registry:
        version = registry.resolve(reference)
        target = plain_path(current().directory / (output or f"{version.name}-{version.number}.noa"))
        with console.step(f"Exporting {version.reference}") as tell:
            written = registry.archives.write(
                version.name,
                version.number,
                target,
                force=force,
                on_progress=lambda done, total: tell(f"{done >> 20} of {total >> 20} MB"),
            )
    if as_json:
        console.print_json(
            {
                "file": str(written.path),
                "reference": written.reference,
                "digest": written.digest,
                "size_bytes": written.size_bytes,
                "members": written.members,
                "content_digest": written.content_digest,
                "file_digest": written.file_digest,
            }
        )
        return
    console.print_line(f"{written.path}: {written.reference}, {written.size_bytes:,} bytes, {written.file_digest}")
    console.note(f"Import it elsewhere with: {shlex.join(['noa', 'models', 'import', written.path.name])}")
