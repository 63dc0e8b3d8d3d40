"""What is installed: formats and converters, and what each of them still needs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from noa.formats import find_adapter, format_names
from noa_conversion.converters import Converter, find_converters


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatEntry:
    """A format that is registered. `missing` are packages that its adapter imports and that are not installed."""

    name: str
    packages: tuple[str, ...]
    extra: str | None
    missing: tuple[str, ...]
    made_from: tuple[str, ...]
    """Where converters start that lead to it: formats, `live:torch`, `live:jax`."""

    def to_dict(self) -> dict[str, object]:
        """Return JSON values."""
        return {
            "name": self.name,
            "installed": not self.missing,
            "packages": list(self.packages),
            "missing": list(self.missing),
            "extra": self.extra,
            "made_from": list(self.made_from),
        }


def list_formats() -> list[FormatEntry]:
    """Return all formats by name."""
    return [_entry(name) for name in format_names()]


def converter_to_dict(converter: Converter) -> dict[str, object]:
    """Return a converter as JSON values."""
    return {
        "source": converter.source,
        "target": converter.target,
        "installed": not converter.missing,
        "packages": list(converter.packages),
        "missing": list(converter.missing),
        "extra": converter.extra,
        "exact": converter.is_exact,
        "wants_samples": converter.wants_samples,
    }


def _entry(name: str) -> FormatEntry:
    adapter = find_adapter(name)
    packages: tuple[str, ...] = tuple(getattr(adapter, "packages", ()))
    sources = sorted(source for source, target in find_converters() if target == name)
    return FormatEntry(
        name=name,
        packages=packages,
        extra=getattr(adapter, "extra", None),
        missing=tuple(package for package in packages if find_spec(package) is None),
        made_from=tuple(sources),
    )
