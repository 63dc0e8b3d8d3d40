"""Whether two signatures describe the same function, up to what tools cannot help changing.

Names of free axes do not matter. A target may fix a size that is free in the source, and may hold whole numbers and
floats of 64 bits in 32, as JAX does: both are told, and the comparison is made where both are defined.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from typing import Final

from noa.signatures import DType, Signature, TensorSpec

NARROWED: Final[dict[DType, DType]] = {"int64": "int32", "uint64": "uint32", "float64": "float32"}
"""What JAX holds the types of 64 bits in, outside of `jax.enable_x64`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureMatch:
    """What to compare, if anything. `problem` says why nothing can be."""

    problem: str | None = None
    notes: tuple[str, ...] = ()
    fixed: dict[str, int] = field(default_factory=dict[str, int])
    """Sizes of free axes of the source that the target fixes."""
    dtypes: dict[str, DType] = field(default_factory=dict[str, DType])
    """What the target holds a tensor in, where it is another width than the source's."""


def signature_problem(native: Signature, other: Signature) -> str | None:
    """Return how two signatures that should be the same differ; None if they do not."""
    if native == other:
        return None
    pairs = zip((*native.inputs, *native.outputs), (*other.inputs, *other.outputs), strict=False)
    for left, right in pairs:
        if left != right and replace(left, dtype=NARROWED.get(left.dtype, left.dtype)) == right:
            return f"`{left.name}` is {left.dtype} in the native format and the target computes it as {right.dtype}"
        if left != right:
            return (
                f"signatures differ: native `{left.name}` {left.describe()}, target `{right.name}` {right.describe()}"
            )
    return "signatures differ in their number of tensors"


def match_signatures(native: Signature, other: Signature) -> SignatureMatch:
    """Match the signatures of any two models."""
    for side, left, right in (("input", native.inputs, other.inputs), ("output", native.outputs, other.outputs)):
        names = [[spec.name for spec in specs] for specs in (left, right)]
        if sorted(names[0]) != sorted(names[1]):
            text = f"the {side}s differ: source {names[0]}, target {names[1]}"
            return SignatureMatch(problem=text + _other_names(native, other))
    notes: list[str] = []
    fixed: dict[str, int] = {}
    dtypes: dict[str, DType] = {}
    others = {spec.name: spec for spec in (*other.inputs, *other.outputs)}
    for spec in (*native.inputs, *native.outputs):
        found = others[spec.name]
        if spec.dtype != found.dtype and NARROWED.get(spec.dtype) == found.dtype:
            dtypes[spec.name] = found.dtype
            notes.append(f"`{spec.name}` is {spec.dtype} in the source and {found.dtype} in the target")
        elif spec.dtype != found.dtype or len(spec.shape) != len(found.shape):
            text = f"signatures differ: source `{spec.name}` {spec.describe()}, target {found.describe()}"
            return SignatureMatch(problem=text)
        problem = _match_sizes(spec, found, fixed, notes, is_input=spec in native.inputs)
        if problem is not None:
            return SignatureMatch(problem=problem)
    return SignatureMatch(notes=tuple(dict.fromkeys(notes)), fixed=fixed, dtypes=dtypes)


def _other_names(native: Signature, other: Signature) -> str:
    """Say what to do where only the names differ, as they do in what an exporter wrote; empty where more does."""
    pairs: list[tuple[str, str]] = []
    for left, right in ((native.inputs, other.inputs), (native.outputs, other.outputs)):
        if len(left) != len(right):
            return ""
        kept = {spec.name for spec in left} & {spec.name for spec in right}
        mine, theirs = ([spec for spec in specs if spec.name not in kept] for specs in (left, right))
        for one, two in zip(mine, theirs, strict=True):
            if len(one.shape) != len(two.shape) or two.dtype not in (one.dtype, NARROWED.get(one.dtype)):
                return ". Say which of the target is which of the source: --rename TARGET=SOURCE"
            pairs.append((two.name, one.name))
    options = " ".join("--rename " + shlex.quote(f"{theirs}={mine}") for theirs, mine in pairs)
    return f". If they are the same in this order, say so: {options}"


def _match_sizes(
    spec: TensorSpec, found: TensorSpec, fixed: dict[str, int], notes: list[str], *, is_input: bool
) -> str | None:
    for axis, size in zip(spec.shape, found.shape, strict=True):
        if isinstance(axis, int) and isinstance(size, int) and axis != size:
            return f"`{spec.name}` has the size {axis} in the source and {size} in the target"
        if is_input and isinstance(axis, str) and isinstance(size, int):
            if fixed.setdefault(axis, size) != size:
                return f"the axis `{axis}` of the source has two sizes in the target"
            notes.append(f"the target takes only {axis}={size}; compared there")
    return None
