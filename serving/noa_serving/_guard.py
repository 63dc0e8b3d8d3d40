"""The guard at the door of a worker: keys and quotas, each a look or two for a client that was here before.

Where there are neither, nothing is looked at. A timer of the event loop watches the key file.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeAlias

from noa_serving._key_ring import ANYBODY, KeyRing
from noa_serving._quotas import client_of

if TYPE_CHECKING:
    from noa_serving._http import Headers
    from noa_serving._key_ring import Grant
    from noa_serving._quotas import Quotas

Peer: TypeAlias = tuple[str, int] | None
"""The address of the other end, as the transport knows it."""

_LOOK_EVERY_S = 0.25


class Guard:
    """Who may come in. Belongs to one event loop."""

    def __init__(self, keys: KeyRing, quotas: Quotas | None = None) -> None:
        self.keys = keys
        self.quotas: Quotas | None = None
        self.is_on = False
        self._quotas = quotas
        self._timer: asyncio.TimerHandle | None = None
        self._settle()

    @property
    def over_quota(self) -> int:
        """Requests refused because of quotas."""
        return 0 if self._quotas is None else self._quotas.refused

    def allow(self, headers: Headers, endpoint: str) -> Grant:
        """Return who asks an endpoint to compute.

        Raises:
            RequestRefusedError: 401, no valid key; 403, not with this key.
        """
        if not self.is_on:
            return ANYBODY
        grant = self.keys.check(headers)
        if endpoint not in grant.infers and grant is not ANYBODY:
            grant.require("infer", endpoint)
        return grant

    def charge(self, grant: Grant, num_bytes: int, peer: Peer) -> None:
        """Charge a request to its client's quota: the last before it computes, for what is refused costs nothing.

        Raises:
            RequestRefusedError: 429.
        """
        if self.quotas is not None:
            self.quotas.charge(_client(grant, peer), num_bytes, grant.limits)

    def charge_bytes(self, grant: Grant, num_bytes: int, peer: Peer) -> None:
        """Charge the bytes of a body whose length was not known before."""
        if self.quotas is not None:
            self.quotas.add_bytes(_client(grant, peer), num_bytes, grant.limits)

    def identify(self, headers: Headers) -> Grant:
        """Return what a caller may do whose request does not compute. Errors as in `allow`."""
        return self.keys.check(headers) if self.keys.is_on else ANYBODY

    def look(self) -> None:
        """Take in changes of the key file."""
        self.keys.look()
        self._settle()

    def _settle(self) -> None:
        has_quotas = self._quotas is not None and (self._quotas.is_on or self.keys.has_limits)
        self.quotas = self._quotas if has_quotas else None
        self.is_on = self.keys.is_on or has_quotas

    def watch(self) -> None:
        """Look again and again, on the running event loop."""
        self.look()
        self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self.watch)

    def close(self) -> None:
        """Look no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _client(grant: Grant, peer: Peer) -> str:
    """Return whose quota counts: the key's, or without keys the address's."""
    return grant.bucket or grant.who or ("local" if peer is None else client_of(peer[0]))
