"""Who wrote a fact into the registry, when, and how it came there: kept with the fact, under its digest.

A fact says by itself what was measured and when; whoever attaches it may say anything. This is what the registry saw.
It cannot tell a person from a program: a pipeline says that it is one, and whoever can write may say so too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias, cast, get_args

RECORDING_KEY: Final = "noa.recorded"
"""Where the values of a stored fact hold it; no fact of one's own may use this key."""
Way: TypeAlias = Literal["registered", "pipeline", "attached", "checked", "imported"]
_WORDS: Final[Mapping[Way, str]] = {
    "registered": "recorded with the registration by",
    "pipeline": "measured by the pipeline, run by",
    "attached": "attached by hand by",
    "checked": "written by a check of",
    "imported": "imported with an archive by",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Who wrote a fact, when by this machine's clock, and in which way."""

    by: str
    at: datetime
    way: Way

    def describe(self) -> str:
        """Return e.g. `attached by hand by ada, 2026-01-01T12:00:00+00:00`."""
        return f"{_WORDS[self.way]} {self.by}, {self.at.astimezone(UTC).isoformat(timespec='seconds')}"

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {"by": self.by, "at": self.at.isoformat(), "way": self.way}

    @staticmethod
    def from_dict(value: object) -> Recording | None:
        """Read what `to_dict` wrote, None if there is nothing that can be read: an older noa kept none."""
        if not isinstance(value, Mapping):
            return None
        table = cast("Mapping[str, object]", value)
        by, at, way = table.get("by"), table.get("at"), table.get("way")
        if not isinstance(by, str) or not isinstance(at, str) or way not in get_args(Way):
            return None
        try:
            moment = datetime.fromisoformat(at)
        except ValueError:
            return None
        return None if moment.tzinfo is None else Recording(by=by, at=moment, way=cast("Way", way))
