"""The public functions of the room. Each imports its frameworks when it is called."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from noa.errors import DependencyMissingError, InvalidInputError
from noa.formats import Runnable, find_adapter
from noa.settings import ConversionSettings
from noa_conversion.converters import Converter, conversion_chain
from noa_conversion.files import staged_folder
from noa_conversion.models import JaxModel, TorchModel, refuse_unbound_axes
from noa_conversion.work_limits import work_limit

if TYPE_CHECKING:
    import numpy as np

    from noa_conversion.equivalence import Allow, EquivalenceReport
    from noa_conversion.model_files import ModelFiles
    from noa_registry import Evidence


def save_native(model: TorchModel | JaxModel, folder: Path) -> str:
    """Write the model's own format (program, weights.safetensors, signature.json) and return its name.

    Raises:
        ConversionError: the model cannot be exported, or does not do what its signature says.
        InvalidInputError: `folder` exists and holds something.
        StorageError: the disk refused; nothing is left behind.
    """
    convert(model, folder, to=model.format, settings=ConversionSettings())  # pyright: ignore[reportCallIssue]  # pydantic fills the defaults
    return model.format


def convert(model: TorchModel | JaxModel, folder: Path, *, to: str = "onnx", settings: ConversionSettings) -> None:
    """Write a live model in the format `to`.

    Raises:
        ConversionError: the model cannot be expressed in that format; names the operation or tensor.
        InvalidInputError: `folder` exists and holds something.
        StorageError: the disk refused; nothing is left behind.
    """
    chain = conversion_chain(f"live:{model.format}", to)
    refuse_unbound_axes(model.signature, where=f"{model.format} model")
    _run_chain(chain, model, folder, settings)


def convert_folder(
    source_format: str,
    source_folder: Path,
    target: str,
    folder: Path,
    *,
    settings: ConversionSettings,
    samples: Mapping[str, np.ndarray] | None = None,
    tell: Callable[[str], None] = lambda _text: None,
) -> None:
    """Write a stored format in the format `target`, without the recipe it came from.

    `samples` are real inputs by name for converters that calibrate; `tell` hears which step begins.

    Raises:
        ConversionError: no converter leads there (a stored JAX program cannot be converted), or one refused.
        InvalidInputError: the source is corrupt, both formats are the same, or `folder` holds something.
    """
    chain = conversion_chain(source_format, target)
    if not chain:
        raise InvalidInputError(f"`{source_folder}` already is of format `{target}`", remedy="Choose another format")
    _run_chain(chain, source_folder, folder, settings, samples=samples, tell=tell)


def load_format(name: str, folder: Path, *, threads: int | None = None) -> Runnable:
    """Load the format `name` from its folder. No code from the folder is run.

    Raises:
        NotFoundError: there is no such format.
        InvalidInputError: the folder does not hold it, or holds something that is not safe to load.
        DependencyMissingError: its framework is not installed.
    """
    return find_adapter(name).load(folder, threads=threads)


def measure_equivalence(
    *,
    source: str,
    source_folder: Path,
    target: str,
    target_folder: Path,
    samples: Mapping[str, np.ndarray],
    settings: ConversionSettings,
    allow: Allow | None = None,
) -> Evidence:
    """Run both formats on real samples at batch 1, an odd batch and up to 256, and compare every output.

    `samples` holds all inputs by name; they share the first free axis. A difference is reported, never raised: the
    evidence says `passed=False` and names the worst output and sample. It carries the digests of both folders. `allow`
    states another tolerance per output, for formats of reduced precision.

    Raises:
        SignatureError: the samples do not fit the source's signature.
        InvalidInputError: a folder does not hold its format.
        ConversionError: the source used up the time or memory of `conversion.max_work_s` and `max_work_bytes`.
    """
    from noa_conversion.equivalence import measure

    with work_limit(settings.max_work_s, settings.max_work_bytes):
        return measure(
            source=source,
            source_folder=source_folder,
            target=target,
            target_folder=target_folder,
            samples=samples,
            settings=settings,
            allow=allow,
        )


def compare_models(
    source: ModelFiles,
    target: ModelFiles,
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    settings: ConversionSettings,
    allow: Allow | None = None,
    rename: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = lambda _text: None,
) -> EquivalenceReport:
    """Compare two models on `inputs`, or on generated ones where none are given. A difference is reported, not raised.

    `sizes` fixes free axes by name, `allow` replaces the tolerance of a dtype, `tell` hears what is being done.
    `rename` gives inputs and outputs of the target the source's names: `{"mul_7": "y"}`.

    Raises:
        SignatureError: the inputs do not fit the source.
        InvalidInputError: a folder does not hold its format, the source cannot compute, inputs cannot be made up, or
            `rename` names what is not there.
        DependencyMissingError: a framework is not installed.
        ConversionError: the source used up the time or memory of `conversion.max_work_s` and `max_work_bytes`.
    """
    from noa_conversion.equivalence import compare_models as compare

    with work_limit(settings.max_work_s, settings.max_work_bytes):
        return compare(
            source,
            target,
            inputs=inputs,
            sizes=sizes,
            seed=seed,
            settings=settings,
            allow=allow,
            rename=rename,
            tell=tell,
        )


def _run_chain(
    chain: tuple[Converter, ...],
    source: object,
    folder: Path,
    settings: ConversionSettings,
    *,
    samples: Mapping[str, np.ndarray] | None = None,
    tell: Callable[[str], None] = lambda _text: None,
) -> None:
    """Run each step into a scratch folder; only the last result takes the final name."""
    for converter in chain:
        if converter.missing:
            raise DependencyMissingError(
                converter.missing[0],
                extra=converter.extra or converter.target,
                purpose=f"converting `{converter.source.removeprefix('live:')}` to `{converter.target}`",
            )
    with staged_folder(folder) as final, tempfile.TemporaryDirectory(prefix="noa-convert-") as scratch:
        for index, converter in enumerate(chain):
            tell(f"{converter.source.removeprefix('live:')} to {converter.target}")
            is_last = index == len(chain) - 1
            target = final if is_last else Path(scratch) / f"{index}-{converter.target}"
            target.mkdir(exist_ok=True)
            if converter.wants_samples:
                converter.run(source, target, settings, samples=samples)
            else:
                converter.run(source, target, settings)
            source = target


def measure_performance(
    format: str,  # our word
    folder: Path,
    samples: Mapping[str, np.ndarray],
    *,
    threads: int | None = None,
    batches: Sequence[int] = (1, 32),
    seconds_per_batch: float = 2.0,
    tails: Sequence[int] = (),
    tail_seconds: float = 10.0,
) -> tuple[Evidence, Evidence]:
    """Return how long a format computes on this machine for batches of rows, and how large it is, as two facts.

    A model without a free axis is called as it is, which counts as one row. Each size is called 1,000 times, or for
    `seconds_per_batch`; those in `tails`, whose 99th percentile is to be judged, go on until the runs are enough to
    bound it, for `tail_seconds` in all.

    Raises:
        InvalidInputError: the folder does not hold this format, or there is no sample.
    """
    from noa_conversion.latency import measure_performance as measure

    return measure(
        format,
        folder,
        samples,
        threads=threads,
        batches=batches,
        seconds_per_batch=seconds_per_batch,
        tails=tails,
        tail_seconds=tail_seconds,
    )
