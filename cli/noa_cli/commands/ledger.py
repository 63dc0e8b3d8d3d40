"""`noa ledger`: every move of every alias, and whether the record is still what was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._command import add_command, new_group
from noa_cli._options import JsonOption
from noa_cli._registry import entry_to_dict, open_registry, store_problems

if TYPE_CHECKING:
    from noa_registry import LedgerEntry, LedgerReport

OutputOption = Annotated[
    Path | None, typer.Option("--output", metavar="FILE", help="Append the anchor to this file instead of printing it.")
]
AnchorOption = Annotated[
    list[Path] | None,
    typer.Option("--anchor", metavar="FILE", help="Compare with this anchor file too (repeatable)."),
]


def build() -> typer.Typer:
    """Return the group with its commands."""
    group = new_group("Show and verify the ledger of all promotions, and anchor it outside of the database.")
    for function in (show, verify, anchor):
        add_command(group, function)
    return group


def show(
    model: Annotated[str | None, typer.Option("--model", help="Only the moves of this model.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Most rows.")] = 50,
    before: Annotated[int | None, typer.Option("--before", help="Go on with the rows before this one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the rows of the ledger, newest first."""
    from noa.references import check_name

    with open_registry() as registry:
        name = None if model is None else check_name(model)
        entries = registry.ledger.entries(name=name, limit=limit, before=before)
    if as_json:
        console.print_json([_row_to_dict(entry) for entry in entries])
        return
    if not entries:
        console.note("No alias has moved yet; promote a version with `noa models promote NAME/NUMBER`.")
        return
    console.print_table(
        ["#", "when", "who", "action", "what", "from", "to", "approved by", "why", "hash"],
        [
            [
                e.sequence,
                console.short_time(e.created_at),
                e.actor,
                e.action,
                f"{e.name}@{e.alias}",
                e.from_number,
                e.to_number,
                ", ".join(_approvers(e)) or None,
                e.reason,
                console.short_digest(e.hash),
            ]
            for e in entries
        ],
    )


def verify(anchors: AnchorOption = None, as_json: JsonOption = False) -> None:
    """Check the chain, aliases, approvals used, anchors, and whose the store is. Exit code 1 if something differs."""
    from noa_registry import read_anchors

    kept = [head for path in anchors or [] for head in read_anchors(path)]
    with open_registry() as registry:
        report = registry.ledger.verify(anchors=kept)
        strange = store_problems(registry)
    if as_json:
        console.print_json(
            {**_report_to_dict(report), "store": [{"what": exc.what, "remedy": exc.remedy} for exc in strange]}
        )
    else:
        for problem in report.problems:
            console.print_line(str(problem), "red")
        for exc in strange:
            console.print_line(str(exc), "red")
        end = "" if report.head is None else f", up to {report.head.hash}"
        against = f" and {console.count(report.anchors, 'anchor')}" if report.anchors else ""
        found = console.count(len(report.problems) + len(strange), "problem")
        console.print_line(f"{console.count(report.rows, 'row')}{against} checked: {found}{end}")
    if report.problems or strange:
        raise typer.Exit(1)


def anchor(output: OutputOption = None, as_json: JsonOption = False) -> None:
    """Print the newest row's number and hash, or append them to a file: kept elsewhere they show a forged ledger."""
    from noa.errors import NotFoundError
    from noa_registry.ledger_anchors import AnchorFile

    with open_registry() as registry:
        head = registry.ledger.head()
    if head is None:
        raise NotFoundError("the ledger is empty", remedy="Promote a version first: noa models promote NAME/NUMBER")
    if output is not None:
        AnchorFile(output).append(head)
    if output is None or as_json:
        console.print_json(head.to_dict())
    else:
        console.print_line(f"row {head.sequence} ({console.short_digest(head.hash)}) is anchored in {output}")


def _approvers(entry: LedgerEntry) -> list[str]:
    used = entry.verdict.get("approvals")
    return [str(one.get("principal")) for one in used if isinstance(one, dict)] if isinstance(used, list) else []


def _row_to_dict(entry: LedgerEntry) -> dict[str, object]:
    return {**entry_to_dict(entry), "previous_hash": entry.previous_hash, "verdict": dict(entry.verdict)}


def _report_to_dict(report: LedgerReport) -> dict[str, object]:
    return {
        "rows": report.rows,
        "anchors": report.anchors,
        "head": None if report.head is None else report.head.to_dict(),
        "problems": [
            {"row": p.sequence, "what": p.what, "expected": p.expected, "received": p.received, "remedy": p.remedy}
            for p in report.problems
        ],
    }
