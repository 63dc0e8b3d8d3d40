"""`noa models`: what is registered, what holds an alias, and moving it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._command import add_command, new_group
from noa_cli._invocation import actor
from noa_cli._options import AliasOption, DryRunOption, JsonOption, ReasonOption
from noa_cli._registry import entry_to_dict, open_registry, report_to_dict, version_to_dict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from noa.references import ModelReference
    from noa_registry import Discrepancy, GateReport, LedgerEntry, Registry

ReferenceArgument = Annotated[str, typer.Argument(help="`name`, `name@alias` or `name/number`.")]
ExpectOption = Annotated[
    int | None,
    typer.Option("--expect", help="Move only if the alias is at this version now; 0: only if it is not set."),
]


def build() -> typer.Typer:
    """Return the group with its commands."""
    group = new_group("List, inspect, promote and roll back versions.")
    add_command(group, list_models, name="list")
    for function in (show, check, verify, promote, rollback, history):
        add_command(group, function)
    return group


def list_models(
    name: Annotated[str | None, typer.Argument(help="List the versions of this model instead.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Most rows.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List the models, or the versions of one model."""
    from noa.references import check_name

    with open_registry() as registry:
        if name is None:
            models = registry.models()
            if as_json:
                rows = [
                    {"name": m.name, "versions": m.versions, "newest": m.newest, "aliases": dict(m.aliases)}
                    for m in models
                ]
                console.print_json(rows)
                return
            if not models:
                console.note("No model is registered yet; train one with `noa train RECIPE`.")
            aliases = {m.name: ", ".join(f"{alias} -> {number}" for alias, number in m.aliases.items()) for m in models}
            console.print_table(
                ["model", "versions", "newest", "aliases"],
                [[m.name, m.versions, m.newest, aliases[m.name] or None] for m in models],
            )
            return
        versions = registry.versions(check_name(name), limit=limit)
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
    with open_registry() as registry:
        version = registry.resolve(reference)
        evidence = registry.evidence(version.name, version.number)
    if as_json:
        rows = [
            {
                "kind": e.kind,
                "subject": e.subject,
                "digest": e.digest,
                "passed": e.passed,
                "values": dict(e.values),
                "created_at": e.created_at,
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
        ["folder", version.folder],
    ]
    console.print_table(["", version.name], facts)
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
        ["evidence", "of", "verdict", "values", "when"],
        [[e.kind, e.subject, marks[e.passed], _values(e.values), console.short_time(e.created_at)] for e in evidence],
    )


def check(reference: ReferenceArgument, alias: AliasOption = "champion", as_json: JsonOption = False) -> None:
    """Show each rule of the gate with its verdict, without moving anything; exit code 1 if it would refuse."""
    with open_registry() as registry:
        version = registry.resolve(reference)
        report = registry.check(version.name, version.number, alias=alias)
    if as_json:
        console.print_json(report_to_dict(report))
    else:
        print_report(report)
    if not report.passed:
        raise typer.Exit(1)


def verify(
    reference: Annotated[
        str | None, typer.Argument(help="`name`, `name@alias` or `name/number`; nothing: every version.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Write MLflow's rows anew where somebody moved them behind noa's back.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Hash every sealed file again and compare; also the ledger and MLflow's rows. Exit code 1 if something differs."""
    with open_registry() as registry:
        repaired = [_discrepancy(found) for found in registry.repair_mirror()] if repair else []
        targets = _targets(registry, reference)
        with console.step(f"Verifying {len(targets)} versions") as tell:
            problems = list(_problems(registry, targets, tell))
    if as_json:
        console.print_json({"checked": len(targets), "problems": problems, "repaired": repaired})
    else:
        for text in repaired:
            console.print_line(f"repaired: {text}", "green")
        for problem in problems:
            console.print_line(problem, "red")
        console.print_line(f"{len(targets)} versions, the ledger and MLflow's rows checked: {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


def promote(
    reference: ReferenceArgument,
    alias: AliasOption = "champion",
    reason: ReasonOption = "none given",
    expect: ExpectOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Move an alias to a version, if the gate allows it."""
    from noa.errors import GateRefusedError
    from noa_registry import EXPECT_ANY, GateReport

    with open_registry() as registry:
        version = registry.resolve(reference)
        if dry_run:
            report = registry.check(version.name, version.number, alias=alias)
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
    _print_move(entry, as_json)


def rollback(
    name: Annotated[str, typer.Argument(help="The model, `name` or `name@alias`.")],
    alias: AliasOption = "champion",
    reason: ReasonOption = "none given",
    expect: ExpectOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Move an alias back to the version that held it before."""
    from noa.references import parse_reference
    from noa_registry import EXPECT_ANY

    reference = parse_reference(name)
    chosen = reference.alias or alias
    with open_registry() as registry:
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
    _print_move(entry, as_json)


def history(
    name: Annotated[str, typer.Argument(help="The model, `name` or `name@alias`.")],
    as_json: JsonOption = False,
) -> None:
    """Show who moved which alias, when, from where to where, and why."""
    from noa.references import parse_reference

    reference = parse_reference(name)
    with open_registry() as registry:
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
    """Print each rule of a gate with its verdict."""
    console.print_table(
        ["rule", "verdict", "expected", "received"],
        [[v.rule, "passed" if v.passed else "REFUSED", v.expected, v.received] for v in report.verdicts],
        title=f"Gate of {report.reference} for @{report.alias}: {'passed' if report.passed else 'refused'}",
    )


def _targets(registry: Registry, reference: str | None) -> list[ModelReference]:
    """Return the versions that a reference means: one, all of a model, or all."""
    from noa.references import ModelReference, parse_reference

    parsed = None if reference is None else parse_reference(reference)
    if parsed is not None and (parsed.number is not None or parsed.alias is not None):
        version = registry.resolve(parsed)
        return [ModelReference(name=version.name, number=version.number)]
    names = [model.name for model in registry.models()] if parsed is None else [parsed.name]
    return [ModelReference(name=name, number=number) for name in names for number in reversed(registry.numbers(name))]


def _problems(registry: Registry, targets: list[ModelReference], tell: console.Step) -> Iterator[str]:
    from noa.errors import IntegrityError

    for target in targets:
        tell(str(target))
        try:
            registry.verify(target.name, target.number or 0)
        except IntegrityError as exc:
            yield f"{target}: {exc}"
    try:
        registry.verify_ledger()
    except IntegrityError as exc:
        yield f"ledger: {exc}"
    for found in registry.mirror_discrepancies():
        yield f"{_discrepancy(found)}; `noa models verify --repair` writes MLflow's rows anew"


def _discrepancy(found: Discrepancy) -> str:
    return f"MLflow's row of {found.name}, {found.subject}: expected {found.expected}; received {found.received}"


def _print_move(entry: LedgerEntry, as_json: bool) -> None:
    if as_json:
        console.print_json(entry_to_dict(entry))
        return
    came_from = "nothing" if entry.from_number is None else f"{entry.name}/{entry.from_number}"
    console.print_line(
        f"{entry.name}@{entry.alias}: {came_from} -> {entry.name}/{entry.to_number} "
        f"({console.short_digest(entry.to_digest)}), ledger row {entry.sequence}"
    )


def _values(values: object) -> str:
    if not isinstance(values, dict):
        return ""
    parts: list[str] = []
    for key, value in values.items():  # pyright: ignore[reportUnknownVariableType]  # evidence values are free JSON
        if isinstance(value, float):
            parts.append(f"{key}={value:.4g}")
        elif isinstance(value, str):
            parts.append(f"{key}={console.short_digest(value) if value.startswith('sha256:') else value}")
        elif isinstance(value, (int, bool)):
            parts.append(f"{key}={value}")
    return ", ".join(parts)
