"""`noa convert`: a version, a file or a folder in another format, proven to compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._convert_file import convert_file
from noa_cli._convert_version import convert_version
from noa_cli._invocation import current
from noa_cli._model_sources import is_path
from noa_cli._named_values import parse_bindings, parse_sizes
from noa_cli._options import JsonOption

if TYPE_CHECKING:
    from noa.settings import ConversionSettings


def convert(
    source: Annotated[
        str,
        typer.Argument(help="A version `name@alias` or `name/number` (`:format` says from which), a file or a folder."),
    ],
    to: Annotated[str, typer.Option("--to", help="The format to make.")] = "onnx",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the format into this new folder and register nothing.")
    ] = None,
    from_library: Annotated[
        str | None, typer.Option("--from", metavar="LIBRARY", help="Whose file it is: xgboost, lightgbm, keras, ...")
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="Real inputs to compare on: .npz, .npy, .json.", dir_okay=False),
    ] = None,
    bind: Annotated[
        list[str] | None,
        typer.Option("--bind", metavar="NAME=VALUES", help="Fix an input of an ONNX file, e.g. shape=2,3."),
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option("--size", metavar="AXIS=NUMBER", help="Fix a free axis of an ONNX file.")
    ] = None,
    opset: Annotated[
        int | None, typer.Option("--opset", help="ONNX opset of what is written (default: conversion.opset).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a model along the shortest chain of converters, measure the result against the source, and keep it.

    A version gets the format, with the proof. A file or folder is written to `--output`. What computes something else
    is never kept; `noa formats` lists what can be made from what.
    """
    from noa.formats import find_adapter

    find_adapter(to)  # an unknown format is refused before any work
    settings = _settings(opset)
    if is_path(source) or from_library is not None:
        result = convert_file(
            Path(source).expanduser(),
            to,
            output,
            library=from_library,
            inputs=inputs,
            bind=parse_bindings(bind),
            sizes=parse_sizes(size),
            settings=settings,
        )
    else:
        _refuse_for_version(bind, size)
        result = convert_version(source, to, output, inputs=inputs, settings=settings)
    if as_json:
        console.print_json(result.to_dict())
    else:
        console.print_line(result.describe())


def _settings(opset: int | None) -> ConversionSettings:
    from pydantic import ValidationError

    from noa.errors import InvalidInputError
    from noa.settings import ConversionSettings

    settings = current().load().settings.conversion
    if opset is None:
        return settings
    try:
        return ConversionSettings.model_validate({**settings.model_dump(), "opset": opset})
    except ValidationError as exc:
        raise InvalidInputError(
            f"opset {opset} cannot be written: {_why_not(opset)}",
            where="--opset",
            expected="an ONNX opset from {} to {}".format(*_opsets()),
            received=opset,
            remedy=f"Leave `--opset` out for {ConversionSettings().opset}, or choose one of those",
        ) from exc


def _why_not(opset: int) -> str:
    first, last = _opsets()
    if opset < first:
        return f"`Split`, `Pad`, `Resize` and the `Reduce` operators had other forms before opset {first}"
    return f"the exporters know the forms that operators had up to opset {last}"


def _opsets() -> tuple[int, int]:
    from noa.settings import ConversionSettings

    bounds = {type(bound).__name__: bound for bound in ConversionSettings.model_fields["opset"].metadata}
    return bounds["Ge"].ge, bounds["Le"].le


def _refuse_for_version(bind: list[str] | None, size: list[str] | None) -> None:
    from noa.errors import InvalidInputError

    for option, value in (("--bind", bind), ("--size", size)):
        if value:
            raise InvalidInputError(
                f"`{option}` changes what a model takes, which all formats of a version share",
                expected="an .onnx file",
                received=value[0],
                remedy="Convert a file with it, and register that as a model of its own: noa models import",
            )
