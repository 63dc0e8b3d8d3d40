"""Which requests are traced, and what their traces hold, apart from how they are sent (`_otlp`).

The decision falls at a request's head: a caller that says `traceparent` has decided for us, of all others a share is
taken. A traced request is a span, with one below it for each stage that has a beginning and an end of its own.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, NamedTuple

from noa_serving._trace_context import TRACEPARENT, TRACESTATE, TraceContext, read_traceparent, read_tracestate

if TYPE_CHECKING:
    from noa_serving._http import Headers
    from noa_serving._observer import Record
    from noa_serving._stages import Passage


class Traced(NamedTuple):
    """A request that was traced. `moments` are those of `Passage.moments`, since 1970; None for what was refused."""

    record: Record
    trace_id: bytes
    parent_id: bytes
    state: str
    moments: tuple[int, ...] | None


class Trace(NamedTuple):
    """To which trace a request belongs, and whether its spans are sent."""

    trace_id: bytes
    parent: TraceContext | None
    is_sampled: bool


def begin_trace(headers: Headers, share: float | None) -> Trace | None:
    """Return the trace of a request, None if it has none. `share` is None where no traces are sent."""
    parent = read_traceparent(headers[TRACEPARENT]) if TRACEPARENT in headers else None
    if parent is not None:
        return Trace(parent.trace_id, parent, parent.is_sampled and share is not None)
    if share is None or (share < 1.0 and random.random() >= share):  # no secret
        return None
    return Trace(os.urandom(16), None, True)


def end_trace(trace: Trace, headers: Headers, record: Record, passage: Passage | None, *, clock_offset: int) -> Traced:
    """Return what is sent of a sampled request; `clock_offset` makes times since 1970 of those of `perf_counter_ns`."""
    found = None if passage is None else passage.moments()
    state = read_tracestate(headers[TRACESTATE]) if trace.parent is not None and TRACESTATE in headers else ""
    return Traced(
        record=record,
        trace_id=trace.trace_id,
        parent_id=b"" if trace.parent is None else trace.parent.span_id,
        state=state,
        moments=None if found is None else tuple(moment + clock_offset for moment in found),
    )
