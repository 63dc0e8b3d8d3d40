"""What a text may hold before it is kept."""

from __future__ import annotations

from typing import Any

import pytest

from noa.errors import InvalidInputError
from noa.texts import check_text, check_texts_in


@pytest.mark.parametrize("text", ["", "plain", "two\nlines\tand a tab", "Zo\u00eb \u2013 \U0001f600", "a\u200bb"])
def test_what_people_write_is_given_back(text: str) -> None:
    assert check_text(text, field="reason") == text


@pytest.mark.parametrize("char", ["\udcff", "\ud800", "\0", "\x1b", "\r", "\x7f", "\x9b"])
def test_what_cannot_be_kept_is_named_by_field_place_and_character(char: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        check_text(f"ab{char}", field="reason")
    told = str(refused.value)
    assert told.isascii()
    assert told.startswith("the reason ")
    assert f"{char!a} at character 3" in told
    assert refused.value.facts["field"] == "reason"


def test_bytes_that_were_no_utf8_are_called_so() -> None:
    with pytest.raises(InvalidInputError, match="the query is not UTF-8"):
        check_text(b"\xff\xfe".decode("utf-8", "surrogateescape"), field="query")


@pytest.mark.parametrize("text", ["a\u200bda", "ada\u202e", "ada\u2028", "a\nda"])
def test_a_name_holds_nothing_invisible(text: str) -> None:
    with pytest.raises(InvalidInputError, match="the actor holds"):
        check_text(text, field="actor", controls="", formats=False)


def test_lengths_are_counted_in_bytes() -> None:
    assert check_text("\u00eb" * 2, field="reason", most_bytes=4)
    with pytest.raises(InvalidInputError, match="too long; expected at most 4 bytes; received 6 bytes"):
        check_text("\u00eb" * 3, field="reason", most_bytes=4)


@pytest.mark.parametrize("value", [{"a": {"b": ["\udcff"]}}, {"\udcff": 1}, ["\0"], {"a": ({"\0": 1},)}])
def test_every_text_within_a_table_is_checked(value: Any) -> None:
    with pytest.raises(InvalidInputError, match="params"):
        check_texts_in(value, field="params")


def test_what_is_no_text_is_no_matter_and_controls_stay_in_tables() -> None:
    check_texts_in({"a": 1, "b": [None, 2.5, b"\xff"], "c": "\x1b[1m\r\n"}, field="params")
    with pytest.raises(InvalidInputError, match="the reason is no text; expected a text; received int"):
        check_text(3, field="reason")
