"""Texts and numbers that no database keeps are refused by name, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from noa.errors import InvalidInputError, NotFoundError
from noa.references import ModelReference
from noa_registry import Registry

pytestmark = pytest.mark.usefixtures("artifact_dir")
BAD = b"\xff\xfe".decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("text", [BAD, "a\0b"])
@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("tags", lambda text: {"tags": {"a": text}}),
        ("tags", lambda text: {"tags": {text: "a"}}),
        ("params", lambda text: {"params": {"a": [{"b": text}]}}),
        ("environment", lambda text: {"environment": {"python": text}}),
        ("description", lambda text: {"description": text}),
        ("git_commit", lambda text: {"git_commit": text}),
        ("run_id", lambda text: {"run_id": text}),
        ("dataset_digest", lambda text: {"dataset_digest": text}),
    ],
)
def test_a_draft_with_a_text_that_cannot_be_kept_is_refused_by_field(
    registry: Registry, formats: Any, field: str, change: Callable[[str], dict[str, Any]], text: str
) -> None:
    with pytest.raises(InvalidInputError, match=field):
        registry.register(formats.draft(**change(text)), actor="ada")
    with pytest.raises(NotFoundError):
        registry.numbers("digits")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tags": {b"\xff": "a"}}, "name of a tag is no text|name in tags is no text"),
        ({"tags": {1: "a"}}, "name of a tag is no text"),
        ({"params": {"a": {None: 1}}}, "name in params `a` is no text"),
        ({"name": b"digits"}, "the name is no text"),
    ],
)
def test_names_that_are_no_text_are_refused_by_field(
    registry: Registry, formats: Any, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidInputError, match=told):
        registry.register(formats.draft(**change), actor="ada")
    with pytest.raises(NotFoundError):
        registry.numbers("digits")


def test_names_of_parameters_may_be_numbers(registry: Registry, formats: Any) -> None:
    version = registry.register(formats.draft(params={"class_weight": {0: 1.0, 1: 5.0}}), actor="ada")
    assert version.params["class_weight"] == {"0": 1.0, "1": 5.0}


@pytest.mark.parametrize("reference", [b"digits", b"sha256:12345678", None, 3])
def test_a_reference_that_is_no_text_is_refused(registry: Registry, reference: Any) -> None:
    with pytest.raises(InvalidInputError, match="the reference is no text"):
        registry.resolve(reference)


def test_what_mlflow_has_no_room_for_is_refused(registry: Registry, formats: Any) -> None:
    for change, told in (
        ({"description": "x" * 5001}, "description is too long"),
        ({"tags": {"x" * 251: "a"}}, "name of a tag is too long"),
        ({"tags": {"a": "x" * (64 * 1024 + 1)}}, "tags `a` is too long"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            registry.register(formats.draft(**change), actor="ada")
    with pytest.raises(InvalidInputError, match="actor is too long"):
        registry.register(formats.draft(), actor="x" * 257)
    fits = formats.draft(description="x" * 5000, tags={"x" * 250: "\x1b[1m"})
    assert registry.register(fits, actor="x" * 256).number == 1


@pytest.mark.parametrize("text", [BAD, "a\0b", "a\x1b[2Jb", "x" * 4097])
def test_a_reason_or_name_that_cannot_be_kept_moves_nothing(registry: Registry, formats: Any, text: str) -> None:
    registry.register(formats.draft(), actor="ada")
    calls: list[tuple[str, Callable[[], object]]] = [
        ("reason", lambda: registry.promote("digits", 1, reason=text, actor="ada")),
        ("actor", lambda: registry.promote("digits", 1, reason="r", actor=text)),
        ("reason", lambda: registry.rollback("digits", reason=text, actor="ada")),
        ("reason", lambda: registry.approvals.grant("digits", 1, principal="bob", reason=text)),
        ("principal", lambda: registry.approvals.grant("digits", 1, principal=text, reason="r")),
        ("reason", lambda: registry.approvals.revoke(1, reason=text, actor="ada")),
        ("reason", lambda: registry.retention.delete("digits", 1, reason=text, actor="ada")),
        ("actor", lambda: registry.retention.delete("digits", 1, reason="r", actor=text)),
    ]
    for field, call in calls:
        with pytest.raises(InvalidInputError, match=f"the {field} "):
            call()
    if len(text) < 100:
        for field, call in (
            ("query", lambda: registry.search(text)),
            ("question", lambda: registry.lineage(text)),
        ):
            with pytest.raises(InvalidInputError, match=f"the {field} "):
                call()
    assert registry.resolve("digits").aliases == ()
    assert registry.promote("digits", 1, reason="two\nlines", actor="ada").reason == "two\nlines"


def test_a_number_that_no_version_can_have_is_not_found(registry: Registry, formats: Any) -> None:
    registry.register(formats.draft(), actor="ada")
    for number in (0, -1, 2**31, 2**63, -(10**30)):
        reference = ModelReference(name="digits", number=number)
        for call in _calls(registry, number, reference):
            with pytest.raises(NotFoundError, match="no version"):
                call()
        assert registry.approvals.list("digits", number) == []
        with pytest.raises(NotFoundError, match="no approval"):
            registry.approvals.revoke(number, reason="r", actor="ada")


def test_what_only_compares_like_a_number_is_refused(registry: Registry, formats: Any) -> None:
    registry.register(formats.draft(), actor="ada")
    like: Any
    for like in (True, 1.0, "1", None):
        for call in _calls(registry, like, None):
            with pytest.raises(InvalidInputError, match="no whole number"):
                call()
    for like in (True, 1.0, "1"):
        with pytest.raises(InvalidInputError, match="the expected holder is no whole number"):
            registry.promote("digits", 1, reason="r", actor="ada", expect=like)
    assert registry.resolve("digits").aliases == ()


def _calls(registry: Registry, number: Any, reference: ModelReference | None) -> list[Callable[[], object]]:
    calls: list[Callable[[], object]] = [
        lambda: registry.promote("digits", number, reason="r", actor="ada"),
        lambda: registry.check("digits", number),
        lambda: registry.evidence("digits", number),
        lambda: registry.attach("digits", number, []),
        lambda: registry.find_record_problems("digits", number),
        lambda: registry.approvals.grant("digits", number, principal="bob", reason="r"),
        lambda: registry.retention.delete("digits", number, reason="r", actor="ada"),
        lambda: registry.retention.restore("digits", number, actor="ada"),
    ]
    return calls if reference is None else [*calls, lambda: registry.resolve(reference)]
