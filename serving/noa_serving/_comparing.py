"""What the outputs of an arm say against those of the main for the same inputs, as plain counts that add up.

A request counts once, by the share of its items that agree: a request of a thousand rows is no thousand independent
trials. An item agrees if every output of it does, each by its own `Rule`: the same class for scores, the same values
for integers, booleans and texts, values within a tolerance for other floats (by default the one by which two formats of
a version count as equal, `noa_conversion.comparison`). NaN and infinities agree with the same only.

A `Comparison` is about one `Pair` of contents. It holds nothing of the requests themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from noa.settings import ConversionSettings
from noa_serving._sketch import Sketch, stability_index

if TYPE_CHECKING:
    from noa.settings import CompareWay, VerdictSettings
    from noa.signatures import Signature

_SCORES = frozenset({"class_scores", "logits", "probabilities", "probability", "probs", "proba", "scores", "softmax"})
_MOST_SKETCHED = 256
_MOST_OUTPUTS = 32


class Pair(NamedTuple):
    """Two contents behind one endpoint that are compared: what answers, and what an arm computes."""

    endpoint: str
    arm: str
    main_number: int
    main_digest: str
    arm_number: int
    arm_digest: str


class Rule(NamedTuple):
    """How one output is compared."""

    way: CompareWay
    absolute: float = 0.0
    relative: float = 0.0


@dataclass(slots=True)
class OutputCounts:
    """What was counted of one output. Differences are absolute ones, of elements that are finite on both sides."""

    agreed: float = 0.0
    mismatched: int = 0
    """Requests in which it was missing, or had another shape."""
    elements: int = 0
    difference_sum: float = 0.0
    difference_max: float = 0.0
    main: Sketch = field(default_factory=Sketch)
    arm: Sketch = field(default_factory=Sketch)

    def merge(self, other: OutputCounts) -> None:
        """Count what another worker has counted."""
        self.agreed += other.agreed
        self.mismatched += other.mismatched
        self.elements += other.elements
        self.difference_sum += other.difference_sum
        self.difference_max = max(self.difference_max, other.difference_max)
        self.main.merge(other.main)
        self.arm.merge(other.arm)

    def to_json(self) -> dict[str, Any]:
        """Return everything, as JSON values."""
        plain = {name: getattr(self, name) for name in _OUTPUT_NUMBERS}
        return {**plain, "main": self.main.to_json(), "arm": self.arm.to_json()}

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> OutputCounts:
        """Return what `to_json` gave."""
        plain = {name: table[name] for name in _OUTPUT_NUMBERS}
        return cls(**plain, main=Sketch.from_json(table["main"]), arm=Sketch.from_json(table["arm"]))

    def describe(self, compared: int) -> dict[str, object]:
        """Return what it comes to, of `compared` requests."""
        return {
            "agreement": self.agreed / compared if compared else None,
            "mismatched": self.mismatched,
            "mean_difference": self.difference_sum / self.elements if self.elements else None,
            "max_difference": self.difference_max if self.elements else None,
            "stability_index": stability_index(self.main, self.arm),
        }


@dataclass(slots=True)
class Comparison:
    """What was counted of one pair. Counts are of requests where nothing else is said.

    `offered` were to be compared, `dropped` found no room. Of the others `compared` have outputs of both sides,
    `failed` have none of the arm. `slower` of `timed` ones took the arm longer than the allowed multiple of the main's
    time. `hangs` and `deaths` are arms that did not come back, and workers that ended while an arm computed.
    """

    offered: int = 0
    dropped: int = 0
    compared: int = 0
    failed: int = 0
    items: int = 0
    agreed: float = 0.0
    timed: int = 0
    slower: int = 0
    hangs: int = 0
    deaths: int = 0
    problem: str = ""
    """The last reason why the arm failed."""
    main_s: Sketch = field(default_factory=Sketch)
    arm_s: Sketch = field(default_factory=Sketch)
    ratios: Sketch = field(default_factory=Sketch)
    outputs: dict[str, OutputCounts] = field(default_factory=dict[str, OutputCounts])

    @property
    def tried(self) -> int:
        """Requests that the arm was given."""
        return self.compared + self.failed

    def add(
        self, main: Mapping[str, np.ndarray], arm: Mapping[str, np.ndarray], batch: int, rules: Mapping[str, Rule]
    ) -> None:
        """Count the outputs of both sides for one request of `batch` items."""
        agree = np.ones(batch, dtype=bool)
        for name, rule in rules.items():
            counts = self.outputs.setdefault(name, OutputCounts())
            found = _agreement(counts, main[name], arm.get(name), batch, rule)
            counts.agreed += float(found.mean())
            agree &= found
        self.compared += 1
        self.items += batch
        self.agreed += float(agree.mean())

    def add_times(self, main_s: float, arm_s: float, *, most_ratio: float) -> None:
        """Count how long both sides took for one request, one after the other in the same thread."""
        self.timed += 1
        self.slower += arm_s > most_ratio * main_s
        self.main_s.add(np.array([main_s]))
        self.arm_s.add(np.array([arm_s]))
        self.ratios.add(np.array([arm_s / max(main_s, 1e-9)]))

    def merge(self, other: Comparison) -> None:
        """Count what another worker has counted."""
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.problem = other.problem or self.problem
        for mine, theirs in ((self.main_s, other.main_s), (self.arm_s, other.arm_s), (self.ratios, other.ratios)):
            mine.merge(theirs)
        for name, counts in other.outputs.items():
            self.outputs.setdefault(name, OutputCounts()).merge(counts)

    def to_json(self) -> dict[str, Any]:
        """Return everything, as JSON values."""
        return {
            **{name: getattr(self, name) for name in _NUMBERS},
            "problem": self.problem,
            **{name: getattr(self, name).to_json() for name in _SKETCHES},
            "outputs": {name: one.to_json() for name, one in self.outputs.items()},
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Comparison:
        """Return what `to_json` gave."""
        numbers: dict[str, Any] = {name: table[name] for name in _NUMBERS}
        sketches: dict[str, Any] = {name: Sketch.from_json(table[name]) for name in _SKETCHES}
        outputs = {name: OutputCounts.from_json(one) for name, one in table["outputs"].items()}
        return cls(**numbers, **sketches, problem=table["problem"], outputs=outputs)

    def describe(self) -> dict[str, object]:
        """Return what it comes to, for people and evidence."""
        return {
            **{name: getattr(self, name) for name in _NUMBERS if name != "agreed"},
            "agreement": self.agreed / self.compared if self.compared else None,
            "main_p50_ms": _ms(self.main_s.quantile(0.5)),
            "arm_p50_ms": _ms(self.arm_s.quantile(0.5)),
            "latency_ratio": self.ratios.quantile(0.5),
            "problem": self.problem,
            "outputs": {name: one.describe(self.compared) for name, one in self.outputs.items()},
        }


_OUTPUT_NUMBERS = ("agreed", "mismatched", "elements", "difference_sum", "difference_max")
_NUMBERS = (
    *("offered", "dropped", "compared", "failed", "items", "agreed"),
    *("timed", "slower", "hangs", "deaths"),
)
_SKETCHES = ("main_s", "arm_s", "ratios")


def rules_of(signature: Signature, settings: VerdictSettings, conversion: ConversionSettings) -> dict[str, Rule]:
    """Return how each output of the main is compared: as the settings say, else by its dtype, shape and name.

    A float output (batch, classes) is taken for class scores by its name only: an embedding has the same shape.
    """
    from noa_conversion.comparison import tolerance_for

    rules: dict[str, Rule] = {}
    for spec in signature.outputs[:_MOST_OUTPUTS]:
        is_float = "float" in spec.dtype
        way = settings.compare.get(spec.name)
        if way is None and is_float and len(spec.shape) == 2 and spec.name.lower() in _SCORES:
            way = "argmax"
        way = way or ("tolerance" if is_float else "equal")
        if way == "ignore":
            continue
        usual = tolerance_for(spec.dtype, conversion)
        absolute = usual.absolute if settings.absolute_tolerance is None else settings.absolute_tolerance
        relative = usual.relative if settings.relative_tolerance is None else settings.relative_tolerance
        rules[spec.name] = Rule(way, absolute, relative)
    return rules


def _agreement(counts: OutputCounts, main: np.ndarray, arm: np.ndarray | None, batch: int, rule: Rule) -> np.ndarray:
    """Return which items agree, and count what else the values say."""
    if arm is None or arm.shape != main.shape:
        counts.mismatched += 1
        return np.zeros(batch, dtype=bool)
    has_numbers = main.dtype.kind not in "OSU" and arm.dtype.kind not in "OSU"
    if has_numbers:
        main, arm = main.astype(np.float64), arm.astype(np.float64)
        _count_values(counts, main, arm, rule)
    if rule.way == "argmax":
        equal = main.argmax(axis=-1) == arm.argmax(axis=-1)
    elif rule.way == "tolerance" and has_numbers:
        with np.errstate(invalid="ignore"):
            equal = np.isclose(arm, main, rtol=rule.relative, atol=rule.absolute, equal_nan=True)
    else:
        equal = main == arm
        if has_numbers:
            equal |= np.isnan(main) & np.isnan(arm)
    equal = np.asarray(equal)
    if not equal.shape or equal.shape[0] != batch:
        return np.full(batch, bool(equal.all()))
    return np.asarray(equal.reshape(batch, -1).all(axis=1))


def _count_values(counts: OutputCounts, main: np.ndarray, arm: np.ndarray, rule: Rule) -> None:
    with np.errstate(invalid="ignore"):
        difference = np.abs(main - arm)
    finite = difference[np.isfinite(difference)]
    counts.elements += finite.size
    with np.errstate(over="ignore"):
        counts.difference_sum = min(counts.difference_sum + float(finite.sum()), sys.float_info.max)  # JSON has no more
    counts.difference_max = max(counts.difference_max, float(finite.max(initial=0.0)))
    if rule.way == "argmax":
        main, arm = main.argmax(axis=-1), arm.argmax(axis=-1)
    step = -(-main.size // _MOST_SKETCHED) or 1
    counts.main.add(main.ravel()[::step])
    counts.arm.add(arm.ravel()[::step])


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
