"""The vision transformer in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from noa_training.model_specs import ModelShape
from noa_training.models.torch.attention import EncoderBlock, layer_norm
from noa_training.models.torch.layers import dropout, linear
from noa_training.models.transformer_blocks import expanded
from noa_training.models.vision_transformer import Vit

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped
    from torch import Tensor


class TorchVit(nn.Module):
    """Patches, class token, positions, blocks and output."""

    def __init__(self, model: Vit, shape: ModelShape) -> None:
        super().__init__()
        channels, rows, columns = model.grid(shape)
        self._grid, self._patch = (rows, columns), model.patch
        self.patches = linear(model.width, channels * model.patch * model.patch)
        self.class_token = nn.Parameter(torch.zeros(1, model.width))
        self.positions = nn.Parameter(torch.zeros(1 + rows * columns, model.width))
        inner = expanded(model.width, model.feedforward)
        self.blocks = nn.ModuleList(
            [
                EncoderBlock(width=model.width, heads=model.heads, inner=inner, chance=model.dropout)
                for _ in range(model.depth)
            ]
        )
        self.norm = layer_norm(model.width)
        self.dropout = dropout(model.dropout)
        self.output = linear(shape.outputs, model.width)

    def forward(self, images: Shaped[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs"]:
        """Compute the outputs, float32."""
        patches = self.patches(self._cut(images.to(torch.float32)))
        token = self.class_token.expand(patches.shape[0], 1, -1)
        values = self.dropout(torch.cat([token, patches], dim=1) + self.positions)
        for block in self.blocks:
            values = block(values, None)
        return cast("torch.Tensor", self.output(self.norm(values[:, 0])))

    def _cut(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch patches channels_rows_columns"]:
        """Return each patch as one vector, in the order of rows (section 3.1)."""
        rows, columns = self._grid
        cut = images.unflatten(3, (columns, self._patch)).unflatten(2, (rows, self._patch))
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
