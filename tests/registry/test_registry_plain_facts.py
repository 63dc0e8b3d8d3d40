"""What is stored of a fact is what is read back: in another process its digest is the same, or it never came in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum, StrEnum
from typing import Any, cast

import numpy as np
import pytest

from noa.errors import InvalidInputError
from noa.settings import RegistrySettings
from noa_registry import Evidence, ModelVersion, Registry, equivalence_evidence

DIGEST = "sha256:" + "a" * 64
pytestmark = pytest.mark.usefixtures("artifact_dir")


class Name(StrEnum):
    AUDIT = "audit"


class Level(IntEnum):
    HIGH = 2


def fact(**changes: object) -> Evidence:
    return replace(Evidence(kind="audit", subject="onnx", digest=DIGEST), **cast("Any", changes))


BEFORE_THE_FIRST_YEAR = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))
REFUSED: list[tuple[str, object]] = [
    *(("passed", value) for value in (1, 0, 0.0, 2, "yes", np.int64(1), np.array([True]))),
    ("kind", 3),
    ("kind", b"audit"),
    ("subject", None),
    ("digest", 3),
    ("digest", "a"),
    ("values", [1]),
    ("values", None),
    ("created_at", datetime(2026, 1, 1)),  # noqa: DTZ001
    ("created_at", BEFORE_THE_FIRST_YEAR),
    ("created_at", "2026-01-01T00:00:00+00:00"),
    ("created_at", None),
]


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_a_part_that_would_come_back_as_something_else_is_refused_by_its_field(
    registry: Registry, version: ModelVersion, formats: Any, field: str, value: object
) -> None:
    wrong = fact(**{field: value})
    torch_only = registry.register(formats.draft(formats={"torch": formats.torch}, evidence=()), actor="ada")
    for write in (
        lambda: registry.attach("digits", 1, wrong),
        lambda: registry.register(formats.draft(evidence=(wrong,)), actor="ada"),
        lambda: registry.add_format("digits", torch_only.number, "onnx", formats.onnx, evidence=[wrong], actor="ada"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            write()
        assert caught.value.facts["field"] == field
    assert [one.kind for one in registry.evidence("digits", 1)] == ["equivalence"]
    assert registry.resolve("digits").reference == torch_only.reference


def test_every_part_is_read_back_in_another_process_as_it_was_stored(
    settings: RegistrySettings, registry: Registry, version: ModelVersion
) -> None:
    values = {
        "truth": np.bool_(True),
        "half": np.float32(0.5),
        "count": np.int64(3),
        "level": Level.HIGH,
        Name.AUDIT: Name.AUDIT,
        "numbers": (np.float64("nan"), np.array([1, 2])),
    }
    stored = fact(
        kind=Name.AUDIT,
        subject=np.str_("onnx"),
        digest=np.str_(DIGEST),
        passed=np.bool_(False),
        values=values,
        created_at=datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2))),
    )
    registry.attach("digits", 1, stored)
    expected = {
        "truth": True,
        "half": 0.5,
        "count": 3,
        "level": 2,
        "audit": "audit",
        "numbers": ["nan", [1, 2]],
    }
    with Registry.open(settings) as other:
        found = other.evidence("digits", 1)[-1]
        assert (found.kind, found.subject, found.digest, found.passed) == ("audit", "onnx", DIGEST, False)
        assert (found.passed, found.values["truth"]) == (False, True)
        assert found.values == expected
        assert found.created_at == datetime(2025, 12, 31, 23, tzinfo=UTC)


def test_names_that_are_one_as_texts_are_refused(registry: Registry, version: ModelVersion) -> None:
    with pytest.raises(InvalidInputError, match="a table cannot be stored"):
        registry.attach("digits", 1, fact(values={"1": "a", 1: "b"}))


def test_an_equivalence_is_judged_by_a_truth_value() -> None:
    with pytest.raises(InvalidInputError) as caught:
        equivalence_evidence(
            source="torch",
            source_digest=DIGEST,
            target="onnx",
            target_digest=DIGEST,
            passed=cast("bool", "no"),
            values={},
        )
    assert caught.value.facts["field"] == "passed"
