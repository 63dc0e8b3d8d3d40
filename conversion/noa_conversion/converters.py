"""The graph of converters: which format can be made from which, and the shortest way between two.

Converters are found through the entry points `noa.converters`, as formats are through `noa.formats`; noa's own are
registered the same way. A converter of a live model starts at `live:torch` or `live:jax`; one of a folder starts at the
format's name. Each is a plain function, imported when it is used. A plug-in's module holds a `Converter` and its
project names it:

    [project.entry-points."noa.converters"]
    onnx-to-tflite = "my_package.tflite:CONVERTER"
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from noa.errors import ConversionError, InvalidInputError
from noa.settings import ConversionSettings
from noa.signatures import SIGNATURE_FILE, Signature

if TYPE_CHECKING:
    from noa.signatures import TensorSpec
    from noa_conversion.comparison import Tolerance

ENTRY_POINT_GROUP: Final = "noa.converters"

Convert: TypeAlias = Callable[..., None]
"""Takes the source (a live model or a format folder), an empty target folder and the settings; `samples` by keyword,
inputs by name or None, if the converter `wants_samples`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converter:
    """One edge of the graph. `packages` are what it imports; `extra` is the extra of noa that brings them.

    A converter that reduces precision states in `allow` the tolerance of an output; without it the target computes the
    same numbers up to the tolerance of the dtype. `wants_samples` says that it looks at real inputs, to calibrate.
    """

    source: str
    target: str
    run: Convert
    packages: tuple[str, ...] = ()
    extra: str | None = None
    allow: Callable[[TensorSpec], Tolerance] | None = None
    wants_samples: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the target keeps the numbers of the source."""
        return self.allow is None

    @property
    def missing(self) -> tuple[str, ...]:
        """The packages that are not installed."""
        return tuple(package for package in self.packages if find_spec(package) is None)


@functools.cache
def find_converters() -> Mapping[tuple[str, str], Converter]:
    """Return all converters that are installed, by source and target.

    Raises:
        InvalidInputError: an entry point gives something else, or two give the same edge.
    """
    found: dict[tuple[str, str], Converter] = {}
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        converter: object = point.load()
        if not isinstance(converter, Converter):
            raise InvalidInputError(
                f"the converter `{point.name}` is none",
                where=point.value,
                expected="a `noa_conversion.Converter`",
                received=type(converter).__name__,
            )
        edge = (converter.source, converter.target)
        if edge in found:
            raise InvalidInputError(
                f"two plug-ins convert `{edge[0]}` to `{edge[1]}`", where=point.value, expected="one converter per pair"
            )
        found[edge] = converter
    return found


def conversion_chain(source: str, target: str) -> tuple[Converter, ...]:
    """Return the shortest chain of converters from `source` to `target`; empty if they are the same.

    Of chains of one length the one is taken whose steps keep the numbers.

    Raises:
        ConversionError: there is no way; says what can be reached, and why not where that is known.
    """
    if source == target:
        return ()
    converters = sorted(find_converters().values(), key=lambda converter: not converter.is_exact)
    came_by: dict[str, Converter] = {}
    queue = deque([source])
    while queue:
        here = queue.popleft()
        for converter in converters:
            if converter.source != here or converter.target in came_by or converter.target == source:
                continue
            came_by[converter.target] = converter
            if converter.target == target:
                return _walk_back(came_by, source, target)
            # What lost precision is an end: nothing may be made from it in silence.
            if converter.is_exact:
                queue.append(converter.target)
    reason, remedy = _NO_WAY.get(source, (None, None))
    name = source.removeprefix("live:")
    what = f"no converter leads from `{name}` to `{target}`"
    raise ConversionError(
        f"{what}: {reason}" if reason else what,
        expected=f"one of {sorted(came_by)}" if came_by else None,
        received=target,
        remedy=remedy,
        source=source,
        target=target,
    )


def _walk_back(came_by: Mapping[str, Converter], source: str, target: str) -> tuple[Converter, ...]:
    chain: list[Converter] = []
    while target != source:
        chain.append(came_by[target])
        target = came_by[target].source
    return tuple(reversed(chain))


def _torch_native(model: Any, folder: Path, settings: ConversionSettings) -> None:
    from noa_conversion.formats.torch_format import save

    save(model, folder)


def _jax_native(model: Any, folder: Path, settings: ConversionSettings) -> None:
    from noa_conversion.formats.jax_format import save

    save(model, folder)


def _torch_to_onnx(model: Any, folder: Path, settings: ConversionSettings) -> None:
    from noa_conversion.exporters.torch_to_onnx import export

    export(model, folder, settings)


def _jax_to_onnx(model: Any, folder: Path, settings: ConversionSettings) -> None:
    from noa_conversion.exporters.jax_to_onnx import export

    export(model, folder, settings)


def _torch_folder_to_onnx(source: Path, folder: Path, settings: ConversionSettings) -> None:
    from noa_conversion.exporters.torch_to_onnx import export
    from noa_conversion.formats.torch_format import load_live

    export(load_live(source), folder, settings)


def _onnx_folder_to_torch(source: Path, folder: Path, settings: ConversionSettings) -> None:
    from noa_conversion.importers.torch import convert_onnx_to_torch
    from noa_conversion.onnx_graph.limits import value_limit
    from noa_conversion.work_limits import work_limit

    _refuse_texts(source, "PyTorch")
    with value_limit(settings.max_value_bytes), work_limit(settings.max_work_s, settings.max_work_bytes):
        convert_onnx_to_torch(source, folder, settings)


def _onnx_folder_to_jax(source: Path, folder: Path, settings: ConversionSettings) -> None:
    from noa_conversion.importers.jax import convert_onnx_to_jax
    from noa_conversion.onnx_graph.limits import value_limit
    from noa_conversion.work_limits import work_limit

    _refuse_texts(source, "JAX")
    with value_limit(settings.max_value_bytes), work_limit(settings.max_work_s, settings.max_work_bytes):
        convert_onnx_to_jax(source, folder, settings)


def _refuse_texts(source: Path, library: str) -> None:
    from noa_conversion.models import refuse_texts

    if (source / SIGNATURE_FILE).is_file():
        refuse_texts(Signature.load(source), library)


_TORCH: Final = ("torch", "safetensors")
_JAX: Final = ("jax", "safetensors")

LIVE_TORCH_TO_TORCH = Converter(source="live:torch", target="torch", run=_torch_native, packages=_TORCH, extra="torch")
LIVE_JAX_TO_JAX = Converter(source="live:jax", target="jax", run=_jax_native, packages=_JAX, extra="jax")
LIVE_TORCH_TO_ONNX = Converter(
    source="live:torch", target="onnx", run=_torch_to_onnx, packages=("torch", "onnx", "onnxscript"), extra="torch"
)
LIVE_JAX_TO_ONNX = Converter(source="live:jax", target="onnx", run=_jax_to_onnx, packages=("jax", "onnx"), extra="jax")
TORCH_TO_ONNX = Converter(
    source="torch", target="onnx", run=_torch_folder_to_onnx, packages=("torch", "onnx", "onnxscript"), extra="torch"
)
ONNX_TO_TORCH = Converter(
    source="onnx", target="torch", run=_onnx_folder_to_torch, packages=("torch", "onnx"), extra="torch"
)
ONNX_TO_JAX = Converter(source="onnx", target="jax", run=_onnx_folder_to_jax, packages=("jax", "onnx"), extra="jax")
# What the bytes of a format do not hold, so that no later converter can exist either.
_NO_WAY: Final = {
    "jax": (
        "a stored JAX program is compiled code without the function it came from",
        "Convert from the recipe: it rebuilds the live model from the stored weights",
    ),
}
