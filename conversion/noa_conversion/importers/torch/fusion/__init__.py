"""Puts together again what exporters take apart, where the numbers are the same: constants, layers, attention, ...

Each pass looks for the end of a pattern in a recorded graph, checks every node of it, and replaces the end; what
nothing uses any more is dropped at the end.
"""

from __future__ import annotations

import torch

from noa_conversion.importers.torch.fusion.activations import fuse_gelu, fuse_silu
from noa_conversion.importers.torch.fusion.attention import fuse_attention
from noa_conversion.importers.torch.fusion.constants import drop_idle_casts, fold_constants
from noa_conversion.importers.torch.fusion.layers import fuse_layer_norm, fuse_linear

_PASSES = (drop_idle_casts, fold_constants, fuse_gelu, fuse_silu, fuse_layer_norm, fuse_linear, fuse_attention)


def fuse(module: torch.fx.GraphModule) -> None:
    """Rewrite the graph of a module in place. Its nodes must still hold the stand-ins of their values."""
    for rewrite in _PASSES:
        rewrite(module)
        module.graph.eliminate_dead_code()


__all__ = ["fuse"]
