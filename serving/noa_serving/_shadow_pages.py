"""What all workers of a server have counted of shadows, and what was decided: files in the server's private folder.

Each worker writes its own counts, and the one that takes the place of a dead one goes on from them. Decisions are one
file, written by the worker that judges. All files appear whole: under a temporary name that is changed last.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from noa_serving._comparing import Comparison, Pair
from noa_serving._verdict import Verdict

log = logging.getLogger("noa.serving")

_DECISIONS = "shadow-decisions.json"
_SETTLED = ("counts", "decided_at", "done", "is_kept", "is_final", "attempts", "retry_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A verdict that was given about a pair. `done` tells what followed from it, and is final if `is_final`.

    `counts` is what `Comparison.describe` said in that moment. `is_kept`: the registry has the evidence. Times are
    since 1970, seconds.
    """

    pair: Pair
    verdict: Verdict
    counts: Mapping[str, object]
    decided_at: float
    done: str = ""
    is_kept: bool = False
    is_final: bool = False
    attempts: int = 0
    retry_at: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return everything, as JSON values."""
        return {
            "pair": list(self.pair),
            "verdict": self.verdict.to_json(),
            **{name: getattr(self, name) for name in _SETTLED},
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Settled:
        """Return what `to_json` gave."""
        plain = {name: table[name] for name in _SETTLED}
        return cls(pair=Pair(*table["pair"]), verdict=Verdict.from_json(table["verdict"]), **plain)


class ShadowPages:
    """The files, seen by the worker with number `slot` of `size`. Belongs to one thread."""

    def __init__(self, folder: Path, slot: int, size: int) -> None:
        self._folder = folder
        self._slot = slot
        self._size = size
        self._is_failing = False

    def read_own(self) -> dict[Pair, Comparison]:
        """Return what the worker before this one had counted in its place."""
        return self._read_counts(self._slot)

    def write_own(self, counts: Mapping[Pair, Comparison]) -> None:
        """Replace this worker's counts."""
        self._write(
            self._path(self._slot), [{"pair": list(pair), "counts": one.to_json()} for pair, one in counts.items()]
        )

    def sum_up(self, own: Mapping[Pair, Comparison]) -> dict[Pair, Comparison]:
        """Return `own` and the counts of all other workers together, of those that have ended too."""
        total = dict(own)
        for slot in range(self._size):
            if slot == self._slot:
                continue
            for pair, one in self._read_counts(slot).items():
                if pair in total:
                    one.merge(total[pair])
                total[pair] = one
        return total

    def read_decisions(self) -> dict[Pair, Settled]:
        """Return what was decided."""
        found: dict[Pair, Settled] = {}
        for row in self._read(self._folder / _DECISIONS):
            with suppress(KeyError, TypeError, ValueError):
                one = Settled.from_json(row)
                found[one.pair] = one
        return found

    def write_decisions(self, decisions: Mapping[Pair, Settled]) -> None:
        """Replace what was decided."""
        self._write(self._folder / _DECISIONS, [one.to_json() for one in decisions.values()])

    def _read_counts(self, slot: int) -> dict[Pair, Comparison]:
        found: dict[Pair, Comparison] = {}
        for row in self._read(self._path(slot)):
            with suppress(KeyError, TypeError, ValueError):
                found[Pair(*row["pair"])] = Comparison.from_json(row["counts"])
        return found

    def _read(self, path: Path) -> list[dict[str, Any]]:
        try:
            return orjson.loads(path.read_bytes())
        except (OSError, ValueError):
            return []

    def _write(self, path: Path, rows: list[dict[str, Any]]) -> None:
        temporary = path.with_suffix(f".{self._slot}.part")
        try:
            temporary.write_bytes(orjson.dumps(rows))
            temporary.replace(path)
        except OSError as exc:
            if not self._is_failing:
                log.warning("the other workers cannot be told what shadows have shown: %s", exc.strerror)
            self._is_failing = True
        else:
            self._is_failing = False

    def _path(self, slot: int) -> Path:
        return self._folder / f"shadow-{slot}.json"
