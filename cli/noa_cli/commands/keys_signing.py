"""`noa keys new-signing`: a key pair by which versions are signed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noa_cli import _console as console
from noa_cli._command import add_command
from noa_cli._options import JsonOption


def add_signing_keys(group: typer.Typer) -> None:
    """Add the command to `noa keys`."""
    add_command(group, new_signing, name="new-signing")


def new_signing(
    name: Annotated[str, typer.Argument(help="The key's name; the files are NAME.pem and NAME.pub.pem.")],
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="DIR", help="Where to put them; ~/.config/noa/keys by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an EC P-256 key pair that signs what is sealed; the private key is readable by you only."""
    from noa.references import check_name
    from noa_cli.commands.keys import default_folder
    from noa_registry.model_signing_adapter import new_key

    private, public, fingerprint = new_key(folder or default_folder(), check_name(name))
    if as_json:
        console.print_json({"private_key": str(private), "public_key": str(public), "fingerprint": fingerprint})
        return
    console.print_line(f"private key: {private} (keep it; nobody else may read it)")
    console.print_line(f"public key:  {public} (give it to everybody who checks)")
    console.print_line(f"fingerprint: sha256:{fingerprint}")
    console.print_line("To sign with it, add to noa.toml:", "dim")
    console.print_line("[registry.signing]")
    console.print_line(f'private_key = "{private}"')
    console.print_line("Whoever only checks adds:", "dim")
    console.print_line("[registry.signing]")
    console.print_line(f'trusted_keys = ["{public}"]')
    console.print_line("required = true")
