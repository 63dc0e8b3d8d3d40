"""Equivalence: do two models compute the same function?

`measure` proves it for the formats of a version, on real samples, and gives evidence. `compare_models` answers it for
any two models, on real or generated inputs, and gives a report. Both load the models from their folders, run them on
at least two shapes (batch 1 and an odd one), compare every output element by element (`comparison.py`), and look for
the first node that differs if values do (`bisection/`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from noa.digests import build_manifest
from noa.errors import InvalidInputError, NoaError
from noa.formats import Runnable, find_adapter
from noa.settings import ConversionSettings
from noa.signatures import DType, Signature, TensorSpec, is_float
from noa_conversion.batches import batch_axis, batch_sizes, sizes_of, take_batch
from noa_conversion.bisection import FirstDifference, find_first_difference
from noa_conversion.bounded_runs import bound_runs
from noa_conversion.comparison import (
    OutputDifference,
    Tolerance,
    compare_output,
    find_vacuous,
    finite_or_text,
    largest_finite,
)
from noa_conversion.generated_inputs import (
    InputRange,
    describe_ranges,
    generate_inputs,
    poison_inputs,
    size_ladder,
)
from noa_conversion.model_files import ModelFiles
from noa_conversion.renaming import renamed_model
from noa_conversion.signature_match import match_signatures, signature_problem
from noa_conversion.stored_precision import least_precise
from noa_conversion.tried_inputs import SeenValues, Tried

if TYPE_CHECKING:
    from noa_registry import Evidence
    from noa_registry.evidence import GoldenRequest, GoldenRequests

Allow: TypeAlias = Callable[[TensorSpec], Tolerance]
"""Gives the tolerance of an output in place of the one of its dtype."""
_SEEDS_WITHOUT_FREE_AXIS = (0, 1)
_FAR_DRAWS_WITHOUT_FREE_AXIS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EquivalenceReport:
    """What comparing two models showed. `passed` is true only if every output agreed in every run."""

    source: ModelFiles
    target: ModelFiles
    passed: bool
    problem: str | None
    inputs: str
    """Where the inputs came from, in words."""
    notes: tuple[str, ...]
    runs: tuple[Mapping[str, int], ...]
    """The sizes of the free axes of each run."""
    differences: tuple[OutputDifference, ...]
    tried: Tried
    """What was run: equality is shown for that and no more."""
    constant_outputs: tuple[str, ...] = ()
    """Outputs that were the same for all inputs: they say nothing about how they are computed."""
    first_difference: FirstDifference | None = None
    worst_inputs: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    """The inputs of the run with the largest difference."""
    is_vacuous: bool = False
    """An output had no number to compare in any run: neither equal nor different."""

    def to_dict(self) -> dict[str, object]:
        """Return JSON values, without the arrays."""
        return {
            "source": {"format": self.source.format, "model": self.source.label},
            "target": {"format": self.target.format, "model": self.target.label},
            "passed": self.passed,
            "inputs": self.inputs,
            "tried": self.tried.to_dict(),
            "constant_outputs": list(self.constant_outputs),
            "notes": list(self.notes),
            "runs": [dict(sizes) for sizes in self.runs],
            **summarise(self.differences, problem=self.problem),
            "first_difference": None if self.first_difference is None else self.first_difference.to_dict(),
        }


def measure(
    *,
    source: str,
    source_folder: Path,
    target: str,
    target_folder: Path,
    samples: Mapping[str, np.ndarray],
    settings: ConversionSettings,
    allow: Allow | None = None,
) -> Evidence:
    """See `noa_conversion.measure_equivalence`. `allow` states another tolerance, for reduced precision."""
    from noa_registry import equivalence_evidence
    from noa_registry.evidence import with_golden

    folders = (source_folder, target_folder)
    digests = [build_manifest(folder).digest for folder in folders]
    native = bound_runs(find_adapter(source).load(source_folder), format=source, where=f"`{source}`")
    other = bound_runs(find_adapter(target).load(target_folder), format=target, where=f"`{target}`")
    count = native.signature.validate(samples)
    if count < 1:
        raise InvalidInputError("equivalence needs at least one sample", received="none")
    batches = batch_sizes(native.signature, count)
    draws = (take_batch(native.signature, samples, batch=batch, count=count) for batch in batches)
    problem = signature_problem(native.signature, other.signature)
    coarsest = least_precise(source_folder, native.signature)
    found = _Comparison(native, other, settings, allow, computed_from=coarsest, keeps_answers=True)
    if problem is None:
        problem = found.run(draws) or found.vacuous
    first = None
    if found.differs_in_values:
        first = find_first_difference(
            ModelFiles(format=source, folder=source_folder, label=source),
            ModelFiles(format=target, folder=target_folder, label=target),
            found.worst_inputs,
            settings=settings,
        )
    if [build_manifest(folder).digest for folder in folders] != digests:
        problem = "a folder changed while it was measured"
    values = {"batches": list(batches), "samples": count, **summarise(found.differences, problem=problem)}
    if constant := found.seen.constant_outputs():
        values["constant_outputs"] = list(constant)
    if first is not None:
        values["first_difference"] = first.to_dict()
    evidence = equivalence_evidence(
        source=source,
        source_digest=digests[0],
        target=target,
        target_digest=digests[1],
        passed=problem is None and found.passed,
        values=values,
    )
    return with_golden(evidence, found.golden(source)) if evidence.passed else evidence


def compare_models(
    source: ModelFiles,
    target: ModelFiles,
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    settings: ConversionSettings,
    allow: Allow | None = None,
    rename: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = lambda _text: None,
) -> EquivalenceReport:
    """Compare two models on `inputs`, or on generated ones where none are given.

    `sizes` fixes free axes by name, `rename` says which names of the target are which of the source. A difference is
    reported, never raised. `tell` hears what is being done.

    Raises:
        SignatureError: the inputs do not fit the source.
        InvalidInputError: a folder does not hold its format, the source cannot compute, or inputs cannot be made up.
        DependencyMissingError: a framework is not installed.
    """
    tell(f"loading {source.label}")
    native = _loaded(source)
    tell(f"loading {target.label}")
    names = dict(rename or {})
    other = renamed_model(_loaded(target), names)
    matched = match_signatures(native.signature, other.signature)
    empty = _without_rows(inputs or {})
    problem, notes, fixed = matched.problem or empty, matched.notes, matched.fixed
    said_of = dict.fromkeys(f"{model.label}: {note}" for model in (source, target) for note in model.notes)
    notes = (*said_of, *notes)
    coarsest = least_precise(source.folder, native.signature)
    found = _Comparison(native, other, settings, allow, computed_from=coarsest, dtypes=matched.dtypes, tell=tell)
    said = "given" if inputs is not None else f"generated with seed {seed}"
    if problem is None:
        if inputs is not None:
            native.signature.validate(inputs)
            draws = _real_draws(native.signature, inputs, fixed)
        else:
            ranges = _read_ranges(source, target)
            said += "; " + "; ".join(f"`{k}` {v}" for k, v in describe_ranges(native.signature, ranges).items())
            draws = _generated_draws(native, {**(sizes or {}), **fixed}, ranges, seed)
        problem = found.run(draws) or found.vacuous
        if problem is None and found.passed:
            notes += found.special_values(seed)
            notes += tuple(
                f"output `{name}` was the same for all inputs: that shows nothing of how it is computed"
                for name in found.seen.constant_outputs()
            )
            notes += tuple(
                f"output `{spec.name}` is empty by its signature: nothing of it was compared"
                for spec in native.signature.outputs
                if 0 in spec.shape
            )
    if batch_axis(native.signature) is None:
        notes += ("no axis is free: there is one shape only",)
    first = None
    if found.differs_in_values:
        tell("looking for the first node that differs")
        first = find_first_difference(source, target, found.worst_inputs, settings=settings, rename=names)
    return EquivalenceReport(
        source=source,
        target=target,
        passed=problem is None and found.passed,
        problem=problem,
        inputs=said,
        notes=notes,
        runs=tuple(found.runs),
        differences=tuple(found.differences),
        tried=found.seen.tried(is_made_up=inputs is None),
        constant_outputs=found.seen.constant_outputs(),
        first_difference=first,
        worst_inputs=found.worst_inputs,
        is_vacuous=problem is not None and problem in (empty, found.vacuous),
    )


def _without_rows(inputs: Mapping[str, np.ndarray]) -> str | None:
    """Say which input has no element: such ones prove nothing, and not every framework computes them."""
    empty = next((name for name, array in inputs.items() if not array.size), None)
    return None if empty is None else f"nothing was compared: input `{empty}` is empty: {inputs[empty].shape}"


def _loaded(model: ModelFiles) -> Runnable:
    return bound_runs(find_adapter(model.format).load(model.folder), format=model.format, where=f"`{model.label}`")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answers:
    """What both models gave for one draw."""

    inputs: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]
    received: Mapping[str, np.ndarray]
    batch: int
    sizes: Mapping[str, int]


class _Comparison:
    """Runs both models on one draw of inputs after the other, and keeps what differs."""

    def __init__(
        self,
        native: Runnable,
        other: Runnable,
        settings: ConversionSettings,
        allow: Allow | None,
        *,
        computed_from: str | None,
        dtypes: Mapping[str, DType] | None = None,
        keeps_answers: bool = False,
        tell: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._keeps_answers = keeps_answers
        self._answers: tuple[GoldenRequest, ...] = ()
        self._native, self._other = native, other
        self._settings, self._allow, self._tell = settings, allow, tell
        self._computed_from = computed_from
        self._dtypes = dtypes or {}
        self._worst = -1.0
        self._waiting: list[_Answers] = []
        self.seen = SeenValues(native.signature)
        self.runs: list[Mapping[str, int]] = []
        self.differences: list[OutputDifference] = []
        self.worst_inputs: Mapping[str, np.ndarray] = {}

    @property
    def passed(self) -> bool:
        return bool(self.differences) and all(difference.passed for difference in self.differences)

    @property
    def differs_in_values(self) -> bool:
        return any(not difference.passed for difference in self.differences)

    @property
    def vacuous(self) -> str | None:
        """Say which output had nothing to compare, where nothing else is wrong."""
        return find_vacuous(self._native.signature.outputs, self.differences) if self.passed else None

    def run(self, draws: Iterator[dict[str, np.ndarray]]) -> str | None:
        """Compare on all draws; return a problem that ends the comparison.

        Answers wait until all are there: what is allowed depends on the largest of them.
        """
        problem = self._ask(draws)
        largest = {
            spec.name: largest_finite(*(answers.expected[spec.name] for answers in self._waiting))
            for spec in self._native.signature.outputs
        }
        for answers in self._waiting:
            self._compare(answers, largest)
        self._waiting.clear()
        return problem

    def _ask(self, draws: Iterator[dict[str, np.ndarray]]) -> str | None:
        signature = self._native.signature
        for inputs in draws:
            sizes = sizes_of(signature, inputs)
            axis = batch_axis(signature)
            batch = 1 if axis is None else sizes[axis]
            self._tell(f"running both with {_in_words(sizes)}")
            expected = self._native.run(inputs)
            try:
                received = self._run_other(inputs)
            except NoaError as exc:
                self.worst_inputs = inputs
                return f"the target could not compute a batch of {batch}: {exc}"
            self.runs.append(sizes)
            self.seen.add(inputs, expected, batch=batch)
            if self._keeps_answers:
                self._answers = _kept_answers(self._answers, inputs, expected)
            self._waiting.append(
                _Answers(inputs=inputs, expected=expected, received=received, batch=batch, sizes=sizes)
            )
        return None

    def golden(self, source: str) -> GoldenRequests:
        """Return what the native model answered, as far as it was kept, and what another's answers may differ by."""
        from noa_registry.evidence import AllowedDifference, GoldenRequests

        allowed = {
            one.output: AllowedDifference(
                absolute=one.tolerance.absolute,
                relative=one.tolerance.relative,
                of_largest=one.tolerance.of_largest,
                disagreement=one.tolerance.disagreement,
                reason=one.tolerance.reason,
            )
            for one in self.differences
        }
        return GoldenRequests(source=source, requests=self._answers, allowed=allowed)

    def special_values(self, seed: int) -> tuple[str, ...]:
        """Return how both treat NaN and infinities in their inputs. It is told, and decides nothing: ONNX leaves it."""
        poisoned = poison_inputs(self.worst_inputs, seed=seed)
        if poisoned is None:
            return ()
        try:
            expected, received = self._native.run(poisoned), self._run_other(poisoned)
        except NoaError as exc:
            return (f"with NaN and infinities in the inputs: {exc.what}",)
        for name, left in expected.items():
            right = received[name]
            if not is_float(left.dtype.name) or left.shape != right.shape:
                continue
            places = int(((np.isnan(left) != np.isnan(right)) | (np.isinf(left) != np.isinf(right))).sum())
            if places:
                return (f"NaN and infinities in the inputs spread differently: `{name}` in {places} elements",)
        return ("NaN and infinities in the inputs reach the same elements of all outputs",)

    def _run_other(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the target with its own number widths, and bring what it gives to the source's."""
        given = {
            name: array.astype(self._dtypes[name]) if name in self._dtypes else array for name, array in inputs.items()
        }
        outputs = self._other.run(given)
        if not self._dtypes:
            return outputs
        wide = {spec.name: spec.dtype for spec in self._native.signature.outputs}
        return {
            name: array.astype(wide[name]) if name in self._dtypes and array.dtype.name == self._dtypes[name] else array
            for name, array in outputs.items()
        }

    def _compare(self, answers: _Answers, largest: Mapping[str, float]) -> None:
        for spec in self._native.signature.outputs:
            difference = compare_output(
                spec,
                answers.expected[spec.name],
                answers.received[spec.name],
                batch=answers.batch,
                sizes=answers.sizes,
                settings=self._settings,
                tolerance=None if self._allow is None else self._allow(spec),
                computed_from=self._computed_from,
                largest=largest[spec.name],
            )
            self.differences.append(difference)
            if difference.excess > self._worst:
                self._worst, self.worst_inputs = difference.excess, answers.inputs


def _kept_answers(
    kept: tuple[GoldenRequest, ...], inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> tuple[GoldenRequest, ...]:
    """Return what was kept with one more request, if there is room for it."""
    from noa_registry.evidence import GoldenRequest, golden_that_fit

    return golden_that_fit((*kept, GoldenRequest(inputs=dict(inputs), outputs=dict(outputs))))


def summarise(differences: Sequence[OutputDifference], *, problem: str | None) -> dict[str, object]:
    """Return all differences as JSON values, with the worst and the first that fails in front."""
    worst = max(differences, key=lambda difference: difference.excess, default=None)
    agreements = [d.argmax_agreement for d in differences if d.argmax_agreement is not None]
    failed = next((difference for difference in differences if not difference.passed), None)
    return {
        "problem": problem or (f"output `{failed.output}`: {failed.problem}" if failed else None),
        "max_abs_error": finite_or_text(max((d.max_abs_error for d in differences), default=0.0)),
        "mean_abs_error": finite_or_text(max((d.mean_abs_error for d in differences), default=0.0)),
        "argmax_agreement": min(agreements, default=None),
        "worst_output": worst.output if worst else None,
        "worst_sample": worst.worst_sample if worst else None,
        "outputs": [difference.to_dict() for difference in differences],
    }


def _read_ranges(*models: ModelFiles) -> dict[str, InputRange]:
    """Return what is known of the inputs, from the first of the models whose graph can be read for it."""
    for model in models:
        if (model.folder / "model.onnx").is_file():
            from noa_conversion.onnx_input_ranges import read_input_ranges

            return read_input_ranges(model.folder)
    for model in models:
        if model.format == "torch":
            from noa_conversion.torch_input_ranges import read_program_ranges

            return read_program_ranges(model.folder)
    return {}


def _real_draws(
    signature: Signature, inputs: Mapping[str, np.ndarray], fixed: Mapping[str, int]
) -> Iterator[dict[str, np.ndarray]]:
    axis = batch_axis(signature)
    count = signature.validate(inputs)
    if axis is None or count < 1:
        yield dict(inputs)
        return
    batches = (fixed[axis],) if axis in fixed else batch_sizes(signature, count)
    for batch in batches:
        yield take_batch(signature, inputs, batch=batch, count=count)


def _generated_draws(
    native: Runnable, fixed: Mapping[str, int], ranges: Mapping[str, InputRange], seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield two draws with sizes that the source computes: the first of the ladder that it takes."""
    signature = native.signature
    unknown = sorted(set(fixed) - {axis for spec in signature.inputs for axis in spec.shape if isinstance(axis, str)})
    if unknown:
        raise InvalidInputError(f"the source has no free axis `{unknown[0]}`", received=unknown[0])
    if batch_axis(signature) is None:
        for extra in _SEEDS_WITHOUT_FREE_AXIS:
            yield generate_inputs(signature, {}, ranges=ranges, seed=seed + extra)
        yield from _far_draws(native, {}, ranges, seed, count=_FAR_DRAWS_WITHOUT_FREE_AXIS)
        return
    refusals: list[str] = []
    for rung in size_ladder(signature, fixed):
        draws = [generate_inputs(signature, sizes, ranges=ranges, seed=seed + i) for i, sizes in enumerate(rung)]
        try:
            for inputs in draws:
                native.run(inputs)
        except InvalidInputError as exc:
            refusals.append(exc.what)
            continue
        yield from draws
        yield from _far_draws(native, rung[-1], ranges, seed, count=1)
        return
    raise InvalidInputError(
        f"the source computes none of the inputs that were made up: {refusals[0]}",
        expected="inputs that it takes",
        received=f"{len(refusals)} pairs of sizes",
        remedy="Give real inputs with `--input FILE`, or sizes with `--size AXIS=NUMBER`",
    )


def _far_draws(
    native: Runnable, sizes: Mapping[str, int], ranges: Mapping[str, InputRange], seed: int, *, count: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield draws past the thresholds that the graph has, if it has some and the source computes them."""
    if all(limits.beyond is None for limits in ranges.values()):
        return
    for extra in range(count):
        far = generate_inputs(native.signature, sizes, ranges=ranges, seed=seed + extra, is_far=True)
        try:
            native.run(far)
        except InvalidInputError:
            continue
        yield far


def _in_words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in sizes.items()) or "fixed sizes"
