"""BentoML's arbiter, the process that starts the workers of a server, as we need it."""

from __future__ import annotations

from functools import partial

from bentoml import serving  # bentoml has no option for what is changed here
from bentoml._internal.utils import circus

_LOOK_EVERY_S = 0.5


def look_for_dead_workers_often() -> None:
    """Let the arbiter of this process start a dead worker again within half a second.

    It looks every 10 s otherwise, and in a container of BentoML's it starts none again.
    """
    circus.create_standalone_arbiter = partial(circus.create_standalone_arbiter, check_delay=_LOOK_EVERY_S)
    serving.running_inside_container = lambda: False


def stay_connected(*, keep_alive_s: int, grace_s: int) -> None:
    """Let workers of this process's arbiter close idle connections, and end requests at a stop, after these seconds.

    A command line that names other times is followed. BentoML's own are 5 s, which a proxy that keeps connections runs
    into, and no end.
    """
    told = serving.construct_timeouts_args

    def fill_in(timeout_keep_alive: int | None, timeout_graceful_shutdown: int | None) -> list[str]:
        return told(
            timeout_keep_alive=keep_alive_s if timeout_keep_alive is None else timeout_keep_alive,
            timeout_graceful_shutdown=grace_s if timeout_graceful_shutdown is None else timeout_graceful_shutdown,
        )

    serving.construct_timeouts_args = fill_in
