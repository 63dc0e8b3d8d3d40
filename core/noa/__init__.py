"""noa: one platform for the life of a model.

This package is the core: errors, settings, signatures, digests. It imports no framework and no other room;
`import noa` loads the error tree only. Everything else is imported by module: `from noa.settings import load_settings`.
"""

from noa.errors import (
    ConflictError,
    ConversionError,
    DependencyMissingError,
    GateRefusedError,
    IntegrityError,
    InvalidInputError,
    NoaError,
    NotFoundError,
    RecipeError,
    ServiceError,
    SettingsError,
    SignatureError,
    StorageError,
    TrainingError,
)

__version__ = "0.1.0"

__all__ = [
    "ConflictError",
    "ConversionError",
    "DependencyMissingError",
    "GateRefusedError",
    "IntegrityError",
    "InvalidInputError",
    "NoaError",
    "NotFoundError",
    "RecipeError",
    "ServiceError",
    "SettingsError",
    "SignatureError",
    "StorageError",
    "TrainingError",
    "__version__",
]
