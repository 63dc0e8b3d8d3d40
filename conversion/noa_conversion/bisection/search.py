"""The search itself: walk both models' values in order, a few at a time, until one differs.

Not halving: a difference can vanish again on its way (`Relu`, `ArgMax`), so a value that agrees says nothing about the
values before it. A chunk at a time bounds the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from noa.errors import NoaError
from noa.settings import ConversionSettings
from noa_conversion.comparison import finite_or_text, largest_finite, scaled_to, tolerance_for
from noa_conversion.model_files import ModelFiles
from noa_conversion.onnx_graph.limits import value_limit
from noa_conversion.renaming import renamed_model, renamed_values
from noa_conversion.work_limits import check_time

_CHUNK: Final = 48
_SEARCH: Final = "the search for the first node that differs"
_OF_LARGEST: Final = 1e-4
"""Inside a network terms cancel: an error is judged against the largest value of its tensor too."""
_NARROW: Final = frozenset({"float16", "bfloat16"})
_OF_LARGEST_NARROW: Final = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstDifference:
    """The first node, in the source's order, whose output differs; `node` is None where none can be named."""

    node: str | None
    kind: str | None
    value: str | None
    max_abs_error: float
    largest: float
    """Largest magnitude of the source's value, to judge the error by."""
    explanation: str

    def to_dict(self) -> dict[str, object]:
        """Return JSON values."""
        return {
            "node": self.node,
            "kind": self.kind,
            "value": self.value,
            "max_abs_error": finite_or_text(self.max_abs_error),
            "largest": finite_or_text(self.largest),
            "explanation": self.explanation,
        }

    def __str__(self) -> str:
        if self.node is None:
            return self.explanation
        return (
            f"`{self.node}` ({self.kind}) is the first that differs: its value `{self.value}` by "
            f"{self.max_abs_error:.3g} (largest magnitude {self.largest:.3g}); {self.explanation}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedValue:
    """A value inside a model, and the node that makes it."""

    name: str
    node: str
    kind: str


class InnerValues(Protocol):
    """A model whose inner values can be looked at. `order` is the order in which they are computed."""

    @property
    def order(self) -> Sequence[NamedValue]:
        """All values that can be looked at."""
        ...

    def compute(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Return the values of `names`; one that is no tensor is left out."""
        ...


def find_first_difference(
    source: ModelFiles,
    target: ModelFiles,
    inputs: Mapping[str, np.ndarray],
    *,
    settings: ConversionSettings,
    rename: Mapping[str, str] | None = None,
) -> FirstDifference:
    """Return the first node that differs between two models that gave different outputs for `inputs`.

    `rename` gives inputs and outputs of the target the source's names, by which `inputs` are given.
    """
    with value_limit(settings.max_value_bytes):
        return _search(source, target, inputs, settings, rename or {})


def compare_inside(
    left: InnerValues,
    right: InnerValues,
    inputs: Mapping[str, np.ndarray],
    *,
    settings: ConversionSettings,
    how: str,
) -> FirstDifference | None:
    """Return the first value of `left` that differs from the one of the same name in `right`."""
    known = {value.name for value in right.order}
    common = [value for value in left.order if value.name in known]
    for start in range(0, len(common), _CHUNK):
        check_time(_SEARCH)
        chunk = common[start : start + _CHUNK]
        names = [value.name for value in chunk]
        expected, received = left.compute(inputs, names), right.compute(inputs, names)
        for value in chunk:
            if value.name in expected and value.name in received:
                found = _difference(value, expected[value.name], received[value.name], settings, how)
                if found is not None:
                    return found
    return None


def _search(
    source: ModelFiles,
    target: ModelFiles,
    inputs: Mapping[str, np.ndarray],
    settings: ConversionSettings,
    names: Mapping[str, str],
) -> FirstDifference:
    try:
        pairs = list(_views(source, target, inputs, settings, names))
    except NoaError as exc:
        return _nothing(f"no node can be named: {exc}")
    if not pairs:
        return _nothing(
            f"no node can be named: the values inside `{source.format}` and `{target.format}` have no common names"
        )
    for left, right, how in pairs:
        try:
            found = compare_inside(left, right, inputs, settings=settings, how=how)
        except NoaError as exc:
            return _nothing(f"no node can be named: {exc}")
        if found is not None:
            return found
    return _nothing(
        f"all common values inside agree when nothing is fused ({pairs[0][2]}): the difference comes from what a "
        "runtime fuses, or from a node behind the last common value"
    )


def _difference(
    value: NamedValue, expected: np.ndarray, received: np.ndarray, settings: ConversionSettings, how: str
) -> FirstDifference | None:
    if expected.shape != received.shape:
        nan = float("nan")
        text = f"shapes {expected.shape} and {received.shape}; {how}"
        return FirstDifference(
            node=value.node, kind=value.kind, value=value.name, max_abs_error=nan, largest=nan, explanation=text
        )
    if expected.dtype.kind in "OUS" or expected.size == 0:
        return None
    left, right = expected.astype(np.float64), received.astype(np.float64)
    narrow = _NARROW & {expected.dtype.name, received.dtype.name}
    is_float = expected.dtype.kind == "f" or bool(narrow)
    largest = largest_finite(left)
    tolerance = scaled_to(tolerance_for("float16" if narrow else expected.dtype.name, settings), largest)
    with np.errstate(invalid="ignore"):
        error = np.abs(left - right)
    finite = np.isfinite(left) & np.isfinite(right)
    share = (_OF_LARGEST_NARROW if narrow else _OF_LARGEST) if is_float else 0.0
    allowed = tolerance.absolute + tolerance.relative * np.abs(np.where(np.isfinite(left), left, 0.0)) + share * largest
    same_kind = finite | (np.isnan(left) & np.isnan(right)) | (np.isinf(left) & (left == right))
    error = np.where(finite, error, 0.0)
    if bool(same_kind.all()) and bool((error <= allowed).all()):
        return None
    return FirstDifference(
        node=value.node,
        kind=value.kind,
        value=value.name,
        max_abs_error=float(error.max(initial=0.0)) if same_kind.all() else float("nan"),
        largest=largest,
        explanation=how,
    )


def _views(
    source: ModelFiles,
    target: ModelFiles,
    inputs: Mapping[str, np.ndarray],
    settings: ConversionSettings,
    names: Mapping[str, str],
) -> Iterator[tuple[InnerValues, InnerValues, str]]:
    """Yield pairs of views on the two models, those that tell most first."""
    graphs = [model for model in (source, target) if (model.folder / "model.onnx").is_file()]
    if not graphs:
        return
    from noa_conversion.bisection.onnx_values import OnnxValues

    if len(graphs) == 2:
        right = renamed_values(OnnxValues(target.folder), names)
        yield OnnxValues(source.folder), right, "both graphs run by onnxruntime without fusing"
        return
    graph, other = graphs[0], target if graphs[0] is source else source
    of_graph, of_other = ({}, names) if graph is source else (names, {})
    inside = renamed_values(OnnxValues(graph.folder), of_graph)
    imported = _imported(graph, other, inputs, settings, of_graph, of_other)
    if imported is not None:
        yield inside, imported, f"onnxruntime against what noa's `{other.format}` importer computes"
    elif other.format == "torch":
        from noa_conversion.bisection.torch_values import TorchValues

        program = renamed_values(TorchValues(other.folder), of_other)
        how = "onnxruntime without fusing against the PyTorch program, by the names of its nodes"
        yield (inside, program, how) if graph is source else (program, inside, how)


def _imported(
    graph: ModelFiles,
    other: ModelFiles,
    inputs: Mapping[str, np.ndarray],
    settings: ConversionSettings,
    of_graph: Mapping[str, str],
    of_other: Mapping[str, str],
) -> InnerValues | None:
    """Return the values of our importer, if `other` computes what it makes of the graph."""
    if other.format == "torch":
        from noa_conversion.bisection.imported_torch_values import ImportedTorchValues as Imported
    elif other.format == "jax":
        from noa_conversion.bisection.imported_jax_values import ImportedJaxValues as Imported
    else:
        return None
    from noa.formats import find_adapter

    try:
        values = renamed_values(Imported(graph.folder), of_graph)
        outputs = renamed_model(find_adapter(other.format).load(other.folder), of_other).run(inputs)
        inner = values.compute(inputs, list(outputs))
    except NoaError:
        return None  # what the importer refuses was not made by it
    for name, expected in outputs.items():
        made = inner.get(name)
        value = NamedValue(name=name, node=name, kind="output")
        if made is None or _difference(value, expected, np.asarray(made), settings, "") is not None:
            return None
    return values


def _nothing(explanation: str) -> FirstDifference:
    nan = float("nan")
    return FirstDifference(node=None, kind=None, value=None, max_abs_error=nan, largest=nan, explanation=explanation)
