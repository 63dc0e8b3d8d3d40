"""Pickles: what they ask for decides whether somebody may allow them or nobody may.

A pickle is always code: Python calls what it names. One that names only what plain data is made of is still refused
unless it is allowed, for noa has no need of it. One that names what runs programs or opens files, that hides a name, or
that is not whole, is hostile.
"""

from __future__ import annotations

import contextlib
import re

from noa_registry.scanning.blobs import Blob, Cursor, MalformedError
from noa_registry.scanning.limits import ScanLimits
from noa_registry.scanning.pickle_machine import Name, Walk, walk_pickle
from noa_registry.scanning.pickle_names import is_data, is_harmful
from noa_registry.scanning.picklescan_adapter import dangerous_names
from noa_registry.scanning.report import Severity
from noa_registry.scanning.state import ScanState, readable

_MOST_PICKLES = 10_000
_MOST_NAMES_SHOWN = 6
_SMALL_BYTES = 128 << 10
_PROBE = ScanLimits(opcodes=200_000, stack=200_000, memo=50_000)
_TORCH_PICKLES = 5  # magic number, protocol, system, object, keys of the storages; raw numbers follow
_IMPORTED = re.compile(r"[A-Za-z_][\w]*(\.[A-Za-z_][\w]*)*")


def inspect_pickle(scan: ScanState, blob: Blob, file: str, *, plain: Severity = Severity.CODE) -> None:
    """Look through one file of pickles, one after the other. `plain`: what a pickle of plain data counts as."""
    cursor, names, count, is_torch = Cursor(blob), list[Name](), 0, False
    try:
        while cursor.left:
            if count and cursor.left and not is_torch and blob.read(cursor.position, 1) != b"\x80":
                raise MalformedError(f"holds {cursor.left} bytes behind its end")
            walk = Walk()
            try:
                walk_pickle(cursor, scan.limits, scan.check_time, into=walk)
            finally:
                names += walk.names
            is_torch = is_torch or (count == 0 and walk.is_torch_magic)
            count += 1
            if is_torch and count == _TORCH_PICKLES:
                break
            if count > _MOST_PICKLES:
                raise MalformedError(f"holds more than {_MOST_PICKLES} pickles")
    except MalformedError as exc:
        scan.hostile(file, f"is a pickle that cannot be read to its end: it {exc}{_asks(names)}")
        return
    _judge(scan, file, names, blob.read(0, _SMALL_BYTES) if blob.size <= _SMALL_BYTES else None, plain)


def looks_like_pickle(blob: Blob) -> bool:
    """Tell whether bytes without a pickle's mark would do something if they were unpickled.

    Old pickles have no mark, and many a text begins like one. So it counts if it imports a name and then calls
    something, or reaches a proper end; also if it breaks off later, for unpickling would have called by then.
    """
    walk = Walk()
    with contextlib.suppress(MalformedError):
        walk_pickle(Cursor(blob), _PROBE, lambda: None, into=walk)
    proper = walk.names and all(_IMPORTED.fullmatch(str(name)) for name in walk.names)
    return bool(proper) and (walk.calls or walk.ended)


def _judge(scan: ScanState, file: str, names: list[Name], data: bytes | None, plain: Severity) -> None:
    distinct = list(dict.fromkeys(names))
    bad = [name for name in distinct if is_harmful(name.module, name.name)]
    bad += [name for name in dangerous_names(distinct, data, readable(file)) if name not in bad]
    foreign = [name for name in distinct if not is_data(name.module, name.name)]
    if bad:
        scan.hostile(file, f"is a pickle that runs or reaches what no model needs: {_shown(bad)}")
    elif foreign:
        scan.code(file, f"is a pickle, which runs code when it is read; it asks for {_shown(foreign)}")
    else:
        scan.found(
            file, plain, f"is a pickle, which runs code when it is read; this one holds plain data{_asks(names)}"
        )


def _asks(names: list[Name]) -> str:
    return f"; it asks for {_shown(list(dict.fromkeys(names)))}" if names else ""


def _shown(names: list[Name]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_MOST_NAMES_SHOWN])
    return f"{shown} and {len(names) - _MOST_NAMES_SHOWN} more" if len(names) > _MOST_NAMES_SHOWN else shown
