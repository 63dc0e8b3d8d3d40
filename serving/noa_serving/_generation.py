"""One loaded version behind an endpoint: immutable, so that a request keeps the one with which it began.

`load_generation` verifies the bytes, loads them, warms the model and asks it the golden requests of its evidence; only
what has answered them as they were answered then may be swapped in. The old generation is freed by reference counting
when the last request that holds it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from noa.errors import IntegrityError
from noa.signatures import numpy_dtype
from noa.text_tensors import blank_like
from noa_serving._golden import require_golden_answers
from noa_serving._runtimes import Runtimes, pool_of, runtime_of
from noa_serving._statistics import ModelStatistics
from noa_serving._tensors import know_datatypes
from noa_serving._warm_up import WARM_BATCH, Batching, Cost, batch_axis, resize, warm
from noa_serving.stream_fit import fit_stream, require_second_step

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from noa.formats import Runnable
    from noa.settings import StreamSettings
    from noa.signatures import Signature, TensorSpec
    from noa_registry import ModelVersion, Registry
    from noa_registry.evidence import GoldenRequests
    from noa_serving._binary_plan import BinaryPlan
    from noa_serving._http import HeaderList
    from noa_serving._response_cache import ResponseCache
    from noa_serving._stream_plan import StreamPlan

INLINE_LIMIT_S = 0.001
"""Compute below this runs on the event loop: handing it to a thread and back costs more than half of that."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Generation:
    """A version that is ready to compute.

    `endpoint` is the name that clients call; `arm` is the arm of it that this answers for, empty for its main version.
    `example` is one item of zeros (empty texts) with the shape of a real input. `plain_inputs` holds name, dtype and
    item shape of each input, and nothing for a signature with more free axes than the batch. `golden_requests` is how
    many it has answered; 0: its evidence has none. `choice` says why it has this format, where that was left to the
    server, and `runtime` what runs it. `pool` is where its runs wait, if not in the worker's own, whose threads a model
    that hangs must not hold. `stream` is how it is called step by step, None where the endpoint has no streams.
    `binary_plans` is a memo, not state.
    """

    endpoint: str
    arm: str
    model: str
    number: int
    digest: str
    format: str
    choice: str
    runtime: str
    signature: Signature
    run: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    specs: Mapping[str, TensorSpec]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    text_outputs: frozenset[str]
    headers: HeaderList
    cost: Cost
    inline_items: int
    batching: Batching
    pool: ThreadPoolExecutor | None
    example: Mapping[str, np.ndarray]
    plain_inputs: tuple[tuple[str, np.dtype, tuple[int, ...]], ...]
    statistics: ModelStatistics
    cache: ResponseCache | None = None
    golden_requests: int = 0
    stream: StreamPlan | None = None
    binary_plans: dict[bytes, BinaryPlan] = field(default_factory=dict["bytes", "BinaryPlan"])

    @property
    def reference(self) -> str:
        """The version's name, e.g. `digits/3`."""
        return f"{self.model}/{self.number}"

    def check(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Check `inputs` and return the batch size, as `Signature.validate` does.

        What plainly fits is recognised in a fraction of its time; whatever does not is left to it and its messages.
        """
        batch = -1
        if len(inputs) == len(self.plain_inputs):
            for name, dtype, tail in self.plain_inputs:
                array = inputs.get(name)
                if array is None or array.dtype != dtype or array.shape[1:] != tail or not array.shape:
                    break
                if batch not in (-1, array.shape[0]):
                    break
                batch = array.shape[0]
            else:
                return batch
        return self.signature.validate(inputs)

    def compute(self, inputs: Mapping[str, np.ndarray], batch: int) -> Mapping[str, np.ndarray]:
        """Run the model on inputs that were checked, filled up to a bucket where its runtime compiles each size."""
        filled = next((size for size in self.batching.buckets if size >= batch), batch)
        if filled == batch:
            return self.run(inputs)
        # The last item again: its values are ones that the model takes.
        rows = np.minimum(np.arange(filled), batch - 1)
        outputs = self.run({name: array[rows] for name, array in inputs.items()})
        return {name: array[:batch] for name, array in outputs.items()}

    def runs_inline(self, batch: int) -> bool:
        """Tell whether a batch is small enough to compute on the event loop."""
        return batch <= self.inline_items


def load_generation(
    registry: Registry,
    version: ModelVersion,
    *,
    endpoint: str,
    arm: str = "",
    format: str,  # our word
    threads: int,
    cache: ResponseCache | None = None,
    runtimes: Runtimes | None = None,
    choice: str = "",
    stream: StreamSettings | None = None,
) -> Generation:
    """Verify, load and warm one format of `version`. `choice` says why this format, where it was chosen.

    Raises:
        SignatureError: the streams of the endpoint do not fit the model.
        IntegrityError: the bytes are not what was sealed, or golden requests are not answered as they were.
        NotFoundError: the version has no such format.
        NoaError: the adapter cannot load it. Errors of the framework pass as they are.
    """
    folder = registry.open_format(version, format)
    example = registry.input_example(version)
    runtimes = Runtimes(threads=threads) if runtimes is None else runtimes
    runnable = runtimes.load(folder, model=version.name, format=format, example=example)
    if runnable.signature != version.signature:
        raise IntegrityError(f"`{version.reference}` has another signature in `{format}` than in the registry")
    return build_generation(
        runnable,
        endpoint=endpoint,
        arm=arm,
        model=version.name,
        number=version.number,
        digest=version.digest,
        format=format,
        example=example,
        cache=cache,
        golden=registry.golden_requests(version, format),
        choice=choice,
        stream=stream,
    )


def build_generation(
    runnable: Runnable,
    *,
    endpoint: str,
    arm: str = "",
    model: str,
    number: int,
    digest: str,
    format: str,  # our word
    example: Mapping[str, np.ndarray],
    cache: ResponseCache | None = None,
    golden: GoldenRequests | None = None,
    choice: str = "",
    stream: StreamSettings | None = None,
) -> Generation:
    """Warm a loaded model with `example`, ask it what is `golden`, and wrap it with everything a request needs.

    Raises:
        SignatureError: the streams of the endpoint do not fit the model.
        IntegrityError: a golden request is answered differently.
    """
    plan = None if stream is None or not stream.is_on else fit_stream(stream, runnable.signature)
    runnable.signature.validate(example)
    know_datatypes((*runnable.signature.inputs, *runnable.signature.outputs))
    cost, batching = warm(runnable, example)
    if plan is not None:
        single = resize(runnable.signature, example, batch=1)
        require_second_step(plan, runnable.signature, single, runnable.run(single))
    generation = wrap_runnable(
        runnable,
        endpoint=endpoint,
        arm=arm,
        model=model,
        number=number,
        digest=digest,
        format=format,
        example=example,
        cost=cost,
        batching=batching,
        cache=cache,
        golden_requests=0 if golden is None else len(golden.requests),
        choice=choice,
        stream=plan,
    )
    if golden is not None:
        require_golden_answers(replace(generation, run=runnable.run), golden)  # not counted: nobody asked
    return generation


def wrap_runnable(
    runnable: Runnable,
    *,
    endpoint: str,
    arm: str = "",
    model: str,
    number: int,
    digest: str,
    format: str,  # our word
    example: Mapping[str, np.ndarray],
    cost: Cost,
    batching: Batching,
    headers: HeaderList = (),
    cache: ResponseCache | None = None,
    golden_requests: int = 0,
    choice: str = "",
    stream: StreamPlan | None = None,
    runs_inline: bool = True,
) -> Generation:
    """Wrap what is loaded and warm with everything a request needs; `headers` are added to those of its answers.

    With `runs_inline` quick runs are on the event loop.
    """
    signature = runnable.signature
    statistics = ModelStatistics()
    return Generation(
        endpoint=endpoint,
        arm=arm,
        model=model,
        number=number,
        digest=digest,
        format=format,
        choice=choice,
        runtime=runtime_of(runnable),
        signature=signature,
        run=statistics.timed(runnable.run),
        specs={spec.name: spec for spec in signature.inputs},
        input_names=tuple(spec.name for spec in signature.inputs),
        output_names=tuple(spec.name for spec in signature.outputs),
        text_outputs=frozenset(spec.name for spec in signature.outputs if spec.dtype == "string"),
        headers=(
            (b"noa-model", model.encode()),
            (b"noa-version", str(number).encode()),
            (b"noa-digest", digest.encode()),
            *(((b"noa-arm", arm.encode()),) if arm else ()),
            *headers,
        ),
        cost=cost,
        inline_items=_inline_items(cost) if runs_inline and pool_of(runnable) is None else 0,
        batching=batching,
        pool=pool_of(runnable),
        example={name: blank_like(array) for name, array in resize(signature, example, batch=1).items()},
        plain_inputs=_plain_inputs(signature),
        statistics=statistics,
        cache=cache,
        golden_requests=golden_requests,
        stream=stream,
    )


def _plain_inputs(signature: Signature) -> tuple[tuple[str, np.dtype, tuple[int, ...]], ...]:
    """Return name, dtype and item shape of each input if the batch axis comes first and is the only free one."""
    axis = batch_axis(signature)
    rows: list[tuple[str, np.dtype, tuple[int, ...]]] = []
    for spec in signature.inputs:
        tail = tuple(size for size in spec.shape[1:] if isinstance(size, int))
        if axis is None or spec.shape[:1] != (axis,) or len(tail) != len(spec.shape) - 1:
            return ()
        rows.append((spec.name, numpy_dtype(spec.dtype), tail))
    return tuple(rows)


def _inline_items(cost: Cost) -> int:
    if cost.estimate_s(1) >= INLINE_LIMIT_S:
        return 0
    if cost.per_item_s <= 0.0:
        return WARM_BATCH
    return max(1, int((INLINE_LIMIT_S - cost.fixed_s) / cost.per_item_s))
