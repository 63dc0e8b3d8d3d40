"""`noa models verify`: files, records, evidence, the ledger and MLflow's rows against what was sealed; and repair."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from noa_cli import _console as console
from noa_cli._invocation import actor
from noa_cli._options import JsonOption, YesOption
from noa_cli._registry import open_registry, store_problems

if TYPE_CHECKING:
    from noa.errors import IntegrityError, NoaError
    from noa.references import ModelReference
    from noa_registry import Discrepancy, FileRepair, Registry

_T = TypeVar("_T")
_MOST_LINES = 200
_MOST_UNITS = 5
_MOST_UNREACHED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    """One thing that differs: where, what, what was expected and received, and what helps.

    `moved` is no harm done: the project lies elsewhere than MLflow's rows say.
    """

    subject: str
    what: str
    expected: str | None = None
    received: str | None = None
    remedy: str | None = None
    kind: Literal["changed", "moved"] = "changed"

    def __str__(self) -> str:
        text = f"{self.subject}: {self.what}"
        text += f"; expected {self.expected}" if self.expected else ""
        text += f"; received {self.received}" if self.received else ""
        return f"{text}. {self.remedy}" if self.remedy else text

    def outcome(self) -> str:
        """Return what was found, for a list of what was repaired."""
        return f"{self.subject}: {self.what}: {self.received or 'nothing'} -> {self.expected or 'nothing'}"

    def to_dict(self) -> dict[str, str | None]:
        return {
            "kind": self.kind,
            "subject": self.subject,
            "what": self.what,
            "expected": self.expected,
            "received": self.received,
            "remedy": self.remedy,
        }


def verify(
    reference: Annotated[
        str | None, typer.Argument(help="`name`, `name@alias` or `name/number`; nothing: every version.")
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Write MLflow's rows anew, and put damaged files back where their bytes exist elsewhere."
        ),
    ] = False,
    adopt_store: Annotated[
        bool,
        typer.Option(
            "--adopt-store",
            help="First let this project have the store of another registry; e.g. the database of it is lost for good.",
        ),
    ] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Hash every sealed file again and compare; also records, evidence, the ledger, MLflow's rows and the store.

    Exit code 1 if something differs and was not repaired.
    """
    with open_registry(about=[] if reference is None else [reference]) as registry:
        if adopt_store:
            _adopt_store(registry, yes)
        repaired, problems = _repair_rows(registry) if repair else ([], [])
        cells = registry.find_foreign_cells()
        targets = _targets(registry, reference)
        gone = 0
        with console.step(f"Verifying {console.count(len(targets), 'version')}") as tell:
            for target in targets:
                tell(str(target))
                found, put_back, gone = _check_version(registry, target, repair, gone)
                told = {str(problem) for problem in found}
                problems += [*found, *(one for one in _check_records(registry, target) if str(one) not in told)]
                repaired += put_back
        problems += _check_ledger(registry, cells)
        problems += _looked_at("times", registry.find_time_problems, lambda exc: _of_error("database", exc))
        problems += _check_store(registry)
        problems += _looked_at("MLflow's rows", registry.mirror_discrepancies, _of_mirror)
    told = {problem.what for problem in problems}  # what a version's own check says is said once
    problems[:0] = [found for exc in cells if (found := _of_error("database", exc)).what not in told]
    _print(len(targets), problems, repaired, as_json)
    if problems:
        raise typer.Exit(1)


def _repair_rows(registry: Registry) -> tuple[list[str], list[_Finding]]:
    """Write MLflow's rows anew; return what was repaired, and why nothing was."""
    from noa.errors import IntegrityError

    try:
        return [found.outcome() for found in map(_of_mirror, registry.repair_mirror())], []
    except IntegrityError as exc:
        return [], [_undone("MLflow's rows were not written anew", exc)]


def _looked_at(what: str, look: Callable[[], list[_T]], tell: Callable[[_T], _Finding]) -> list[_Finding]:
    """Return what a check finds; where it stops at a row that somebody changed, that it was not done."""
    from noa.errors import IntegrityError

    try:
        return [tell(found) for found in look()]
    except IntegrityError as exc:
        return [_undone(f"{what} were not checked to the end", exc)]


def _undone(what: str, error: IntegrityError) -> _Finding:
    found = _of_error("database", error)
    return replace(found, what=f"{what}: {found.what}")


def _adopt_store(registry: Registry, yes: bool) -> None:
    """Show whose the store is and what goes with it, and take it over if somebody says yes."""
    from noa.errors import ConflictError

    seen = registry.look_at_store()
    whose = "this registry's" if seen.is_ours else "nobody's" if seen.owner is None else f"registry {seen.owner}'s"
    console.note(f"The store at {seen.where} is {'marked with what cannot be read' if seen.problems else whose}.")
    for problem in seen.problems:
        console.note(problem, "red")
    head = seen.head
    if head is not None:
        moment = head.created_at.isoformat(timespec="seconds")
        console.note(f"The ledger that it remembers ends with row {head.sequence}, of {moment}: {head.hash}")
    units = ", ".join(f"{key.name}/{key.uid}" for key in seen.unknown[:_MOST_UNITS])
    more = f": {units}{', ...' if len(seen.unknown) > _MOST_UNITS else ''}" if units else ""
    console.note(f"This database does not know {console.count(len(seen.unknown), 'unit')} of it{more}")
    if not yes and not (sys.stdin.isatty() and typer.confirm("Let this registry have the store?", err=True)):
        raise ConflictError(
            "the store was not adopted: nobody said yes",
            where=seen.where,
            expected="`--yes`, or a yes at a terminal",
            remedy="If the database of its registry is lost for good: noa models verify --adopt-store --yes",
        )
    registry.adopt_store(actor=actor())


def _check_version(
    registry: Registry, target: ModelReference, repair: bool, gone: int
) -> tuple[list[_Finding], list[str], int]:
    """Return what differs, what was put back, and how many versions in a row could not be reached, of which `gone`."""
    from noa.errors import IntegrityError, StorageError

    name, number = target.name, target.number or 0
    repaired: list[str] = []
    try:
        try:
            registry.verify(name, number)
        except IntegrityError:
            if not repair:
                raise
            done = registry.repair_files(name, number)
            repaired = [str(one) for one in done if one.is_repaired]
            registry.verify(name, number)
    except IntegrityError as exc:
        left = list(_lost_files(registry, target)) if repair else []
        return left or [_of_error(str(target), exc)], repaired, 0
    except StorageError as exc:
        if gone + 1 >= _MOST_UNREACHED:  # nothing answers any more
            raise
        return [_of_error(str(target), exc)], repaired, gone + 1
    return [], repaired, 0


def _check_store(registry: Registry) -> list[_Finding]:
    from noa.errors import StorageError

    try:
        found = store_problems(registry)
    except StorageError as exc:
        return [_of_error("store", exc)]
    return [_of_error("store", exc) for exc in found]


def _check_records(registry: Registry, target: ModelReference) -> list[_Finding]:
    return _looked_at(
        f"the records of {target}",
        lambda: registry.find_record_problems(target.name, target.number or 0),
        lambda exc: _of_error(str(target), exc),
    )


def _lost_files(registry: Registry, target: ModelReference) -> Iterator[_Finding]:
    from noa.errors import IntegrityError

    try:
        done: list[FileRepair] = registry.repair_files(target.name, target.number or 0)
    except IntegrityError:  # the record itself was changed, nobody knows what the files should be
        return
    for one in done:
        if not one.is_repaired:
            yield _Finding(subject=str(target), what=f"`{one.path}` {one.verb} {one.change}; {one.how}")


def _check_ledger(registry: Registry, cells: list[IntegrityError]) -> list[_Finding]:
    """Return the first thing that is wrong with the ledger, beside the cells that are named already."""
    from noa.errors import IntegrityError

    told = {f"{exc.what} ({exc.where})" for exc in cells}
    try:
        found = [problem for problem in registry.ledger.verify().problems if problem.what not in told]
    except IntegrityError as exc:
        return [_of_error("ledger", exc)]
    return [_of_error("ledger", problem.to_error()) for problem in found[:1]]


def _of_error(subject: str, error: NoaError) -> _Finding:
    what = error.what if error.where is None else f"{error.what} ({error.where})"
    remedy = error.remedy or "Put back what can be put back with: noa models verify --repair"
    return _Finding(subject=subject, what=what, expected=error.expected, received=error.received, remedy=remedy)


def _of_mirror(found: Discrepancy) -> _Finding:
    if found.field == "moved":
        return _Finding(
            subject="project",
            what=f"was moved or copied: MLflow's rows name the old place of the {found.subject}",
            expected=found.expected,
            received=found.received,
            remedy="noa uses the files where they are now; let MLflow do so too with: noa models verify --repair",
            kind="moved",
        )
    if found.field == "foreign":
        return _Finding(
            subject=f"MLflow's row of {found.name}, {found.subject}",
            what="was made by another program inside a model of noa's",
            expected=found.expected,
            received=found.received,
            remedy="Nothing of it is served; it stays until you delete this version with MLflow's client or page",
        )
    if found.field == "record":
        return _Finding(
            subject=f"MLflow's row of {found.name}, {found.subject}",
            what="noa's own record was changed, so nothing of it is copied",
            expected=found.expected,
            received=found.received,
            remedy="Restore a backup of the database",
        )
    if found.field == "index":
        return _Finding(
            subject=f"index of search, {found.name}, {found.subject}",
            what=f"is not what the {'evidence' if found.number is None else 'record'} says",
            expected=found.expected,
            received=found.received,
            remedy="Search may answer wrongly, gates do not; write the index anew: noa models verify --repair",
        )
    if found.field == "undone":
        return _Finding(
            subject="database",
            what=f"the {found.subject} were not compared to the end: a cell was changed",
            expected=found.expected,
            received=found.received,
            remedy="Restore a backup of the database",
        )
    if found.field == "guard":
        subject, what = "database", f"{found.subject} was dropped"
    else:
        what = "was changed behind noa's back" + {
            "description": " (description)",
            "run_id": " (run)",
            "source": " (source)",
            "stage": " (stage)",
            "tag": f" (tag `{found.key}`)",
            "metric": " (metric)",
        }.get(found.field, "")
        place = "MLflow's" if found.field == "experiment" else f"MLflow's row of {found.name},"
        subject = f"{place} {found.subject}"
    return _Finding(
        subject=subject,
        what=what,
        expected=found.expected,
        received=found.received,
        remedy="Nothing of it is served; write MLflow's rows anew with: noa models verify --repair",
    )


def _print(checked: int, problems: list[_Finding], repaired: list[str], as_json: bool) -> None:
    if as_json:
        console.print_json(
            {"checked": checked, "problems": [problem.to_dict() for problem in problems], "repaired": repaired}
        )
        return
    for text in repaired[:_MOST_LINES]:
        console.print_line(f"repaired: {text}", "green")
    for problem in problems[:_MOST_LINES]:
        console.print_line(str(problem), "red")
    hidden = max(len(repaired) - _MOST_LINES, 0) + max(len(problems) - _MOST_LINES, 0)
    if hidden:
        console.print_line(f"... and {hidden:,} more; --json shows all")
    counted = console.count(len(problems), "problem")
    console.print_line(f"{console.count(checked, 'version')}, the ledger and MLflow's rows checked: {counted}")


def _targets(registry: Registry, reference: str | None) -> list[ModelReference]:
    """Return the versions that a reference means: one, all of a model, or all."""
    from noa.references import ModelReference, parse_reference

    parsed = None if reference is None else parse_reference(reference)
    if parsed is not None and parsed.number is not None:
        return [parsed]  # not resolved: a record that was changed is a finding, not the end
    if parsed is not None and parsed.alias is not None:
        version = registry.resolve(parsed)
        return [ModelReference(name=version.name, number=version.number)]
    names = [model.name for model in registry.models()] if parsed is None else [parsed.name]
    return [ModelReference(name=name, number=number) for name in names for number in reversed(registry.numbers(name))]
