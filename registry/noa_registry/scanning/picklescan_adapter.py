"""The one place that calls `picklescan`: a second opinion on the names that a pickle asks for.

It keeps every instruction in memory, so it is given the pickle itself only if that is small, and always a tiny pickle
with the same names, which it judges in the same way. It runs nothing either.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Sequence

from noa.errors import DependencyMissingError
from noa_registry.scanning.pickle_machine import Name

_LOCK = threading.Lock()
_SMALL_BYTES = 128 << 10
_MOST_NAME_BYTES = 255


def dangerous_names(names: Sequence[Name], data: bytes | None, file: str) -> set[Name]:
    """Return those names that picklescan calls dangerous; `data` is the pickle, if it is at hand and small.

    Raises:
        DependencyMissingError: picklescan is not installed.
    """
    try:
        from picklescan.scanner import SafetyLevel, scan_pickle_bytes
    except ImportError as exc:
        raise DependencyMissingError("picklescan", extra="scan", purpose="looking into pickles") from exc
    logger = logging.getLogger("picklescan")
    found: set[Name] = set()
    with _LOCK:  # its findings also go to its log, which is nobody's business here
        level, logger.level = logger.level, logging.CRITICAL + 1
        try:
            for text in (_list_of(names), data if data is not None and len(data) <= _SMALL_BYTES else b""):
                if text:
                    result = scan_pickle_bytes(io.BytesIO(text), file, multiple_pickles=False)
                    found |= {Name(e.module, e.name) for e in result.globals if e.safety == SafetyLevel.Dangerous}
        finally:
            logger.level = level
    return found


def _list_of(names: Sequence[Name]) -> bytes:
    """Return a pickle that imports the names and does nothing with them. It is never loaded."""
    parts = [b"\x80\x04"]
    for name in dict.fromkeys(names):
        module, attribute = name.module.encode("utf-8", "replace"), name.name.encode("utf-8", "replace")
        if max(len(module), len(attribute)) <= _MOST_NAME_BYTES:
            parts += [b"\x8c", bytes([len(module)]), module, b"\x8c", bytes([len(attribute)]), attribute, b"\x930"]
    return b"".join([*parts, b"N."])
