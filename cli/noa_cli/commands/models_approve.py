"""`noa models approve`, `approvals`, `revoke`: a second person's word before a version takes a protected alias."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._command import add_command
from noa_cli._invocation import actor
from noa_cli._options import JsonOption
from noa_cli._registry import open_registry

if TYPE_CHECKING:
    from noa_registry import Approval


def add_approvals(group: typer.Typer) -> None:
    """Add the commands to `noa models`."""
    for function in (approve, approvals, revoke):
        add_command(group, function)


def approve(
    reference: Annotated[str, typer.Argument(help="`name/number`.")],
    alias: Annotated[str, typer.Option("--alias", "-a", help="Which alias it may take.")] = "champion",
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why; kept with the approval.")] = "none given",
    expires: Annotated[str, typer.Option("--expires", help="How long it holds, e.g. 30m, 24h, 7d.")] = "24h",
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="Your private key, where approvals must be signed.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Approve that a version takes an alias, once; somebody else promotes it then."""
    from noa.durations import parse_duration
    from noa_cli._invocation import current

    lifetime = parse_duration(expires, where="--expires")
    with open_registry(about=[reference]) as registry:
        version = registry.resolve(reference)
        granted = registry.approvals.grant(
            version.name,
            version.number,
            alias=alias,
            principal=None if current().settings().registry.principals else actor(),
            reason=reason,
            expires_in=lifetime,
            key=key,
        )
    if as_json:
        console.print_json(approval_to_dict(granted))
        return
    console.print_line(
        f"approval {granted.id}: {granted.principal} allows {version.reference} "
        f"({console.short_digest(granted.digest)}) as @{alias} until {console.short_time(granted.expires_at)}"
        f"{', signed' if granted.signature else ''}"
    )
    console.note(f"It counts where somebody other than {granted.principal} promotes.")


def approvals(
    name: Annotated[str, typer.Argument(help="The model, `name` or `name/number` or `name@alias`.")],
    as_json: JsonOption = False,
) -> None:
    """List the approvals of a model, newest first, and what each is still worth."""
    from noa.references import parse_reference

    reference = parse_reference(name)
    with open_registry(about=[reference.name]) as registry:
        found = registry.approvals.list(reference.name, reference.number, alias=reference.alias)
    if as_json:
        console.print_json([approval_to_dict(one) for one in found])
        return
    if not found:
        console.note(f"There is no approval yet; give one with `noa models approve {reference.name}/NUMBER`.")
        return
    now = datetime.now(UTC)
    console.print_table(
        ["#", "version", "alias", "by", "state", "signed", "expires", "digest", "why"],
        [
            [
                one.id,
                f"{one.name}/{one.number}",
                one.alias,
                one.principal,
                _shown_state(one, now),
                "yes" if one.signature else "no",
                console.short_time(one.expires_at),
                console.short_digest(one.digest),
                one.reason,
            ]
            for one in found
        ],
    )


def revoke(
    approval: Annotated[int, typer.Argument(help="The approval's number.")],
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why; kept in the event.")] = "none given",
    as_json: JsonOption = False,
) -> None:
    """Take an approval back that was not used yet."""
    with open_registry() as registry:
        revoked = registry.approvals.revoke(approval, reason=reason, actor=actor())
    if as_json:
        console.print_json(approval_to_dict(revoked))
        return
    version = f"{revoked.name}/{revoked.number}"
    console.print_line(f"approval {revoked.id} of {version} as @{revoked.alias} by {revoked.principal} is revoked")


def _shown_state(approval: Approval, moment: datetime) -> str:
    match approval.state(moment):
        case "used":
            return f"used by row {approval.used_by}"
        case "void":
            return f"void: {approval.void}"
        case state:
            return state


def approval_to_dict(approval: Approval) -> dict[str, object]:
    """Return an approval as plain JSON values."""
    return {
        "id": approval.id,
        "version": f"{approval.name}/{approval.number}",
        "alias": approval.alias,
        "digest": approval.digest,
        "principal": approval.principal,
        "reason": approval.reason,
        "state": approval.state(datetime.now(UTC)),
        "void": approval.void,
        "created_at": approval.created_at,
        "expires_at": approval.expires_at,
        "statement": approval.statement,
        "signature": approval.signature,
        "used_by": approval.used_by,
        "revoked_at": approval.revoked_at,
    }
