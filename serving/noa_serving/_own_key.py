"""The key of a server's own project: whoever may read the launch request of a server may call it.

It is made at each start, lives in the private file of the launch and never leaves this machine: so `noa predict`,
`noa bench` and the flows of a project need no key to call its server.
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from noa.errors import NoaError
from noa_serving._launch_request import load_request

if TYPE_CHECKING:
    from noa.settings import Settings


def key_to_call_own(settings: Settings, address: str) -> str | None:
    """Return the key by which a project calls its own server at `address`, None if none is known.

    What the settings say counts; else it is the key of that start, if the server still runs.
    """
    given = settings.serving.key_to_call_with()
    if given is not None:
        return given
    for ready_file in (settings.state_dir / "serving").glob("*/ready.json"):
        try:
            request = load_request(ready_file.with_name("request.json"))
            table = cast("dict[str, object]", json.loads(ready_file.read_text()))
            if table.get("port") == urlsplit(address).port and _is_held(request.path):
                return request.own_key
        except (OSError, ValueError, NoaError):
            continue  # it ended meanwhile
    return None


def _is_held(path: Path) -> bool:
    """Tell whether the server of a launch request lives, which holds a lock on it."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
