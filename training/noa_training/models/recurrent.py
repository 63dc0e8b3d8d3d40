"""GRU and LSTM: their fields and their parameter trees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from noa_training.model_specs import ModelShape
from noa_training.models.checks import MOST_LAYERS, FieldChecks
from noa_training.models.inputs import SequenceInput, sequence_input
from noa_training.models.layout import Layout, Parameter, Uniform, embedding, linear

Cell: TypeAlias = Literal["gru", "lstm"]
GATES = {"gru": 3, "lstm": 4}
"""Blocks of rows in a cell's weights: reset, update, new; or input, forget, cell, output: PyTorch's order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrent:
    """`layers` recurrent layers over a sequence; the state after its last real step gives the outputs.

    Inputs are numbers (rows, length, features), or with a `vocabulary` tokens (rows, length), each of which gets a
    vector of `embedding` numbers. A second input, booleans (rows, length), says which steps are real; padding comes
    after them. `dropout` is between layers and before the output.

    Source: Cho et al. 2014, arXiv:1406.1078, eq. 5-8 (GRU), and Hochreiter and Schmidhuber 1997 with the forget gates
    of Gers et al. 2000 (LSTM), as `torch.nn.GRU` and `torch.nn.LSTM` compute them: two biases per gate, and the GRU's
    reset gate is applied after its product (cuDNN's variant; the paper's is before it).
    """

    cell: Cell
    hidden: int = 128
    layers: int = 1
    dropout: float = 0.0
    vocabulary: int = 0
    embedding: int = 64
    outputs: int = 0

    def check(self, fields: FieldChecks) -> None:
        """Refuse a field that cannot be built.

        Raises:
            RecipeError: names the field.
        """
        fields.choice("cell", self.cell, tuple(GATES))
        fields.size("hidden", self.hidden)
        fields.size("layers", self.layers, most=MOST_LAYERS)
        fields.chance("dropout", self.dropout)
        fields.size("vocabulary", self.vocabulary, least=0, most=1 << 24)
        fields.size("embedding", self.embedding)
        fields.size("outputs", self.outputs, least=0)

    def input_of(self, shape: ModelShape) -> SequenceInput:
        """Return what the dataset gives.

        Raises:
            RecipeError: the inputs are no sequences.
        """
        return sequence_input(shape, model=self.cell, vocabulary=self.vocabulary)

    def features(self, shape: ModelShape) -> int:
        """Return how many numbers the first layer takes a step."""
        given = self.input_of(shape)
        return self.embedding if given.is_text else given.features

    def layout(self, shape: ModelShape) -> Layout:
        """Return the parameters in the order in which they are drawn; all of a cell are uniform in +-1/sqrt(hidden)."""
        first = Uniform(1 / math.sqrt(self.hidden))
        rows = GATES[self.cell] * self.hidden
        table = embedding("embedding", self.vocabulary, self.embedding) if self.vocabulary else ()
        cells = [
            Parameter(name=f"recurrent.{kind}_l{layer}", shape=size, first=first)
            for layer in range(self.layers)
            for kind, size in (
                ("weight_ih", (rows, self.features(shape) if layer == 0 else self.hidden)),
                ("weight_hh", (rows, self.hidden)),
                ("bias_ih", (rows,)),
                ("bias_hh", (rows,)),
            )
        ]
        return (*table, *cells, *linear("output", shape.outputs, self.hidden))


def gru(
    *,
    hidden: int = 128,
    layers: int = 1,
    dropout: float = 0.0,
    vocabulary: int = 0,
    embedding: int = 64,
    outputs: int = 0,
) -> Recurrent:
    """Choose the built-in gated recurrent unit for sequences; see `Recurrent`."""
    return Recurrent(
        cell="gru",
        hidden=hidden,
        layers=layers,
        dropout=dropout,
        vocabulary=vocabulary,
        embedding=embedding,
        outputs=outputs,
    )


def lstm(
    *,
    hidden: int = 128,
    layers: int = 1,
    dropout: float = 0.0,
    vocabulary: int = 0,
    embedding: int = 64,
    outputs: int = 0,
) -> Recurrent:
    """Choose the built-in long short-term memory for sequences; see `Recurrent`."""
    return Recurrent(
        cell="lstm",
        hidden=hidden,
        layers=layers,
        dropout=dropout,
        vocabulary=vocabulary,
        embedding=embedding,
        outputs=outputs,
    )
