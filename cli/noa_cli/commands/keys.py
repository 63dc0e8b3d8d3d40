"""`noa keys`: key pairs by which people sign approvals, and by which versions are signed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noa_cli import _console as console
from noa_cli._command import add_command, new_group
from noa_cli._options import JsonOption
from noa_cli.commands.keys_signing import add_signing_keys


def build() -> typer.Typer:
    """Return the group with its commands."""
    group = new_group("Make the keys by which approvals and versions are signed.")
    add_command(group, new)
    add_signing_keys(group)
    return group


def new(
    name: Annotated[str, typer.Argument(help="Whose key it is; the files are NAME.key and NAME.pub.")],
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="DIR", help="Where to put them; ~/.config/noa/keys by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an Ed25519 key pair; the private key is readable by you only."""
    from noa_registry import new_key_pair

    pair = new_key_pair(name, folder or default_folder())
    if as_json:
        console.print_json(
            {"private_file": str(pair.private_file), "public_file": str(pair.public_file), "public": pair.public}
        )
        return
    console.print_line(f"private key: {pair.private_file} (keep it; nobody else may read it)")
    console.print_line(f"public key:  {pair.public_file}")
    console.print_line("Whoever keeps noa.toml adds:", "dim")
    console.print_line("[registry.principals]")
    console.print_line(f'"{name}" = "{pair.public}"')


def default_folder() -> Path:
    """Return where keys are put if nobody says otherwise."""
    import os

    from noa.settings import user_settings_file

    return user_settings_file(os.environ).parent / "keys"
