"""The decoder-only language model: its fields and its parameter tree."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

from noa_training.model_specs import ModelShape
from noa_training.models.checks import FieldChecks
from noa_training.models.inputs import SequenceInput, sequence_input
from noa_training.models.layout import Filled, Layout, Parameter, embedding, projection
from noa_training.models.transformer_blocks import check_blocks, residual_scale

_MULTIPLE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLm:
    """A causal language model: tokens (rows, length) -> logits of the token after each (rows, length, vocabulary).

    RMS normalisation before each sub-layer, rotary positions, attention in which `heads / kv_heads` query heads share
    one head of keys and values, a gated feed-forward layer, no biases, and the embedding also as the output layer.
    Its objective is `token_cross_entropy`. `feedforward` 0: 8/3 of the width, rounded up to a multiple of 8.

    Sources: Touvron et al. 2023, arXiv:2302.13971, section 2.2 (the whole); Zhang and Sennrich 2019, arXiv:1910.07467,
    eq. 4 (RMSNorm); Su et al. 2021, arXiv:2104.09864, eq. 34 (rotary), where we pair channel i with i + dim / 2 as in
    GPT-NeoX and the paper pairs 2i with 2i + 1; Ainslie et al. 2023, arXiv:2305.13245, section 2.2 (grouped queries);
    Shazeer 2020, arXiv:2002.05202, eq. 6 (SwiGLU); Press and Wolf 2017, arXiv:1608.05859 (one table for both ends).
    """

    vocabulary: int
    width: int = 128
    depth: int = 4
    heads: int = 4
    kv_heads: int = 2
    feedforward: int = 0
    dropout: float = 0.0
    rotary_base: float = 10_000.0

    answers_steps: ClassVar[bool] = True

    def check(self, fields: FieldChecks) -> None:
        """Refuse a field that cannot be built.

        Raises:
            RecipeError: names the field.
        """
        fields.size("vocabulary", self.vocabulary, least=2, most=1 << 24)
        check_blocks(
            fields,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            feedforward=self.feedforward,
            dropout=self.dropout,
        )
        fields.size("kv_heads", self.kv_heads)
        fields.multiple("heads", self.heads, of="kv_heads", divisor=self.kv_heads)
        if self.head_dim % 2:
            expected = "an even width for each head: rotary positions turn pairs of channels"
            raise fields.refusal("width", expected, f"{self.width} / {self.heads} heads")
        fields.positive("rotary_base", self.rotary_base)

    @property
    def outputs(self) -> int:
        """Numbers per position that the model gives."""
        return self.vocabulary

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.width // self.heads

    @property
    def inner(self) -> int:
        """Inner width of the feed-forward layer."""
        return self.feedforward or -(-8 * self.width // (3 * _MULTIPLE)) * _MULTIPLE

    def input_of(self, shape: ModelShape) -> SequenceInput:
        """Return what the dataset gives.

        Raises:
            RecipeError: the inputs are no tokens.
        """
        return sequence_input(shape, model="decoder_lm", vocabulary=self.vocabulary, takes_mask=False)

    def layout(self, shape: ModelShape) -> Layout:
        """Return the parameters in the order in which they are drawn."""
        self.input_of(shape)
        blocks = [self._block(f"blocks.{index}") for index in range(self.depth)]
        return (
            *embedding("embedding", self.vocabulary, self.width),
            *itertools.chain.from_iterable(blocks),
            _rms_norm("norm", self.width),
        )

    def _block(self, name: str) -> Layout:
        scale, keys = residual_scale(self.depth), 2 * self.kv_heads * self.head_dim
        return (
            _rms_norm(f"{name}.attention_norm", self.width),
            *projection(f"{name}.attention.qkv", self.width + keys, self.width),
            *projection(f"{name}.attention.output", self.width, self.width, scale=scale),
            _rms_norm(f"{name}.feedforward_norm", self.width),
            *projection(f"{name}.feedforward.gate", self.inner, self.width),
            *projection(f"{name}.feedforward.up", self.inner, self.width),
            *projection(f"{name}.feedforward.down", self.width, self.inner, scale=scale),
        )


def decoder_lm(
    *,
    vocabulary: int,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    feedforward: int = 0,
    dropout: float = 0.0,
    rotary_base: float = 10_000.0,
) -> DecoderLm:
    """Choose the built-in language model; see `DecoderLm`."""
    return DecoderLm(
        vocabulary=vocabulary,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=kv_heads,
        feedforward=feedforward,
        dropout=dropout,
        rotary_base=rotary_base,
    )


def _rms_norm(name: str, size: int) -> Parameter:
    return Parameter(name=f"{name}.weight", shape=(size,), first=Filled(1.0))
