"""The guard at the door of a worker: keys, in one look for a request that has computed before.

Where there are no keys nothing is looked at. A timer of the event loop watches the key file.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from noa_serving._key_ring import ANYBODY, KeyRing

if TYPE_CHECKING:
    from noa_serving._http import Headers
    from noa_serving._key_ring import Grant

_LOOK_EVERY_S = 0.25


class Guard:
    """Who may come in. Belongs to one event loop."""

    def __init__(self, keys: KeyRing) -> None:
        self.keys = keys
        self.is_on = keys.is_on
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, headers: Headers, endpoint: str) -> None:
        """Let a request compute.

        Raises:
            RequestRefusedError: 401, no valid key; 403, not with this key.
        """
        if not self.is_on:
            return
        grant = self.keys.check(headers)
        if endpoint not in grant.infers:
            grant.require("infer", endpoint)

    def identify(self, headers: Headers) -> Grant:
        """Return what a caller may do whose request does not compute. Errors as in `admit`."""
        return self.keys.check(headers) if self.is_on else ANYBODY

    def look(self) -> None:
        """Take in changes of the key file."""
        self.keys.look()
        self.is_on = self.keys.is_on

    def watch(self) -> None:
        """Look again and again, on the running event loop."""
        self.look()
        self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self.watch)

    def close(self) -> None:
        """Look no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
