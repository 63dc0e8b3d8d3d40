"""The graph of converters: which format can be made from which, and the shortest way between two.

A converter of a live model starts at `live:torch` or `live:jax`; one of a folder starts at the format's name. Each is a
plain function, imported when it is used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from noa.errors import ConversionError
from noa.settings import ConversionSettings

Convert: TypeAlias = Callable[[Any, Path, ConversionSettings], None]
"""Takes the source (a live model or a format folder), an empty target folder and the settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converter:
    """One edge of the graph."""

    source: str
    target: str
    run: Convert


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


CONVERTERS: Mapping[tuple[str, str], Converter] = {
    (converter.source, converter.target): converter
    for converter in (
        Converter(source="live:torch", target="torch", run=_torch_native),
        Converter(source="live:jax", target="jax", run=_jax_native),
        Converter(source="live:torch", target="onnx", run=_torch_to_onnx),
        Converter(source="live:jax", target="onnx", run=_jax_to_onnx),
        Converter(source="torch", target="onnx", run=_torch_folder_to_onnx),
    )
}
# What the bytes of a format do not hold, so that no later converter can exist either.
_NO_WAY = {
    "jax": (
        "a stored JAX program is compiled code without the function it came from",
        "Convert from the recipe: it rebuilds the live model from the stored weights",
    ),
}


def conversion_chain(source: str, target: str) -> tuple[Converter, ...]:
    """Return the shortest chain of converters from `source` to `target`; empty if they are the same.

    Raises:
        ConversionError: there is no way; says what can be reached, and why not where that is known.
    """
    if source == target:
        return ()
    came_by: dict[str, Converter] = {}
    queue = deque([source])
    while queue:
        here = queue.popleft()
        for converter in CONVERTERS.values():
            if converter.source != here or converter.target in came_by or converter.target == source:
                continue
            came_by[converter.target] = converter
            if converter.target == target:
                return _walk_back(came_by, source, target)
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
