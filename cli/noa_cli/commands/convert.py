"""`noa convert`: add a format to a registered version, proven to compute the same."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._invocation import actor, current
from noa_cli._options import JsonOption
from noa_cli._registry import open_registry

if TYPE_CHECKING:
    from noa.settings import Settings
    from noa_registry import Evidence, ModelVersion, Registry


def convert(
    reference: Annotated[str, typer.Argument(help="A version: `name@alias` or `name/number`.")],
    to: Annotated[str, typer.Option("--to", help="The format to add.")] = "onnx",
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the format into this new folder and register nothing.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a version, measure the result against the native model, and seal it into the version with the proof."""
    from noa.digests import build_manifest
    from noa.errors import ConflictError, ConversionError
    from noa.formats import find_adapter
    from noa_cli._quiet_stdout import stdout_to_stderr

    settings = current().settings()
    find_adapter(to)  # an unknown format is refused before any work
    with (
        open_registry(settings, about=[reference]) as registry,
        tempfile.TemporaryDirectory(prefix="noa-convert-") as scratch,
    ):
        if output is None:
            registry.signatures.check_ready()
        version = registry.resolve(reference)
        if to in version.formats and output is None:
            raise ConflictError(
                f"`{version.reference}` already has the format `{to}`",
                remedy="Write another copy with `--output FOLDER`",
                digest=version.formats[to].digest,
            )
        if output is not None and output.exists():
            raise ConflictError(f"`{output}` is already there", remedy="Name a new folder; nothing was written")
        folder = Path(scratch) / to
        # A conversion may read the recipe, and exporters may print.
        with console.step(f"Converting {version.reference} from {version.native} to {to}"), stdout_to_stderr():
            _write(registry, version, to, folder, settings)
        with console.step("Measuring it against the native model"), stdout_to_stderr():
            evidence = _measure(registry, version, to, folder, settings)
        if not evidence.passed:
            raise ConversionError(
                f"`{to}` computes something else than `{version.native}`; nothing was registered",
                expected="equal outputs within the tolerance of [conversion] in noa.toml",
                received=", ".join(
                    f"{key}={value}" for key, value in evidence.values.items() if not isinstance(value, dict)
                ),
            )
        digest = build_manifest(folder).digest
        if output is not None:
            shutil.copytree(folder, output)
        else:
            registry.add_format(version.name, version.number, to, folder, evidence=[evidence], actor=actor())
    if as_json:
        console.print_json(
            {"reference": version.reference, "format": to, "digest": digest, "evidence": dict(evidence.values)}
        )
    else:
        place = f"written to {output}" if output is not None else f"sealed into {version.reference}"
        console.print_line(f"{to} ({console.short_digest(digest)}) {place}, equal to {version.native}")


def _write(registry: Registry, version: ModelVersion, to: str, folder: Path, settings: Settings) -> None:
    """Convert from the sealed bytes where a converter starts there, else from the live model of the job's recipe."""
    from noa.errors import ConversionError
    from noa_conversion import conversion_chain, convert_folder

    source = registry.open_format(version, version.native)
    try:
        conversion_chain(version.native, to)
    except ConversionError:
        _write_from_job(version, to, folder, settings)
        return
    convert_folder(version.native, source, to, folder, settings=settings.conversion)


def _write_from_job(version: ModelVersion, to: str, folder: Path, settings: Settings) -> None:
    from noa.errors import NotFoundError
    from noa_conversion import convert as convert_live
    from noa_training import load_result, load_trained

    job = version.tags.get("noa.job_folder")
    if job is None or not Path(job).is_dir():
        raise NotFoundError(
            f"the job of `{version.reference}` is gone; a stored `{version.native}` program cannot be converted",
            where=job,
            remedy="Train it again; `noa train` converts as part of its work",
        )
    convert_live(load_trained(load_result(Path(job))), folder, to=to, settings=settings.conversion)


def _measure(registry: Registry, version: ModelVersion, to: str, folder: Path, settings: Settings) -> Evidence:
    from noa_conversion import measure_equivalence

    return measure_equivalence(
        source=version.native,
        source_folder=registry.open_format(version, version.native),
        target=to,
        target_folder=folder,
        samples=registry.input_example(version),
        settings=settings.conversion,
    )
