"""The audit trail: one line of JSON in the server's log per control action, done or refused.

It tells when, who (a key's id, never a key), from where, what on which name, and how it ended. Callers who show no key
cannot fill the disk: of their attempts so many per second are told, and how many were not.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from noa_serving._http import public_text, status_of

if TYPE_CHECKING:
    from noa_serving._guard import Peer
    from noa_serving._key_ring import Grant

log = logging.getLogger("noa.audit")

_MOST_STRANGERS_PER_S = 10
_LONGEST_TEXT = 256
_GRPC_ACTIONS = {
    "RepositoryModelLoad": ("repository.load", "model_name"),
    "RepositoryModelUnload": ("repository.unload", "model_name"),
    "SystemSharedMemoryRegister": ("shared_memory.register", "name"),
    "SystemSharedMemoryUnregister": ("shared_memory.unregister", "name"),
}


class Action(NamedTuple):
    """Something that a caller wants changed. `target` is a name, or `*` for all."""

    name: str
    target: str


def action_of(method: str, path: str) -> Action | None:
    """Return the control action that a request is, None for all others."""
    if method != "POST" or not path.startswith("/v2/"):
        return None
    match path.strip("/").split("/"):
        case ["v2", "repository", "models", name, ("load" | "unload") as verb]:
            return Action(f"repository.{verb}", name)
        case ["v2", "systemsharedmemory", "region", name, ("register" | "unregister") as verb]:
            return Action(f"shared_memory.{verb}", name)
        case ["v2", "systemsharedmemory", ("register" | "unregister") as verb]:
            return Action(f"shared_memory.{verb}", "*")
        case _:
            return None


def grpc_action_of(call: str, message: object) -> Action | None:
    """Return the control action that a call over gRPC is; `message` may be one that was not read."""
    if call not in _GRPC_ACTIONS:
        return None
    name, field = _GRPC_ACTIONS[call]
    return Action(name, str(getattr(message, field, "")) or "*")


class Audit:
    """Writes the trail of one worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second = 0
        self._told = 0
        self._untold = 0

    def record(self, action: Action, *, grant: Grant | None, peer: Peer, error: BaseException | None) -> None:
        """Write what came of an action; `grant` is None where the caller is not known, `error` where it was done."""
        if grant is None and not self._may_tell():
            return
        row: dict[str, object] = {
            "event": "control",
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "who": "unknown" if grant is None else grant.who or "anyone",
            "address": None if peer is None else peer[0],
            "action": action.name,
            "target": action.target[:_LONGEST_TEXT],
            "result": "done" if error is None else "refused",
            "status": 200 if error is None else status_of(error),
        }
        if error is not None:
            row["reason"] = public_text(error)[:_LONGEST_TEXT]
        if self._untold:
            row["untold"], self._untold = self._untold, 0
        log.info(json.dumps(row))

    def _may_tell(self) -> bool:
        second = int(self._clock())
        if second != self._second:
            self._second, self._told = second, 0
        self._told += 1
        if self._told > _MOST_STRANGERS_PER_S:
            self._untold += 1
            return False
        return True
