"""The errors of a stored program that does not have the inputs and outputs of its signature, in whatever format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from noa.errors import InvalidInputError
from noa.signatures import TensorSpec


def check_count(path: Path, side: str, specs: Sequence[TensorSpec], count: int) -> None:
    """Refuse a program with another number of `side` ("inputs" or "outputs") than the signature has.

    Raises:
        InvalidInputError: the numbers differ.
    """
    if count != len(specs):
        raise InvalidInputError(
            f"`{path.name}` does not have the {side} of its signature",
            where=str(path),
            expected=f"{len(specs)}: {', '.join(spec.name for spec in specs)}",
            received=str(count),
        )


def differing_tensor(path: Path, spec: TensorSpec, received: str) -> InvalidInputError:
    """Return the error of a tensor that is not what the signature says."""
    return InvalidInputError(
        f"tensor `{spec.name}` of `{path.name}` differs from its signature",
        where=str(path),
        expected=spec.describe(),
        received=received,
        field=spec.name,
    )
