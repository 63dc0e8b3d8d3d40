"""What the inputs of a stored PyTorch program may hold: indices stay inside their tables.

Indices are followed backwards through calls that only move them. One that was computed with is 0 or 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from noa_conversion.formats.torch_format import read_program
from noa_conversion.generated_inputs import InputRange

_MOVES: Final = frozenset(
    {"view", "reshape", "unsqueeze", "squeeze", "permute", "transpose", "expand", "clone", "slice", "select", "alias"}
    | {"_to_copy", "to", "flatten", "contiguous", "_unsafe_view", "cat"}
)
# Where the indices are among the arguments, and where the axis, None for the first.
_INDEXING: Final[dict[str, tuple[int, int | None]]] = {
    "embedding": (1, None),
    "index_select": (2, 1),
    "gather": (2, 1),
    "scatter": (2, 1),
    "index": (1, None),
}


def read_program_ranges(folder: Path) -> dict[str, InputRange]:
    """Return what is known about the inputs of the program in a format folder, by name.

    Raises:
        InvalidInputError: missing, corrupt or not safe to load.
        DependencyMissingError: PyTorch is not installed.
    """
    graph, weights, signature = read_program(folder)
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    names = dict(zip(placeholders[len(weights) :], (spec.name for spec in signature.inputs), strict=True))
    ranges: dict[str, InputRange] = {}
    for node in graph.graph.nodes:
        kind = _kind(node)
        if kind not in _INDEXING:
            continue
        place, axis_place = _INDEXING[kind]
        table = node.args[0].meta["val"].shape
        axis = 0 if axis_place is None else int(node.args[axis_place])
        size = table[axis] if len(table) else 1
        indices = node.args[place] if isinstance(node.args[place], (list, tuple)) else [node.args[place]]
        for position, index in enumerate(indices):
            rows = table[position] if kind == "index" and position < len(table) else size
            for name, found in _inputs_behind(index, rows, str(node.name), names):
                ranges[name] = found if name not in ranges else ranges[name].meet(found)
    return ranges


def _inputs_behind(index: Any, rows: Any, where: str, names: dict[Any, str]) -> list[tuple[str, InputRange]]:
    high = rows if isinstance(rows, int) else 1
    found: list[tuple[str, InputRange]] = []
    queue, seen = [(index, False)], {index}
    while queue:
        node, is_computed = queue.pop()
        if node in names:
            reason = f"`{where}` looks it up in a table of {high} rows"
            found.append((names[node], InputRange(high=high, reason=reason, is_flag=is_computed)))
            continue
        for before in getattr(node, "all_input_nodes", ()):
            if before not in seen:
                seen.add(before)
                queue.append((before, is_computed or _kind(node) not in _MOVES))
    return found


def _kind(node: Any) -> str:
    return str(getattr(node, "target", "")).removeprefix("aten.").partition(".")[0]
