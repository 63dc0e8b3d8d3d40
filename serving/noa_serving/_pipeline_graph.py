"""A small graph of models as one model: what it takes and gives, and how it is computed.

Steps are computed in the order in which they are written; each takes tensors of the request or of a step before it:
`image` is an input of the request, `features.embedding` the output `embedding` of the step `features`. What is given
may be the mean of several: `mean(first.probability, second.probability)`.

Everything is checked from the signatures before anything is computed: dtypes, ranks, sizes, and that axes that are
free stay so from one step to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from noa.errors import SignatureError
from noa.settings import mean_of
from noa.signatures import Signature, TensorSpec
from noa_serving._statistics import FAILED_STEP
from noa_serving._warm_up import batch_axis

if TYPE_CHECKING:
    from noa.settings import PipelineSettings, PipelineStepSettings
    from noa_serving._generation import Generation

_BATCH = "batch"
_AVERAGED = ("float16", "float32", "float64")

Source: TypeAlias = tuple[str, str]
"""The step and the name of its output; an empty step: an input of the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    name: str
    generation: Generation
    sources: Mapping[str, Source]


class Graph:
    """The steps of one pipeline with the versions of this moment. It is computed as any loaded model is.

    Raises:
        SignatureError: what one step gives does not fit what another takes; `facts["field"]` names the place.
    """

    def __init__(self, settings: PipelineSettings, generations: Mapping[str, Generation]) -> None:
        self._shapes = _Shapes()
        names = [step.name for step in settings.steps]
        self._steps = [self._connect(step, generations[step.name], names) for step in settings.steps]
        self._outputs = {
            name: [_source(one, names) for one in mean_of(text)] for name, text in settings.outputs.items()
        }
        self.signature = Signature(
            inputs=tuple(self._shapes.inputs.values()),
            outputs=tuple(self._output(name, sources) for name, sources in self._outputs.items()),
        )
        self._batch_axis = batch_axis(self.signature)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all steps and return the outputs."""
        known: dict[Source, np.ndarray] = {("", name): array for name, array in inputs.items()}
        batch = self._batch_of(inputs)
        for step in self._steps:
            taken = {name: known[source] for name, source in step.sources.items()}
            try:
                given = step.generation.compute(taken, batch)
            except Exception as exc:
                setattr(exc, FAILED_STEP, step.name)
                raise
            known |= {(step.name, name): array for name, array in given.items()}
        return {name: _mean([known[one] for one in sources]) for name, sources in self._outputs.items()}

    def _batch_of(self, inputs: Mapping[str, np.ndarray]) -> int:
        for spec in self.signature.inputs:
            if self._batch_axis in spec.shape:
                return inputs[spec.name].shape[spec.shape.index(self._batch_axis)]  # type: ignore[arg-type]
        return 1

    def _connect(self, step: PipelineStepSettings, generation: Generation, names: Sequence[str]) -> _Step:
        for name in step.inputs:
            if name not in generation.specs:
                raise SignatureError(
                    f"step `{step.name}`: `{generation.reference}` has no input `{name}`",
                    expected=", ".join(f"`{one}`" for one in generation.specs),
                    field=step.name,
                )
        sources = {name: _source(step.inputs.get(name, name), names) for name in generation.input_names}
        self._shapes.add(step.name, generation, sources)
        return _Step(name=step.name, generation=generation, sources=sources)

    def _output(self, name: str, sources: Sequence[Source]) -> TensorSpec:
        first, *others = [self._shapes.find(one, where=f"output `{name}`") for one in sources]
        for one in others:
            if (one.dtype, one.shape) != (first.dtype, first.shape) or first.dtype not in _AVERAGED:
                raise SignatureError(
                    f"output `{name}`: a mean needs floating-point tensors of one shape",
                    expected=first.describe(),
                    received=one.describe(),
                    field=name,
                )
        return TensorSpec(name=name, dtype=first.dtype, shape=first.shape)


class _Shapes:
    """The tensors that are known so far, their free axes under the names that they have in the whole pipeline."""

    def __init__(self) -> None:
        self.inputs: dict[str, TensorSpec] = {}
        self._given: dict[Source, TensorSpec] = {}
        self._axes: set[str] = set()

    def find(self, source: Source, *, where: str) -> TensorSpec:
        """Return what a tensor is.

        Raises:
            SignatureError: there is none.
        """
        step, name = source
        spec = self._given.get(source) if step else self.inputs.get(name)
        if spec is None:
            known = [f"{one}.{output}" for one, output in self._given] + list(self.inputs)
            raise SignatureError(
                f"{where}: there is no tensor `{f'{step}.' if step else ''}{name}`",
                expected=", ".join(f"`{one}`" for one in known) or "a step that gives something",
                field=step or name,
            )
        return spec

    def add(self, step: str, generation: Generation, sources: Mapping[str, Source]) -> None:
        """Take in a step: check what is known of its inputs, and note its outputs."""
        axes: dict[str, int | str] = {}
        new: list[TensorSpec] = []
        for spec in generation.signature.inputs:
            source = sources[spec.name]
            if source[0] or source[1] in self.inputs:
                where = f"step `{step}`, input `{spec.name}`"
                _unify(spec, self.find(source, where=where), axes, where=where)
            else:
                new.append(spec)
        leading = batch_axis(generation.signature)
        for spec in new:
            name = sources[spec.name][1]
            shape = tuple(self._place(step, axis, axes, leading=leading) for axis in spec.shape)
            self.inputs[name] = TensorSpec(name=name, dtype=spec.dtype, shape=shape)
        for spec in generation.signature.outputs:
            shape = tuple(self._place(step, axis, axes, leading=leading) for axis in spec.shape)
            self._given[step, spec.name] = TensorSpec(name=spec.name, dtype=spec.dtype, shape=shape)

    def _place(self, step: str, axis: int | str, axes: dict[str, int | str], *, leading: str | None) -> int | str:
        """Return an axis as the pipeline calls it: the batch is one for all steps, other free axes stay their own."""
        if isinstance(axis, int):
            return axis
        if axis not in axes:
            is_taken = axis in self._axes or axis == _BATCH
            name = _BATCH if axis == leading else f"{step}.{axis}" if is_taken else axis
            axes[axis] = name
            self._axes.add(name)
        return axes[axis]


def _unify(spec: TensorSpec, given: TensorSpec, axes: dict[str, int | str], *, where: str) -> None:
    """Note which axes of a step's input are which of the tensor that it takes.

    Raises:
        SignatureError: they do not fit for every request.
    """
    fits = spec.dtype == given.dtype and len(spec.shape) == len(given.shape)
    for axis, known in zip(spec.shape, given.shape, strict=False):
        fits = fits and known == (axis if isinstance(axis, int) else axes.setdefault(axis, known))
    if not fits:
        raise SignatureError(f"{where} does not fit", expected=spec.describe(), received=given.describe(), field=where)


def _source(text: str, steps: Sequence[str]) -> Source:
    step, dot, name = text.partition(".")
    return (step, name) if dot and step in steps else ("", text)


def _mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
    first = arrays[0]
    if len(arrays) == 1:
        return first
    wide = np.float64 if first.dtype == np.float64 else np.float32
    return np.mean(arrays, axis=0, dtype=wide).astype(first.dtype)
