"""Which servers of a project run, whoever started them: each holds the lock of its launch request while it lives."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from noa.errors import NoaError
from noa.settings import Settings
from noa_serving._launch_request import load_request, requests_of
from noa_serving._server_process import ServerAddress, read_address
from noa_serving._tls import own_server_context
from noa_serving.client import Client

_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """A server that listens now. `settings` are those it was started with, its endpoints among them."""

    address: ServerAddress
    started_at: datetime
    settings: Settings
    own_key: str = field(repr=False)
    """By which its project calls it; see `_own_key`."""

    def report(self, timeout_s: float = _TIMEOUT_S) -> dict[str, dict[str, object]] | None:
        """Return what one of its workers says of each endpoint: state, model, version; None if it does not answer."""
        tls = own_server_context(self.settings.serving)
        try:
            with Client(self.address.url, api_key=self.own_key, timeout_s=timeout_s, tls=tls) as client:
                return cast("dict[str, dict[str, object]]", client.status()["endpoints"])
        except NoaError:
            return None


def running_servers(state_dir: Path) -> list[RunningServer]:
    """Return the servers of the project with this state folder, oldest first; one that was killed is none."""
    return sorted(_find(state_dir), key=lambda server: server.started_at)


def _find(state_dir: Path) -> Iterator[RunningServer]:
    for path in requests_of(state_dir):
        with suppress(NoaError, OSError, ValueError):  # it ended while we looked, or is none of ours
            request = load_request(path)
            address = read_address(request.ready_file)
            if address is not None and _is_held(path):
                started_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                yield RunningServer(
                    address=address, started_at=started_at, settings=request.settings, own_key=request.own_key
                )


def _is_held(path: Path) -> bool:
    """Tell whether a process holds the request. Asked only once it listens: a start finds its lock free."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
