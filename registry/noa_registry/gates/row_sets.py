"""The sets of test rows that a version was measured on: which of them must have a say.

Every set is judged, so that none hides another. Whoever attaches metrics names their rows, so a set that nothing
explains never stands in for one that something does: where a version has answers for some rows that are kept, a rule
needs one of these sets; else one that the version's own data or the holder explains, if there is any. A policy that
names its rows (`datasets`) has said which count, and makes no further difference between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from noa_registry.evidence.facts import PREDICTIONS
from noa_registry.gates.candidate import GateInput
from noa_registry.gates.recorded_metrics import RecordedMetrics

OTHER_ROWS_REMEDY = (
    "Measure it on these rows: `noa flows run` and `noa train --promote` measure both; or name the rows that count in "
    "the gate's `datasets`"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSets:
    """The digests of all test rows that a version was measured on, with how well each is known: 2, 1 or 0."""

    weights: Mapping[str, int]

    @staticmethod
    def of(gate_input: GateInput, recorded: RecordedMetrics) -> RowSets:
        """Return the rows of the version that is judged."""
        return RowSets(weights={digest: _weight(gate_input, digest) for digest in recorded.datasets})

    @property
    def best(self) -> tuple[str, ...]:
        """The sets that are known best."""
        most = max(self.weights.values(), default=0)
        return tuple(digest for digest, weight in self.weights.items() if weight == most)

    def lack(self, measured: Iterable[str]) -> bool:
        """Tell whether none of the sets that are known best is among those that something was measured on."""
        return bool(self.weights) and not set(self.best) & set(measured)

    def describe_best(self) -> str:
        """Return the sets that are known best, for a sentence."""
        return " or ".join(self.best)


def is_explained(gate_input: GateInput, digest: str) -> bool:
    """Tell whether the version or the present holder explains these rows."""
    sides = (gate_input.candidate, gate_input.rival)
    return any(side.explains(digest) for side in sides if side is not None)


def _weight(gate_input: GateInput, digest: str) -> int:
    if gate_input.candidate.test_rows:
        return 0
    if gate_input.candidate.on_test_rows(PREDICTIONS, digest) is not None:
        return 2
    return int(is_explained(gate_input, digest))
