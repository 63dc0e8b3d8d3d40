"""Open the project's registry, and show versions the same way everywhere."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from noa_cli._invocation import current

if TYPE_CHECKING:
    from noa.settings import Settings
    from noa_registry import GateReport, LedgerEntry, ModelVersion, Registry


@contextmanager
def open_registry(settings: Settings | None = None) -> Generator[Registry]:
    """Open the registry of the project and close it after the command."""
    from noa_registry import Registry

    chosen = settings or current().settings()
    registry = Registry.open(chosen.registry, gates=chosen.gates)
    try:
        yield registry
    finally:
        registry.close()


def version_to_dict(version: ModelVersion) -> dict[str, object]:
    """Return a version as plain JSON values."""
    return {
        "reference": version.reference,
        "name": version.name,
        "number": version.number,
        "digest": version.digest,
        "native": version.native,
        "aliases": list(version.aliases),
        "formats": {
            name: {"digest": sealed.digest, "size_bytes": sealed.manifest.size_bytes, "folder": str(sealed.folder)}
            for name, sealed in version.formats.items()
        },
        "signature": version.signature.to_dict(),
        "dataset_digest": version.dataset_digest,
        "run_id": version.run_id,
        "git_commit": version.git_commit,
        "environment": dict(version.environment),
        "params": dict(version.params),
        "tags": dict(version.tags),
        "description": version.description,
        "created_at": version.created_at,
        "created_by": version.created_by,
    }


def report_to_dict(report: GateReport) -> dict[str, object]:
    """Return a gate's report as plain JSON values."""
    return {
        "reference": report.reference,
        "alias": report.alias,
        "passed": report.passed,
        "verdicts": [
            {"rule": v.rule, "passed": v.passed, "expected": v.expected, "received": v.received}
            for v in report.verdicts
        ],
    }


def entry_to_dict(entry: LedgerEntry) -> dict[str, object]:
    """Return a ledger entry as plain JSON values."""
    return {
        "sequence": entry.sequence,
        "action": entry.action,
        "name": entry.name,
        "alias": entry.alias,
        "from": entry.from_number,
        "to": entry.to_number,
        "from_digest": entry.from_digest,
        "to_digest": entry.to_digest,
        "actor": entry.actor,
        "reason": entry.reason,
        "created_at": entry.created_at,
        "hash": entry.hash,
    }
