"""Compatibility: can whoever calls the present holder of an alias call this version in its place?

Seen from a client that sends what the old signature takes and reads what it gives. Free axes are compared by where they
lie, not by their names. A version is `widened` where it takes or gives more than before, and `breaking` where something
that worked before is refused or missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

from noa.signatures import Axis, Signature, TensorSpec
from noa_registry.evidence.facts import COMPATIBILITY, WHOLE_VERSION, Evidence
from noa_registry.evidence.reading import Reader

Compatibility: TypeAlias = Literal["compatible", "widened", "breaking"]
_Side: TypeAlias = Literal["input", "output"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureComparison:
    """How a signature differs from an older one: the worst of all differences, and each in words."""

    level: Compatibility
    differences: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompatibilityEvidence:
    """How the version whose digest is `digest` can stand in for `holder`."""

    digest: str
    holder: str
    holder_digest: str
    level: Compatibility
    differences: tuple[str, ...]

    def to_evidence(self) -> Evidence:
        """Return it as a fact to attach."""
        return Evidence(
            kind=COMPATIBILITY,
            subject=WHOLE_VERSION,
            digest=self.digest,
            passed=self.level != "breaking",
            values={
                "holder": self.holder,
                "holder_digest": self.holder_digest,
                "level": self.level,
                "differences": list(self.differences),
            },
        )

    @staticmethod
    def from_evidence(evidence: Evidence) -> CompatibilityEvidence:
        """Read a fact back.

        Raises:
            InvalidInputError: it is of another kind, a part is missing, or its verdict is not what its level says.
        """
        reader = Reader.of(evidence, COMPATIBILITY)
        level = reader.text("level")
        if level not in get_args(Compatibility) or evidence.passed is not (level != "breaking"):
            raise reader.wrong("level", f"one of {', '.join(get_args(Compatibility))}, with the verdict that it means")
        return CompatibilityEvidence(
            digest=evidence.digest,
            holder=reader.text("holder"),
            holder_digest=reader.text("holder_digest"),
            level=cast("Compatibility", level),
            differences=reader.texts("differences"),
        )


def compare_signatures(old: Signature, new: Signature) -> SignatureComparison:
    """Return what `new` changes for a client of `old`."""
    wider: list[str] = []
    broken: list[str] = []
    _compare_side("input", old.inputs, new.inputs, wider, broken)
    _compare_side("output", old.outputs, new.outputs, wider, broken)
    _compare_ties(old, new, wider, broken)
    level: Compatibility = "breaking" if broken else "widened" if wider else "compatible"
    return SignatureComparison(level=level, differences=(*broken, *wider))


def _compare_side(
    side: _Side, old: tuple[TensorSpec, ...], new: tuple[TensorSpec, ...], wider: list[str], broken: list[str]
) -> None:
    before, after = {spec.name: spec for spec in old}, {spec.name: spec for spec in new}
    broken += [f"{side} `{name}` is gone" for name in before if name not in after]
    for name in after:
        if name not in before:
            added = f"{side} `{name}` {after[name].describe()} is new"
            (broken if side == "input" else wider).append(added + (" and required" if side == "input" else ""))
    common = [name for name in before if name in after]
    if common != [name for name in after if name in before] or (old[0].name in common and new[0].name != old[0].name):
        broken.append(f"the {side}s are in another order")
    for name in common:
        _compare_tensor(side, before[name], after[name], wider, broken)


def _compare_tensor(side: _Side, old: TensorSpec, new: TensorSpec, wider: list[str], broken: list[str]) -> None:
    change = f"{side} `{old.name}` was {old.describe()} and is {new.describe()}"
    if old.dtype != new.dtype or len(old.shape) != len(new.shape):
        broken.append(change)
        return
    kinds = {_axis_change(side, before, after) for before, after in zip(old.shape, new.shape, strict=True)}
    if "breaking" in kinds:
        broken.append(change)
    elif "widened" in kinds:
        wider.append(change)


def _axis_change(side: _Side, old: Axis, new: Axis) -> Compatibility:
    if isinstance(old, str) and isinstance(new, str):
        return "compatible"
    if old == new:
        return "compatible"
    if isinstance(old, int) and isinstance(new, int):
        return "breaking"
    # An input that takes any size now takes the old one too; an output of any size may not have the one relied on.
    became_free = isinstance(new, str)
    return "widened" if became_free == (side == "input") else "breaking"


def _compare_ties(old: Signature, new: Signature, wider: list[str], broken: list[str]) -> None:
    """Compare which free axes of the inputs must have the same size; a size that was fixed had to be just that."""
    before, after = _axes(old.inputs), _axes(new.inputs)
    places = [place for place, axis in after.items() if isinstance(axis, str) and place in before]
    for index, first in enumerate(places):
        for second in places[index + 1 :]:
            was, now = before[first] == before[second], after[first] == after[second]
            pair = f"axis {first[1]} of `{first[0]}` and axis {second[1]} of `{second[0]}`"
            if now and not was:
                broken.append(f"{pair} must have the same size now")
            elif was and not now and isinstance(before[first], str):
                wider.append(f"{pair} need not have the same size now")


def _axes(specs: tuple[TensorSpec, ...]) -> dict[tuple[str, int], Axis]:
    return {(spec.name, position): axis for spec in specs for position, axis in enumerate(spec.shape)}
