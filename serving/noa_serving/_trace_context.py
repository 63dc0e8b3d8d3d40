"""The header `traceparent` of W3C Trace Context: which trace a request belongs to, and whether it is recorded.

Source: W3C Recommendation "Trace Context" of 23 November 2021, sections 3.2 and 4.2. The header is for requests;
answers have none.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TRACEPARENT = b"traceparent"
TRACESTATE = b"tracestate"

_MAX_STATE_CHARACTERS = 512
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 0x01


class TraceContext(NamedTuple):
    """A caller's span: 16 and 8 bytes, and whether it is recorded there."""

    trace_id: bytes
    span_id: bytes
    is_sampled: bool


def read_traceparent(value: bytes) -> TraceContext | None:
    """Return what the header says, None if it says nothing that counts; then a request begins a trace of its own."""
    match = _PARENT.fullmatch(value.strip())
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest is not None):  # later versions may say more behind a dash
        return None
    context = TraceContext(
        bytes.fromhex(trace_id.decode()), bytes.fromhex(span_id.decode()), bool(int(flags, 16) & _SAMPLED)
    )
    return context if any(context.trace_id) and any(context.span_id) else None


def read_tracestate(value: bytes) -> str:
    """Return what vendors add, to be carried along; one that is too long or not plain text is left out."""
    text = value.decode("latin-1").strip()
    return text if len(text) <= _MAX_STATE_CHARACTERS and text.isascii() and text.isprintable() else ""
