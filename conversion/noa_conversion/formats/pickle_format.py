"""The `pickle` format: files that run code when they are unpickled. noa keeps them and never reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from noa.errors import InvalidInputError
from noa.formats import Runnable

CONTENT_FOLDER: Final = "content"


class PickleAdapter:
    """Refuses to load, whoever allowed the file."""

    @property
    def name(self) -> str:
        """The format's name."""
        return "pickle"

    def load(self, folder: Path, *, threads: int | None = None) -> Runnable:
        """Refuse.

        Raises:
            InvalidInputError: always.
        """
        raise InvalidInputError(
            "noa keeps pickles and never loads them: reading one runs the code it names",
            where=str(folder),
            remedy="Export the model as ONNX, as a PyTorch exported program or as an MLflow model, and import that",
        )


ADAPTER = PickleAdapter()
