"""The beginning of a digest names what only one thing has; what several have is refused with their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from noa.errors import InvalidInputError, NotFoundError
from noa_registry import ModelVersion, Registry

pytestmark = pytest.mark.local_files  # rows only; where files are kept does not matter


@pytest.fixture
def two(registry: Registry, formats: Any) -> list[ModelVersion]:
    """Two versions of the same bytes."""
    return [registry.register(formats.draft(), actor="ada") for _ in range(2)]


def test_a_version_is_resolved_by_the_beginning_of_its_digest(registry: Registry, two: list[ModelVersion]) -> None:
    begin = two[0].digest[: len("sha256:") + 8]
    assert registry.resolve(begin).number == 1
    assert registry.resolve(begin.upper().replace("SHA", "sha")).number == 1
    assert registry.card(two[1].digest).facts.version.number == 2
    assert [hit.reference for hit in registry.search(begin).hits] == ["digits/1"]
    assert [hit.reference for hit in registry.search(f"digits -{begin}").hits] == ["digits/2"]
    assert registry.lineage(begin).to_dict() == registry.lineage("digits/1").to_dict()


def test_a_digest_that_several_versions_have_is_refused_with_their_names(
    registry: Registry, two: list[ModelVersion]
) -> None:
    begin = two[0].formats["onnx"].digest[: len("sha256:") + 8]
    with pytest.raises(InvalidInputError, match="is not one version alone") as caught:
        registry.resolve(begin)
    assert caught.value.received == "`digits/1`, `digits/2`"
    assert registry.lineage(begin).to_dict()["nodes"]  # it is one format, of both versions
    registry.retention.delete("digits", 2, reason="r", actor="ada")
    assert registry.resolve(begin).number == 1


def test_a_beginning_of_several_digests_is_refused_with_the_digests(
    registry: Registry, two: list[ModelVersion], tamper: Callable[..., Any]
) -> None:
    first, second = ("sha256:" + "a" * 20 + digit * 44 for digit in "12")
    tamper(
        f"UPDATE noa_versions SET digest = '{first}' WHERE number = 1",
        f"UPDATE noa_versions SET digest = '{second}' WHERE number = 2",
    )
    with pytest.raises(InvalidInputError, match="is not one digest alone") as caught:
        registry.lineage("sha256:" + "a" * 8)
    assert caught.value.received == f"`{first}`, `{second}`"


def test_digits_alone_are_a_digest_unless_a_model_has_that_name(
    registry: Registry, two: list[ModelVersion], formats: Any
) -> None:
    begin = two[0].digest.removeprefix("sha256:")[:12]
    assert registry.resolve(begin).reference == "digits/1"
    assert registry.lineage(begin).to_dict() == registry.lineage("digits/1").to_dict()
    with pytest.raises(NotFoundError, match="has this digest"):
        registry.resolve("0123456789")
    registry.register(formats.draft(name="deadbeef"), actor="ada")
    assert registry.resolve("deadbeef").reference == "deadbeef/1"
    assert registry.resolve("deadbeef/1").reference == "deadbeef/1"


@pytest.mark.parametrize("text", ["sha256:", "sha256:abc1234", "sha256:" + "a" * 65, "sha256:xyzxyzxy"])
def test_what_is_no_beginning_of_a_digest_is_refused(registry: Registry, two: object, text: str) -> None:
    for look in (registry.resolve, registry.lineage):
        with pytest.raises(InvalidInputError, match="8 to 64 hexadecimal digits"):
            look(text)


def test_a_digest_that_nothing_has_is_not_found(registry: Registry, two: object) -> None:
    for look in (registry.resolve, registry.lineage):
        with pytest.raises(NotFoundError, match="has this digest"):
            look("sha256:" + "0" * 8)
