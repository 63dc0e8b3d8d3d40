"""Scans: what a scanner found in files that came from outside."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from noa_registry.evidence.facts import SCAN, Evidence
from noa_registry.evidence.reading import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFinding:
    """One thing that a scanner found in a file; `what` says it for people, `severity` in the scanner's own word."""

    file: str
    severity: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanEvidence:
    """A scan of the files of a format or of a whole version.

    It passed if nothing was found, or if somebody allowed what was found: `allowed_by` says who.
    """

    subject: str
    digest: str
    scanner: str
    version: str
    files: int
    findings: tuple[ScanFinding, ...] = ()
    allowed_by: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the files may be used."""
        return not self.findings or self.allowed_by is not None

    def to_evidence(self) -> Evidence:
        """Return it as a fact to attach."""
        return Evidence(
            kind=SCAN,
            subject=self.subject,
            digest=self.digest,
            passed=self.passed,
            values={
                "scanner": self.scanner,
                "version": self.version,
                "files": self.files,
                "findings": [asdict(finding) for finding in self.findings],
                "allowed_by": self.allowed_by,
            },
        )

    @staticmethod
    def from_evidence(evidence: Evidence) -> ScanEvidence:
        """Read a fact back.

        Raises:
            InvalidInputError: it is of another kind, a part is missing, or its verdict is not what its findings say.
        """
        reader = Reader.of(evidence, SCAN)
        scan = ScanEvidence(
            subject=evidence.subject,
            digest=evidence.digest,
            scanner=reader.text("scanner"),
            version=reader.text("version"),
            files=reader.integer("files"),
            findings=tuple(
                ScanFinding(file=row.text("file"), severity=row.text("severity"), what=row.text("what"))
                for row in reader.rows("findings")
            ),
            allowed_by=reader.optional_text("allowed_by"),
        )
        if evidence.passed is not scan.passed:
            raise reader.wrong("findings", f"the verdict {scan.passed} for them, not {evidence.passed}")
        return scan
