"""What is odd about gates and names of models, and yet no error: told by `noa doctor` and `noa config validate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noa_cli._settings_checks import Remark, reference_remarks, unknown_model

if TYPE_CHECKING:
    from noa.settings import Settings
    from noa_registry import Registry


def gate_remarks(settings: Settings, registry: Registry) -> list[Remark]:
    """Return what is odd about the gates."""
    known = _known_models(settings, registry)
    remarks = [unknown_model(f"[gates.{name}] guards", name, known) for name in settings.gates if name not in known]
    return remarks + [
        Remark(text=f"{report.reference} is {report.alias}, and {verdict.warning}", remedy=verdict.remedy or "")
        for report in registry.gate_warnings()
        for verdict in report.warnings
    ]


def name_remarks(settings: Settings, registry: Registry) -> list[Remark]:
    """Return what endpoints and webhooks say of models that nobody knows."""
    return reference_remarks(settings, _known_models(settings, registry))


def _known_models(settings: Settings, registry: Registry) -> list[str]:
    return sorted({*(model.name for model in registry.models()), *settings.recipes})
