"""The interface of a format: how any room loads and runs a model without knowing its framework.

Adapters live in the conversion room and are found by name through the entry point group `noa.formats`, so that the
registry and serving can load a model without importing a framework. A plug-in adds a format by adding an entry point.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from noa.errors import NotFoundError

if TYPE_CHECKING:
    import numpy as np

    from noa.signatures import Signature

ENTRY_POINT_GROUP = "noa.formats"


@runtime_checkable
class Runnable(Protocol):
    """A loaded model. `run` trusts its inputs: they were checked with `signature.validate`."""

    @property
    def signature(self) -> Signature:
        """What the model takes and gives."""
        ...

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs by name. Safe to call from several threads."""
        ...


@runtime_checkable
class FormatAdapter(Protocol):
    """Loads one format from its folder. Loading never runs code that comes from the folder.

    An adapter may say what it needs: `packages`, the modules that it imports, and `extra`, the extra of noa that brings
    them. `noa formats` shows it.
    """

    @property
    def name(self) -> str:
        """The format's name, e.g. `onnx`."""
        ...

    def load(self, folder: Path, *, threads: int | None = None) -> Runnable:
        """Load the model in `folder`; `threads` bounds its compute threads (None: the library's default).

        Raises:
            InvalidInputError: the folder does not hold this format.
            DependencyMissingError: the framework is not installed.
        """
        ...


def format_names() -> tuple[str, ...]:
    """Return the names of all installed formats, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)}))


def find_adapter(name: str) -> FormatAdapter:
    """Return the adapter of a format.

    Raises:
        NotFoundError: no installed distribution offers this format.
    """
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return cast("FormatAdapter", point.load())
    raise NotFoundError(f"no format `{name}`", expected=", ".join(format_names()), received=name)
