"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from noa_cli._invocation import current


def _as_json(value: bool) -> bool:
    current().as_json = current().as_json or value
    return value


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.", callback=_as_json)]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and do nothing.")]
ReasonOption = Annotated[str, typer.Option("--reason", "-m", help="Why; kept in the ledger.")]
AliasOption = Annotated[str, typer.Option("--alias", "-a", help="Which alias to move.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
