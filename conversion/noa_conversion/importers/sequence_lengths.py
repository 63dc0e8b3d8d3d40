"""What `RNN`, `GRU` and `LSTM` are told of their sequences' lengths, judged where it is known at the import."""

from __future__ import annotations

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Size, Value


def check_lengths(op: Op, lengths: Value, steps: Size) -> None:
    """Refuse known lengths that are negative or beyond the known number of steps, as onnxruntime does.

    Raises:
        ConversionError: a sequence cannot be that long.
    """
    if lengths is None or not op.is_known(lengths):
        return
    known = op.known(lengths, "sequence_lens")
    wrong = known[(known < 0) | ((known > steps) if isinstance(steps, int) else False)]
    if wrong.size:
        op.refuse(f"a sequence of `sequence_lens` has {int(wrong[0])} steps, and there are {steps}")
