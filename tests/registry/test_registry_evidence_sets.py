"""Evidence that is not there any more is noticed: by the set of its version, and by what the ledger was judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from noa.errors import IntegrityError
from noa.settings import RegistrySettings
from noa_registry import Evidence, ModelVersion, Registry
from noa_registry.evidence_sets import EvidenceSet
from sql_access import execute_on

if TYPE_CHECKING:
    from tests.registry.conftest import Formats

pytestmark = pytest.mark.local_files  # rows only; where files are kept does not matter


COLUMNS = "name, number, kind, subject, digest, passed, content, created_at, record"


def note(version: ModelVersion, passed: bool) -> Evidence:
    return Evidence(kind="audit", subject="version", digest=version.digest, passed=passed)


def lift(settings: RegistrySettings) -> None:
    """Take the triggers away, as somebody who may change the database itself."""
    for name, table in (("noa_evidence_no_delete", "noa_evidence"), ("noa_evidence_no_update", "noa_evidence"),
                        ("noa_evidence_sets_grow", "noa_evidence_sets"),
                        ("noa_evidence_sets_no_delete", "noa_evidence_sets")):  # fmt: skip
        on_table = "" if settings.database_url.startswith("sqlite") else f" ON {table}"
        execute_on(settings, f"DROP TRIGGER {name}{on_table}")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM noa_evidence WHERE kind = 'audit' AND id = (SELECT max(id) FROM noa_evidence)",
        "DELETE FROM noa_evidence WHERE id = (SELECT min(id) FROM noa_evidence)",
        "DELETE FROM noa_evidence",
        "DELETE FROM noa_evidence_sets",
        "UPDATE noa_evidence SET id = id + 100 WHERE id = (SELECT min(id) FROM noa_evidence)",
        f"INSERT INTO noa_evidence ({COLUMNS}) SELECT {COLUMNS} FROM noa_evidence WHERE kind = 'audit'",
    ],
)
def test_evidence_that_is_not_what_was_attached_is_found_and_nothing_is_decided_by_it(
    registry: Registry, version: ModelVersion, settings: RegistrySettings, statement: str
) -> None:
    registry.attach("digits", 1, [note(version, False), note(version, True)])
    assert registry.find_record_problems("digits", 1) == []
    lift(settings)
    execute_on(settings, statement)
    (problem,) = registry.find_record_problems("digits", 1)
    assert "evidence of `digits/1` was removed" in problem.what
    for use in (
        lambda: registry.evidence("digits", 1),
        lambda: registry.promote("digits", 1, reason="r", actor="eve"),
        lambda: registry.check("digits", 1),
    ):
        with pytest.raises(IntegrityError, match="evidence of `digits/1` was removed"):
            use()
    assert registry.resolve("digits/1").number == 1  # what serves it goes on


def test_a_set_that_was_made_to_fit_does_not_fit_the_ledger(
    registry: Registry, version: ModelVersion, settings: RegistrySettings
) -> None:
    registry.attach("digits", 1, note(version, False))
    entry = registry.promote("digits", 1, reason="r", actor="ada")
    judged = entry.verdict["evidence"]
    registry.attach("digits", 1, note(version, True))
    assert registry.find_record_problems("digits", 1) == []
    lift(settings)
    execute_on(
        settings, "DELETE FROM noa_evidence WHERE kind = 'audit' AND id = (SELECT max(id) FROM noa_evidence) - 1"
    )
    rows = execute_on(settings, "SELECT record FROM noa_evidence ORDER BY id")
    fitting = EvidenceSet().extended([str(row[0]) for row in rows])
    execute_on(settings, f"UPDATE noa_evidence_sets SET facts = {fitting.facts}, digest = '{fitting.digest}'")
    assert len(registry.evidence("digits", 1)) == fitting.facts  # the set alone does not tell
    (problem,) = registry.find_record_problems("digits", 1)
    assert f"row {entry.sequence} of the ledger" in str(problem.expected)
    assert isinstance(judged, dict)
    assert judged["digest"] in str(problem.expected)


def test_the_database_lets_a_set_only_grow(
    registry: Registry, version: ModelVersion, settings: RegistrySettings
) -> None:
    registry.attach("digits", 1, note(version, True))
    for statement in (
        "DELETE FROM noa_evidence_sets",
        "UPDATE noa_evidence_sets SET facts = facts - 1",
        "UPDATE noa_evidence_sets SET number = 2, facts = facts + 1",
    ):
        with pytest.raises(Exception, match="only grows"):
            execute_on(settings, statement)
    assert registry.find_record_problems("digits", 1) == []


def test_a_version_without_evidence_has_an_empty_set(registry: Registry, formats: Formats) -> None:
    registry.register(formats.draft(evidence=()), actor="ada")
    assert registry.evidence("digits", 1) == []
    assert registry.find_record_problems("digits", 1) == []
