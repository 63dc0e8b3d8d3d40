"""Texts that people and programs hand in to be kept: what may be in them, and how long they may be.

A database, a ledger's hash and a terminal want Unicode: bytes of a command line that are not UTF-8 reach Python as lone
surrogates, and a NUL or an escape sequence is stored by some of them, cut off by others and obeyed by a third.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast
from unicodedata import category

from noa.errors import InvalidInputError

MOST_BYTES: Final = 64 << 10
LINES: Final = "\n\t"
"""Controls that a text of several lines needs."""
ALL_BUT_NUL: Final = "".join(map(chr, range(1, 32))) + "\x7f" + "".join(map(chr, range(128, 160)))
_SHOWN: Final = 40


def check_text(
    text: object, *, field: str, most_bytes: int = MOST_BYTES, controls: str = LINES, formats: bool = True
) -> str:
    """Return `text` if it can be kept: Unicode, not too long, and with no other control characters than `controls`.

    `formats=False` also refuses what is invisible or turns the direction of writing, so that two names that look the
    same are the same.

    Raises:
        InvalidInputError: it cannot; `facts["field"]` and the message name the field, which is shown escaped.
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"the {field} is no text", expected="a text", received=type(text).__name__, field=field)
    refused = _first_refused(text, controls, formats)
    if refused is not None:
        is_surrogate = category(text[refused]) == "Cs"
        raise InvalidInputError(
            f"the {field} is not UTF-8" if is_surrogate else f"the {field} holds a character that cannot be kept",
            expected="Unicode text without control characters",
            received=f"{text[refused]!a} at character {refused + 1} of {text[:_SHOWN]!a}",
            field=field,
        )
    size = len(text.encode())
    if size > most_bytes:
        raise InvalidInputError(
            f"the {field} is too long", expected=f"at most {most_bytes} bytes", received=f"{size} bytes", field=field
        )
    return text


def check_texts_in(value: object, *, field: str) -> None:
    """Check every text within a JSON value, keys included, which are texts or numbers; other values are no matter.

    Raises:
        InvalidInputError: as `check_text`; names the place.
    """
    if isinstance(value, str):
        check_text(value, field=field, controls=ALL_BUT_NUL)
    elif isinstance(value, Mapping):
        for key, entry in cast("Mapping[object, object]", value).items():
            if not isinstance(key, int | float):  # a number becomes a text in JSON
                check_text(key, field=f"name in {field}", controls=ALL_BUT_NUL)
            check_texts_in(entry, field=f"{field} `{key}`")
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        for entry in cast("Sequence[object]", value):
            check_texts_in(entry, field=field)


def _first_refused(text: str, controls: str, formats: bool) -> int | None:
    if text.isascii() and text.isprintable():
        return None
    refused = {"Cs", "Cc"} if formats else {"Cs", "Cc", "Cf", "Zl", "Zp"}
    places = (index for index, char in enumerate(text) if category(char) in refused and char not in controls)
    return next(places, None)
