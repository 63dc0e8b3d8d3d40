"""How long a model may be worked on, and how much memory it may take meanwhile: a graph may ask for endless work.

`work_limit` puts the settings `conversion.max_work_s` and `max_work_bytes` in force for what happens inside it: the
walk over a graph while it is imported, and runs while models are compared (`onnx_runs.py`, `bounded_runs.py`). Outside
of it nothing is watched, so that serving pays nothing.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from noa.errors import ConversionError
from noa.settings import ConversionSettings

_FIELDS: Final = ConversionSettings.model_fields
_DEFAULT_SECONDS: Final = float(_FIELDS["max_work_s"].default)
_DEFAULT_BYTES: Final = int(_FIELDS["max_work_bytes"].default)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkLimit:
    """What is left to the work in force: until when, and how much more than at its beginning the process may hold."""

    seconds: float
    deadline: float
    memory_bytes: int

    @property
    def is_over(self) -> bool:
        """Tell whether the time is up."""
        return time.monotonic() > self.deadline

    @property
    def seconds_left(self) -> float:
        """How long the work may go on; negative when the time is up."""
        return self.deadline - time.monotonic()

    def too_long(self, where: str) -> ConversionError:
        """Return the error for work that was not done in time."""
        return ConversionError(
            f"the model was not done in {self.seconds:g} seconds",
            where=where,
            expected="a `Loop` that ends",
            remedy="If it needs longer, raise `conversion.max_work_s`",
        )


_limit: ContextVar[WorkLimit | None] = ContextVar("work_limit", default=None)


@contextmanager
def work_limit(seconds: float = _DEFAULT_SECONDS, memory_bytes: int = _DEFAULT_BYTES) -> Generator[None]:
    """Bound all imports and runs in this block, together. Within another such block the sooner end holds."""
    outer = _limit.get()
    deadline = time.monotonic() + seconds
    if outer is not None and outer.deadline < deadline:
        seconds, deadline = outer.seconds, outer.deadline
    memory_bytes = memory_bytes if outer is None else min(memory_bytes, outer.memory_bytes)
    token = _limit.set(WorkLimit(seconds=seconds, deadline=deadline, memory_bytes=memory_bytes))
    try:
        yield
    finally:
        _limit.reset(token)


def current_limit() -> WorkLimit | None:
    """Return what is in force here, if anything is."""
    return _limit.get()


def check_time(where: str) -> None:
    """Refuse to go on after the time of the block is over.

    Raises:
        ConversionError: names where the work was, and the setting.
    """
    limit = _limit.get()
    if limit is not None and limit.is_over:
        raise limit.too_long(where)
