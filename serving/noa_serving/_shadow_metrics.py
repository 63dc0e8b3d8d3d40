"""What shadows have shown, in Prometheus' text format: each worker's own counts, by endpoint, arm and version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noa_serving._comparing import Comparison
    from noa_serving._shadows import Shadows

_FAMILIES: tuple[tuple[str, str, Callable[[Comparison], float]], ...] = (
    ("noa_shadow_offered_total", "Requests drawn for a shadow.", lambda one: one.offered),
    ("noa_shadow_dropped_total", "Of these, requests for which there was no room.", lambda one: one.dropped),
    ("noa_shadow_compared_total", "Requests whose outputs were compared.", lambda one: one.compared),
    ("noa_shadow_agreed_total", "Of these, those that agree; each by the share of its items.", lambda one: one.agreed),
    ("noa_shadow_failed_total", "Requests that the shadow could not compute.", lambda one: one.failed),
    ("noa_shadow_timed_total", "Requests that both versions computed one after the other.", lambda one: one.timed),
    ("noa_shadow_slower_total", "Of these, those beyond `max_latency_ratio`.", lambda one: one.slower),
)


def shadow_lines(shadows: Shadows, worker: int) -> Iterator[str]:
    """Return the lines of all families."""
    counts = shadows.own_counts()
    for name, text, value in _FAMILIES:
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} counter"
        for pair, one in counts.items():
            labels = f'endpoint="{pair.endpoint}",arm="{pair.arm}",version="{pair.arm_number}"'
            labels += f',digest="{pair.arm_digest}",compared_with="{pair.main_number}",worker="{worker}"'
            yield f"{name}{{{labels}}} {value(one):.12g}"
    yield "# HELP noa_shadow_waiting Requests that wait for shadows."
    yield "# TYPE noa_shadow_waiting gauge"
    yield f'noa_shadow_waiting{{worker="{worker}"}} {shadows.lane.waiting}'
