"""`noa models delete` and `restore`: the way into the trash and out of it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._command import add_command
from noa_cli._invocation import actor, current
from noa_cli._options import DryRunOption, JsonOption
from noa_cli._registry import open_registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from noa.settings import Settings
    from noa_registry import Hold, TrashedVersion

VersionArgument = Annotated[str, typer.Argument(help="The version, `name/number`.")]


def add_retention(group: typer.Typer) -> None:
    """Add the commands to `noa models`."""
    add_command(group, delete)
    add_command(group, restore)


def delete(
    reference: VersionArgument,
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why; kept with the version.")],
    grace: Annotated[
        str | None, typer.Option("--grace", help="How long it can be restored, e.g. 7d or 12h; as set otherwise.")
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Move a version to the trash; what an alias, a rollback, a server or an approval needs is refused.

    It can be restored until its grace period is over. Its files go with `noa gc --apply` after that.
    """
    from noa.durations import parse_duration

    settings = current().settings()
    name, number = parse_version(reference)
    period = timedelta(days=settings.retention.grace_days) if grace is None else parse_duration(grace, where="--grace")
    pinned = pinned_endpoints(settings)
    with open_registry(settings, about=[reference]) as registry:
        if dry_run:
            holds = registry.retention.holds(name, number, endpoints=pinned)
            _print_trial(reference, holds, period, as_json)
            raise typer.Exit(1 if holds else 0)
        trashed = registry.retention.delete(name, number, reason=reason, actor=actor(), grace=period, endpoints=pinned)
    if as_json:
        console.print_json(trashed_to_dict(trashed))
        return
    if period:
        until = f"Until {console.short_time(trashed.purge_after)}: noa models restore {trashed.reference}"
    else:
        until = "The next `noa gc --apply` removes its files"
    console.print_line(f"{trashed.reference} is in the trash. {until}")


def restore(reference: VersionArgument, as_json: JsonOption = False) -> None:
    """Take a version out of the trash."""
    name, number = parse_version(reference)
    with open_registry(about=[name]) as registry:
        registry.retention.restore(name, number, actor=actor())
        version = registry.resolve(reference)
    if as_json:
        console.print_json({"reference": version.reference, "digest": version.digest, "restored": True})
        return
    console.print_line(f"{version.reference} ({console.short_digest(version.digest)}) is back")


def print_trash(rows: Sequence[TrashedVersion], as_json: bool) -> None:
    """Print what is in the trash."""
    if as_json:
        console.print_json([trashed_to_dict(row) for row in rows])
        return
    if not rows:
        console.note("The trash is empty.")
        return
    console.print_table(
        ["version", "digest", "deleted", "by", "restorable until", "why"],
        [
            [
                row.reference,
                console.short_digest(row.digest),
                console.short_time(row.deleted_at),
                row.deleted_by,
                console.short_time(row.purge_after) if row.state == "trashed" else "being purged",
                row.reason,
            ]
            for row in rows
        ],
    )


def trashed_to_dict(row: TrashedVersion) -> dict[str, object]:
    """Return a deleted version as plain JSON values."""
    return {
        "reference": row.reference,
        "digest": row.digest,
        "state": row.state,
        "reason": row.reason,
        "deleted_by": row.deleted_by,
        "deleted_at": row.deleted_at,
        "purge_after": row.purge_after,
    }


def pinned_endpoints(settings: Settings) -> dict[str, str]:
    """Return the endpoints of the settings and the references that they serve."""
    table = {name: endpoint.model for name, endpoint in settings.endpoints.items()}
    for name, endpoint in settings.endpoints.items():
        table |= {f"{name}.arms.{arm}": one.model for arm, one in endpoint.arms.items()}
        table |= {f"{name}.fallback": endpoint.fallback} if endpoint.fallback else {}
    return table


def parse_version(reference: str) -> tuple[str, int]:
    """Return name and number of `name/number`; an alias would make it unclear what is deleted."""
    from noa.errors import InvalidInputError
    from noa.references import parse_reference

    parsed = parse_reference(reference)
    if parsed.number is None:
        raise InvalidInputError(
            f"`{reference}` does not name one version by its number",
            expected="e.g. `digits/3`",
            remedy=f"List the numbers with: noa models list {parsed.name}",
        )
    return parsed.name, parsed.number


def _print_trial(reference: str, holds: Sequence[Hold], period: timedelta, as_json: bool) -> None:
    if as_json:
        rows = [{"kind": hold.kind, "holder": hold.holder, "release": hold.release} for hold in holds]
        console.print_json({"reference": reference, "dry_run": True, "allowed": not holds, "holds": rows})
        return
    if not holds:
        days = period / timedelta(days=1)
        console.print_line(f"would move {reference} to the trash; nothing needs it; restorable for {days:g} days")
        return
    console.print_table(
        ["what needs it", "which", "what would let go of it"],
        [[hold.kind, hold.holder, hold.release] for hold in holds],
        title=f"{reference} is in use and would be refused",
    )
