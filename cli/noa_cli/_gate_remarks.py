"""What is odd about the gates of a project, and yet no error: told by `noa doctor` and `noa config validate`."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noa.settings import Settings
    from noa_registry import Registry

_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """One thing that somebody should look at."""

    text: str
    remedy: str


def gate_remarks(settings: Settings, registry: Registry | None) -> list[Remark]:
    """Return what is odd about the gates; `registry` is None where none was made yet."""
    registered = [] if registry is None else [model.name for model in registry.models()]
    known = sorted({*registered, *settings.recipes})
    remarks = [_unknown_model(name, known) for name in settings.gates if name not in known]
    if registry is not None:
        remarks += [
            Remark(text=f"{report.reference} is {report.alias}, and {verdict.warning}", remedy=verdict.remedy or "")
            for report in registry.gate_warnings()
            for verdict in report.warnings
        ]
    return remarks


def registry_is_there(settings: Settings) -> bool:
    """Tell whether looking into the registry would not make it: its file exists, or a server keeps it."""
    from noa_registry.database_url import parse_database_url

    parsed = parse_database_url(settings.registry.database_url)
    return parsed.dialect != "sqlite" or parsed.file.is_file()


def _unknown_model(name: str, known: Collection[str]) -> Remark:
    close = difflib.get_close_matches(name, known, n=1)
    there = ", ".join(f"`{model}`" for model in list(known)[:_SHOWN])
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return Remark(
        text=f"[gates.{name}] guards a model that is neither registered nor made by a recipe; there "
        + (f"are {there}{more}" if there else "is none yet"),
        remedy=f"Did you mean `{close[0]}`?" if close else "Correct the name, or register the model under it",
    )
