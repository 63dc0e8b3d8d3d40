"""The `safetensors` format: weights without a program, as they came from outside. It can be read, and not run.

Its signature describes what reading gives: one output per tensor, and one empty input, for it takes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from noa.errors import InvalidInputError
from noa.formats import Runnable
from noa_conversion.files import read_weights

if TYPE_CHECKING:
    import numpy as np

NOTHING: Final = "nothing"
"""Name of the input of a format that takes none."""


class WeightsAdapter:
    """Refuses to run weights, and says how to read them."""

    @property
    def name(self) -> str:
        """The format's name."""
        return "safetensors"

    def load(self, folder: Path, *, threads: int | None = None) -> Runnable:
        """Refuse.

        Raises:
            InvalidInputError: always: weights alone compute nothing.
        """
        raise InvalidInputError(
            "the format `safetensors` holds weights without a program, so there is nothing to run",
            where=str(folder),
            remedy="Read them with `noa_conversion.read_arrays(registry.open_format(version, 'safetensors'))`",
        )


ADAPTER = WeightsAdapter()


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Return all tensors of a `safetensors` format by name.

    Raises:
        InvalidInputError: missing, truncated, or of a dtype that NumPy does not have.
    """
    return read_weights(folder)
