"""What is odd about gates and names of models, and yet no error: told by `noa doctor` and `noa config validate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noa_cli._settings_checks import Remark, reference_remarks, unknown_model

if TYPE_CHECKING:
    from noa.settings import Settings
    from noa_registry import Registry


def gate_remarks(settings: Settings, registry: Registry | None) -> list[Remark]:
    """Return what is odd about the gates; `registry` is None where none was made yet."""
    known = _known_models(settings, registry)
    remarks = [unknown_model(f"[gates.{name}] guards", name, known) for name in settings.gates if name not in known]
    if registry is not None:
        remarks += [
            Remark(text=f"{report.reference} is {report.alias}, and {verdict.warning}", remedy=verdict.remedy or "")
            for report in registry.gate_warnings()
            for verdict in report.warnings
        ]
    return remarks


def name_remarks(settings: Settings, registry: Registry | None) -> list[Remark]:
    """Return what endpoints and webhooks say of models that nobody knows."""
    return reference_remarks(settings, _known_models(settings, registry))


def registry_is_there(settings: Settings) -> bool:
    """Tell whether looking into the registry would not make it: its file exists, or a server keeps it."""
    from noa_registry.database_url import parse_database_url

    parsed = parse_database_url(settings.registry.database_url)
    return parsed.dialect != "sqlite" or parsed.file.is_file()


def _known_models(settings: Settings, registry: Registry | None) -> list[str]:
    registered = [] if registry is None else [model.name for model in registry.models()]
    return sorted({*registered, *settings.recipes})
