from __future__ import annotations

from datetime import timedelta

import pytest

from noa.durations import find_duration, parse_duration
from noa.errors import InvalidInputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30m", timedelta(minutes=30)),
        (" 24h ", timedelta(days=1)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(days=14)),
        ("0.5h", timedelta(minutes=30)),
        ("0d", timedelta()),
    ],
)
def test_a_span_is_read(text: str, expected: timedelta) -> None:
    assert parse_duration(text, where="--grace") == expected


@pytest.mark.parametrize("text", ["", "d", "7", "7 d", "-1d", "1e3d", "7y", "7D", "999999999d", "9" * 400 + "d"])
def test_what_is_no_span_or_longer_than_a_century_is_refused(text: str) -> None:
    assert find_duration(text) is None
    with pytest.raises(InvalidInputError, match="is no span of time \\(--grace\\)"):
        parse_duration(text, where="--grace")
