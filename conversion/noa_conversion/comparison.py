"""How one output of two models is compared, and what difference is allowed by its dtype.

- integers, booleans and texts are exact: they are counts, indices, decisions and names.
- float32 uses the settings: the same sums in another order differ by a few units in the last place per term.
- float16 has 10 bits of mantissa (2**-10 = 1e-3), so that sums of a layer agree to about 1e-2.
- bfloat16 has 7 bits of mantissa (2**-7 = 8e-3), so that sums of a layer agree to about 8e-2.
- float64 keeps 52 bits; what differs by more than 1e-8 was computed in fewer somewhere.

The absolute part is for what sums leave where their terms cancel. Such a remainder is a share of the largest values
of its tensor, not a number of its own: Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed. 2002,
section 3.5, bounds the error of a matrix product by `n u |A||B|`, not by `|AB|`. So where the largest finite value
that an output has in all runs (`largest_finite`) is below 1, the absolute part is multiplied by it; above 1 it stays
what it is. Without that, probabilities of 50,000 classes are equal to any others: all are below 1e-4. All runs, as
one row may cancel as a whole. What is smaller than 2**-126 may be zero: XLA and others flush such numbers.

A row of scores says, more than anything else, which is the largest: where another one is, and the native values of both
are further apart than what is allowed, the output differs, though each element is within its own tolerance.

float64 that comes from a model with less precise weights or inputs was brought to it at the end (`.double()`), and is
compared as float32 (`stored_precision.py`). It is never compared more loosely: weights that are only kept in float16 or
bfloat16 are computed with in float32, and both sides hold the same.

A format of reduced precision states a tolerance of its own instead (`optimise/precision_tolerance.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

import numpy as np

from noa.settings import ConversionSettings
from noa.signatures import TensorSpec, dtype_name, fits_shape
from noa.signatures import is_float as is_float_name
from noa.text_tensors import is_text

_RANKS_OF_SCORES: Final = (2, 3)
_FLUSHED: Final = 2.0**-126
"""The smallest normal float32: below it a framework may give zero."""
MANTISSA_BITS: Final[Mapping[str, int]] = MappingProxyType({"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Largest allowed difference, `absolute + relative * |native| + of_largest * max |native|`, and why.

    `absolute` is for outputs whose largest value is 1 or more; see `scaled_to`.

    `disagreement` is the share of the elements that may differ at all, for outputs of whole numbers; one may always
    where it is not zero.
    """

    absolute: float
    relative: float
    reason: str
    of_largest: float = 0.0
    disagreement: float = 0.0


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
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    """Sizes of the free axes in this run."""
    native_not_finite: int = 0
    """How many elements of the native output are NaN or infinite."""
    other_not_finite: int = 0
    compared: int = 0
    """How many elements are numbers on both sides: what is left proves nothing."""

    def to_dict(self) -> dict[str, object]:
        """Return JSON values; what is not finite becomes text."""
        return {
            "output": self.output,
            "batch": self.batch,
            "sizes": dict(self.sizes),
            "passed": self.passed,
            "problem": self.problem,
            "max_abs_error": finite_or_text(self.max_abs_error),
            "mean_abs_error": finite_or_text(self.mean_abs_error),
            "max_relative_error": finite_or_text(self.max_relative_error),
            "worst_sample": self.worst_sample,
            "argmax_agreement": self.argmax_agreement,
            "native_not_finite": self.native_not_finite,
            "other_not_finite": self.other_not_finite,
            "compared": self.compared,
            "absolute_tolerance": self.tolerance.absolute,
            "relative_tolerance": self.tolerance.relative,
            "tolerance_of_largest": self.tolerance.of_largest,
            "tolerance_reason": self.tolerance.reason,
        }


def tolerance_for(dtype: str, settings: ConversionSettings, *, computed_from: str | None = None) -> Tolerance:
    """Return the tolerance of a dtype, and why it is that; `computed_from`: the least precise floats of the model."""
    if dtype == "float64" and computed_from not in (None, "float64"):
        coarser = tolerance_for("float32", settings)
        return replace(coarser, reason=f"float64 computed from {coarser.reason}")
    if dtype == "float32":
        reason = "float32: sums in another order; limits from the settings"
        return Tolerance(absolute=settings.absolute_tolerance, relative=settings.relative_tolerance, reason=reason)
    if dtype == "float16":
        reason = "float16: 10 bits of mantissa"
        absolute = max(settings.absolute_tolerance, 1e-2)
        return Tolerance(absolute=absolute, relative=max(settings.relative_tolerance, 1e-2), reason=reason)
    if dtype == "bfloat16":
        reason = "bfloat16: 7 bits of mantissa"
        absolute = max(settings.absolute_tolerance, 8e-2)
        return Tolerance(absolute=absolute, relative=max(settings.relative_tolerance, 8e-2), reason=reason)
    if dtype == "float64":
        reason = "float64: 52 bits of mantissa"
        absolute = min(settings.absolute_tolerance, 1e-8)
        return Tolerance(absolute=absolute, relative=min(settings.relative_tolerance, 1e-8), reason=reason)
    return Tolerance(absolute=0.0, relative=0.0, reason=f"{dtype}: exact")


def largest_finite(*arrays: np.ndarray) -> float:
    """Return the largest magnitude of all numbers in `arrays`, 0 where there is none; texts have none."""
    found = 0.0
    for array in arrays:
        if not is_text(array.dtype) and array.size:
            magnitude = np.abs(array.astype(np.float64))
            found = max(found, float(magnitude.max(initial=0.0, where=np.isfinite(magnitude))))
    return found


def scaled_to(tolerance: Tolerance, largest: float) -> Tolerance:
    """Return the tolerance of an output whose largest value in all runs is `largest`."""
    if largest >= 1.0 or tolerance.absolute <= _FLUSHED:
        return tolerance
    reason = f"{tolerance.reason}; the absolute part times the largest value, which is below 1"
    return replace(tolerance, absolute=max(tolerance.absolute * largest, _FLUSHED), reason=reason)


def compare_output(
    spec: TensorSpec,
    native: np.ndarray,
    other: np.ndarray,
    *,
    batch: int,
    settings: ConversionSettings,
    sizes: Mapping[str, int] | None = None,
    tolerance: Tolerance | None = None,
    computed_from: str | None = None,
    largest: float | None = None,
) -> OutputDifference:
    """Compare one output of both formats; never raises for a difference. `tolerance` replaces the dtype's own.

    `computed_from` is the least precise dtype of floats in the model, where it is known. `largest` is the
    `largest_finite` of the native output over all runs; without it, that of this run.

    With `sizes` of the inputs' free axes the output must also have the shape that its `spec` promises.
    """
    allowed = tolerance or tolerance_for(spec.dtype, settings, computed_from=computed_from)
    if is_float_name(spec.dtype):
        allowed = scaled_to(allowed, largest_finite(native) if largest is None else largest)
    problem = _form_problem(spec, native, other, sizes or {})
    if problem is not None:
        nan = float("nan")
        return OutputDifference(
            output=spec.name,
            batch=batch,
            sizes=sizes or {},
            passed=False,
            problem=problem,
            max_abs_error=nan,
            mean_abs_error=nan,
            max_relative_error=nan,
            excess=float("inf"),
            worst_sample=None,
            argmax_agreement=None,
            tolerance=allowed,
        )
    return _compare_values(spec, native, other, batch=batch, sizes=sizes or {}, tolerance=allowed)


def find_vacuous(specs: Sequence[TensorSpec], differences: Sequence[OutputDifference]) -> str | None:
    """Return that an output had no number to compare in any run, or None.

    An output that is empty by its signature has none ever; it is passed over where another one has.
    """
    if differences and not any(difference.compared for difference in differences):
        return _nothing_in(specs[0], differences)
    for spec in specs:
        runs = [difference for difference in differences if difference.output == spec.name]
        if 0 in spec.shape or not runs or any(run.compared for run in runs):
            continue
        return _nothing_in(spec, runs)
    return None


def _nothing_in(spec: TensorSpec, runs: Sequence[OutputDifference]) -> str:
    is_filled = any(run.native_not_finite for run in runs if run.output == spec.name)
    return f"nothing was compared: output `{spec.name}` {'holds no number' if is_filled else 'is empty'} in every run"


def finite_or_text(value: float) -> float | str:
    """Return a number that JSON can hold: NaN and infinities as text."""
    return value if np.isfinite(value) else str(value)


def _compare_values(
    spec: TensorSpec,
    native: np.ndarray,
    other: np.ndarray,
    *,
    batch: int,
    sizes: Mapping[str, int],
    tolerance: Tolerance,
) -> OutputDifference:
    is_float = is_float_name(native.dtype.name)
    if is_text(native.dtype):  # equal is 0, anything else is 1
        native, other = np.zeros(native.shape, np.int64), (native != other).astype(np.int64)
    left, right = (array.astype(np.float64) for array in (native, other)) if is_float else (native, other)
    same_kind = _same_kind(left, right) if is_float else np.ones(native.shape, bool)
    error = _absolute_error(left, right, is_float)
    magnitude = np.where(np.isfinite(left), np.abs(left), 0.0) if is_float else np.abs(left.astype(np.float64))
    largest = float(magnitude.max(initial=0.0)) if is_float else 0.0
    allowed = tolerance.absolute + tolerance.relative * magnitude + tolerance.of_largest * largest
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(error > 0, error / allowed, 0.0)
        relative = np.where(error > 0, error / magnitude, 0.0)
    excess = np.where(same_kind, excess, np.inf)
    scores = is_float and native.ndim in _RANKS_OF_SCORES
    moved = _mark_moved(left, right, allowed, excess) if scores else 0
    worst = int(np.argmax(excess)) if excess.size else None
    within = bool((error <= allowed).all())
    if not is_float and not within and error.size:
        within = int((error > allowed).sum()) <= math.ceil(tolerance.disagreement * error.size)
    problem = None if same_kind.all() else "NaN or infinite values are not in the same places"
    if problem is None and not within:
        problem = "values differ by more than the tolerance"
    if problem is None and moved:
        rows = left.size // left.shape[-1]
        problem = f"in {moved} of {rows} rows another score is the largest, further apart than the tolerance"
    return OutputDifference(
        output=spec.name,
        batch=batch,
        sizes=sizes,
        passed=problem is None,
        problem=problem,
        max_abs_error=float(error.max(initial=0.0)),
        mean_abs_error=float(error.mean()) if error.size else 0.0,
        max_relative_error=float(relative.max(initial=0.0)),
        excess=float(excess.max(initial=0.0)),
        worst_sample=_sample_of(spec, native.shape, worst),
        argmax_agreement=_argmax_agreement(left, right) if scores else None,
        tolerance=tolerance,
        native_not_finite=_count_not_finite(left) if is_float else 0,
        other_not_finite=_count_not_finite(right) if is_float else 0,
        compared=int((np.isfinite(left) & np.isfinite(right)).sum()) if is_float else native.size,
    )


def _absolute_error(left: np.ndarray, right: np.ndarray, is_float: bool) -> np.ndarray:
    if not is_float:
        return np.where(left == right, 0.0, np.maximum(np.abs(left.astype(np.float64) - right.astype(np.float64)), 1.0))
    with np.errstate(invalid="ignore"):
        error = np.abs(left - right)
    return np.where(np.isfinite(left) & np.isfinite(right), error, 0.0)


def _count_not_finite(values: np.ndarray) -> int:
    return int(values.size - np.isfinite(values).sum())


def _same_kind(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Tell for each element whether both are finite, both NaN, or both the same infinity."""
    both_finite = np.isfinite(left) & np.isfinite(right)
    both_nan = np.isnan(left) & np.isnan(right)
    return both_finite | both_nan | (np.isinf(left) & (left == right))


def _argmax_agreement(left: np.ndarray, right: np.ndarray) -> float | None:
    """Return for which share of the rows both have their largest score in the same place of the last axis."""
    if left.size == 0 or left.shape[-1] < 2:
        return None
    return float(np.mean(left.argmax(axis=-1) == right.argmax(axis=-1)))


def _mark_moved(left: np.ndarray, right: np.ndarray, allowed: np.ndarray, excess: np.ndarray) -> int:
    """Count the rows whose largest score is elsewhere in `right` and in `left` is clearly larger than that one.

    Their largest score is marked in `excess`. Rows that hold what is not finite have no such score.
    """
    if left.size == 0 or left.shape[-1] < 2:
        return 0
    rows, others, limits = (array.reshape(-1, left.shape[-1]) for array in (left, right, allowed))
    every = np.arange(len(rows))
    best, other = rows.argmax(axis=-1), others.argmax(axis=-1)
    finite = np.isfinite(rows).all(axis=-1) & np.isfinite(others).all(axis=-1)
    apart = np.where(finite, rows[every, best] - rows[every, other], 0.0)
    limit = np.maximum(limits[every, best], limits[every, other])
    moved = apart > limit
    places = every[moved] * left.shape[-1] + best[moved]
    flat = excess.reshape(-1)
    flat[places] = np.maximum(flat[places], apart[moved] / limit[moved])
    return int(moved.sum())


def _form_problem(spec: TensorSpec, native: np.ndarray, other: np.ndarray, sizes: Mapping[str, int]) -> str | None:
    names = dtype_name(native.dtype), dtype_name(other.dtype)
    if names != (spec.dtype, spec.dtype):
        return f"dtypes differ: expected {spec.dtype}, native {names[0]}, target {names[1]}"
    if native.shape != other.shape:
        return f"shapes differ: native {native.shape}, target {other.shape}"
    if not fits_shape(spec, native.shape, dict(sizes)):
        return f"both computed {native.shape}, and the signature says {spec.describe()}"
    return None


def _sample_of(spec: TensorSpec, shape: tuple[int, ...], flat_index: int | None) -> int | None:
    """Return the index along the output's first free axis, or None where it has none."""
    free = [axis for axis, size in enumerate(spec.shape) if isinstance(size, str)]
    if flat_index is None or not free:
        return None
    return int(np.unravel_index(flat_index, shape)[free[0]])
