"""Golden requests: a version answers what its evidence has answers to before it may answer anybody.

The answers are those of the format from which the served one was made, kept when both were proven equivalent. Here they
are compared once more, on this machine, with these libraries and threads, and with the differences that were allowed
then. They go the way of a request: filled up to a bucket where the runtime compiles each size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from noa.errors import IntegrityError
from noa.settings import ConversionSettings

if TYPE_CHECKING:
    import numpy as np

    from noa_conversion.comparison import OutputDifference, Tolerance
    from noa_registry.evidence import AllowedDifference, GoldenRequests
    from noa_serving._generation import Generation

_SHOWN_NAME = 64


def require_golden_answers(generation: Generation, golden: GoldenRequests) -> None:
    """Ask `generation` all golden requests.

    Raises:
        IntegrityError: an answer differs by more than was allowed; names request, output and difference.
        SignatureError: a golden request does not fit the model.
    """
    count = len(golden.requests)
    for index, request in enumerate(golden.requests, start=1):
        batch = generation.signature.validate(request.inputs)
        answers = generation.compute(request.inputs, batch)
        if set(request.outputs) != set(generation.output_names):
            raise IntegrityError(
                f"golden request {index} of {count} is not of this model",
                expected=", ".join(f"`{name[:_SHOWN_NAME]}`" for name in generation.output_names[:8]),
                received=", ".join(f"`{name[:_SHOWN_NAME]}`" for name in list(request.outputs)[:8]),
            )
        for spec in generation.signature.outputs:
            _require_same(
                _compare(generation, golden, request.outputs, answers, spec.name, batch),
                golden.allowed[spec.name],
                what=f"golden request {index} of {count}: output `{spec.name[:_SHOWN_NAME]}`",
                source=golden.source,
            )


def _compare(
    generation: Generation,
    golden: GoldenRequests,
    expected: Mapping[str, np.ndarray],
    received: Mapping[str, np.ndarray],
    name: str,
    batch: int,
) -> OutputDifference:
    from noa_conversion.comparison import compare_output

    return compare_output(
        next(spec for spec in generation.signature.outputs if spec.name == name),
        expected[name],
        received[name],
        batch=batch,
        settings=ConversionSettings(),
        tolerance=_tolerance(golden.allowed[name]),
        largest=math.inf,  # the tolerance was scaled when it was stated
    )


def _tolerance(allowed: AllowedDifference) -> Tolerance:
    from noa_conversion.comparison import Tolerance

    return Tolerance(
        absolute=allowed.absolute,
        relative=allowed.relative,
        of_largest=allowed.of_largest,
        disagreement=allowed.disagreement,
        reason=allowed.reason,
    )


def _require_same(found: OutputDifference, allowed: AllowedDifference, *, what: str, source: str) -> None:
    if found.passed:
        return
    where = "" if found.worst_sample is None else f" in item {found.worst_sample}"
    limit = f"{allowed.absolute:g} + {allowed.relative:g} of its value"
    raise IntegrityError(
        f"{what} is not what `{source}` answered",
        expected=f"a difference of at most {limit}",
        received=f"{found.max_abs_error:.6g}{where} ({found.problem})",
    )
