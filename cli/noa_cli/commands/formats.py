"""`noa formats`: which formats and converters there are, and what each needs."""

from __future__ import annotations

from noa_cli import _console as console
from noa_cli._options import JsonOption


def formats(as_json: JsonOption = False) -> None:
    """List the formats and the converters between them, with the packages that each still needs."""
    from noa_conversion.catalogue import converter_to_dict, list_formats
    from noa_conversion.converters import find_converters
    from noa_conversion.from_others import list_sources

    entries = list_formats()
    converters = [find_converters()[edge] for edge in sorted(find_converters())]
    others = list_sources()
    if as_json:
        console.print_json(
            {
                "formats": [entry.to_dict() for entry in entries],
                "converters": [converter_to_dict(converter) for converter in converters],
                "from_others": [source.to_dict() for source in others],
            }
        )
        return
    console.print_table(
        ["format", "runs on", "installed", "made from"],
        [
            [
                entry.name,
                ", ".join(entry.packages) or "nothing: it is kept, not run",
                _installed(entry.missing, entry.extra),
                ", ".join(_readable(source) for source in entry.made_from) or "models from outside",
            ]
            for entry in entries
        ],
    )
    console.print_table(
        ["converter", "needs", "installed", "keeps the numbers"],
        [
            [
                f"{_readable(converter.source)} -> {converter.target}",
                ", ".join(converter.packages) or None,
                _installed(converter.missing, converter.extra),
                "yes" if converter.is_exact else "within its stated tolerance",
            ]
            for converter in converters
        ],
    )
    console.print_table(
        ["from other libraries", "needs", "installed", "reads", "not to"],
        [
            [
                source.name,
                ", ".join(source.packages),
                _installed(source.missing, source.extra),
                source.reads,
                ", ".join(source.not_to) or None,
            ]
            for source in others
        ],
    )


def _readable(source: str) -> str:
    return f"{source.removeprefix('live:')} (live)" if source.startswith("live:") else source


def _installed(missing: tuple[str, ...], extra: str | None) -> str:
    if not missing:
        return "yes"
    return f'no: pip install "noa[{extra}]"' if extra else f"no: {', '.join(missing)}"
