"""The ledger as a book to look into: its newest row, its pages, and whether it is still what was written.

`verify` checks everything that hangs together: the chain of rows, the aliases and their stacks against the moves, the
approvals that rows name, the events that tell of the moves, and the anchors that were kept outside of the database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, cast

from sqlalchemy import Connection, Row, select

from noa.errors import IntegrityError, InvalidInputError
from noa_registry.alias_stack import check_stacks
from noa_registry.clock import CLOCK_TOLERANCE
from noa_registry.database import Database
from noa_registry.events.log import DEFAULT_KEEP
from noa_registry.foreign_cells import find_foreign_cells, tried
from noa_registry.identity import find_registry_id
from noa_registry.ledger import LedgerEntry, LedgerProblem, Place, apply_move, chain_problems
from noa_registry.ledger_anchors import AnchorFile, LedgerHead, head_of, read_anchors
from noa_registry.ledger_events import EventCheck
from noa_registry.ledger_rows import StoredEntry
from noa_registry.records import iterate_stored, last_entry, load_entries, load_entry
from noa_registry.tables import aliases, ledger

if TYPE_CHECKING:
    from noa_registry.approvals.desk import ApprovalDesk

_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReport:
    """What a verification found. `anchors` is how many were compared; `head` is None for an empty ledger."""

    rows: int
    head: LedgerHead | None
    anchors: int
    problems: tuple[LedgerProblem, ...]


class LedgerBook:
    """Read and verify the ledger of one registry. `anchor` is the file that every move is anchored in, if any."""

    def __init__(
        self,
        database: Database,
        *,
        approvals: ApprovalDesk,
        anchor: AnchorFile | None,
        clock_tolerance: timedelta = CLOCK_TOLERANCE,
        keep_events: timedelta = DEFAULT_KEEP,
    ) -> None:
        self._database = database
        self._approvals = approvals
        self._anchor = anchor
        self._clock_tolerance = clock_tolerance
        self._keep_events = keep_events

    def head(self) -> LedgerHead | None:
        """Return the newest row and its hash: what to keep elsewhere; None for an empty ledger."""
        with self._database.snapshot() as connection:
            last = last_entry(connection)
            return None if last is None else head_of(load_entry(connection, last[0]), find_registry_id(connection))

    def entries(self, *, name: str | None = None, limit: int = 50, before: int | None = None) -> list[LedgerEntry]:
        """Return rows of the whole ledger or of one model, newest first; `before` continues after a page."""
        if limit < 1:
            raise InvalidInputError("a page must not be empty", expected="limit >= 1", received=str(limit))
        with self._database.read() as connection:
            return load_entries(connection, name=name, limit=limit, before=before)

    def verify(self, *, anchors: Sequence[LedgerHead] = ()) -> LedgerReport:
        """Check the whole ledger, also against `anchors` and against those of the configured anchor file.

        Raises:
            IntegrityError: the configured anchor file is not readable.
            InvalidInputError: an anchor belongs to another registry.
        """
        kept = [*anchors, *self._kept()]
        with self._database.snapshot() as connection:
            _refuse_foreign(kept, find_registry_id(connection))
            reading = _Reading(kept, self._clock_tolerance)
            problems = list(chain_problems(reading.follow(iterate_stored(connection)), fault=reading.fault))
            problems += reading.problems
            problems += reading.beyond_the_end()
            spoilt = find_foreign_cells(connection)
            # The cells of the ledger itself are named above, each with its row.
            problems += [_of_cell(found) for found in spoilt if found.facts.get("file") != ledger.name]
            if reading.is_whole:
                problems += tried(lambda: _alias_problems(connection, reading), spoilt, _undone("the aliases"))
            uses = reading.uses
            problems += tried(lambda: self._approval_problems(connection, uses), spoilt, _undone("the approvals"))
            problems += tried(
                lambda: reading.events.problems(connection, keep=self._keep_events, tolerance=self._clock_tolerance),
                spoilt,
                _undone("the events"),
            )
            head = None if reading.last is None else head_of(reading.last, find_registry_id(connection))
        problems += self._unanchored(reading.last)
        return LedgerReport(rows=reading.rows, head=head, anchors=len(kept), problems=tuple(problems))

    def _kept(self) -> list[LedgerHead]:
        """Return the anchors of the configured file; a registry in which nothing has moved yet has none."""
        return read_anchors(self._anchor.path) if self._anchor is not None and self._anchor.path.exists() else []

    def _unanchored(self, last: LedgerEntry | None) -> Iterator[LedgerProblem]:
        """Say that the configured file anchors nothing, though there are rows."""
        gap = None if self._anchor is None or last is None else self._anchor.gap()
        if self._anchor is not None and last is not None and gap is not None:
            yield LedgerProblem(
                sequence=last.sequence,
                what="neither it nor any row before it is anchored",
                expected=f"anchors in {self._anchor.path}, for `registry.ledger_anchor` is set",
                received=gap,
                remedy=self._anchor.remedy,
            )

    def _approval_problems(
        self, connection: Connection, uses: Sequence[tuple[LedgerEntry, Mapping[str, object]]]
    ) -> Iterator[LedgerProblem]:
        seen: dict[object, int] = {}
        for entry, used in uses:
            sequence = entry.sequence
            what = f"the approval by {used.get('principal')} that it names is not right"
            first = seen.setdefault(used.get("statement"), sequence)
            problem = self._approvals.problem_of_used(connection, used, sequence, entry.created_at)
            if first != sequence:
                problem = f"it was used by row {first} already"
            if problem is not None:
                yield _problem(sequence, what, f"approval {used.get('id')}, used by this row only", problem)
        named = {(used.get("id"), entry.sequence) for entry, used in uses}
        for approval, sequence in sorted(self._approvals.used(connection).items()):
            if (approval, sequence) not in named:
                what = f"approval {approval} says that this row used it"
                yield _problem(sequence, what, "a row that names the approval", "one that does not, or none")


class _Reading:
    """What one pass over the ledger gathers."""

    def __init__(self, anchors: Sequence[LedgerHead], clock_tolerance: timedelta) -> None:
        self._clock_tolerance = clock_tolerance
        self.rows = 0
        self.last: LedgerEntry | None = None
        self.is_whole = True
        self.events = EventCheck()
        self._stored: StoredEntry | None = None
        self._newest: datetime | None = None
        self.problems: list[LedgerProblem] = []
        self.uses: list[tuple[LedgerEntry, Mapping[str, object]]] = []
        self.tips: dict[tuple[str, str], LedgerEntry] = {}
        self.stacks: defaultdict[tuple[str, str], list[Place]] = defaultdict(list)
        self._anchors: defaultdict[int, set[str]] = defaultdict(set)
        for anchor in anchors:
            self._anchors[anchor.sequence].add(anchor.hash)

    def follow(self, rows: Iterator[StoredEntry]) -> Iterator[LedgerEntry]:
        for stored in rows:
            entry = stored.entry
            self._stored = stored
            yield entry
            self.rows += 1
            self.events.note(stored)
            self._compare_times(stored)
            self.last = entry
            if stored.leads_somewhere:
                self._move(entry)
            else:
                self.is_whole = False
            for anchored in self._anchors.pop(entry.sequence, set()) - {entry.hash}:
                what = "the row differs from what was anchored: the chain was written anew"
                self.problems.append(_problem(entry.sequence, what, anchored, entry.hash))
            self._use_approvals(entry)

    def fault(self, entry: LedgerEntry) -> LedgerProblem | None:
        """Return what is wrong with the cells of the row that was given last, which is `entry`."""
        fault = None if self._stored is None else self._stored.fault
        return None if fault is None else _problem(entry.sequence, fault.what, str(fault.expected), str(fault.received))

    def _compare_times(self, stored: StoredEntry) -> None:
        if not stored.is_readable:
            return
        at, before = stored.entry.created_at, self._newest
        if before is not None and at + self._clock_tolerance < before:
            what = "the time of the row is before that of the row above it: a clock went back"
            self.problems.append(_problem(stored.entry.sequence, what, f"after {before.isoformat()}", at.isoformat()))
        self._newest = at

    def _move(self, entry: LedgerEntry) -> None:
        self.tips[entry.name, entry.alias] = entry
        try:
            apply_move(self.stacks[entry.name, entry.alias], entry.action, entry.to_number, entry.sequence)
        except IntegrityError as exc:
            self.problems.append(_problem(entry.sequence, exc.what, "the version below", str(exc.received)))

    def _use_approvals(self, entry: LedgerEntry) -> None:
        """Remember the approvals that a row names; what is none was put there by somebody who changed the row."""
        named = entry.verdict.get("approvals", [])
        for one in cast("list[object]", named) if isinstance(named, list) else [named]:
            used = cast("Mapping[str, object]", one) if isinstance(one, Mapping) else {}
            if type(used.get("id")) is int and all(
                isinstance(used.get(key), str) for key in ("statement", "principal")
            ):
                self.uses.append((entry, used))
            else:
                what = "it names an approval that is none"
                self.problems.append(
                    _problem(entry.sequence, what, "`id`, `statement` and `principal`", repr(one)[:_SHOWN])
                )

    def beyond_the_end(self) -> Iterator[LedgerProblem]:
        """Give the anchors whose rows are not there (any more)."""
        if self._anchors:
            newest = max(self._anchors)
            what = "the row was anchored and is missing: the ledger was cut"
            end = 0 if self.last is None else self.last.sequence
            yield _problem(newest, what, f"row {newest} with {min(self._anchors[newest])}", f"a ledger of {end} rows")


def _alias_problems(connection: Connection, reading: _Reading) -> Iterator[LedgerProblem]:
    found = {(row.name, row.alias): row for row in connection.execute(select(aliases))}
    for key in sorted(reading.tips.keys() | found.keys(), key=repr):  # SQLite keeps bytes in any column
        tip, row = reading.tips.get(key), found.get(key)
        expected = None if tip is None else (tip.to_number, tip.to_digest, tip.sequence)
        received = _place_of(row)
        if expected != received:
            yield _problem(
                0 if tip is None else tip.sequence,
                f"`{key[0]}@{key[1]}` is not where the ledger says",
                "nowhere" if expected is None else f"version {expected[0]} (row {expected[2]})",
                "nowhere" if received is None else f"version {received[0]} (row {received[2]})",
            )
    try:
        check_stacks(connection, reading.stacks)
    except IntegrityError as exc:
        last = 0 if reading.last is None else reading.last.sequence
        yield _problem(last, exc.what, str(exc.expected), str(exc.received))


def _place_of(row: Row[tuple[object, ...]] | None) -> tuple[int, str, int] | None:
    return None if row is None else (row.number, row.digest, row.sequence)


def _refuse_foreign(anchors: Sequence[LedgerHead], registry: str | None) -> None:
    for anchor in anchors:
        if anchor.registry is not None and registry is not None and anchor.registry != registry:
            raise InvalidInputError(
                "the anchor belongs to another registry", expected=registry, received=anchor.registry
            )


def _of_cell(found: IntegrityError) -> LedgerProblem:
    what = f"{found.what} ({found.where})"
    return LedgerProblem(
        sequence=0, what=what, expected=str(found.expected), received=str(found.received), remedy=found.remedy
    )


def _undone(what: str) -> Callable[[IntegrityError], LedgerProblem]:
    """Return how to say that a check could not be done because of a cell."""

    def say(found: IntegrityError) -> LedgerProblem:
        said = f"{what} were not compared to the end: {found.what}"
        place = "" if found.where is None else f" ({found.where})"
        return _problem(0, f"{said}{place}", str(found.expected), str(found.received))

    return say


def _problem(sequence: int, what: str, expected: str, received: str) -> LedgerProblem:
    return LedgerProblem(sequence=sequence, what=what, expected=expected, received=received)
