"""Convert a file or a format folder into a folder: no registry, equivalence measured on given or made-up inputs."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from noa_cli import _console as console
from noa_cli._converted import Converted, check_output, keep_folder
from noa_cli._equivalence_report import problem_of, refuse_vacuous
from noa_cli._named_values import read_given_inputs
from noa_cli._quiet_stdout import stdout_to_stderr

if TYPE_CHECKING:
    import numpy as np

    from noa.settings import ConversionSettings
    from noa_conversion import Converter, ModelFiles
    from noa_conversion.equivalence import EquivalenceReport


def convert_file(
    path: Path,
    to: str,
    output: Path | None,
    *,
    library: str | None,
    inputs: Path | None,
    bind: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    settings: ConversionSettings,
) -> Converted:
    """Convert, compare and write.

    Raises:
        InvalidInputError: no output is named, or the source is not what it should be.
        ConversionError: no converter leads there, one refused, or the result computes something else.
    """
    from noa.digests import build_manifest
    from noa.errors import InvalidInputError

    if output is None:
        raise InvalidInputError(
            "a file's conversion is written into a folder, and none is named",
            expected="--output FOLDER",
            remedy=f"Add `--output {shlex.quote(f'{path.stem}-{to}')}`; to keep it as a version, import the file: "
            "noa models import",
        )
    check_output(output)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="noa-convert-")))
        if library is not None:
            _refuse_target(library, to)
        source, proof = _open(stack, path, scratch, library, bind, sizes, settings)
        for note in source.notes:
            console.note(f"{source.label}: {note}")
        folder = scratch / to
        chain, report = _convert(source, to, folder, inputs, settings, is_new=library is not None)
        if report is not None and not report.passed:
            refuse_vacuous(report, inputs)
            raise _different(source, to, report)
        evidence = proof if report is None else {**report.to_dict(), **({"library": proof} if proof else {})}
        digest = build_manifest(folder).digest
        keep_folder(folder, output)
    return Converted(
        source=str(path),
        format=to,
        chain=((library,) if library else ()) + chain,
        digest=digest,
        place=f"written to {output}",
        reference=None,
        evidence=evidence,
    )


def _refuse_target(library: str, to: str) -> None:
    """Refuse what cannot be made of any file of a library before it is read."""
    from noa_conversion import conversion_chain
    from noa_conversion.from_others import refuse_targets

    refuse_targets(library, [converter.target for converter in conversion_chain("onnx", to)])


def _open(
    stack: ExitStack,
    path: Path,
    scratch: Path,
    library: str | None,
    bind: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    settings: ConversionSettings,
) -> tuple[ModelFiles, dict[str, object]]:
    """Return the source as a format; a file of another library becomes `onnx` first, compared with the library."""
    from noa_conversion import ModelFiles, open_model

    if library is None:
        return stack.enter_context(open_model(path, bind=bind, sizes=sizes)), {}
    from noa.errors import InvalidInputError
    from noa_conversion.from_others import convert_library_file

    if bind or sizes:
        raise InvalidInputError("`--bind` and `--size` are for ONNX files", received=f"--from {library}")
    folder = scratch / "from"
    with console.step(f"Reading {path.name} with {library}"), stdout_to_stderr():
        proof = convert_library_file(library, path, folder, settings=settings)
    return ModelFiles(format="onnx", folder=folder, label=str(path)), proof


def _convert(
    source: ModelFiles, to: str, folder: Path, inputs: Path | None, settings: ConversionSettings, *, is_new: bool
) -> tuple[tuple[str, ...], EquivalenceReport | None]:
    """Return the formats on the way and the comparison; None where the source, just made, is the target already."""
    from noa.errors import InvalidInputError
    from noa.signatures import Signature
    from noa_conversion import compare_models, conversion_chain, convert_folder
    from noa_conversion.files import copy_folder

    chain = conversion_chain(source.format, to)
    if not chain:
        if not is_new:
            raise InvalidInputError(
                f"`{source.label}` already is of the format `{to}`", remedy="Choose another format: noa formats"
            )
        copy_folder(source.folder, folder)
        return (to,), None
    given = read_given_inputs(inputs, Signature.load(source.folder))
    with console.step(f"Converting {source.label} to {to}") as tell, stdout_to_stderr():
        convert_folder(source.format, source.folder, to, folder, settings=settings, samples=given, tell=tell)
    with console.step(f"Comparing it with {source.label}") as tell, stdout_to_stderr():
        report = compare_models(
            source,
            _target(to, folder),
            inputs=given,
            settings=settings,
            allow=chain[-1].allow,
            tell=tell,
        )
    return names_of(chain), report


def names_of(chain: tuple[Converter, ...]) -> tuple[str, ...]:
    """Return the formats along a chain."""
    return (chain[0].source.removeprefix("live:"), *(converter.target for converter in chain)) if chain else ()


def _target(to: str, folder: Path) -> ModelFiles:
    from noa_conversion import ModelFiles

    return ModelFiles(format=to, folder=folder, label=to)


def _different(source: ModelFiles, to: str, report: EquivalenceReport) -> Exception:
    from noa.errors import ConversionError

    first = report.first_difference
    return ConversionError(
        f"`{to}` computes something else than `{source.label}`; nothing was written",
        expected="equal outputs within the tolerance of [conversion] in noa.toml",
        received=problem_of(report) + ("" if first is None else f"; {first}"),
        remedy=None if first is None or first.node is None else f"Report the operator `{first.kind}`",
        report=report,
    )
