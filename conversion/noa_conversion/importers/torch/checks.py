"""Checks at run time, within the recorded graph: a wrong answer ends in an error wherever that graph is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from noa_conversion.importers.torch.dtypes import dtype_of, tagged


def checked(is_right: torch.Tensor, words: str, values: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return the values, which are to be had only where a truth value of one element says so; else `words` are raised.

    PyTorch's exporter to ONNX leaves assertions out. So each value is also taken out of a list of one, at a place that
    is outside it if the check fails: that is an error in ONNX, and in what a compiler makes of the graph.
    """
    torch.ops.aten._assert_async.msg(is_right, words)
    place = torch.logical_not(is_right).to(torch.int64).reshape([1])
    return tuple(
        tagged(torch.squeeze(torch.index_select(torch.unsqueeze(value, 0), 0, place), 0), dtype_of(value))
        for value in values
    )


def words_of_checks(module: torch.nn.Module) -> tuple[str, ...]:
    """Return what the checks on free axes within a module and its branches say."""
    nodes = (node for node in _nodes(module) if node.target is torch.ops.aten._assert_async.msg)
    return tuple(words for node in nodes if " two batch sizes" in (words := str(node.args[1])))


def has_lstm(module: torch.nn.Module) -> bool:
    """Tell whether a module or one of its branches calls `lstm`."""
    return any(node.target is torch.ops.aten.lstm.input for node in _nodes(module))


def _nodes(module: torch.nn.Module) -> Iterator[torch.fx.Node]:
    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            yield from part.graph.nodes
