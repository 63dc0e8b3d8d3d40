"""`noa gc`: remove for good what nothing needs. Shows what and why; does it only when told to."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._invocation import actor, current
from noa_cli._options import JsonOption
from noa_cli._registry import open_registry
from noa_cli.commands.models_delete import pinned_endpoints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from noa.settings import Settings
    from noa_registry import GcItem, GcPlan, GcReport, Proposal, Registry

_MOST_ROWS = 50
_MOST_YOUNG = 5
_MOST_WAITING = 5


def gc(
    apply: Annotated[bool, typer.Option("--apply", help="Do it. Without it, only show what would be done.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be done; that is the default.")
    ] = False,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="Also model files that no version names. Look at them first.")
    ] = False,
    policy: Annotated[
        bool, typer.Option("--policy", help="Instead: old versions that were never promoted, for the trash.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove deleted versions past their grace period, and files that no version needs; shows them first.

    Nothing that an alias, a rollback, a server or a writer needs is touched. Sealed files that no version names stay,
    unless `--unknown` asks for them: after the loss of a database they are the models.

    With `--policy`, old versions are proposed for the trash, from where they can be restored; nothing is purged.
    """
    from noa.errors import InvalidInputError

    if apply and dry_run:
        raise InvalidInputError("`--apply` and `--dry-run` exclude each other", expected="one of them")
    if policy and unknown:
        raise InvalidInputError("`--policy` and `--unknown` exclude each other", expected="one of them")
    settings = current().settings()
    with open_registry(settings) as registry:
        if policy:
            _run_policy(registry, settings, apply, as_json)
        else:
            _collect(registry, settings, apply, unknown, as_json)
            _collect_requests(settings, apply, as_json)


def _collect_requests(settings: Settings, apply: bool, as_json: bool) -> None:
    """Remove what killed trainings left beside the jobs; they hold no model."""
    from noa_flows import clear_dead_requests, dead_requests

    jobs = settings.training.jobs_dir
    count = clear_dead_requests(jobs) if apply else len(dead_requests(jobs))
    if count and not as_json:
        what = console.count(count, "request")
        console.print_line(
            f"{what} of trainings that were killed: {'removed' if apply else 'noa gc --apply removes them'}"
        )


def _collect(registry: Registry, settings: Settings, apply: bool, unknown: bool, as_json: bool) -> None:
    pinned = pinned_endpoints(settings)
    retention = settings.retention
    with console.step("Looking for what nothing needs") as tell:
        plan = registry.retention.plan_gc(
            endpoints=pinned,
            orphan_age=timedelta(hours=retention.orphan_hours),
            cache_age=timedelta(days=retention.cache_days),
            unknown=unknown,
            grace=timedelta(days=retention.grace_days),
        )
        tell.end(f"{len(plan.items)} found")
    if not as_json:
        _print_plan(plan)
    if not apply:
        if as_json:
            console.print_json({"dry_run": True, **_plan_to_dict(plan)})
        elif plan.items:
            console.print_line(f"Nothing was removed. Do it with: noa gc{' --unknown' if unknown else ''} --apply")
        return
    with console.step(f"Removing {console.count(len(plan.items), 'item')}") as tell:
        report = registry.retention.apply(
            plan, actor=actor(), endpoints=pinned, tell=lambda item: tell(f"{item.kind} {item.key[:60]}")
        )
    _print_report(plan, report, as_json)


def _run_policy(registry: Registry, settings: Settings, apply: bool, as_json: bool) -> None:
    from noa.errors import ConflictError, NotFoundError
    from noa_registry import RetentionPolicy

    retention, pinned = settings.retention, pinned_endpoints(settings)
    chosen = RetentionPolicy(keep_newest=retention.keep_newest, keep_age=timedelta(days=retention.keep_days))
    proposals = registry.retention.propose(chosen, endpoints=pinned)
    moved: list[str] = []
    if apply:
        for proposal in proposals:
            try:
                registry.retention.delete(
                    proposal.name,
                    proposal.number,
                    reason=proposal.reason,
                    actor=actor(),
                    grace=timedelta(days=retention.grace_days),
                    endpoints=pinned,
                )
            except (ConflictError, NotFoundError) as exc:  # needed or deleted since we looked
                console.note(f"{proposal.reference} stays: {exc}")
                continue
            moved.append(proposal.reference)
    _print_proposals(proposals, moved, apply, as_json)


def _print_plan(plan: GcPlan) -> None:
    if not plan.items:
        console.print_line("Nothing to remove.")
    else:
        shown = plan.items[:_MOST_ROWS]
        console.print_table(
            ["what", "which", "bytes", "why"],
            [[item.kind, _short_key(item), f"{item.size_bytes:,}", item.reason] for item in shown],
        )
        if len(plan.items) > len(shown):
            counts = ", ".join(f"{count} x {kind}" for kind, count in Counter(i.kind for i in plan.items).items())
            console.print_line(f"... and {len(plan.items) - len(shown):,} more (in all: {counts}); --json shows all")
        console.print_line(f"{console.count(len(plan.items), 'item')}, {console.count(plan.size_bytes, 'byte')}")
    if plan.unknown:
        what, size = (
            console.count(len(plan.unknown), "unit"),
            console.count(sum(i.size_bytes for i in plan.unknown), "byte"),
        )
        console.print_line(
            f"{what} ({size}) of no version that the database knows: kept, for it may be an older backup. "
            "See them with: noa gc --unknown",
            "yellow",
        )
    if plan.young:
        console.print_line(
            f"{console.count(len(plan.young), 'unit')} of no version that the database knows: too young to be removed, "
            f"{'; '.join(f'{item.key}: {item.reason}' for item in plan.young[:_MOST_YOUNG])}",
            "yellow",
        )
    if plan.waiting:
        shown = [f"{one.reference} until {console.short_time(one.purge_after)}" for one in plan.waiting[:_MOST_WAITING]]
        more = len(plan.waiting) - len(shown)
        console.print_line(
            f"{console.count(len(plan.waiting), 'version')} in the trash can still be restored, and then may go: "
            f"{', '.join(shown)}{f' and {more:,} more (noa models list --trash)' if more else ''}"
        )
    for kept in plan.kept:
        holds = "; ".join(str(hold) for hold in kept.holds)
        console.print_line(f"{kept.reference} is kept, although its grace period is over: {holds}", "yellow")


def _print_report(plan: GcPlan, report: GcReport, as_json: bool) -> None:
    if as_json:
        console.print_json(
            {
                "dry_run": False,
                **_plan_to_dict(plan),
                "removed": [_item_to_dict(item) for item in report.removed],
                "skipped": [{**_item_to_dict(one.item), "reason": one.reason} for one in report.skipped],
                "freed_bytes": report.freed_bytes,
            }
        )
        return
    for one in report.skipped:
        console.print_line(f"kept: {one.item.kind} {_short_key(one.item)}: {one.reason}", "yellow")
    removed, freed = console.count(len(report.removed), "item"), console.count(report.freed_bytes, "byte")
    console.print_line(f"{removed} removed, {freed} given back")


def _print_proposals(proposals: Sequence[Proposal], moved: list[str], apply: bool, as_json: bool) -> None:
    if as_json:
        rows = [
            {"reference": one.reference, "digest": one.digest, "created_at": one.created_at, "reason": one.reason}
            for one in proposals
        ]
        console.print_json({"dry_run": not apply, "proposals": rows, "moved": moved})
        return
    if not proposals:
        console.print_line("The policy proposes nothing.")
        return
    console.print_table(
        ["version", "digest", "registered"],
        [[one.reference, console.short_digest(one.digest), console.short_time(one.created_at)]
         for one in proposals[:_MOST_ROWS]],
        title=proposals[0].reason,
    )  # fmt: skip
    if len(proposals) > _MOST_ROWS:
        console.print_line(f"... and {len(proposals) - _MOST_ROWS:,} more")
    if apply:
        moved_text = console.count(len(moved), "version")
        console.print_line(f"{moved_text} moved to the trash; see them with: noa models list --trash")
    else:
        console.print_line(f"Move these {len(proposals)} to the trash with: noa gc --policy --apply")


def _plan_to_dict(plan: GcPlan) -> dict[str, object]:
    return {
        "items": [_item_to_dict(item) for item in plan.items],
        "kept": [{"reference": kept.reference, "because": [str(hold) for hold in kept.holds]} for kept in plan.kept],
        "waiting": [{"reference": one.reference, "purge_after": one.purge_after} for one in plan.waiting],
        "young": [_item_to_dict(item) for item in plan.young],
        "unknown": [_item_to_dict(item) for item in plan.unknown],
        "bytes": plan.size_bytes,
    }


def _item_to_dict(item: GcItem) -> dict[str, object]:
    return {"kind": item.kind, "key": item.key, "reason": item.reason, "bytes": item.size_bytes}


def _short_key(item: GcItem) -> str:
    return console.short_digest(item.key) if item.key.startswith("sha256:") else item.key
