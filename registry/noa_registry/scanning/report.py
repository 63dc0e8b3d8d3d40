"""What a scan says: which files there are, what each of them is, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

SCANNER: Final = "noa"
SCANNER_VERSION: Final = "1"
TENSOR_DATA: Final = "tensor data"
"""The kind of raw numbers that a graph or archive keeps: they have no mark of their own."""
_MOST_SHOWN = 5


class Severity(StrEnum):
    """How bad a finding is.

    `HOSTILE`: broken or made to harm; refused whoever allows it. `CODE`: reading it in the usual way runs code of the
    file; refused unless somebody allows it by name. `NOTE`: worth knowing; refuses nothing.
    """

    HOSTILE = "hostile"
    CODE = "code"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing about one file. `file` is a path below what was scanned; `!` leads into an archive."""

    file: str
    severity: Severity
    what: str

    def __str__(self) -> str:
        return f"`{self.file}` {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedFile:
    """One file, recognised by its content and not by its name."""

    file: str
    kind: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanReport:
    """The result of a scan. Nothing of what was scanned was run, imported or unpickled for it."""

    source: str
    files: tuple[ScannedFile, ...]
    findings: tuple[Finding, ...] = ()
    scanner: str = field(default=SCANNER)
    version: str = field(default=SCANNER_VERSION)

    @property
    def hostile(self) -> tuple[Finding, ...]:
        """Findings for which it is refused in any case."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.HOSTILE)

    @property
    def code(self) -> tuple[Finding, ...]:
        """Findings for which it is refused unless it was allowed by name."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.CODE)

    def kind_of(self, file: str) -> str | None:
        """Return what a file is, None if there is no such file."""
        return next((entry.kind for entry in self.files if entry.file == file), None)

    def describe(self, findings: tuple[Finding, ...]) -> str:
        """Return some findings as one line for people."""
        shown = "; ".join(str(finding) for finding in findings[:_MOST_SHOWN])
        more = len(findings) - _MOST_SHOWN
        return f"{shown}; and {more} more" if more > 0 else shown

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "source": self.source,
            "scanner": self.scanner,
            "version": self.version,
            "files": [{"file": each.file, "kind": each.kind, "size_bytes": each.size_bytes} for each in self.files],
            "findings": [
                {"file": each.file, "severity": str(each.severity), "what": each.what} for each in self.findings
            ],
        }
