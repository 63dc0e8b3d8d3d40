"""What the transformers share without a framework: the tree of a block, tables of angles, sizes that must fit."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from noa_training.models.checks import MOST_LAYERS, FieldChecks
from noa_training.models.layout import Layout, linear, norm, projection

if TYPE_CHECKING:
    import numpy as np

MASKED = -1e9
"""Added to the score of a step that is padding. Finite: a row of padding alone gives numbers, not NaN."""
_EXPANSION = 4


def check_blocks(fields: FieldChecks, *, width: int, depth: int, heads: int, feedforward: int, dropout: float) -> None:
    """Refuse sizes of a transformer that do not fit together.

    Raises:
        RecipeError: names the field.
    """
    fields.size("width", width)
    fields.size("depth", depth, most=MOST_LAYERS)
    fields.size("heads", heads)
    fields.multiple("width", width, of="heads", divisor=heads)
    fields.size("feedforward", feedforward, least=0)
    fields.chance("dropout", dropout)


def expanded(width: int, feedforward: int) -> int:
    """Return the inner width of a feed-forward layer: as given, or four times the width (Vaswani et al. 2017, 3.3)."""
    return feedforward or _EXPANSION * width


def residual_scale(depth: int) -> float:
    """Return the factor on first weights of layers that add to the residual stream.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3: 1/sqrt(N) with N
    residual layers, of which a block has two.
    """
    return 1 / math.sqrt(2 * depth)


def encoder_blocks(*, width: int, depth: int, feedforward: int) -> Layout:
    """Return `depth` blocks in which normalisation comes first (Xiong et al. 2020, arXiv:2002.04745, figure 1b).

    Queries, keys and values have no bias: one of the keys adds the same to all scores of a query, which softmax takes
    away, so that its gradient is rounding alone, and AdamW would make steps of full size of it.
    """
    inner, scale = expanded(width, feedforward), residual_scale(depth)
    blocks = [
        (
            *norm(f"blocks.{index}.attention_norm", width),
            *projection(f"blocks.{index}.attention.qkv", 3 * width, width),
            *linear(f"blocks.{index}.attention.output", width, width, scale=scale, zero_bias=True),
            *norm(f"blocks.{index}.feedforward_norm", width),
            *linear(f"blocks.{index}.feedforward.expand", inner, width, zero_bias=True),
            *linear(f"blocks.{index}.feedforward.contract", width, inner, scale=scale, zero_bias=True),
        )
        for index in range(depth)
    ]
    return tuple(itertools.chain.from_iterable(blocks))


def rotary_tables(length: int, dim: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    """Return cosine and sine of the angle of each pair of channels at each position, float32 (length, dim / 2).

    Computed in float64, so that both backends turn by the same angles.

    Source: Su et al. 2021, "RoFormer", arXiv:2104.09864, eq. 15: theta_i = base ** (-2i / dim).
    """
    import numpy as np

    rates = base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    angles = np.arange(length, dtype=np.float64)[:, None] * rates[None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
