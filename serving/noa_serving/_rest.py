"""What is still to come of a request that went through ASGI: bounded in bytes, whether anybody reads it or nobody does.

A request may be answered before its body is there: a refusal, or a GET that nobody gave a body to read. uvicorn takes
in such a body to its end and forgets it, however large it is. `Rest` counts what is thrown away, and what chunk sizes,
their extensions and trailers take between two parts of a body, which no reader of the body ever sees. How long the
rest may take is the protocol's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MAX_UNASKED_BODY_BYTES: Final = 64 << 10
"""Thrown away of a body that a request of its method has no use for."""


class Rest:
    """The rest of one request, from the end of its head to the end of its body and trailers."""

    __slots__ = ("_most_thrown_away", "is_chunked", "quiet_bytes")

    def __init__(self, *, is_chunked: bool, most_thrown_away: int) -> None:
        self.is_chunked = is_chunked
        self.quiet_bytes = 0
        """Taken in since the last part of the body."""
        self._most_thrown_away = most_thrown_away

    def throw_away(self, num_bytes: int) -> bool:
        """Count a part of the body that comes after the answer; False if it is too much."""
        self._most_thrown_away -= num_bytes
        return self._most_thrown_away >= 0


def names_one_host(names: Sequence[bytes], http_version: str) -> bool:
    """Tell whether the names of the headers, in lower case, hold `host` as HTTP asks for it (RFC 9112, 3.2).

    With two of them, whoever stood in front may have judged the other one.
    """
    count = names.count(b"host")
    return count == 1 or (count == 0 and http_version != "1.1")
