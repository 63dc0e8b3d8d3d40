"""Stop the services of a project side by side: as slow as the slowest, not as all of them together.

Each is stopped by the supervisor, which proves its tree gone, in a thread of its own. Only the Prefect server waits for
its worker, which takes leave of it. The threads are daemons: whoever interrupts us need not wait for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue

from noa.errors import NoaError
from noa_flows.supervisor import Supervisor

_AFTER: Mapping[str, str] = {"prefect": "worker"}


def stop_together(
    supervisor: Supervisor,
    names: Sequence[str],
    *,
    timeout_s: float,
    on_stopping: Callable[[str], None],
    on_stopped: Callable[[str], None],
) -> dict[str, NoaError]:
    """Stop services and prove them gone; returns what could not be stopped, with the reason.

    Both functions are called in the caller's thread, the second one when a service is proven gone.
    """
    ended: SimpleQueue[tuple[str, BaseException | None]] = SimpleQueue()
    threads: dict[str, threading.Thread] = {}

    def stop(name: str) -> None:
        if (before := threads.get(_AFTER.get(name, name))) not in (None, threading.current_thread()):
            before.join()
        try:
            supervisor.stop(name, timeout_s=timeout_s)
        except BaseException as exc:  # noqa: BLE001 - raised again by the thread that waits
            ended.put((name, exc))
        else:
            ended.put((name, None))

    for name in names:
        on_stopping(name)
        threads[name] = threading.Thread(target=stop, args=(name,), name=f"stop-{name}", daemon=True)
    for name in sorted(threads, key=lambda name: name in _AFTER):  # a thread that is waited for runs already
        threads[name].start()
    failures: dict[str, NoaError] = {}
    for _ in names:
        name, error = ended.get()
        if error is None:
            on_stopped(name)
        elif isinstance(error, NoaError):
            failures[name] = error
        else:
            raise error
    return failures
