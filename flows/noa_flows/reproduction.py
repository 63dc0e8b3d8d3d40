"""How near a second training came to the first: weights, outputs and metrics, compared number by number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

from noa.errors import InvalidInputError
from noa_registry.evidence import plain_json

if TYPE_CHECKING:
    import numpy as np

WEIGHTS_FILE: Final = "weights.safetensors"
Verdict: TypeAlias = Literal["equal", "within tolerance", "different"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far apart two trainings may be and still count as the same, as absolute differences.

    The defaults leave room for another order of the same sums (another number of threads, another processor), and not
    for another learning rate.
    """

    weights: float = 1e-3
    outputs: float = 1e-2
    metrics: float = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayDifference:
    """Largest and mean absolute difference over all numbers; infinite where the shapes differ or a number is none."""

    largest: float
    mean: float
    count: int
    worst: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageDifference:
    """A package (or `python`, `platform`) whose version is another; None: it was or is not installed."""

    name: str
    recorded: str | None
    present: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """What came of training a version again. `source` says from which files; `notes` what differs before training."""

    reference: str
    verdict: Verdict
    source: str
    recorded_digest: str
    received_digest: str
    weights: ArrayDifference
    outputs: ArrayDifference
    metrics: Mapping[str, tuple[float | None, float]]
    tolerance: Tolerance
    environment: tuple[PackageDifference, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    linked: tuple[str, ...] = field(default=())
    left_out: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values, also those of the evidence; an infinite difference is the text `inf`."""
        values: dict[str, object] = {
            "reference": self.reference,
            "verdict": self.verdict,
            "source": self.source,
            "recorded_digest": self.recorded_digest,
            "received_digest": self.received_digest,
            "weights": asdict(self.weights),
            "outputs": asdict(self.outputs),
            "metrics": {
                name: {"recorded": recorded, "received": received}
                for name, (recorded, received) in self.metrics.items()
            },
            "tolerance": asdict(self.tolerance),
            "environment": [asdict(entry) for entry in self.environment],
            "notes": list(self.notes),
            "linked": list(self.linked),
            "left_out": list(self.left_out),
            "seconds": self.seconds,
        }
        return cast("dict[str, object]", plain_json(values))


def compare_weights(recorded: Path, received: Path) -> tuple[bool, ArrayDifference]:
    """Compare the weights of two native formats: whether they are the same bytes, and how far apart they are.

    Raises:
        InvalidInputError: a format keeps no weights where noa's formats do.
    """
    first, second = _load(recorded), _load(received)
    is_same = first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and first[name].tobytes() == second[name].tobytes() for name in first
    )
    return is_same and _shapes(first) == _shapes(second), difference(first, second)


def difference(recorded: Mapping[str, np.ndarray], received: Mapping[str, np.ndarray]) -> ArrayDifference:
    """Return how far two sets of named arrays are apart."""
    import numpy as np

    largest, total, count, worst = 0.0, 0.0, 0, ""
    for name in sorted(recorded.keys() | received.keys()):
        first, second = recorded.get(name), received.get(name)
        if first is None or second is None or first.shape != second.shape:
            return ArrayDifference(largest=float("inf"), mean=float("inf"), count=0, worst=name)
        if not first.size:
            continue
        gaps = np.abs(first.astype(np.float64) - second.astype(np.float64))
        gap = float(gaps.max()) if np.isfinite(gaps).all() else float("inf")
        if gap > largest or not worst:
            largest, worst = max(gap, largest), name
        total, count = total + float(gaps.sum()), count + first.size
    return ArrayDifference(largest=largest, mean=total / count if count else 0.0, count=count, worst=worst)


def judge(
    *,
    is_same: bool,
    weights: ArrayDifference,
    outputs: ArrayDifference,
    metrics: Mapping[str, tuple[float | None, float]],
    tolerance: Tolerance,
) -> Verdict:
    """Return the verdict: same bytes of the weights, or all differences within the tolerance, or not."""
    if is_same:
        return "equal"
    gaps = [abs(recorded - received) for recorded, received in metrics.values() if recorded is not None]
    is_near = weights.largest <= tolerance.weights and outputs.largest <= tolerance.outputs
    return "within tolerance" if is_near and all(gap <= tolerance.metrics for gap in gaps) else "different"


def compare_environments(recorded: Mapping[str, str], present: Mapping[str, str]) -> tuple[PackageDifference, ...]:
    """Return what is installed in another version than it was, by name."""
    return tuple(
        PackageDifference(name=name, recorded=recorded.get(name), present=present.get(name))
        for name in sorted(recorded.keys() | present.keys())
        if recorded.get(name) != present.get(name)
    )


def _load(folder: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as exc:
        raise InvalidInputError(
            "the native format keeps no weights that can be compared", where=str(folder), expected=f"`{WEIGHTS_FILE}`"
        ) from exc


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}
