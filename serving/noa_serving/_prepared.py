"""A request that was understood: checked inputs, the generation that will compute it, and how its outputs are
written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from noa.errors import InvalidInputError
from noa_serving._http import RequestRefusedError, log

if TYPE_CHECKING:
    import numpy as np

    from noa_serving._attempt import Attempt
    from noa_serving._generation import Generation
    from noa_serving._http import Response
    from noa_serving._metrics import RouteMetrics
    from noa_serving._stages import Passage


class Prepared(NamedTuple):  # made for every request, and far quicker than a frozen dataclass
    """One unit of compute. `encode` turns all outputs of the model into the answer.

    `timeout_s` is how long the request itself is ready to wait, if it says so in its body. `passage` is told when the
    model ran. `attempt` is there on endpoints with arms: another version may answer in place of `generation`.
    """

    generation: Generation
    inputs: Mapping[str, np.ndarray]
    batch: int
    encode: Callable[[Mapping[str, np.ndarray]], Response]
    timeout_s: float | None = None
    passage: Passage | None = None
    attempt: Attempt | None = None

    def answering(self) -> Prepared:
        """Return this request as the version that computes it now understood it: itself, or the fallback's."""
        return self if self.attempt is None else self.attempt.prepared

    def counted_in(self, metrics: RouteMetrics) -> RouteMetrics:
        """Return where the answer is counted: `metrics`, or those of the arm that answers."""
        return metrics if self.attempt is None else self.attempt.metrics


def compute(prepared: Prepared) -> Mapping[str, np.ndarray]:
    """Run the model.

    Raises:
        RequestRefusedError: 400, the format's library refused these values, e.g. an index out of range. What it said
        may hold
            paths and goes to the log only.
    """
    try:
        return prepared.generation.compute(prepared.inputs, prepared.batch)
    except InvalidInputError as exc:
        log.warning("%s refused an input that fits its signature: %s", prepared.generation.reference, exc)
        raise RequestRefusedError(
            "the model cannot compute these values, though they fit its signature",
            status=400,
            remedy="Check the ranges, e.g. of indices",
        ) from exc


def check_inputs(generation: Generation, inputs: Mapping[str, np.ndarray], *, max_batch_items: int) -> int:
    """Check `inputs` against the signature and return the batch size.

    Raises:
        SignatureError: an input is missing, unknown, or has another dtype or shape.
        RequestRefusedError: 413, the batch is larger than the server accepts.
    """
    batch = generation.check(inputs)
    if batch > max_batch_items:
        raise too_many_items(batch, max_batch_items)
    for name, array in inputs.items():
        if array.size == 0:
            raise InvalidInputError(f"input `{name}` is empty", expected="at least one item", received=str(array.shape))
    return batch


def too_many_items(received: int, limit: int) -> RequestRefusedError:
    """Return the refusal of a batch beyond `serving.max_batch_items`."""
    return RequestRefusedError(
        "the batch has too many items",
        status=413,
        expected=f"at most {limit} items in one request",
        received=received,
        remedy="Send several smaller requests",
    )


def choose_outputs(generation: Generation, names: list[str]) -> tuple[str, ...]:
    """Return the outputs to send, in the order asked for.

    Raises:
        InvalidInputError: a name is unknown or stands twice.
    """
    known = generation.output_names
    for index, name in enumerate(names):
        if name not in known:
            expected = ", ".join(f"`{one}`" for one in known)
            raise InvalidInputError(f"output `{name[:80]}` is not known", expected=expected, received=f"`{name[:80]}`")
        if name in names[:index]:
            raise InvalidInputError(f"output `{name}` is asked for twice", expected="each output once")
    return tuple(names) or known
