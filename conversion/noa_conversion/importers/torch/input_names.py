"""The inputs of a recorded graph under the names that the file gives them, whatever those are.

An input's name becomes an argument of the `forward` that `torch.fx` writes as source text, so it must not be a word of
that text (`self`, `torch`, `class`), nor the name that another node is assigned to.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from typing import Any

import torch

# What the source that `torch.fx` writes refers to: its globals, and the functions that it calls.
_WORDS = frozenset({"self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree", "getattr", "slice"})


def input_names(names: Sequence[str]) -> list[str]:
    """Return a unique name of an argument for each name; one that can stand as it is stays."""
    taken: set[str] = set()
    result: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_") or "input"
        plain = plain if plain.isidentifier() else f"input_{plain}"
        while plain in taken or keyword.iskeyword(plain) or plain in _WORDS or hasattr(torch.nn.Module, plain):
            plain += "_"
        taken.add(plain)
        result.append(plain)
    return result


def with_inputs(graph: torch.fx.Graph, names: Sequence[str]) -> torch.fx.Graph:
    """Return a copy of a graph whose inputs have these names; nodes that were called so are called otherwise."""
    arguments = input_names(names)
    copy = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    places = [node for node in graph.nodes if node.op == "placeholder"]
    for place, argument in zip(places, arguments, strict=True):
        node: Any = copy.placeholder(argument)  # a node's name has no public setter
        while node.name != argument and node.name in arguments:  # it would be assigned before that argument is read
            node._rename(f"{node.name}_")
        node.meta = dict(place.meta)  # fusion reads shapes there
        copies[place] = node
    for node in graph.nodes:
        if node.op != "placeholder":
            made: Any = copy.node_copy(node, lambda old: copies[old])
            while made.name in _WORDS:  # a weight called `self` would hide the module from what is read after it
                made._rename(f"{made.name}_")
            copies[node] = made
    return copy
