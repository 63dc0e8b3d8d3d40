"""Settings: one `noa.toml`, typed, layered and strict. The only place that knows where a value comes from."""

from noa.settings._loader import PROJECT_FILE, LoadedSettings, find_project, load_settings, model_at
from noa.settings.models import (
    ConversionSettings,
    EndpointSettings,
    FlowsSettings,
    GateSettings,
    ProjectSettings,
    RecipeSettings,
    RegistrySettings,
    Section,
    ServingSettings,
    Settings,
    TrackingSettings,
    TrainingSettings,
    is_loopback,
)

__all__ = [
    "PROJECT_FILE",
    "ConversionSettings",
    "EndpointSettings",
    "FlowsSettings",
    "GateSettings",
    "LoadedSettings",
    "ProjectSettings",
    "RecipeSettings",
    "RegistrySettings",
    "Section",
    "ServingSettings",
    "Settings",
    "TrackingSettings",
    "TrainingSettings",
    "find_project",
    "is_loopback",
    "load_settings",
    "model_at",
]
