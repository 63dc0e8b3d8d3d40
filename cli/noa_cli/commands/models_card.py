"""`noa models card`: what is recorded about a version, for people to read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noa.plain_paths import plain_path
from noa_cli import _console as console
from noa_cli._invocation import current
from noa_cli._options import JsonOption
from noa_cli._registry import open_registry

_ENDINGS = {".md": False, ".markdown": False, ".html": True, ".htm": True}


def card(
    reference: Annotated[str, typer.Argument(help="`name`, `name@alias` or `name/number`.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="A file ending in .md or .html, or a folder (default: print it)."
        ),
    ] = None,
    html: Annotated[bool, typer.Option("--html", help="As one HTML file that fetches nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model card: what it is, data, training, evaluation, limits, how to use it, and its history."""
    from noa.atomic_write import write_file

    settings = current().settings()
    address = settings.serving.address
    server = address if settings.serving.port else f"{address.removesuffix('0')}PORT"  # 0: `noa serve` says which
    with open_registry(settings, about=[reference]) as registry:
        made = registry.card(reference, server=server)
    version = made.facts.version
    if output is None:
        text = made.to_html() if html else made.to_markdown()
        if as_json:
            console.print_json({"reference": version.reference, "digest": version.digest, "card": text})
        else:
            typer.echo(text, nl=False)
        return
    target = _target(plain_path(current().directory / output), f"{version.name}-{version.number}", html=html)
    write_file(target, made.to_html() if _ENDINGS[target.suffix.lower()] else made.to_markdown())
    if as_json:
        console.print_json({"reference": version.reference, "digest": version.digest, "file": str(target)})
    else:
        console.print_line(str(target))


def _target(path: Path, stem: str, *, html: bool) -> Path:
    """Return the file to write: its ending says the form, and `--html` where there is a folder only.

    Raises:
        InvalidInputError: the ending is of another form.
    """
    from noa.errors import InvalidInputError

    if path.is_dir() or not path.suffix:
        return path / f"{stem}{'.html' if html else '.md'}"
    if path.suffix.lower() not in _ENDINGS or (html and not _ENDINGS[path.suffix.lower()]):
        raise InvalidInputError(
            "a card is Markdown or HTML",
            expected="a file ending in .html" if html else "a file ending in .md or .html, or a folder",
            received=path.name,
        )
    return path
