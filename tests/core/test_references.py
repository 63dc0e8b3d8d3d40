"""References: what people may write for a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noa.errors import InvalidInputError
from noa.references import ModelReference, check_alias, check_name, parse_reference


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("digits", ModelReference(name="digits")),
        ("digits/3", ModelReference(name="digits", number=3)),
        ("digits@champion", ModelReference(name="digits", alias="champion")),
        ("my.model-2_x", ModelReference(name="my.model-2_x")),
    ],
)
def test_references_are_read(text: str, reference: ModelReference) -> None:
    assert parse_reference(text) == reference
    assert str(reference) == text


@pytest.mark.parametrize(
    "text",
    ["", "/3", "digits/", "digits/0", "digits/-1", "digits/x", "digits/3/4", "digits@", "digits@A b", "../x", "a b",
     "1x", "digits@latest", "digits@v3", "digits/٣", "digits/9999999999", "x" * 129, "a\nb", "digits@champion\n"],
)  # fmt: skip
def test_everything_else_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_reference(text)
    assert caught.value.expected


@pytest.mark.parametrize("value", [b"digits", None, 3, ["digits"]])
def test_what_is_no_text_is_refused_by_field(value: object) -> None:
    for read, field in ((parse_reference, "reference"), (check_name, "name"), (check_alias, "alias")):
        with pytest.raises(InvalidInputError, match=f"the {field} is no text") as caught:
            read(value)  # pyright: ignore[reportArgumentType]  # the point of the test
        assert caught.value.facts["field"] == field


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused_never_anything_else(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidInputError:
        return
    assert parse_reference(str(reference)) == reference


def test_names_that_could_leave_a_folder_are_refused() -> None:
    for name in ("..", ".hidden", "a/b", "a\\b", "a\0b"):
        with pytest.raises(InvalidInputError):
            check_name(name)


def test_aliases_that_stock_clients_read_as_versions_are_refused() -> None:
    for alias in ("latest", "v1", "v12", "Champion", ""):
        with pytest.raises(InvalidInputError):
            check_alias(alias)
