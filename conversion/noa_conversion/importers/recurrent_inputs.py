"""What a file gives `RNN`, `GRU` and `LSTM`: one list for all targets, judged where it is known at the import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Size, Value

_NAMES = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
_COUNTS = {"RNN": 6, "GRU": 6, "LSTM": 8}
_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentInputs:
    """The values of one node as the file has them; what is left out is None."""

    x: Value
    w: Value
    r: Value
    b: Value
    lengths: Value
    states: tuple[Value, ...]
    peepholes: Value
    direction: str
    is_batch_first: bool

    @property
    def directions(self) -> int:
        """How many sets of weights there are."""
        return _DIRECTIONS[self.direction]


def read_recurrent(op: Op, inputs: tuple[Value, ...]) -> RecurrentInputs:
    """Return the inputs of a node by what they are.

    Raises:
        ConversionError: there are too many, the direction is unknown, their known shapes do not go together, or a known
            sequence cannot be that long.
    """
    most = _COUNTS[op.kind]
    if len(inputs) > most:
        op.refuse(f"it has {len(inputs)} inputs, and takes at most {most}: {', '.join(_NAMES[:most])}")
    x, w, r, b, lengths, hidden, cell, peepholes = (*inputs, *(None,) * (len(_NAMES) - len(inputs)))
    direction = str(op.attribute("direction", "forward"))
    if direction not in _DIRECTIONS:
        op.refuse(f"the direction `{direction}` is unknown")
    is_batch_first = bool(op.attribute("layout", 0))
    states = (hidden, cell) if op.kind == "LSTM" else (hidden,)
    _check_shapes(op, {"X": x, "W": w, "R": r}, {"initial_h": hidden, "initial_c": cell}, is_batch_first=is_batch_first)
    _check_lengths(op, lengths, op.shape(x)[1 if is_batch_first else 0])
    return RecurrentInputs(
        x=x,
        w=w,
        r=r,
        b=b,
        lengths=lengths,
        states=states,
        peepholes=peepholes,
        direction=direction,
        is_batch_first=is_batch_first,
    )


def _check_shapes(op: Op, main: Mapping[str, Value], states: Mapping[str, Value], *, is_batch_first: bool) -> None:
    """Refuse shapes that do not go together: frameworks look at them less than ONNX does, and read past their ends."""
    shapes = {name: op.shape(value) for name, value in {**main, **states}.items() if value is not None}
    for name, shape in shapes.items():
        if len(shape) != 3:
            op.refuse(f"`{name}` must have 3 axes and has the shape {shape}", is_misfit=True)
    batch = shapes["X"][0 if is_batch_first else 1]
    pairs = [("X", shapes["X"][2], "W", shapes["W"][2])]
    pairs += [("X", batch, name, shapes[name][0 if is_batch_first else 1]) for name in states if name in shapes]
    pairs += [("R", shapes["R"][2], name, shapes[name][2]) for name in states if name in shapes]
    for first, size, second, other in pairs:
        if isinstance(size, int) and isinstance(other, int) and size != other:
            op.refuse(
                f"`{first}` of shape {shapes[first]} does not go with `{second}` of shape {shapes[second]}",
                is_misfit=True,
            )


def _check_lengths(op: Op, lengths: Value, steps: Size) -> None:
    """Refuse known lengths that are negative or beyond the known number of steps, as onnxruntime does."""
    if lengths is None or not op.is_known(lengths):
        return
    known = op.known(lengths, "sequence_lens")
    wrong = known[(known < 0) | ((known > steps) if isinstance(steps, int) else False)]
    if wrong.size:
        op.refuse(f"a sequence of `sequence_lens` has {int(wrong[0])} steps, and there are {steps}")
