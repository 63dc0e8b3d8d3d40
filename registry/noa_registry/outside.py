"""Formats that came from outside and may run code: who allowed them, written inside what is sealed.

noa writes no such format itself. `pickle` and `mlflow` are sealed only with a mark that repeats the name of the model
they were allowed for, so that a folder that was allowed for one model is not slipped under another.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from noa.digests import canonical_json
from noa.errors import InvalidInputError

CODE_FORMATS: Final = frozenset({"mlflow", "pickle"})
MARK_FILE: Final = "allowed.json"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedMark:
    """Who allowed which files for which model, and what the scan had found in them."""

    model: str
    allowed_by: str
    source_digest: str
    findings: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Write the mark into a format's folder."""
        table: Mapping[str, object] = {
            "model": self.model,
            "allowed_by": self.allowed_by,
            "source_digest": self.source_digest,
            "findings": list(self.findings),
        }
        (folder / MARK_FILE).write_bytes(canonical_json(table))

    @staticmethod
    def load(folder: Path) -> AllowedMark:
        """Read the mark of a format's folder.

        Raises:
            InvalidInputError: there is none, or it is unreadable: nobody allowed this.
        """
        path = folder / MARK_FILE
        try:
            if path.is_symlink() or path.stat().st_size > _MOST_BYTES:
                raise ValueError
            table = cast("dict[str, Any]", json.loads(path.read_bytes()))
            return AllowedMark(
                model=str(table["model"]),
                allowed_by=str(table["allowed_by"]),
                source_digest=str(table["source_digest"]),
                findings=tuple(str(text) for text in table["findings"]),
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
            raise InvalidInputError(
                "this format may run code when it is loaded, and nobody has allowed it by name",
                where=str(folder),
                expected=f"a readable `{MARK_FILE}`, written by `noa models import --allow-pickle NAME`",
                remedy="Import it with `noa models import PATH --name NAME --allow-pickle NAME` if you trust it",
            ) from exc


def check_allowed(folder: Path, model: str) -> None:
    """Check that a folder that may run code was allowed for exactly this model.

    Raises:
        InvalidInputError: nobody allowed it, or it was allowed for another model.
    """
    mark = AllowedMark.load(folder)
    if mark.model != model:
        raise InvalidInputError(
            "this format was allowed for another model",
            where=str(folder),
            expected=f"allowed for `{model}`",
            received=f"allowed for `{mark.model}` by {mark.allowed_by}",
        )


def refuse_unallowed(model: str, formats: Iterable[str], allowed: Collection[str]) -> None:
    """Check that a version with a format that may run code was allowed here too, by the name of its model.

    Raises:
        InvalidInputError: it was not; that somebody allowed it in another registry does not count.
    """
    found = sorted(CODE_FORMATS.intersection(formats))
    if found and model not in allowed:
        raise InvalidInputError(
            f"`{model}` has the format `{found[0]}`, which may run code when it is loaded",
            expected=f"`--allow-pickle {model}`, which repeats the model's name",
            received=", ".join(sorted(allowed)) or "no permission",
            remedy="Allow it only if you trust where it came from",
        )
