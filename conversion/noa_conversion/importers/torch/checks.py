"""Checks at run time, within the recorded graph: a wrong answer ends in an error wherever that graph is run."""

from __future__ import annotations

from collections.abc import Sequence

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
