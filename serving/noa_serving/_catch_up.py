"""A worker that starts beside others takes connections once it serves what they serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from noa_serving._traffic import with_arms

if TYPE_CHECKING:
    from noa_serving._crew import Crew
    from noa_serving._endpoint import Endpoint

_CATCH_UP_S = 10.0
_STEP_S = 0.01


async def catch_up(endpoints: Sequence[Endpoint], crew: Crew, *, patience_s: float = _CATCH_UP_S) -> None:
    """Wait until this worker serves what is agreed; the connections meanwhile are those of the other workers.

    Where no other worker serves it, a client had better be told to come again than wait for longer than a few seconds.
    Nor are arms waited for any longer: the main version answers in their place.
    """
    deadline = time.monotonic() + patience_s
    while True:
        if time.monotonic() <= deadline:
            is_done = not _behind(with_arms(endpoints), crew)
        else:
            waiting = _behind(endpoints, crew)
            is_done = not waiting or not all(map(crew.others_serve, waiting))
        if is_done:
            return
        await asyncio.sleep(_STEP_S)


def _behind(endpoints: Sequence[Endpoint], crew: Crew) -> list[str]:
    """Return the names of those for which something is agreed, and nothing loaded here."""
    return [one.name for one in endpoints if one.current is None and crew.agreement(one.name).content is not None]
