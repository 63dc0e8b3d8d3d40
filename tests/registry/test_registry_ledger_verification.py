"""The ledger as a whole: what `noa ledger verify` finds, with and without anchors, on every kind of database."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from noa.digests import canonical_json
from noa.errors import ConflictError, IntegrityError, InvalidInputError, NotFoundError, StorageError
from noa.settings import RegistrySettings
from noa_registry import LedgerHead, LedgerReport, ModelVersion, Registry, read_anchors
from noa_registry.ledger import LedgerEntry, entry_hash
from noa_registry.ledger_anchors import AnchorFile
from noa_registry.ledger_events import event_payload

# Nothing here is about files: a local folder on both databases.
pytestmark = pytest.mark.usefixtures("artifact_dir")


def found(report: LedgerReport) -> list[tuple[int, str]]:
    return [(problem.sequence, problem.what) for problem in report.problems]


def rewrite(tamper: Any, entry: LedgerEntry) -> None:
    """Write a row, its hash and its event anew, as somebody does who knows how the chain is made."""
    tamper(
        f"UPDATE noa_ledger SET reason = '{entry.reason}', previous_hash = '{entry.previous_hash}', "
        f"hash = '{entry.hash}' WHERE sequence = {entry.sequence}",
        f"UPDATE noa_outbox SET payload = '{canonical_json(event_payload(entry)).decode()}' "
        f"WHERE replace(payload, '\"sequence\":{entry.sequence},', '') <> payload",
    )


def rewritten_from(entries: list[LedgerEntry], reason: str) -> list[LedgerEntry]:
    """Return the rows with another reason in the first of them, and all hashes right."""
    forged = [replace(entries[0], reason=reason)]
    forged[0] = replace(forged[0], hash=entry_hash(forged[0]))
    for entry in entries[1:]:
        entry = replace(entry, previous_hash=forged[-1].hash)
        forged.append(replace(entry, hash=entry_hash(entry)))
    return forged


def oldest_first(registry: Registry) -> list[LedgerEntry]:
    return list(reversed(registry.ledger.entries()))


def test_an_untouched_ledger_has_no_problems_and_tells_its_head(
    registry: Registry, promoted: list[ModelVersion]
) -> None:
    registry.rollback("digits", reason="r", actor="bob")
    registry.promote("digits", 1, alias="staging", reason="s", actor="bob")
    report = registry.ledger.verify()
    newest = registry.ledger.entries(limit=1)[0]
    assert (report.rows, report.problems, report.anchors) == (5, (), 0)
    assert report.head is not None
    assert (report.head.sequence, report.head.hash) == (5, newest.hash)
    assert registry.ledger.head() == report.head


def test_an_empty_ledger_has_no_problems_and_no_head(registry: Registry) -> None:
    report = registry.ledger.verify()
    assert (report.rows, report.head, report.problems, registry.ledger.head()) == (0, None, (), None)


@pytest.mark.parametrize(
    ("statements", "row", "what"),
    [
        (["UPDATE noa_ledger SET reason = 'innocent' WHERE sequence = 2"], 2, "a row of the ledger was changed"),
        (
            ["UPDATE noa_ledger SET verdict = '{\"passed\":true}' WHERE sequence = 3"],
            3,
            "a row of the ledger was changed",
        ),
        (["UPDATE noa_ledger SET to_number = 1 WHERE sequence = 2"], 2, "a row of the ledger was changed"),
        (["UPDATE noa_ledger SET verdict = 'nonsense' WHERE sequence = 2"], 2, "a row of the ledger is not readable"),
        (
            ["UPDATE noa_ledger SET created_at = 'long ago' WHERE sequence = 2"],
            2,
            "a row of the ledger is not readable",
        ),
        (["DELETE FROM noa_ledger WHERE sequence = 1"], 1, "a row of the ledger is missing"),
        (["DELETE FROM noa_ledger WHERE sequence = 2"], 2, "a row of the ledger is missing"),
        (
            [
                "UPDATE noa_ledger SET sequence = 9 WHERE sequence = 1",
                "UPDATE noa_ledger SET sequence = 1 WHERE sequence = 2",
                "UPDATE noa_ledger SET sequence = 2 WHERE sequence = 9",
            ],
            1,
            "the ledger's chain is broken",
        ),
        (
            [
                (
                    "INSERT INTO noa_ledger (sequence, name, alias, action, from_number, to_number, from_digest, "
                    "to_digest, actor, reason, verdict, created_at, previous_hash, hash) SELECT 4, name, alias, "
                    "action, 3, to_number, from_digest, to_digest, 'eve', reason, verdict, created_at, hash, "
                    "'sha256:made-up' FROM noa_ledger WHERE sequence = 3"
                )
            ],
            4,
            "a row of the ledger was changed",
        ),
    ],
)
def test_each_way_of_writing_into_the_ledger_is_found_and_the_row_named(
    registry: Registry, tamper: Any, promoted: list[ModelVersion], statements: list[str], row: int, what: str
) -> None:
    tamper(*statements)
    assert (row, what) in found(registry.ledger.verify())
    with pytest.raises(IntegrityError):
        registry.verify_ledger()


_TEXTS = ("name", "alias", "action", "from_digest", "to_digest", "actor", "reason", "verdict", "created_at")
_STORAGE = [
    *((column, f"CAST({column} AS BLOB)") for column in (*_TEXTS, "previous_hash", "hash", "from_number", "to_number")),
    ("to_number", "1.5"),
    ("to_number", "'x'"),
    ("from_number", "2.5"),
    ("from_number", "NULL"),
    ("from_digest", "NULL"),
    ("reason", "1"),
    ("actor", "2.5"),
    ("created_at", "7"),
    ("created_at", "replace(created_at, '+00:00', 'Z')"),
    ("created_at", "replace(created_at, '+00:00', '')"),
    ("created_at", "replace(created_at, 'T', ' ')"),
    ("verdict", "verdict || ' '"),
    ("verdict", "'[]'"),
    ("verdict", "'{\"a\":NaN}'"),
    ("verdict", "'{\"approvals\":3}'"),
    ("verdict", '\'{"approvals":[{"id":{},"statement":[]}]}\''),
]


@pytest.mark.parametrize("dialect", ["sqlite"])  # PostgreSQL keeps the types of its columns
@pytest.mark.parametrize("sequence", [2, 3])
@pytest.mark.parametrize(("column", "value"), _STORAGE)
def test_a_cell_of_another_type_or_spelling_is_found_and_the_row_named(
    registry: Registry, tamper: Any, promoted: list[ModelVersion], column: str, value: str, sequence: int
) -> None:
    tamper(
        "PRAGMA ignore_check_constraints = ON",
        f"UPDATE noa_ledger SET {column} = {value} WHERE sequence = {sequence}",
    )
    changed = ("a row of the ledger was changed", "a row of the ledger is not readable")
    assert [number for number, what in found(registry.ledger.verify()) if what in changed] == [sequence]
    with pytest.raises(IntegrityError):
        registry.verify_ledger()


@pytest.mark.parametrize("dialect", ["sqlite"])  # PostgreSQL keeps the types of its columns
def test_a_reason_that_became_bytes_hides_nothing_that_was_done_to_the_rows_after_it(
    registry: Registry, tamper: Any, promoted: list[ModelVersion]
) -> None:
    tamper(
        "UPDATE noa_ledger SET reason = CAST(reason AS BLOB) WHERE sequence = 1",
        "UPDATE noa_ledger SET actor = 'eve' WHERE sequence = 3",
    )
    problems = registry.ledger.verify().problems
    assert [(one.sequence, one.what) for one in problems[:2]] == [
        (1, "a row of the ledger was changed"),
        (3, "a row of the ledger was changed"),
    ]
    assert problems[0].expected == "a text in `reason`" and problems[0].received.startswith("bytes b'")
    with pytest.raises(IntegrityError, match="row 1"):
        registry.history("digits")


def test_a_cut_tail_is_found_by_the_alias_and_by_an_anchor(
    registry: Registry, tamper: Any, promoted: list[ModelVersion]
) -> None:
    head = registry.ledger.head()
    assert head is not None
    tamper("DELETE FROM noa_ledger WHERE sequence = 3")
    assert "`digits@champion` is not where the ledger says" in [what for _, what in found(registry.ledger.verify())]
    tamper(
        "UPDATE noa_aliases SET number = 2, sequence = 2, digest = "
        "(SELECT to_digest FROM noa_ledger WHERE sequence = 2)",
        "DELETE FROM noa_alias_stack WHERE sequence = 3",
    )
    cut = "event 6 tells of this row, which does not exist: the ledger was cut, or the event was made up"
    assert found(registry.ledger.verify()) == [(3, cut)]
    tamper("DELETE FROM noa_outbox WHERE id = 6")
    assert found(registry.ledger.verify()) == []  # all of it is consistent again: only an anchor knows
    assert found(registry.ledger.verify(anchors=[head])) == [
        (3, "the row was anchored and is missing: the ledger was cut")
    ]


def test_a_chain_that_was_computed_anew_is_found_by_an_anchor_alone(
    registry: Registry, tamper: Any, promoted: list[ModelVersion]
) -> None:
    head = registry.ledger.head()
    assert head is not None
    for entry in rewritten_from(oldest_first(registry)[1:], "innocent"):
        rewrite(tamper, entry)
    assert registry.ledger.verify().problems == ()
    problems = found(registry.ledger.verify(anchors=[head]))
    assert problems == [(3, "the row differs from what was anchored: the chain was written anew")]


def test_an_anchor_of_another_registry_is_refused(registry: Registry, promoted: list[ModelVersion]) -> None:
    head = registry.ledger.head()
    assert head is not None
    with pytest.raises(InvalidInputError, match="another registry"):
        registry.ledger.verify(anchors=[replace(head, registry="f" * 32)])


def test_a_stack_that_was_changed_is_found_and_not_followed(
    registry: Registry, tamper: Any, promoted: list[ModelVersion]
) -> None:
    tamper("UPDATE noa_alias_stack SET number = 1 WHERE depth = 2")
    assert "the stack of `digits@champion` is not what the ledger says" in [
        what for _, what in found(registry.ledger.verify())
    ]
    with pytest.raises(IntegrityError, match="stack of `digits@champion`"):
        registry.rollback("digits", reason="r", actor="bob")
    tamper("DELETE FROM noa_alias_stack")
    with pytest.raises(IntegrityError, match="stack of `digits@champion`"):
        registry.rollback("digits", reason="r", actor="bob")
    assert registry.resolve("digits@champion").number == 3


def test_pages_of_the_ledger_follow_each_other(registry: Registry, promoted: list[ModelVersion]) -> None:
    first = registry.ledger.entries(limit=2)
    second = registry.ledger.entries(limit=2, before=first[-1].sequence)
    assert [entry.sequence for entry in first + second] == [3, 2, 1]
    assert registry.ledger.entries(name="other") == []
    with pytest.raises(InvalidInputError):
        registry.ledger.entries(limit=0)


@pytest.fixture
def anchored(settings: RegistrySettings, tmp_path: Path) -> RegistrySettings:
    return settings.model_copy(update={"ledger_anchor": tmp_path / "elsewhere" / "anchors.jsonl"})


def test_every_move_is_anchored_outside_of_the_database(anchored: RegistrySettings, formats: Any, tamper: Any) -> None:
    assert anchored.ledger_anchor is not None
    with Registry.open(anchored) as registry:
        for _ in range(3):
            registry.register(formats.draft(), actor="ada")
        assert registry.ledger.verify().anchors == 0
        for number in (1, 2, 3):
            registry.promote("digits", number, reason="r", actor="ada")
        registry.rollback("digits", reason="r", actor="ada")
        registry.promote("digits", 2, reason="again", actor="ada")  # moves nothing, and is anchored already
        kept = read_anchors(anchored.ledger_anchor)
        assert [(head.sequence, head.hash) for head in kept] == [
            (entry.sequence, entry.hash) for entry in oldest_first(registry)
        ]
        assert (registry.ledger.verify().problems, registry.ledger.verify().anchors) == ((), 4)
        for entry in rewritten_from(oldest_first(registry)[1:], "innocent"):
            rewrite(tamper, entry)
        assert [row for row, _ in found(registry.ledger.verify())] == [2, 3, 4]
        with pytest.raises(IntegrityError, match="written anew"):
            registry.verify_ledger()


def test_a_move_that_cannot_be_anchored_does_not_happen(anchored: RegistrySettings, formats: Any) -> None:
    assert anchored.ledger_anchor is not None
    anchored.ledger_anchor.parent.write_text("a file where the folder should be")
    with Registry.open(anchored) as registry:
        registry.register(formats.draft(), actor="ada")
        with pytest.raises(StorageError, match=r"anchors\.jsonl"):
            registry.promote("digits", 1, reason="r", actor="ada")
        assert registry.resolve_digest("digits", "champion") is None


def test_what_a_crash_left_unanchored_is_made_up_for_by_promoting_again(
    anchored: RegistrySettings, formats: Any
) -> None:
    path = anchored.ledger_anchor
    assert path is not None
    with Registry.open(anchored) as registry:
        for number in (1, 2):
            registry.register(formats.draft(), actor="ada")
            registry.promote("digits", number, reason="r", actor="ada")
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(lines[0] + lines[1][:25])  # the second was cut off
        assert registry.ledger.verify().problems == ()
        registry.promote("digits", 2, reason="run again", actor="ada")
        assert path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("left", [None, b"", b"\n", b'{"registry"'])
def test_a_configured_anchor_file_that_is_gone_is_a_problem_and_no_move_begins_another(
    anchored: RegistrySettings, formats: Any, left: bytes | None
) -> None:
    path = anchored.ledger_anchor
    assert path is not None
    with Registry.open(anchored) as registry:
        for number in (1, 2):
            registry.register(formats.draft(), actor="ada")
            registry.promote("digits", number, reason="r", actor="ada")
        path.unlink()
        if left is not None:
            path.write_bytes(left)
        (problem,) = registry.ledger.verify().problems
        assert (problem.sequence, problem.what) == (2, "neither it nor any row before it is anchored")
        assert "noa ledger anchor --output" in str(problem)
        with pytest.raises(IntegrityError, match="anchored") as told:
            registry.verify_ledger()
        assert "noa ledger anchor --output" in (told.value.remedy or "")
        for move in (
            lambda: registry.promote("digits", 1, reason="r", actor="ada"),
            lambda: registry.rollback("digits", reason="r", actor="ada"),
        ):
            with pytest.raises(ConflictError, match="nothing of the ledger is anchored") as caught:
                move()
            assert "noa ledger anchor --output" in (caught.value.remedy or "")
        assert (path.read_bytes() if path.exists() else None) == left
        newest = registry.ledger.head()
        assert newest is not None
        AnchorFile(path).append(newest)
        assert registry.ledger.verify().problems == ()
        registry.promote("digits", 1, reason="r", actor="ada")
        assert [kept.sequence for kept in read_anchors(path)] == [2, 3]


def test_the_only_move_whose_anchor_a_crash_prevented_is_anchored_by_the_next(
    anchored: RegistrySettings, formats: Any
) -> None:
    path = anchored.ledger_anchor
    assert path is not None
    with Registry.open(anchored) as registry:
        registry.register(formats.draft(), actor="ada")
        registry.promote("digits", 1, reason="r", actor="ada")
        path.write_bytes(b"")
        assert len(registry.ledger.verify().problems) == 1
        registry.promote("digits", 1, reason="run again", actor="ada")
        assert (registry.ledger.verify().problems, len(read_anchors(path))) == ((), 1)


def head(sequence: int) -> LedgerHead:
    from datetime import UTC, datetime

    return LedgerHead(
        registry="a" * 32, sequence=sequence, hash=f"sha256:{sequence:064}", created_at=datetime(2026, 1, 1, tzinfo=UTC)
    )


def test_an_anchor_file_takes_only_newer_heads(tmp_path: Path) -> None:
    file = AnchorFile(tmp_path / "anchors")
    for sequence in (1, 3, 2, 3):
        file.append(head(sequence))
    assert read_anchors(file.path) == [head(1), head(3)]
    assert stat.S_IMODE(file.path.stat().st_mode) & 0o022 == 0


@pytest.mark.parametrize("line", ["nonsense", "[]", "[" * 3000, '{"sequence": 1}', '{"sequence": "x", "hash": "h"}'])
def test_a_line_that_is_no_anchor_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "anchors"
    path.write_bytes(canonical_json(head(1).to_dict()) + b"\n" + line.encode() + b"\n")
    with pytest.raises(IntegrityError, match=":2"):
        read_anchors(path)
    with pytest.raises(IntegrityError):
        AnchorFile(path).append(head(5))
    with pytest.raises(NotFoundError):
        read_anchors(tmp_path / "none")


def test_a_foreign_file_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "anchors"
    path.write_bytes(b"x" * 10_000)
    with pytest.raises(IntegrityError):
        AnchorFile(path).append(head(1))
    assert path.read_bytes() == b"x" * 10_000


def test_a_full_disk_for_anchors_says_that_the_move_took_place(
    anchored: RegistrySettings, formats: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def short(handle: int, data: bytes) -> int:
        return 0 if b'"sequence"' in data else real(handle, data)

    with Registry.open(anchored) as registry:
        registry.register(formats.draft(), actor="ada")
        with monkeypatch.context() as patch:
            patch.setattr("noa_registry.ledger_anchors.os.write", short)
            with pytest.raises(StorageError, match="row 1 is in the ledger, but could not be anchored"):
                registry.promote("digits", 1, reason="r", actor="ada")
        assert registry.resolve("digits@champion").number == 1
        registry.promote("digits", 1, reason="again", actor="ada")
        assert registry.ledger.verify().anchors == 1


def test_the_stack_can_be_written_anew_from_the_ledger(
    registry: Registry, execute: Callable[..., list[Any]], tamper: Any, promoted: list[ModelVersion]
) -> None:
    from noa_registry.alias_stack import rebuild

    registry.rollback("digits", reason="r", actor="bob")
    before = execute("SELECT name, alias, depth, number, sequence FROM noa_alias_stack ORDER BY depth")
    tamper("DELETE FROM noa_alias_stack")
    database = registry._database  # what an upgrade of the schema does inside its own transaction
    with database.write() as connection:
        rebuild(connection)
    assert execute("SELECT name, alias, depth, number, sequence FROM noa_alias_stack ORDER BY depth") == before
    assert (
        json.dumps([list(row) for row in before])
        == '[["digits", "champion", 1, 1, 1], ["digits", "champion", 2, 2, 2]]'
    )
    assert registry.ledger.verify().problems == ()
