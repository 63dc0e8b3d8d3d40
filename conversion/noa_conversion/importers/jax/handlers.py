"""The table of operators in JAX; each topic's module registers its own."""

from __future__ import annotations

from typing import Any, TypeAlias

from noa_conversion.importers.registry import Handlers

HANDLERS = Handlers("jax")
register = HANDLERS.register

Tensor: TypeAlias = Any
"""A `jax.Array`, concrete or traced."""
