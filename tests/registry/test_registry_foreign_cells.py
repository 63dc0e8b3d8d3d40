"""Cells of another type and forged rows, written past the guards: named by the verification, never a crash."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from noa.errors import IntegrityError, NoaError
from noa.settings import GateSettings, RegistrySettings
from noa_registry import Discrepancy, ModelVersion, Registry

Tamper = Callable[..., Any]


@pytest.fixture
def filled(sqlite_settings: RegistrySettings, make_formats: Callable[[int], Any]) -> RegistrySettings:
    formats = make_formats(0)
    with Registry.open(sqlite_settings, gates={"digits": GateSettings(approvals=1)}) as registry:
        for _ in range(3):
            registry.register(formats.draft(evidence=[formats.equivalence(), formats.metrics(loss=0.5)]), actor="ada")
        for number in (1, 2):
            registry.approvals.grant("digits", number, principal="bob", reason="r")
            registry.promote("digits", number, reason="r", actor="ada")
        registry.approvals.grant("digits", 3, principal="bob", reason="r")
    return sqlite_settings


def spoil(settings: RegistrySettings, *statements: str) -> None:
    """Write with stock SQLite as its owner can: triggers are dropped before, and put back after."""
    with closing(sqlite3.connect(settings.database_url.removeprefix("sqlite:///"))) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            assert connection.execute(statement).rowcount > 0
        for _, sql in triggers:
            connection.execute(sql)
        connection.commit()


def cells(registry: Registry) -> list[tuple[str, str]]:
    return [(str(exc.facts["file"]), str(exc.where)) for exc in registry.find_foreign_cells()]


CASES = {
    "used_by": ("UPDATE noa_approvals SET used_by = 'x2' WHERE id = 3", "noa_approvals", "the row with id 3"),
    "principal": ("UPDATE noa_approvals SET principal = cast(principal AS blob) WHERE id = 1", "noa_approvals", "id 1"),
    "depth": ("UPDATE noa_alias_stack SET depth = 'x2' WHERE depth = 2", "noa_alias_stack", "depth 'x2'"),
    "fraction": ("UPDATE noa_alias_stack SET depth = 7.5 WHERE depth = 2", "noa_alias_stack", "depth 7.5"),
    "bytes": ("UPDATE noa_alias_stack SET depth = x'02' WHERE depth = 2", "noa_alias_stack", "depth X'02'"),
    "number": ("UPDATE noa_aliases SET number = 'x2'", "noa_aliases", "name 'digits', alias 'champion'"),
    "alias": ("UPDATE noa_aliases SET alias = cast(alias AS blob)", "noa_aliases", "name 'digits'"),
    "native": ("UPDATE noa_versions SET native = cast(native AS blob) WHERE number = 3", "noa_versions", "number 3"),
    "version": ("UPDATE noa_versions SET number = cast(number AS blob) WHERE number = 3", "noa_versions", "X'33'"),
    "uid": ("UPDATE noa_versions SET uid = cast(uid AS blob) WHERE number = 3", "noa_versions", "number 3"),
    "format": ("UPDATE noa_formats SET manifest = cast(manifest AS blob) WHERE number = 3", "noa_formats", "number 3"),
    "kind": ("UPDATE noa_evidence SET kind = cast(kind AS blob) WHERE number = 3", "noa_evidence", "id "),
    "content": ("UPDATE noa_evidence SET content = cast(content AS blob) WHERE number = 3", "noa_evidence", "id "),
    "set": ("UPDATE noa_evidence_sets SET facts = 'z' WHERE number = 3", "noa_evidence_sets", "number 3"),
    "metric": ("UPDATE noa_version_metrics SET value = 'abc' WHERE number = 3", "noa_version_metrics", "id "),
    "label": ("UPDATE noa_version_labels SET value = cast(value AS blob) WHERE number = 3", "noa_version_labels", "3"),
    "next": ("UPDATE noa_models SET next_number = 'x5'", "noa_models", "name 'digits'"),
    "time": ("UPDATE noa_models SET created_at = cast(created_at AS blob)", "noa_models", "name 'digits'"),
    "event": ("UPDATE noa_outbox SET payload = cast(payload AS blob) WHERE id = 2", "noa_outbox", "id 2"),
    "event of bytes": ("UPDATE noa_outbox SET kind = cast(kind AS blob)", "noa_outbox", "id 1"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_spoilt_cell_is_named_and_whatever_reads_it_says_so(
    filled: RegistrySettings, make_formats: Callable[[int], Any], case: str
) -> None:
    statement, table, where = CASES[case]
    spoil(filled, statement)
    with Registry.open(filled, gates={"digits": GateSettings(approvals=1)}) as registry:
        found = cells(registry)
        assert found[0][0] == table
        assert where in found[0][1]
        named = [problem.what for problem in registry.ledger.verify().problems]
        assert any(f"of {table} is of another type" in what for what in named)
        registry.mirror_discrepancies()
        draft = make_formats(1).draft()
        for look in (
            registry.models,
            lambda: registry.versions("digits"),
            lambda: registry.versions("digits", problems=[]),
            lambda: registry.resolve("digits/3"),
            lambda: registry.resolve("digits@champion"),
            lambda: registry.find_record_problems("digits", 3),
            registry.find_time_problems,
            lambda: registry.approvals.list("digits"),
            lambda: registry.search("digits"),
            lambda: registry.search("sort:metric.loss"),
            lambda: registry.check("digits", 3, record=False),
            lambda: registry.card("digits/3"),
            lambda: registry.lineage("digits"),
            lambda: registry.history("digits"),
            lambda: registry.rollback("digits", reason="r", actor="ada"),
            lambda: registry.promote("digits", 3, reason="r", actor="ada"),
            lambda: registry.register(draft, actor="ada"),
            registry.repair_mirror,
        ):
            try:
                look()
            except NoaError as exc:
                assert "mistake" not in str(exc)


@pytest.mark.parametrize(
    ("case", "look"),
    [
        ("used_by", lambda registry: registry.approvals.list("digits")),
        ("principal", lambda registry: registry.approvals.list("digits")),
        ("depth", lambda registry: registry.rollback("digits", reason="r", actor="ada")),
        ("number", lambda registry: registry.versions("digits")),
        ("alias", lambda registry: registry.search("digits")),
        ("native", lambda registry: registry.resolve("digits/3")),
        ("metric", lambda registry: registry.search("sort:metric.loss")),
        ("next", lambda registry: registry.register(registry.draft, actor="ada")),
    ],
)
def test_whoever_needs_a_spoilt_row_is_told_which_it_is(
    filled: RegistrySettings, make_formats: Callable[[int], Any], case: str, look: Callable[[Any], object]
) -> None:
    statement, table, where = CASES[case]
    spoil(filled, statement)
    with Registry.open(filled) as registry:
        registry.draft = make_formats(1).draft()  # type: ignore[attr-defined]
        with pytest.raises(IntegrityError) as caught:
            look(registry)
    assert f"of {table} is of another type than noa writes" in caught.value.what
    assert where in str(caught.value.where)


def test_one_spoilt_version_hides_no_other_one(filled: RegistrySettings) -> None:
    spoil(filled, CASES["native"][0])
    with Registry.open(filled) as registry:
        problems: list[IntegrityError] = []
        assert [one.number for one in registry.versions("digits", problems=problems)] == [2, 1]
        assert [problem.where for problem in problems] == ["the row with name 'digits', number 3"]
        assert [(one.name, one.versions, one.newest, one.problem) for one in registry.models()] == [
            ("digits", 3, 3, None)
        ]


def test_a_stack_whose_depths_have_gaps_is_not_what_the_ledger_says(
    registry: Registry, promoted: Any, tamper: Tamper
) -> None:
    tamper("UPDATE noa_alias_stack SET depth = 9 WHERE depth = 3")
    (problem,) = registry.ledger.verify().problems
    assert problem.what == "the stack of `digits@champion` is not what the ledger says"
    assert (problem.expected, problem.received) == ("depth 3", "version 3 (row 3) at depth 9")


def of_field(registry: Registry, field: str) -> list[Discrepancy]:
    return [one for one in registry.mirror_discrepancies() if one.field == field]


@pytest.fixture
def measured(registry: Registry, formats: Any) -> ModelVersion:
    for loss in (0.25, 0.5):
        facts = [formats.equivalence(), formats.metrics(accuracy=0.75, loss=loss), formats.metrics(loss=0.125)]
        made = registry.register(formats.draft(evidence=facts), actor="ada")
    return made


def test_the_index_of_metrics_is_compared_with_the_evidence_and_repaired(
    registry: Registry, measured: ModelVersion, execute: Tamper
) -> None:
    assert registry.mirror_discrepancies() == []
    before = execute("SELECT name, number, format, split, metric, value FROM noa_version_metrics ORDER BY 2, 5")
    execute(
        "UPDATE noa_version_metrics SET value = 0.99 WHERE number = 1 AND metric = 'accuracy'",
        "DELETE FROM noa_version_metrics WHERE number = 2 AND metric = 'accuracy'",
        "UPDATE noa_version_metrics SET number = 1 WHERE number = 2 AND metric = 'loss'",
        "INSERT INTO noa_version_metrics (name, number, format, dataset_digest, split, metric, value, created_at) "
        "VALUES ('digits', 77, 'onnx', 'x', 'test', 'f1', 0.5, 'x')",
    )
    found = {(one.subject, one.expected, one.received) for one in of_field(registry, "index")}
    assert found == {
        ("version 1, accuracy of onnx on test", "0.75", "0.99"),
        ("version 1, loss of onnx on test", "no such row", "0.5"),
        ("version 2, accuracy of onnx on test", "0.75", "nothing"),
        ("version 2, loss of onnx on test", "0.5", "nothing"),
        ("version 77, f1 of onnx on test", "no such row", "0.5"),
    }
    registry.repair_mirror()
    assert registry.mirror_discrepancies() == []
    assert execute("SELECT name, number, format, split, metric, value FROM noa_version_metrics ORDER BY 2, 5") == before


def test_the_index_of_labels_is_compared_with_the_records_and_repaired(
    registry: Registry, formats: Any, execute: Tamper
) -> None:
    for number in range(1, 5):
        registry.register(formats.draft(tags={"team": f"t{number}"}, params={"lr": 0.5}), actor="ada")
    assert registry.mirror_discrepancies() == []
    query = "SELECT name, number, key, value, created_at FROM noa_version_labels ORDER BY 1, 2, 3, 4"
    before = execute(query)
    execute(
        "DELETE FROM noa_version_labels WHERE number = 2",
        "UPDATE noa_version_labels SET value = '999' WHERE number = 4 AND key = 'tag.team'",
        "DELETE FROM noa_version_labels WHERE number = 3 AND key = 'param.lr'",
        "UPDATE noa_version_labels SET created_at = 'x' WHERE number = 3 AND key = 'by'",
        "INSERT INTO noa_version_labels (name, number, key, value, created_at) VALUES ('digits', 1, 'tag.a', 'b', 'x')",
        "INSERT INTO noa_version_labels (name, number, key, value, created_at) VALUES ('digits', 1, 'by', 'eve', 'x')",
        "INSERT INTO noa_version_labels (name, number, key, value, created_at) VALUES ('digits', 77, 'by', 'eve', 'x')",
    )
    found = {(one.subject, one.received) for one in of_field(registry, "index")}
    assert found == {
        ("version 77, labels", "1 label"),
        ("version 1, label by", "'ada' and 'eve'"),
        ("version 1, label tag.a", "'b'"),
        ("version 1, time of its labels", "'x'"),
        ("version 2, labels", "nothing"),
        ("version 3, label param.lr", "nothing"),
        ("version 3, time of its labels", "'x'"),
        ("version 4, label tag.team", "'999'"),
    }
    assert [hit.number for hit in registry.search("tag.team=t2").hits] == []
    registry.repair_mirror()
    assert registry.mirror_discrepancies() == []
    assert execute(query) == before
    assert [hit.number for hit in registry.search("tag.team=t2").hits] == [2]


def test_an_emptied_index_of_labels_is_named_once_per_version_and_written_anew(
    registry: Registry, measured: ModelVersion, execute: Tamper
) -> None:
    before = execute("SELECT * FROM noa_version_labels ORDER BY 1, 2, 3, 4")
    execute("DELETE FROM noa_version_labels")
    assert [one.subject for one in of_field(registry, "index")] == ["version 1, labels", "version 2, labels"]
    registry.repair_mirror()
    assert execute("SELECT * FROM noa_version_labels ORDER BY 1, 2, 3, 4") == before


def test_no_label_is_made_from_a_changed_record(registry: Registry, formats: Any, tamper: Tamper) -> None:
    registry.register(formats.draft(tags={"team": "vision"}), actor="ada")
    tamper("""UPDATE noa_versions SET tags = '{"team":"forged"}'""")
    assert of_field(registry, "index") == []
    assert [one.number for one in of_field(registry, "record")] == [1]
    registry.repair_mirror()
    assert [hit.number for hit in registry.search("tag.team=forged").hits] == []


def test_labels_are_those_of_the_record_whatever_types_a_program_gave(registry: Registry, formats: Any) -> None:
    params = {"lr": np.float32(0.1), "sizes": np.array([1, 2]), "a.b": 1, "a": {"b": 2}, "t": (1, None), "n": math.nan}
    registry.register(formats.draft(params=params, tags={"long": "x" * 3000}), actor="ada")
    assert of_field(registry, "index") == []


def test_a_row_of_the_index_that_tells_of_no_version_is_no_hit(
    registry: Registry, measured: ModelVersion, execute: Tamper
) -> None:
    execute(
        "UPDATE noa_version_metrics SET number = 77 WHERE number = 1",
        "UPDATE noa_version_labels SET number = 78 WHERE number = 1 AND key = 'native'",
    )
    assert [hit.number for hit in registry.search("sort:metric.loss").hits] == [2]
    assert [hit.number for hit in registry.search("native:torch").hits] == [2]


def test_the_index_counts_as_a_gate_does_or_as_it_did(settings: RegistrySettings, formats: Any) -> None:
    """A version is indexed by the gate of its time; a gate that came later makes no row a changed one."""
    facts = [formats.equivalence(), formats.metrics(wobble=0.25), formats.metrics(wobble=0.5)]
    higher = {"digits": GateSettings(directions={"wobble": "higher"})}
    lower = {"digits": GateSettings(directions={"wobble": "lower"})}
    for gates in ({}, higher, lower):
        with Registry.open(settings, gates=gates) as registry:
            registry.register(formats.draft(evidence=facts), actor="ada")
            assert of_field(registry, "index") == []


def test_nothing_of_a_changed_record_is_written_into_mlflows_rows(
    registry: Registry, formats: Any, tamper: Tamper, execute: Tamper
) -> None:
    for _ in range(2):
        registry.register(formats.draft(description="as sealed", tags={"team": "vision"}), actor="ada")
    tamper("UPDATE noa_versions SET description = 'forged' WHERE number = 1")
    (found,) = of_field(registry, "record")
    assert (found.name, found.number, found.is_repairable) == ("digits", 1, False)
    assert "the record of `digits/1` was changed" in found.received
    assert of_field(registry, "description") == []
    tamper("DELETE FROM model_version_tags", "DELETE FROM model_versions", "DELETE FROM registered_models")
    registry.repair_mirror()
    assert execute("SELECT version, description FROM model_versions") == [(2, "as sealed")]
    assert [one.number for one in of_field(registry, "record")] == [1]


def test_an_alias_that_the_ledger_does_not_know_is_not_written_into_mlflows_rows(
    registry: Registry, promoted: Any, tamper: Tamper, execute: Tamper
) -> None:
    tamper("UPDATE noa_aliases SET number = 1")
    (found,) = of_field(registry, "record")
    assert (found.subject, found.is_repairable) == ("alias champion", False)
    registry.repair_mirror()
    assert execute("SELECT alias, version FROM registered_model_aliases") == [("champion", 3)]
