"""`noa verify`: do two models compute the same? Any two formats, files or versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._equivalence_report import print_report, refuse_vacuous
from noa_cli._invocation import current
from noa_cli._model_sources import open_models
from noa_cli._named_values import parse_bindings, parse_sizes, read_given_inputs
from noa_cli._options import JsonOption

if TYPE_CHECKING:
    from noa_conversion.equivalence import EquivalenceReport

_SOURCE = "A version `name/number:format` (or `name@alias`), an .onnx file, or a format folder."


def verify(
    source: Annotated[str, typer.Argument(metavar="A", help=_SOURCE)],
    target: Annotated[str, typer.Argument(metavar="B", help="What is compared with it: as A.")],
    inputs: Annotated[
        Path | None, typer.Option("--input", "-i", help="Real inputs, .npz, .npy or .json.", dir_okay=False)
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Make inputs up although a version keeps real ones.")
    ] = False,
    size: Annotated[
        list[str] | None, typer.Option("--size", metavar="AXIS=NUMBER", help="Size of a free axis of made-up inputs.")
    ] = None,
    bind: Annotated[
        list[str] | None,
        typer.Option("--bind", metavar="NAME=VALUES", help="Fix an input of both ONNX files, e.g. shape=2,3."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of made-up inputs.")] = 0,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", help="Write the inputs that differ most into this new .npz.", dir_okay=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run two models on the same inputs and compare every output. Exit code 1 if they differ.

    Inputs are real ones of `--input`, or of the version, or made up: seeded, at batch 1 and an odd one, every free axis
    varied, whole numbers within the tables that they index. Where values differ, the first node that does is named.
    """
    from noa.signatures import Signature
    from noa_cli._quiet_stdout import stdout_to_stderr
    from noa_conversion import compare_models

    sizes, bound = parse_sizes(size), parse_bindings(bind)
    _check_new(keep)
    with open_models([source, target], bind=bound) as (first, second):
        given = read_given_inputs(inputs, Signature.load(first.files.folder))
        if given is None and not generate and not sizes:
            given = first.example or second.example
        with console.step(f"Comparing {source} with {target}") as tell, stdout_to_stderr():
            report = compare_models(
                first.files,
                second.files,
                inputs=given,
                sizes=sizes,
                seed=seed,
                settings=current().load().settings.conversion,
                tell=tell,
            )
    if keep is not None:
        _keep(report, keep)
    refuse_vacuous(report, inputs)
    if as_json:
        console.print_json(report.to_dict())
    else:
        print_report(report)
    if not report.passed:
        raise typer.Exit(1)


def _check_new(path: Path | None) -> None:
    from noa.errors import ConflictError, InvalidInputError

    if path is not None and path.suffix != ".npz":
        raise InvalidInputError("inputs are kept as NumPy arrays", expected="a name ending in .npz", received=path)
    if path is not None and path.exists():
        raise ConflictError(f"`{path}` is already there", remedy="Name a new file; nothing was written")


def _keep(report: EquivalenceReport, path: Path) -> None:
    import io

    import numpy as np

    from noa.atomic_write import write_file
    from noa.text_tensors import is_text

    buffer = io.BytesIO()
    worst = report.worst_inputs
    arrays = {name: one.astype(str) if is_text(one.dtype) else one for name, one in worst.items()}  # never a pickle
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]  # the stub takes arrays for flags
    write_file(path, buffer.getvalue())
    console.note(f"The inputs that differ most are in {path}")
