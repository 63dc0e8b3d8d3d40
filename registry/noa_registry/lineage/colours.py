"""One colour per kind of node, the same in every drawing: fill and line; dark text is readable on each fill.

What is not in use any more is pale with a broken line, so that it does not look alive without colours either.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from noa_registry.lineage.graph import NodeKind

COLOURS: Final[Mapping[NodeKind, tuple[str, str]]] = MappingProxyType(
    {
        "model": ("#e7e5f7", "#5b4db5"),
        "dataset": ("#dff1e4", "#2f8050"),
        "job": ("#fdf0d8", "#a86a08"),
        "run": ("#fdf0d8", "#a86a08"),
        "commit": ("#eceff2", "#5c6773"),
        "version": ("#dcebfb", "#1f66b0"),
        "format": ("#e4f3fb", "#2a7ea8"),
        "alias": ("#f9e1ec", "#a8326b"),
        "generation": ("#ece4f8", "#7043b0"),
        "replica": ("#ece4f8", "#7043b0"),
        "more": ("#f5f6f8", "#8a949e"),
    }
)
PAST_FILL: Final = "#f6f7f8"
PAST_INK: Final = "#57606a"
