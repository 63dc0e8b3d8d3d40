"""Deadlines: until when a request wants its answer. The server has one for all; a request may ask for a sooner one."""

from __future__ import annotations

import time
from typing import NamedTuple

from noa.errors import InvalidInputError
from noa_serving._http import Headers, RequestRefusedError

TIMEOUT_HEADER = b"noa-timeout-ms"

_MAX_DIGITS = 12


class Deadline(NamedTuple):  # made for every request, and far quicker than a frozen dataclass
    """The moment until which a request wants its answer: `at` on the monotonic clock, `limit_s` after it came."""

    at: float
    limit_s: float

    @classmethod
    def after(cls, limit_s: float) -> Deadline:
        """Return the deadline `limit_s` seconds from now."""
        return cls(time.monotonic() + limit_s, limit_s)

    def within(self, limit_s: float | None) -> Deadline:
        """Return this deadline, or the sooner one of a request that asked for `limit_s` when it came."""
        if limit_s is None or limit_s >= self.limit_s:
            return self
        return Deadline(self.at - self.limit_s + limit_s, limit_s)

    def left_s(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, self.at - time.monotonic())

    def missed(self) -> RequestRefusedError:
        """Return the refusal of a request whose deadline has passed: 504."""
        return RequestRefusedError(
            "the answer took too long",
            status=504,
            expected=f"at most {self.limit_s:g} s",
            remedy="Send a smaller batch, ask for a later deadline, or raise `serving.timeout_s`",
        )


def asked_timeout_s(headers: Headers) -> float | None:
    """Return how long a request is ready to wait by its header `noa-timeout-ms`, None if it does not say.

    Raises:
        InvalidInputError: it is no whole number of milliseconds.
    """
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise InvalidInputError(
            "the header `noa-timeout-ms` is wrong",
            expected="a whole number of milliseconds",
            received=text[:40].decode("latin-1"),
        )
    return int(text) / 1000
