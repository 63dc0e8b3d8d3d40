"""What one scan has found so far and what it may still spend; shared by all that look into files."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path

from noa_registry.scanning.blobs import MalformedError
from noa_registry.scanning.limits import ScanLimits
from noa_registry.scanning.report import Finding, ScannedFile, Severity

_MOST_FINDINGS = 200
_MOST_SHOWN_CHARACTERS = 200


class OverLimitError(Exception):
    """The scan may not go on: too many files, too many bytes, too long. Its text says which."""


class ScanState:
    """The findings, and the budgets of time, files and unpacked bytes."""

    def __init__(self, limits: ScanLimits, *, now: float | None = None) -> None:
        self.limits = limits
        self.files: list[ScannedFile] = []
        self.findings: list[Finding] = []
        self.tensor_data: set[Path] = set()
        """Files that an ONNX graph keeps its weights in: raw numbers, which have no mark to be recognised by."""
        self._deadline = (time.monotonic() if now is None else now) + limits.seconds
        self._unpacked = 0

    def found(self, file: str, severity: Severity, what: str) -> None:
        """Keep a finding; after many of them only the count matters, and no more is kept."""
        if len(self.findings) < _MOST_FINDINGS or severity is Severity.HOSTILE:
            self.findings.append(Finding(file=readable(file), severity=severity, what=readable(what, 600)))

    def hostile(self, file: str, what: str) -> None:
        """Keep a finding for which the whole is refused."""
        self.found(file, Severity.HOSTILE, what)

    def code(self, file: str, what: str) -> None:
        """Keep a finding that needs somebody to allow it."""
        self.found(file, Severity.CODE, what)

    def note(self, file: str, what: str) -> None:
        """Keep a finding that refuses nothing."""
        self.found(file, Severity.NOTE, what)

    def add_file(self, file: str, kind: str, size_bytes: int) -> None:
        """Count a file.

        Raises:
            OverLimitError: there are too many.
        """
        if len(self.files) >= self.limits.files:
            raise OverLimitError(f"holds more than {self.limits.files} files")
        self.files.append(ScannedFile(file=readable(file), kind=kind, size_bytes=size_bytes))
        self.check_time()

    def spend_unpacked(self, count: int) -> None:
        """Count unpacked bytes.

        Raises:
            OverLimitError: there are too many.
        """
        self._unpacked += count
        if self._unpacked > self.limits.unpacked_bytes:
            raise OverLimitError(f"unpacks to more than {self.limits.unpacked_bytes} bytes")
        self.check_time()

    def check_time(self) -> None:
        """Raise `OverLimitError` if the time is up."""
        if time.monotonic() > self._deadline:
            raise OverLimitError(f"could not be looked through in {self.limits.seconds:g} seconds")


def readable(text: str, limit: int = _MOST_SHOWN_CHARACTERS) -> str:
    """Return a name or message of unknown origin so that it cannot break a line, a terminal or an encoding."""
    shown = "".join(
        char if char.isprintable() and unicodedata.category(char) != "Cf" else ascii(char)[1:-1] for char in text
    )
    return shown if len(shown) <= limit else f"{shown[:limit]}..."


def check_part(name: str) -> None:
    """Check one part of a path that came from outside.

    Raises:
        MalformedError: it could mean another file than it shows: control characters, separators, `..`, odd forms.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise MalformedError(f"has the name {name!a}, which leads elsewhere")
    if any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Co") for char in name):
        raise MalformedError(f"has the name {name!a}, with characters that nobody sees")
    if len(name.encode()) > 255 or name != unicodedata.normalize("NFC", name):
        raise MalformedError(f"has the name {name[:80]!a}, which not every system keeps as it is")
    if name.strip() != name or name.endswith("."):
        raise MalformedError(f"has the name {name!a}, which begins or ends with a space or ends with a dot")


def same_name(name: str) -> str:
    """Return the form in which two names are the same for some file system."""
    return unicodedata.normalize("NFKC", name).casefold()
