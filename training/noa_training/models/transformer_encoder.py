"""The transformer encoder for text and time series: its fields and its parameter tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from noa_training.model_specs import ModelShape
from noa_training.models.checks import FieldChecks
from noa_training.models.inputs import SequenceInput, sequence_input
from noa_training.models.layout import Layout, embedding, linear, norm, positions
from noa_training.models.transformer_blocks import check_blocks, encoder_blocks

Pooling: TypeAlias = Literal["mean", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerEncoder:
    """`depth` blocks of self-attention over a sequence; the mean over its real steps gives the outputs.

    Inputs are tokens (rows, length) with a `vocabulary`, or numbers (rows, length, features) without one. A second
    input, booleans (rows, length), says which steps are real: the others are neither attended to nor counted in the
    mean. `pooling="none"` gives outputs for each step (rows, length, outputs), e.g. to label tokens. `feedforward` 0:
    four times the width. Positions are learned vectors.

    Source: Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762, sections 3.1 to 3.3, dropout as in
    section 5.4 (on the embedded input and on each sub-layer's output). We differ: normalisation comes before each
    sub-layer and once after the last (Xiong et al. 2020, arXiv:2002.04745), GELU (arXiv:1606.08415, exact) where the
    paper has ReLU, learned positions where it has sinusoids, queries, keys and values without biases.
    """

    width: int = 128
    depth: int = 2
    heads: int = 4
    feedforward: int = 0
    dropout: float = 0.0
    vocabulary: int = 0
    pooling: Pooling = "mean"
    outputs: int = 0

    def check(self, fields: FieldChecks) -> None:
        """Refuse a field that cannot be built.

        Raises:
            RecipeError: names the field.
        """
        check_blocks(
            fields,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            feedforward=self.feedforward,
            dropout=self.dropout,
        )
        fields.size("vocabulary", self.vocabulary, least=0, most=1 << 24)
        fields.choice("pooling", self.pooling, get_args(Pooling))
        fields.size("outputs", self.outputs, least=0)

    @property
    def answers_steps(self) -> bool:
        """Whether each step has outputs of its own."""
        return self.pooling == "none"

    def input_of(self, shape: ModelShape) -> SequenceInput:
        """Return what the dataset gives.

        Raises:
            RecipeError: the inputs are no sequences.
        """
        return sequence_input(shape, model="transformer_encoder", vocabulary=self.vocabulary)

    def layout(self, shape: ModelShape) -> Layout:
        """Return the parameters in the order in which they are drawn."""
        given = self.input_of(shape)
        first = (
            embedding("embedding", self.vocabulary, self.width)
            if given.is_text
            else linear("embedding", self.width, given.features, zero_bias=True)
        )
        return (
            *first,
            *positions("positions", given.length, self.width),
            *encoder_blocks(width=self.width, depth=self.depth, feedforward=self.feedforward),
            *norm("norm", self.width),
            *linear("output", shape.outputs, self.width, zero_bias=True),
        )


def transformer_encoder(
    *,
    width: int = 128,
    depth: int = 2,
    heads: int = 4,
    feedforward: int = 0,
    dropout: float = 0.0,
    vocabulary: int = 0,
    pooling: Pooling = "mean",
    outputs: int = 0,
) -> TransformerEncoder:
    """Choose the built-in transformer encoder for text or time series; see `TransformerEncoder`."""
    return TransformerEncoder(
        width=width,
        depth=depth,
        heads=heads,
        feedforward=feedforward,
        dropout=dropout,
        vocabulary=vocabulary,
        pooling=pooling,
        outputs=outputs,
    )
