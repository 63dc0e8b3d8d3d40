"""The interface of a format: how any room loads and runs a model without knowing its framework.

Adapters live in the conversion room and are found by name through the entry point group `noa.formats`, so that the
registry and serving can load a model without importing a framework. A plug-in adds a format by adding an entry point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, cast, runtime_checkable

from noa.errors import InvalidInputError, NotFoundError, SignatureError

if TYPE_CHECKING:
    import numpy as np

    from noa.signatures import Signature

ENTRY_POINT_GROUP = "noa.formats"
KEPT_FORMATS: Final = frozenset({"pickle", "safetensors"})
"""Formats that are kept as they came and never loaded: what they hold is no program that noa runs."""
_NATIVE = frozenset({"torch", "jax", "onnx"})
_REDUCED = ("onnx-slim", "onnx-fp16", "onnx-bf16", "onnx-int8", "onnx-int8-static", "onnx-int4")
MADE_FROM: Final[Mapping[str, frozenset[str]]] = {name: _NATIVE - {name} for name in (*sorted(_NATIVE), *_REDUCED)}
"""From which native formats `noa convert` makes a format, in one or several steps. The conversion room has the
converters; a test compares."""


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
    them. `noa formats` shows it. One that can tell cheaply whether a folder fits a signature is a `SignatureChecker`,
    one whose library has a choice of how to compute a `RuntimeAdapter`.
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


@runtime_checkable
class SignatureChecker(Protocol):
    """An adapter whose format names its tensors itself, apart from `signature.json`."""

    def check_signature(self, folder: Path, signature: Signature) -> None:
        """Compare the tensors that the format names with a signature; reads no weights and runs nothing.

        Raises:
            InvalidInputError: they differ.
            DependencyMissingError: what reads the format is not installed.
        """
        ...


Device: TypeAlias = Literal["auto", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """How a format's library computes. `threads` bounds its compute threads (None: the library's default).

    `device` is `cpu`, or `auto` for an accelerator where the library has one. `is_compiled` asks a library that can for
    a compiled model.
    """

    threads: int | None = None
    device: Device = "cpu"
    is_compiled: bool = False


@runtime_checkable
class RuntimeAdapter(Protocol):
    """An adapter whose library has a choice of how to compute; what cannot be had is left out, as `runtime` says."""

    def load_with(self, folder: Path, options: RuntimeOptions) -> DescribedRunnable:
        """Load the model in `folder`; raises what `load` raises."""
        ...

    def accelerator(self) -> str | None:
        """Return what `auto` would compute on, None if there is nothing but the CPU."""
        ...


@runtime_checkable
class DescribedRunnable(Runnable, Protocol):
    """A loaded model that says what runs it."""

    @property
    def device(self) -> str:
        """Where it computes, e.g. `cpu` or `cuda`."""
        ...

    @property
    def runtime(self) -> str:
        """What runs it, for people, with the reason where it is not what was asked for."""
        ...


class CheckedRunnable:
    """A loaded model that checks its inputs: what people call by hand. Serving checks once, at its own edge."""

    def __init__(self, runnable: Runnable) -> None:
        self._runnable = runnable

    @property
    def signature(self) -> Signature:
        """What the model takes and gives."""
        return self._runnable.signature

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs by name.

        Raises:
            SignatureError: an input is missing, unknown, no array, or has another dtype, rank or size;
                `facts["field"]` names it.
        """
        for spec in self.signature.inputs:
            array = inputs.get(spec.name)
            if array is not None and not (hasattr(array, "dtype") and hasattr(array, "shape")):
                raise SignatureError(
                    f"input `{spec.name}` is no array",
                    expected=spec.describe(),
                    received=type(array).__name__,
                    remedy=f"Give an array: numpy.asarray(values, dtype={spec.dtype!r})",
                    field=spec.name,
                )
        self.signature.validate(inputs)
        return self._runnable.run(inputs)


def remedy_without(name: str, *, native: str, reference: str) -> str:
    """Return what helps where a version lacks a format: the command that makes it, if there can be one."""
    if native in MADE_FROM.get(name, frozenset()):
        return f"Make it with: noa convert {reference} --to {name}"
    if native in KEPT_FORMATS:
        return _export_again(reference)
    return f"No converter makes `{name}` from `{native}`; choose a format that it has"


def refuse_kept(name: str, *, reference: str) -> None:
    """Raise if a format is one that noa keeps and never loads.

    Raises:
        InvalidInputError: it is.
    """
    if name in KEPT_FORMATS:
        raise InvalidInputError(
            f"the format `{name}` of `{reference}` is kept, never loaded: it holds no program that noa runs",
            expected=", ".join(f"`{each}`" for each in format_names() if each not in KEPT_FORMATS),
            received=f"`{name}`",
            remedy=_export_again(reference),
        )


def _export_again(reference: str) -> str:
    model = reference.partition("/")[0]
    return f"Export the model as ONNX where it is from, and import that: noa models import model.onnx --name {model}"


def format_names() -> tuple[str, ...]:
    """Return the names of all installed formats, sorted."""
    return tuple(sorted(_points()))


def find_adapter(name: str) -> FormatAdapter:
    """Return the adapter of a format.

    Raises:
        NotFoundError: no installed distribution offers this format.
    """
    if name in _points():
        return cast("FormatAdapter", _points()[name].load())
    raise NotFoundError(f"no format `{name}`", expected=", ".join(format_names()), received=name)


@cache
def _points() -> Mapping[str, EntryPoint]:
    """Return the entry points by name, of two with one name the first; reading all metadata takes ten milliseconds."""
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        points.setdefault(point.name, point)
    return points
