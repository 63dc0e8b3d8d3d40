"""The key of a server's own project: whoever may read the launch request of a server may call it.

It is made at each start, lives in the private file of the launch and never leaves this machine: so `noa predict`,
`noa bench` and the flows of a project need no key to call its server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from noa_serving._running_servers import running_servers

if TYPE_CHECKING:
    from noa.settings import Settings


def key_to_call_own(settings: Settings, address: str) -> str | None:
    """Return the key by which a project calls its own server at `address`, None if none is known.

    What the settings say counts; else it is the key of that start, if the server still runs.
    """
    given = settings.serving.key_to_call_with()
    if given is not None:
        return given
    port = urlsplit(address).port
    running = running_servers(settings.state_dir)
    return next((server.own_key for server in running if server.address.port == port), None)
