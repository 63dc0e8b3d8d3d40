"""Convert a registered version: from the sealed bytes where a converter starts there, else from the live model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from noa_cli import _console as console
from noa_cli._convert_file import names_of
from noa_cli._converted import Converted, check_output, keep_folder
from noa_cli._invocation import actor, current
from noa_cli._model_sources import choose_format, split_format
from noa_cli._named_values import read_given_inputs
from noa_cli._quiet_stdout import stdout_to_stderr
from noa_cli._registry import open_registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from noa.settings import ConversionSettings
    from noa_cli._console import Step
    from noa_conversion import Converter
    from noa_registry import Evidence, ModelVersion, Registry


def convert_version(
    text: str, to: str, output: Path | None, *, inputs: Path | None, settings: ConversionSettings
) -> Converted:
    """Convert a version, measure the result against its native format, and seal it into the version with the proof.

    A format that the version has, and that nothing proves, is not made again but measured as it is.

    Raises:
        NotFoundError: there is no such version or format.
        ConflictError: the version has the format, or the output is there.
        ConversionError: no converter leads there, one refused, or the result computes something else.
    """
    from noa.digests import build_manifest

    reference, start = split_format(text)
    with (
        open_registry(current().settings(), about=[reference]) as registry,
        tempfile.TemporaryDirectory(prefix="noa-convert-") as scratch,
    ):
        if output is None:
            registry.signatures.check_ready()
        version = registry.resolve(reference)
        is_there = _check_free(registry, version, to, output)
        source = None if start is None else choose_format(version, start)
        samples = read_given_inputs(inputs, version.signature) or registry.input_example(version)
        folder = Path(scratch) / to
        chain = _find_chain(version, to, source)
        if is_there:
            return _prove(registry, version, to, samples, settings, chain)
        # A conversion may read the recipe, and exporters may print.
        with console.step(f"Converting {version.reference} to {to}") as tell, stdout_to_stderr():
            _write(registry, version, chain, to, folder, samples, settings, tell)
        with console.step("Measuring it against the native model"), stdout_to_stderr():
            evidence = measure_against_native(registry, version, to, folder, samples, settings, chain)
        _refuse_different(version, to, evidence)
        digest = build_manifest(folder).digest
        if output is not None:
            keep_folder(folder, output)
        else:
            registry.add_format(version.name, version.number, to, folder, evidence=[evidence], actor=actor())
    return Converted(
        source=version.native,
        format=to,
        chain=names_of(chain),
        digest=digest,
        place=f"written to {output}" if output is not None else f"sealed into {version.reference}",
        reference=version.reference,
        evidence=evidence.values,
    )


def measure_against_native(
    registry: Registry,
    version: ModelVersion,
    to: str,
    folder: Path,
    samples: Mapping[str, np.ndarray],
    settings: ConversionSettings,
    chain: tuple[Converter, ...],
) -> Evidence:
    """Return the evidence that a new format computes what the native one does, within what its converter states."""
    from noa_conversion import measure_equivalence

    return measure_equivalence(
        source=version.native,
        source_folder=registry.open_format(version, version.native),
        target=to,
        target_folder=folder,
        samples=samples,
        settings=settings,
        allow=chain[-1].allow if chain else None,
    )


def _prove(
    registry: Registry,
    version: ModelVersion,
    to: str,
    samples: Mapping[str, np.ndarray],
    settings: ConversionSettings,
    chain: tuple[Converter, ...],
) -> Converted:
    """Measure a format that is there already, and attach the proof to the version."""
    folder = registry.open_format(version, to)
    with console.step(f"Measuring {to} against {version.native}"), stdout_to_stderr():
        evidence = measure_against_native(registry, version, to, folder, samples, settings, chain)
    _refuse_different(version, to, evidence)
    registry.attach(version.name, version.number, evidence, actor=actor())
    return Converted(
        source=version.native,
        format=to,
        chain=names_of(chain),
        digest=version.formats[to].digest,
        place=f"was in {version.reference} and is proven now",
        reference=version.reference,
        evidence=evidence.values,
    )


def _check_free(registry: Registry, version: ModelVersion, to: str, output: Path | None) -> bool:
    """Check that the result has a place; returns whether the version has the format and lacks its proof."""
    from noa.errors import ConflictError
    from noa_registry.gates.format_proofs import format_proofs

    if output is not None:
        check_output(output)
    elif to in version.formats:
        evidence = registry.evidence(version.name, version.number)
        proof = format_proofs(version, evidence)[to]
        if proof.problem is not None and not proof.is_refuted:
            return True
        raise ConflictError(
            f"`{version.reference}` already has the format `{to}`",
            remedy="Write another copy with `--output FOLDER`",
            digest=version.formats[to].digest,
        )
    return False


def _find_chain(version: ModelVersion, to: str, source: str | None) -> tuple[Converter, ...]:
    """Return the shortest chain from a format of the version, the native one before others; empty: there is none."""
    from noa.errors import ConversionError
    from noa_conversion import conversion_chain, find_converters

    if source is not None:
        return conversion_chain(source, to)
    reduced = {target for (_, target), converter in find_converters().items() if not converter.is_exact}
    starts = [version.native, *(name for name in version.formats if name != version.native and name not in reduced)]
    chains: list[tuple[Converter, ...]] = []
    for start in starts:
        try:
            chains.append(conversion_chain(start, to))
        except ConversionError:
            continue
    return min((chain for chain in chains if chain), key=len, default=())


def _write(
    registry: Registry,
    version: ModelVersion,
    chain: tuple[Converter, ...],
    to: str,
    folder: Path,
    samples: Mapping[str, np.ndarray],
    settings: ConversionSettings,
    tell: Step,
) -> None:
    from noa_conversion import convert_folder

    if not chain:
        _write_from_job(version, to, folder, settings)
        return
    source = chain[0].source
    convert_folder(
        source, registry.open_format(version, source), to, folder, settings=settings, samples=samples, tell=tell
    )


def _write_from_job(version: ModelVersion, to: str, folder: Path, settings: ConversionSettings) -> None:
    from noa.errors import NotFoundError
    from noa_conversion import conversion_chain
    from noa_conversion import convert as convert_live
    from noa_training import load_result, load_trained

    job = version.tags.get("noa.job_folder")
    conversion_chain(f"live:{version.native}", to)  # says why, if there is no way at all
    if job is None or not Path(job).is_dir():
        raise NotFoundError(
            f"the job of `{version.reference}` is gone; a stored `{version.native}` program cannot be converted",
            where=job,
            remedy="Train it again; `noa train` converts as part of its work",
        )
    convert_live(load_trained(load_result(Path(job))), folder, to=to, settings=settings)


def _refuse_different(version: ModelVersion, to: str, evidence: Evidence) -> None:
    from noa.errors import ConversionError
    from noa_conversion import describe_failure

    if not evidence.passed:
        problem = str(evidence.values.get("problem"))
        is_vacuous = problem.startswith("nothing was compared")
        what = problem if is_vacuous else f"`{to}` computes something else than `{version.native}`"
        raise ConversionError(
            f"{what}; nothing was registered",
            expected="equal outputs within the tolerance of [conversion] in noa.toml",
            received=describe_failure(evidence.values),
        )
