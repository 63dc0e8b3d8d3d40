"""Choosing the format of an endpoint with `format = "auto"`: the fastest one that is proven, and why.

Proven is the format that a version was made in, and each with passed evidence that it computes the same. Times are
those of the version's evidence, if all that could be chosen were measured on one machine, best this one; else they are
measured here. A format is taken over one that is preferred (ONNX, then the native one) only if it is clearly faster,
so that noise decides nothing. What runs code of the model is taken only where nothing else can be.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, cast

from noa.errors import InvalidInputError, NoaError
from noa.formats import KEPT_FORMATS, find_adapter, format_names, remedy_without
from noa_serving._crew import Choice
from noa_serving._memory import require_memory
from noa_serving._runtimes import CODE_FORMATS, Runtimes
from noa_serving._warm_up import resize

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from noa_registry import ModelVersion, Registry
    from noa_registry.gates.format_proofs import FormatProof, Machine

AUTO: Final = "auto"
_CLEARLY_FASTER: Final = 0.95
_RUNS: Final = 200
_MEASURE_S: Final = 0.3
_WARM_RUNS: Final = 3
_SHOWN: Final = 3


def choose_format(registry: Registry, version: ModelVersion, runtimes: Runtimes) -> Choice:
    """Return the format in which a version is to be served, and why.

    Raises:
        InvalidInputError: none can be; the message says what each lacks, and what proves one.
    """
    proofs, names = _eligible(registry, version, runtimes)
    if len(names) == 1:
        return Choice(names[0], _only(version, names[0], len(proofs)))
    has_accelerator = any(map(runtimes.has_accelerator, names))
    machine = None if has_accelerator else _common_machine(names, proofs, runtimes)
    if machine is not None:
        times = {name: cast("float", proofs[name].p50_ms(machine)) for name in names}
        cpu, cores, threads = machine
        return _fastest(times, f"evidence of {cpu}, cores: {cores}, threads: {threads}")
    return _fastest(_measure(registry, version, names, runtimes), "measured here")


def require_choice(registry: Registry, version: ModelVersion, runtimes: Runtimes) -> tuple[str, ...]:
    """Return the formats among which `choose_format` would choose, without measuring any.

    Raises:
        InvalidInputError: as `choose_format`.
    """
    return _eligible(registry, version, runtimes)[1]


def _eligible(
    registry: Registry, version: ModelVersion, runtimes: Runtimes
) -> tuple[dict[str, FormatProof], tuple[str, ...]]:
    """Return what is known of all formats, and the names of those that may be chosen, preferred ones first."""
    from noa_registry.gates.format_proofs import format_proofs

    proofs = format_proofs(version, registry.evidence(version.name, version.number))
    problems = {name: _problem(version, proof, runtimes) for name, proof in proofs.items()}
    names = [name for name, problem in problems.items() if problem is None]
    names = [name for name in names if name not in CODE_FORMATS] or names
    if not names:
        raise _nothing(version, {name: str(problem) for name, problem in problems.items()})
    order = {"onnx": 0, version.native: 1}
    return proofs, tuple(sorted(names, key=lambda name: (order.get(name, 2), name)))


def _problem(version: ModelVersion, proof: FormatProof, runtimes: Runtimes) -> str | None:
    """Return why a format cannot be chosen, None if it can."""
    name = proof.name
    if name in KEPT_FORMATS:
        return "is kept, never loaded"
    if name not in format_names():
        return "is of no installed format"
    if proof.problem is not None:
        return f"is {'refuted' if proof.is_refuted else 'not proven'}: {proof.problem}"
    if name in CODE_FORMATS and version.name not in runtimes.code.allow:
        return f"runs code of the model, and `serving.code.allow` does not name `{version.name}`"
    missing = [one for one in _modules(name) if find_spec(one) is None]
    return f"needs `{missing[0]}`, which is not installed here" if missing else None


def _modules(name: str) -> Sequence[str]:
    return cast("Sequence[str]", getattr(find_adapter(name), "packages", ()))


def _nothing(version: ModelVersion, problems: Mapping[str, str]) -> NoaError:
    unproven = [name for name, problem in problems.items() if problem.startswith("is not proven")]
    code = CODE_FORMATS.intersection(problems)
    if unproven:
        remedy = f"Prove it with: noa convert {version.reference} --to {unproven[0]}"
    elif code:
        remedy = f'If you trust its code: allow = ["{version.name}"] below [serving.code] of noa.toml'
    else:
        remedy = remedy_without("onnx", native=version.native, reference=version.reference)
    return InvalidInputError(
        f"no format of `{version.reference}` can be chosen",
        expected=f"one that is proven to compute what `{version.native}` computes, and can run here",
        received="; ".join(f"`{name}` {problem}" for name, problem in problems.items()),
        remedy=remedy,
    )


def _only(version: ModelVersion, name: str, count: int) -> str:
    if count == 1:
        return "the only format"
    what = "it was made in it" if name == version.native else "proven equivalent"
    return f"the only one of {count} formats that can be chosen ({what})"


def _common_machine(names: Sequence[str], proofs: Mapping[str, FormatProof], runtimes: Runtimes) -> Machine | None:
    """Return a machine on which one row was timed in all these formats: this one, else that of the newest evidence."""
    from noa_conversion.latency import describe_hardware
    from noa_registry.gates.format_proofs import machine_of

    newest_first = list(proofs[names[0]].latency)[::-1]
    common = [one for one in newest_first if all(proofs[name].p50_ms(one) is not None for name in names)]
    here = machine_of(describe_hardware(names[0], runtimes.threads))
    return here if here in common else next(iter(common), None)


def _fastest(times: Mapping[str, float], origin: str) -> Choice:
    """Return the fastest of formats in order of preference; `times` in milliseconds, of one row."""
    best, *others = times
    for name in others:
        if times[name] < _CLEARLY_FASTER * times[best]:
            best = name
    ranked = sorted((name for name in times if name != best), key=times.__getitem__)
    told = [f"`{name}` {times[name]:.3g} ms" for name in (best, *ranked[:_SHOWN])]
    more = f" and {len(ranked) - _SHOWN} more" if len(ranked) > _SHOWN else ""
    how = "the fastest" if times[best] <= min(times.values()) else "preferred, as none is clearly faster,"
    return Choice(best, f"{how} of {len(times)} proven formats: {', '.join(told)}{more} for one row ({origin})")


def _measure(registry: Registry, version: ModelVersion, names: Sequence[str], runtimes: Runtimes) -> dict[str, float]:
    """Time one row in each format here, one format after the other; those that cannot be loaded are left out.

    Raises:
        InvalidInputError: none can be loaded.
    """
    example = resize(version.signature, registry.input_example(version), batch=1)
    times: dict[str, float] = {}
    problems: dict[str, str] = {}
    for name in names:
        try:
            require_memory(version.formats[name].manifest.size_bytes, workers=1, reference=version.reference)
            folder = registry.open_format(version, name)
            times[name] = _time_ms(folder, name, version.name, example, runtimes)
        except Exception as exc:  # noqa: BLE001  # whatever a library raises, the others are tried
            problems[name] = exc.what if isinstance(exc, NoaError) else f"fails to run ({type(exc).__name__})"
    if not times:
        raise _nothing(version, problems)
    return times


def _time_ms(folder: Path, name: str, model: str, example: Mapping[str, np.ndarray], runtimes: Runtimes) -> float:
    """Return the median time of a run, milliseconds."""
    runnable = runtimes.load(folder, model=model, format=name, example=example)
    for _ in range(_WARM_RUNS):  # the first ones allocate and compile
        runnable.run(example)
    times: list[float] = []
    end = time.perf_counter() + _MEASURE_S
    while not times or (len(times) < _RUNS and time.perf_counter() < end):
        start = time.perf_counter()
        runnable.run(example)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000
