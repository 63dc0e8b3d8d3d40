"""`noa models`: what is registered, what holds an alias, and moving it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._command import add_command, new_group
from noa_cli._invocation import actor
from noa_cli._negated_terms import TermsCommand
from noa_cli._options import AliasOption, DryRunOption, JsonOption, ReasonOption
from noa_cli._registry import entry_to_dict, open_registry, report_to_dict, version_to_dict
from noa_cli.commands import (
    models_card,
    models_compare,
    models_export,
    models_lineage,
    models_measure,
    models_reproduce,
    models_search,
    models_verify,
)
from noa_cli.commands.models_approve import add_approvals
from noa_cli.commands.models_delete import add_retention, print_trash
from noa_cli.commands.models_import import add_import
from noa_cli.commands.models_signing import add_signing

if TYPE_CHECKING:
    from noa.errors import IntegrityError
    from noa_registry import Evidence, GateReport, LedgerEntry, Registry, Replica

ReferenceArgument = Annotated[str, typer.Argument(help="`name`, `name@alias`, `name/number`, or a digest.")]
ExpectOption = Annotated[
    int | None,
    typer.Option("--expect", help="Move only if the alias is at this version now; 0: only if it is not set."),
]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="Return when every running server that follows the alias serves the version.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0, help="How long to wait for the servers, seconds.")]


def build() -> typer.Typer:
    """Return the group with its commands."""
    group = new_group("List, inspect, promote and roll back versions.")
    add_command(group, list_models, name="list")
    for function in (show, check, models_verify.verify, promote, rollback, history, models_lineage.lineage):
        add_command(group, function)
    add_retention(group)
    add_command(group, models_compare.compare)
    add_command(group, models_measure.measure)
    add_command(group, models_search.search, kind=TermsCommand)
    add_command(group, models_export.export)
    add_command(group, models_card.card)
    add_command(group, models_reproduce.reproduce)
    add_approvals(group)
    add_import(group)
    add_signing(group)
    return group


def list_models(
    name: Annotated[str | None, typer.Argument(help="List the versions of this model instead.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Most rows.")] = 50,
    trash: Annotated[bool, typer.Option("--trash", help="List what is in the trash instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the models, or the versions of one model."""
    from noa.references import check_name

    with open_registry(about=[] if name is None or trash else [name]) as registry:
        if trash:
            print_trash(registry.retention.trashed(name)[:limit], as_json)
            return
        if name is None:
            models = registry.models()
            for problem in [model.problem for model in models if model.problem is not None]:
                console.note(problem, "red")
            lost = None if models else registry.find_lost_models()
            if lost is not None:
                console.note(str(lost), "red")
            if as_json:
                rows = [
                    {"name": m.name, "versions": m.versions, "newest": m.newest, "aliases": dict(m.aliases)}
                    for m in models
                ]
                console.print_json(rows)
                return
            if not models and lost is None:
                console.note("No model is registered yet; train one with `noa train RECIPE`.")
            aliases = {m.name: ", ".join(f"{alias} -> {number}" for alias, number in m.aliases.items()) for m in models}
            console.print_table(
                ["model", "versions", "newest", "aliases"],
                [[m.name, m.versions, m.newest, aliases[m.name] or None] for m in models],
            )
            return
        problems: list[IntegrityError] = []
        versions = registry.versions(check_name(name), limit=limit, problems=problems)
        for problem in problems:
            console.note(str(problem), "red")
        if as_json:
            console.print_json([version_to_dict(version) for version in versions])
            return
        console.print_table(
            ["version", "aliases", "native", "formats", "digest", "created", "by"],
            [
                [
                    v.reference,
                    ", ".join(v.aliases) or None,
                    v.native,
                    ", ".join(v.formats),
                    console.short_digest(v.digest),
                    console.short_time(v.created_at),
                    v.created_by,
                ]
                for v in versions
            ],
        )


def show(reference: ReferenceArgument, as_json: JsonOption = False) -> None:
    """Show one version: files, signature, data, environment and evidence."""
    from noa_registry.evidence.describing import describe_evidence

    with open_registry(about=[reference]) as registry:
        version = registry.resolve(reference)
        evidence = registry.evidence(version.name, version.number)
        location = registry.location(version)
    if as_json:
        rows = [
            {
                "kind": e.kind,
                "subject": e.subject,
                "digest": e.digest,
                "passed": e.passed,
                "values": dict(e.values),
                "created_at": e.created_at,
                "recorded": None if e.recording is None else e.recording.to_dict(),
            }
            for e in evidence
        ]
        console.print_json({**version_to_dict(version), "evidence": rows})
        return
    facts: list[list[object]] = [
        ["version", version.reference],
        ["digest", version.digest],
        ["aliases", ", ".join(version.aliases) or None],
        ["inputs", ", ".join(f"{spec.name} {spec.describe()}" for spec in version.signature.inputs)],
        ["outputs", ", ".join(f"{spec.name} {spec.describe()}" for spec in version.signature.outputs)],
        ["dataset", version.dataset_digest],
        ["run", version.run_id],
        ["git commit", version.git_commit],
        ["created", f"{console.short_time(version.created_at)} by {version.created_by}"],
        ["environment", ", ".join(f"{key} {value}" for key, value in version.environment.items())],
        ["params", ", ".join(f"{key}={value}" for key, value in version.params.items()) or None],
        ["files", location],
    ]
    console.print_table(["", version.name], facts, wrapped=[version.name])
    console.print_table(
        ["format", "digest", "files", "bytes"],
        [
            [f"{name}{' (native)' if name == version.native else ''}", console.short_digest(sealed.digest),
             len(sealed.manifest.files), sealed.manifest.size_bytes]
            for name, sealed in version.formats.items()
        ],
    )  # fmt: skip
    marks = {True: "passed", False: "FAILED", None: None}
    console.print_table(
        ["evidence", "of", "verdict", "values", "when", "by"],
        [
            [e.kind, e.subject, marks[e.passed], describe_evidence(e), console.short_time(e.created_at), _recorded(e)]
            for e in evidence
        ],
        wrapped=["values"],
    )


def _recorded(fact: Evidence) -> str | None:
    if fact.recording is None:
        return None
    return f"{fact.recording.by}, by hand" if fact.recording.way == "attached" else fact.recording.by


def check(reference: ReferenceArgument, alias: AliasOption = "champion", as_json: JsonOption = False) -> None:
    """Show each rule of the gate with its verdict, and keep the verdict as evidence; exit code 1 if it would refuse.

    Nothing moves.
    """
    with open_registry(about=[reference]) as registry:
        version = registry.resolve(reference)
        report = registry.check(version.name, version.number, alias=alias, record=not registry.is_read_only)
        if registry.is_read_only:
            console.note("The verdict was not kept: the database cannot be written by this user.")
    if as_json:
        console.print_json(report_to_dict(report))
    else:
        print_report(report)
    if not report.passed:
        raise typer.Exit(1)


def promote(
    reference: ReferenceArgument,
    alias: AliasOption = "champion",
    reason: ReasonOption = "none given",
    expect: ExpectOption = None,
    dry_run: DryRunOption = False,
    wait: WaitOption = False,
    timeout_s: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Move an alias to a version, if the gate allows it."""
    from noa.errors import GateRefusedError
    from noa_registry import EXPECT_ANY, GateReport

    with open_registry(about=[reference]) as registry:
        version = registry.resolve(reference)
        held = registry.resolve_digest(version.name, alias)
        if dry_run:
            report = registry.check(version.name, version.number, alias=alias, record=False, actor=actor())
            if as_json:
                console.print_json({**report_to_dict(report), "dry_run": True})
            else:
                print_report(report)
            raise typer.Exit(0 if report.passed else 1)
        try:
            entry = registry.promote(
                version.name,
                version.number,
                alias=alias,
                reason=reason,
                actor=actor(),
                expect=EXPECT_ANY if expect is None else (expect or None),
            )
        except GateRefusedError as exc:
            report = exc.facts.get("report")
            if isinstance(report, GateReport) and not as_json:
                print_report(report)
            raise
        served = _wait_for_servers(registry, entry, timeout_s) if wait else None
    if held is not None and held[0] == entry.to_number and not as_json:
        console.print_line(
            f"{version.reference} holds {version.name}@{alias} already, since ledger row {entry.sequence} "
            f"({entry.actor}: {entry.reason}); nothing was written"
        )
        return
    _print_move(entry, served, as_json)


def rollback(
    name: Annotated[str, typer.Argument(help="The model, `name` or `name@alias`.")],
    alias: AliasOption = "champion",
    reason: ReasonOption = "none given",
    expect: ExpectOption = None,
    dry_run: DryRunOption = False,
    wait: WaitOption = False,
    timeout_s: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Move an alias back to the version that held it before."""
    from noa.references import parse_reference
    from noa_registry import EXPECT_ANY

    reference = parse_reference(name)
    chosen = reference.alias or alias
    with open_registry(about=[f"{reference.name}@{chosen}"]) as registry:
        if dry_run:
            number = registry.previous(reference.name, alias=chosen)
            if as_json:
                console.print_json({"name": reference.name, "alias": chosen, "to": number, "dry_run": True})
            else:
                console.print_line(f"would move {reference.name}@{chosen} back to {reference.name}/{number}")
            return
        entry = registry.rollback(
            reference.name,
            alias=chosen,
            reason=reason,
            actor=actor(),
            expect=EXPECT_ANY if expect is None else (expect or None),
        )
        served = _wait_for_servers(registry, entry, timeout_s) if wait else None
    _print_move(entry, served, as_json)


def history(
    name: Annotated[str, typer.Argument(help="The model, `name` or `name@alias`.")],
    as_json: JsonOption = False,
) -> None:
    """Show who moved which alias, when, from where to where, and why."""
    from noa.references import parse_reference

    reference = parse_reference(name)
    with open_registry(about=[reference.name]) as registry:
        entries = registry.history(reference.name, alias=reference.alias)
    if as_json:
        console.print_json([entry_to_dict(entry) for entry in entries])
        return
    console.print_table(
        ["#", "when", "who", "action", "alias", "from", "to", "digest", "why"],
        [
            [
                e.sequence,
                console.short_time(e.created_at),
                e.actor,
                e.action,
                e.alias,
                e.from_number,
                e.to_number,
                console.short_digest(e.to_digest),
                e.reason or None,
            ]
            for e in entries
        ],
    )


def print_report(report: GateReport) -> None:
    """Print each rule of a gate with its verdict, and what to do about those that refuse."""
    console.print_table(
        ["rule", "verdict", "expected", "received"],
        [[v.rule, v.state if v.passed else "REFUSED", v.expected, v.received] for v in report.verdicts],
        title=f"Gate of {report.reference} for @{report.alias}: {'passed' if report.passed else 'refused'}",
        wrapped=["expected", "received"],
    )
    for origin, rules in _by_origin(report).items():
        console.print_line(f"{origin}: {', '.join(rules)}", "yellow" if origin.startswith("attached") else None)
    for verdict in report.refusals:
        if verdict.remedy is not None:
            console.print_line(f"{verdict.rule}: {verdict.remedy}")
    for verdict in report.warnings:
        console.print_line(f"warning: {verdict.warning}. {verdict.remedy or ''}".rstrip())


def _by_origin(report: GateReport) -> dict[str, list[str]]:
    """Return the rules by who recorded the facts that they used."""
    found: dict[str, list[str]] = {}
    for verdict in report.verdicts:
        for origin in verdict.recorded:
            found.setdefault(origin, []).append(verdict.rule)
    return found


def _wait_for_servers(registry: Registry, entry: LedgerEntry, timeout_s: float) -> list[Replica]:
    """Return the replicas that serve where the alias is now, when all of them do."""
    title = f"Waiting for the servers of {entry.name}@{entry.alias}"
    with console.step(title) as tell:
        served = registry.endpoints.wait_until_served(
            entry.name,
            entry.to_number,
            alias=entry.alias,
            timeout_s=timeout_s,
            tell=lambda late: tell("; ".join(str(replica) for replica in late)),
        )
        tell.end(f"{len(served)} at {entry.name}/{entry.to_number}" if served else "no server follows it")
    return served


def _print_move(entry: LedgerEntry, served: list[Replica] | None, as_json: bool) -> None:
    if as_json:
        table = entry_to_dict(entry)
        if served is not None:
            table["replicas"] = [replica.replica for replica in served]
        console.print_json(table)
        return
    came_from = "nothing" if entry.from_number is None else f"{entry.name}/{entry.from_number}"
    console.print_line(
        f"{entry.name}@{entry.alias}: {came_from} -> {entry.name}/{entry.to_number} "
        f"({console.short_digest(entry.to_digest)}), ledger row {entry.sequence}"
    )
