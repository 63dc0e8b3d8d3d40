"""Settings: one `noa.toml`, typed, layered and strict. The only place that knows where a value comes from."""

from noa.settings._describe import SettingHelp, SettingValue, explain, json_schema, list_values
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
    "SettingHelp",
    "SettingValue",
    "ServingSettings",
    "Settings",
    "TrackingSettings",
    "TrainingSettings",
    "explain",
    "find_project",
    "is_loopback",
    "json_schema",
    "list_values",
    "load_settings",
    "model_at",
]
