"""What a conversion made: where it is, and how far it is from its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from noa_cli import _console as console


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A format that was made and proven. `evidence` are the values of the comparison."""

    source: str
    format: str
    chain: tuple[str, ...]
    digest: str
    place: str
    reference: str | None
    evidence: Mapping[str, object]

    def to_dict(self) -> dict[str, object]:
        """Return JSON values."""
        return {
            "source": self.source,
            "reference": self.reference,
            "format": self.format,
            "chain": list(self.chain),
            "digest": self.digest,
            "place": self.place,
            "evidence": dict(self.evidence),
        }

    def describe(self) -> str:
        """Return one line."""
        error = self.evidence.get("max_abs_error")
        apart = f", at most {error:.3g} apart" if isinstance(error, float) and error else ""
        way = f" ({' -> '.join(self.chain)})" if len(self.chain) > 2 else ""
        agrees = f"{'close' if self._is_reduced else 'equal'} to {self.source}{apart}{way}"
        return f"{self.format} ({console.short_digest(self.digest)}) {self.place}, {agrees}"

    @property
    def _is_reduced(self) -> bool:
        """Whether an output may differ by a share of its largest number: a format of reduced precision."""
        outputs = self.evidence.get("outputs")
        if not isinstance(outputs, list):
            return False
        return any(output["tolerance_of_largest"] for output in cast("list[dict[str, object]]", outputs))


def keep_folder(folder: Path, output: Path) -> None:
    """Copy a finished format to where it was asked for; it appears whole or not at all.

    Raises:
        ConflictError: something is there meanwhile.
        StorageError: the disk refused.
    """
    from noa_conversion.files import copy_folder, staged_folder

    with staged_folder(output) as staged:
        copy_folder(folder, staged, told=output)


def check_output(output: Path) -> None:
    """Refuse an output that is there, before any work.

    Raises:
        ConflictError: it is there, and is not an empty folder.
    """
    from noa.errors import ConflictError

    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConflictError(f"`{output}` is already there", remedy="Name a new folder; nothing was written")
