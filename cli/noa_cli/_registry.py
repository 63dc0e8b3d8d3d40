"""Open the project's registry, and show versions the same way everywhere."""

from __future__ import annotations

import difflib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from noa.errors import NotFoundError
from noa_cli._invocation import current

if TYPE_CHECKING:
    from noa.errors import NoaError
    from noa.settings import Settings
    from noa_registry import GateReport, LedgerEntry, ModelVersion, Registry


@contextmanager
def open_registry(
    settings: Settings | None = None, *, about: Sequence[str] = (), makes: bool = False
) -> Generator[Registry]:
    """Open the registry of the project and close it after the command.

    `about` are the references that were typed: where one is not found, the error says which there are instead. A
    command that registers something `makes` the registry; to others one that is not there looks empty and stays unmade.
    """
    chosen = settings or current().settings()
    if makes or _is_made(chosen):
        with _opened(chosen) as registry, _told_what_there_is(registry, about):
            yield registry
        return
    from noa_registry.empty_registry import open_empty_registry

    with open_empty_registry(chosen) as registry, _told_what_there_is(registry, about):
        yield registry


def _is_made(settings: Settings) -> bool:
    """Tell whether opening the registry would make nothing: something of it is there, or a server keeps it."""
    from noa_registry.database_url import parse_database_url

    registry = settings.registry
    parsed = parse_database_url(registry.database_url)
    is_local = parsed.dialect == "sqlite" and not registry.artifact_url
    if not is_local or parsed.file.exists() or registry.artifact_dir.exists():
        return True
    return parsed.file.parent.exists() and not parsed.file.parent.is_dir()  # opening it says what is wrong


@contextmanager
def _opened(settings: Settings) -> Generator[Registry]:
    from noa_registry import Registry

    registry = Registry.open(settings)
    try:
        yield registry
    finally:
        registry.close()


@contextmanager
def _told_what_there_is(registry: Registry, about: Sequence[str]) -> Generator[None]:
    try:
        yield
    except NotFoundError as exc:
        if "state" not in exc.facts:  # what is in the trash comes back otherwise
            exc.remedy = _what_there_is(registry, about) or exc.remedy
        raise


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


def store_problems(registry: Registry, settings: Settings | None = None) -> list[NoaError]:
    """Return what of the store does not belong to the database, by the ages that the settings name."""
    retention = (settings or current().settings()).retention
    return registry.find_store_problems(
        orphan_age=timedelta(hours=retention.orphan_hours), grace=timedelta(days=retention.grace_days)
    )


def report_to_dict(report: GateReport) -> dict[str, object]:
    """Return a gate's report as plain JSON values."""
    return report.to_dict()


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


def _what_there_is(registry: Registry, references: Sequence[str]) -> str | None:
    """Return what to type in place of the first reference whose model or alias is unknown; None if all are known."""
    from noa.references import parse_reference

    models = {model.name: model for model in registry.models()}
    for reference in (parse_reference(text) for text in references if not text.lower().startswith("sha256:")):
        model = models.get(reference.name)
        if model is None:
            close = difflib.get_close_matches(reference.name, models, n=1)
            return f"Did you mean `{close[0]}`? List them with: noa models list" if close else None
        if reference.alias is not None and model.aliases and reference.alias not in model.aliases:
            known = ", ".join(f"`{model.name}@{alias}`" for alias in model.aliases)
            promote = f"noa models promote {model.name}/{model.newest} --alias {reference.alias}"
            return f"Use {known}, or set the alias first: {promote}"
    return None
