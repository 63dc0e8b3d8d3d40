"""Equivalence: do two formats of a model compute the same function on real samples?

Both are loaded from their folders and run at batch 1, an odd batch and all samples up to 256. Every output is compared
element by element; the tolerance depends on its dtype:

- integers and booleans are exact: they are counts, indices and decisions.
- float32 uses the settings: the same sums in another order differ by a few units in the last place per term.
- float16 has 10 bits of mantissa (2**-10 = 1e-3), so that sums of a layer agree to about 1e-2.
- float64 keeps 52 bits; what differs by more than 1e-8 was computed in fewer somewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from noa.digests import build_manifest
from noa.errors import InvalidInputError, NoaError
from noa.formats import Runnable, find_adapter
from noa.settings import ConversionSettings
from noa.signatures import Signature, TensorSpec

if TYPE_CHECKING:
    from noa_registry import Evidence

_ODD_BATCH = 7
_LARGEST_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Largest allowed difference: `absolute + relative * |native|`, and why."""

    absolute: float
    relative: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDifference:
    """How one output differs in one run. Errors are over elements that are finite on both sides."""

    output: str
    batch: int
    passed: bool
    problem: str | None
    max_abs_error: float
    mean_abs_error: float
    max_relative_error: float
    excess: float
    """Largest error divided by what is allowed for that element; above 1 it fails."""
    worst_sample: int | None
    argmax_agreement: float | None
    tolerance: Tolerance

    def to_dict(self) -> dict[str, object]:
        """Return JSON values; what is not finite becomes text."""
        return {
            "output": self.output,
            "batch": self.batch,
            "passed": self.passed,
            "problem": self.problem,
            "max_abs_error": _finite(self.max_abs_error),
            "mean_abs_error": _finite(self.mean_abs_error),
            "max_relative_error": _finite(self.max_relative_error),
            "worst_sample": self.worst_sample,
            "argmax_agreement": self.argmax_agreement,
            "absolute_tolerance": self.tolerance.absolute,
            "relative_tolerance": self.tolerance.relative,
            "tolerance_reason": self.tolerance.reason,
        }


def measure(
    *,
    source: str,
    source_folder: Path,
    target: str,
    target_folder: Path,
    samples: Mapping[str, np.ndarray],
    settings: ConversionSettings,
) -> Evidence:
    """See `noa_conversion.measure_equivalence`."""
    from noa_registry import equivalence_evidence

    digests = [build_manifest(folder).digest for folder in (source_folder, target_folder)]
    native = find_adapter(source).load(source_folder)
    other = find_adapter(target).load(target_folder)
    count = native.signature.validate(samples)
    if count < 1:
        raise InvalidInputError("equivalence needs at least one sample", received="none")
    problem = _signature_problem(native.signature, other.signature)
    differences: list[OutputDifference] = []
    batches = _batch_sizes(native.signature, count)
    for batch in batches if problem is None else ():
        found, problem = _compare_at(native, other, samples, batch=batch, count=count, settings=settings)
        differences += found
        if problem is not None:
            break
    if [build_manifest(folder).digest for folder in (source_folder, target_folder)] != digests:
        problem = "a folder changed while it was measured"
    passed = problem is None and bool(differences) and all(difference.passed for difference in differences)
    return equivalence_evidence(
        source=source,
        source_digest=digests[0],
        target=target,
        target_digest=digests[1],
        passed=passed,
        values=_summarise(differences, problem=problem, batches=batches, count=count),
    )


def compare_output(
    spec: TensorSpec, native: np.ndarray, other: np.ndarray, *, batch: int, settings: ConversionSettings
) -> OutputDifference:
    """Compare one output of both formats; never raises for a difference."""
    tolerance = tolerance_for(spec.dtype, settings)
    problem = _form_problem(spec, native, other)
    if problem is not None:
        nan = float("nan")
        return OutputDifference(
            output=spec.name,
            batch=batch,
            passed=False,
            problem=problem,
            max_abs_error=nan,
            mean_abs_error=nan,
            max_relative_error=nan,
            excess=float("inf"),
            worst_sample=None,
            argmax_agreement=None,
            tolerance=tolerance,
        )
    return _compare_values(spec, native, other, batch=batch, tolerance=tolerance)


def tolerance_for(dtype: str, settings: ConversionSettings) -> Tolerance:
    """Return the tolerance of a dtype, and why it is that."""
    if dtype == "float32":
        reason = "float32: sums in another order; limits from the settings"
        return Tolerance(absolute=settings.absolute_tolerance, relative=settings.relative_tolerance, reason=reason)
    if dtype == "float16":
        reason = "float16: 10 bits of mantissa"
        absolute = max(settings.absolute_tolerance, 1e-2)
        return Tolerance(absolute=absolute, relative=max(settings.relative_tolerance, 1e-2), reason=reason)
    if dtype == "float64":
        reason = "float64: 52 bits of mantissa"
        absolute = min(settings.absolute_tolerance, 1e-8)
        return Tolerance(absolute=absolute, relative=min(settings.relative_tolerance, 1e-8), reason=reason)
    return Tolerance(absolute=0.0, relative=0.0, reason=f"{dtype}: exact")


def _compare_at(
    native: Runnable,
    other: Runnable,
    samples: Mapping[str, np.ndarray],
    *,
    batch: int,
    count: int,
    settings: ConversionSettings,
) -> tuple[list[OutputDifference], str | None]:
    taken = take_batch(native.signature, samples, batch=batch, count=count)
    expected = native.run(taken)
    try:
        received = other.run(taken)
    except NoaError as exc:
        return [], f"the target could not compute a batch of {batch}: {exc}"
    return [
        compare_output(spec, expected[spec.name], received[spec.name], batch=batch, settings=settings)
        for spec in native.signature.outputs
    ], None


def _compare_values(
    spec: TensorSpec, native: np.ndarray, other: np.ndarray, *, batch: int, tolerance: Tolerance
) -> OutputDifference:
    is_float = np.issubdtype(native.dtype, np.floating)
    left, right = (array.astype(np.float64) for array in (native, other)) if is_float else (native, other)
    same_kind = _same_kind(left, right) if is_float else np.ones(native.shape, bool)
    error = _absolute_error(left, right, is_float)
    magnitude = np.where(np.isfinite(left), np.abs(left), 0.0) if is_float else np.abs(left.astype(np.float64))
    allowed = tolerance.absolute + tolerance.relative * magnitude
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(error > 0, error / allowed, 0.0)
        relative = np.where(error > 0, error / magnitude, 0.0)
    excess = np.where(same_kind, excess, np.inf)
    worst = int(np.argmax(excess)) if excess.size else None
    passed = bool(same_kind.all()) and bool((error <= allowed).all())
    problem = None if same_kind.all() else "NaN or infinite values are not in the same places"
    return OutputDifference(
        output=spec.name,
        batch=batch,
        passed=passed,
        problem=problem or (None if passed else "values differ by more than the tolerance"),
        max_abs_error=float(error.max(initial=0.0)),
        mean_abs_error=float(error.mean()) if error.size else 0.0,
        max_relative_error=float(relative.max(initial=0.0)),
        excess=float(excess.max(initial=0.0)),
        worst_sample=_sample_of(spec, native.shape, worst),
        argmax_agreement=_argmax_agreement(left, right) if is_float and native.ndim == 2 else None,
        tolerance=tolerance,
    )


def _absolute_error(left: np.ndarray, right: np.ndarray, is_float: bool) -> np.ndarray:
    if not is_float:
        return np.where(left == right, 0.0, np.maximum(np.abs(left.astype(np.float64) - right.astype(np.float64)), 1.0))
    with np.errstate(invalid="ignore"):
        error = np.abs(left - right)
    return np.where(np.isfinite(left) & np.isfinite(right), error, 0.0)


def _same_kind(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Tell for each element whether both are finite, both NaN, or both the same infinity."""
    both_finite = np.isfinite(left) & np.isfinite(right)
    both_nan = np.isnan(left) & np.isnan(right)
    return both_finite | both_nan | (np.isinf(left) & (left == right))


def _argmax_agreement(left: np.ndarray, right: np.ndarray) -> float | None:
    if left.shape[0] == 0 or left.shape[1] < 2:  # with one column everything agrees, which proves nothing
        return None
    return float(np.mean(left.argmax(axis=1) == right.argmax(axis=1)))


def _form_problem(spec: TensorSpec, native: np.ndarray, other: np.ndarray) -> str | None:
    if native.dtype != other.dtype or native.dtype.name != spec.dtype:
        return f"dtypes differ: expected {spec.dtype}, native {native.dtype.name}, target {other.dtype.name}"
    if native.shape != other.shape:
        return f"shapes differ: native {native.shape}, target {other.shape}"
    return None


def _signature_problem(native: Signature, other: Signature) -> str | None:
    if native == other:
        return None
    pairs = zip((*native.inputs, *native.outputs), (*other.inputs, *other.outputs), strict=False)
    for left, right in pairs:
        if left != right:
            return (
                f"signatures differ: native `{left.name}` {left.describe()}, target `{right.name}` {right.describe()}"
            )
    return "signatures differ in their number of tensors"


def batch_axis(signature: Signature) -> str | None:
    """Return the name of the first free axis of the inputs, None if all sizes are fixed."""
    axes = [axis for spec in signature.inputs for axis in spec.shape if isinstance(axis, str)]
    return axes[0] if axes else None


def _batch_sizes(signature: Signature, count: int) -> tuple[int, ...]:
    if batch_axis(signature) is None:
        return (1,)
    return tuple(sorted({1, _ODD_BATCH, min(max(count, 1), _LARGEST_BATCH)}))


def take_batch(
    signature: Signature, samples: Mapping[str, np.ndarray], *, batch: int, count: int
) -> dict[str, np.ndarray]:
    """Take the first `batch` samples, starting again at the first where there are fewer."""
    axis_name = batch_axis(signature)
    index = np.arange(batch) % count
    taken: dict[str, np.ndarray] = {}
    for spec in signature.inputs:
        array = samples[spec.name]
        for axis, size in enumerate(spec.shape):
            if size == axis_name and axis_name is not None:
                array = np.take(array, index, axis=axis)
        taken[spec.name] = np.ascontiguousarray(array).reshape(array.shape)
    return taken


def _sample_of(spec: TensorSpec, shape: tuple[int, ...], flat_index: int | None) -> int | None:
    """Return the index along the output's first free axis, or None where it has none."""
    free = [axis for axis, size in enumerate(spec.shape) if isinstance(size, str)]
    if flat_index is None or not free:
        return None
    return int(np.unravel_index(flat_index, shape)[free[0]])


def _summarise(
    differences: list[OutputDifference], *, problem: str | None, batches: tuple[int, ...], count: int
) -> dict[str, object]:
    worst = max(differences, key=lambda difference: difference.excess, default=None)
    agreements = [d.argmax_agreement for d in differences if d.argmax_agreement is not None]
    failed = next((difference for difference in differences if not difference.passed), None)
    return {
        "batches": list(batches),
        "samples": count,
        "problem": problem or (f"output `{failed.output}`: {failed.problem}" if failed else None),
        "max_abs_error": _finite(max((d.max_abs_error for d in differences), default=0.0)),
        "mean_abs_error": _finite(max((d.mean_abs_error for d in differences), default=0.0)),
        "argmax_agreement": min(agreements, default=None),
        "worst_output": worst.output if worst else None,
        "worst_sample": worst.worst_sample if worst else None,
        "outputs": [difference.to_dict() for difference in differences],
    }


def _finite(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)
