"""A place to stop: tests kill the process at every named step of a registration and look at what is left.

Production code passes `no_checkpoint`; a test passes a function that raises or kills the process at one step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Checkpoint: TypeAlias = Callable[[str], None]

REGISTRATION_STEPS = (
    "claimed",
    "formats copied",
    "wrapper written",
    "published",
    "transaction begun",
    "rows written",
    "committed",
)

GC_STEPS = (
    "purge marked",
    "purge begun",
    "unit removed",
    "purge written",
    "purge committed",
    "orphan removed",
    "leftover removed",
    "attachments removed",
    "attachments committed",
)


def no_checkpoint(_step: str) -> None:
    """Go on."""
