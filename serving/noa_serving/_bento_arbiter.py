"""BentoML's arbiter, the process that starts the workers of a server, as we need it."""

from __future__ import annotations

from functools import partial

from bentoml._internal.utils import circus  # bentoml has no option for what is changed here

_LOOK_EVERY_S = 0.5


def look_for_dead_workers_often() -> None:
    """Let the arbiter of this process start a dead worker again within half a second; it looks every 10 s otherwise."""
    circus.create_standalone_arbiter = partial(circus.create_standalone_arbiter, check_delay=_LOOK_EVERY_S)
