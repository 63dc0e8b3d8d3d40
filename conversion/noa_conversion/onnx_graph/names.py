"""Original names and the attribute paths they get in a module: dotted, valid Python, unique, both ways, all of them.

`encoder.layer.0.weight` stays as it is. A part that is no identifier or number is rewritten (`conv/Relu:0` becomes
`conv.Relu_0`), and where two names would meet, or one would be the parent of another, the later gets a number.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable

_SEPARATORS = re.compile(r"[./]+|::")
_FOREIGN = re.compile(r"\W+", re.ASCII)


def attribute_paths(names: Iterable[str], *, reserved: Iterable[str] = ()) -> dict[str, str]:
    """Return a unique dotted attribute path for each name.

    `reserved` are parts that must not be used (attributes that every module has itself). Names that are valid paths
    already are served first, so that they keep their name whatever the others are.
    """
    names = list(dict.fromkeys(names))
    forbidden = frozenset(reserved)
    paths: dict[str, str] = {}
    leaves: set[str] = set()
    folders: set[str] = set()
    counts: dict[str, int] = {}
    for name in sorted(names, key=lambda name: _plain_path(name) != name):
        path = _free(_plain_path(name), leaves, folders, forbidden, counts)
        paths[name] = path
        leaves.add(path)
        parts = path.split(".")
        folders.update(".".join(parts[:count]) for count in range(1, len(parts)))
    return {name: paths[name] for name in names}


def _plain_path(name: str) -> str:
    parts = [_plain_part(part) for part in _SEPARATORS.split(name) if part]
    return ".".join(part for part in parts if part) or "value"


def _plain_part(part: str) -> str:
    plain = _FOREIGN.sub("_", part).strip("_") if not _is_valid(part) else part
    if not plain or _is_valid(plain):
        return plain
    return f"_{plain}"


def _is_valid(part: str) -> bool:
    """Tell whether a part can stand in a dotted path: an identifier, or a number as lists of layers have it."""
    if part.isascii() and part.isdigit():
        return True
    return part.isascii() and part.isidentifier() and not keyword.iskeyword(part)


def _free(path: str, leaves: set[str], folders: set[str], forbidden: frozenset[str], counts: dict[str, int]) -> str:
    """Return a path that is free; `counts` holds the last number of each, so that many equal ones cost no search."""
    path = ".".join(f"{part}_" if part in forbidden else part for part in path.split("."))
    candidate = path
    while candidate in leaves or candidate in folders or _is_below(candidate, leaves):
        count = counts[path] = counts.get(path, 1) + 1
        candidate = _numbered(path, count)
        if _is_below(candidate, leaves):
            candidate = _numbered(path.replace(".", "_"), count)
    return candidate


def _numbered(path: str, count: int) -> str:
    head, dot, last = path.rpartition(".")
    return f"{head}{dot}{_plain_part(f'{last}_{count}')}"


def _is_below(path: str, leaves: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:count]) in leaves for count in range(1, len(parts)))
