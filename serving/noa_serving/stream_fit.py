"""Whether the streams that settings describe fit a model, from its signature and from what it gives for its example.

What can never work is refused by the key of the setting and the name of the tensor: names that the model has not, other
dtypes, ranks and sizes, an axis that grows and is not free, inputs that would not share a free axis any more. The size
of an output's free axis that no input has is known only when the output is there; `require_second_step` looks at that
once, when the version is loaded, and every step looks again.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from noa.errors import SignatureError
from noa.settings import parse_feed
from noa.signatures import is_float, numpy_dtype
from noa_serving._http import RequestRefusedError
from noa_serving._stream_plan import FedInput, Stop, StreamPlan
from noa_serving._warm_up import batch_axis

if TYPE_CHECKING:
    from noa.settings import Feed, StopSettings, StreamSettings
    from noa.signatures import Axis, Signature, TensorSpec

_ANY = "*"
_STAYS = "stays as it is"

_Specs = Mapping[str, "TensorSpec"]


def fit_stream(settings: StreamSettings, signature: Signature) -> StreamPlan:
    """Return how streams of a model run.

    Raises:
        SignatureError: the settings do not fit its signature; names the key and the tensor.
    """
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}
    feeds = tuple(_fed_inputs(settings.feeds, inputs, outputs))
    _check_shared_axes(feeds, signature, outputs)
    zeros = _zeros(settings.initial_zeros, inputs, {feed.name for feed in feeds})
    for name in settings.emits:
        _require("emits", name, outputs, "output")
    stop = _stop(settings.stop, outputs, batch_axis(signature))
    return StreamPlan(
        feeds=feeds,
        zeros=zeros,
        emits=settings.emits or _default_emits(feeds, signature, stop),
        stop=stop,
        max_steps=settings.max_steps,
        max_bytes=settings.max_bytes,
        batch_axis=batch_axis(signature),
    )


def require_second_step(
    plan: StreamPlan, signature: Signature, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> None:
    """Check that what a model gave for `inputs` can be fed back.

    Raises:
        SignatureError: it cannot; says why.
    """
    batch = signature.validate(inputs)
    try:
        after = signature.validate(plan.advance(inputs, outputs))
    except (SignatureError, RequestRefusedError) as exc:
        raise _misfit(
            "feeds", f"does not fit what the model gives for its example: {exc.what}", exc.expected, exc.received
        ) from exc
    if after != batch:
        raise _misfit("feeds", "changes how many items the batch of the example has", batch, after)


def _fed_inputs(feeds: Mapping[str, str], inputs: _Specs, outputs: _Specs) -> Iterator[FedInput]:
    taken: set[str] = set()
    for pattern, text in feeds.items():
        feed = parse_feed(text)
        for name, output in _expanded(pattern, feed.output, inputs):
            if name in taken:
                raise _misfit("feeds", f"names input `{name}` twice", "each input once")
            taken.add(name)
            _require("feeds", output, outputs, "output")
            yield _fed_input(inputs[name], outputs[output], feed)


def _expanded(pattern: str, output: str, inputs: _Specs) -> list[tuple[str, str]]:
    """Return the inputs that a key of `feeds` names, each with its output."""
    matching = _matching(pattern, inputs)
    if not matching:
        _require("feeds", pattern, inputs, "input")
    return [(name, output.replace(_ANY, middle)) for name, middle in matching.items()]


def _matching(pattern: str, names: Collection[str]) -> dict[str, str]:
    """Return the names that a pattern fits, each with what stands in place of its `*`; a name itself fits as well."""
    before, star, behind = pattern.partition(_ANY)
    if not star:
        return {pattern: ""} if pattern in names else {}
    least = len(before) + len(behind)
    return {
        name: name[len(before) : len(name) - len(behind)]
        for name in names
        if len(name) > least and name.startswith(before) and name.endswith(behind)
    }


def _fed_input(spec: TensorSpec, output: TensorSpec, feed: Feed) -> FedInput:
    if spec.dtype != output.dtype:
        raise _unfit(spec, output, spec.dtype, output.dtype)
    if not feed.appends:
        _check_axes(spec, output, spec.shape, output.shape)
        return FedInput(spec.name, output.name, None, False)
    axis = _growing_axis(spec, feed)
    is_item = len(output.shape) == len(spec.shape) - 1
    others = (*spec.shape[:axis], *spec.shape[axis + 1 :])
    given = output.shape if is_item else (*output.shape[:axis], *output.shape[axis + 1 :])
    _check_axes(spec, output, others, given)
    return FedInput(spec.name, output.name, axis, is_item)


def _growing_axis(spec: TensorSpec, feed: Feed) -> int:
    """Return the axis along which an input grows: the one that is named, else its only free axis behind the first."""
    if feed.axis is None:
        free = [place for place, axis in enumerate(spec.shape) if isinstance(axis, str) and place]
        if len(free) == 1:
            return free[0]
        expected = f"`append({feed.output}, axis)` with one of the free axes of {spec.describe()}"
        raise _misfit("feeds", f"does not say along which axis input `{spec.name}` grows", expected)
    if feed.axis >= len(spec.shape) or not isinstance(spec.shape[feed.axis], str):
        what = f"lets input `{spec.name}` grow along an axis that is not free"
        raise _misfit("feeds", what, f"a free axis of {spec.describe()}", f"axis {feed.axis}")
    return feed.axis


def _check_axes(spec: TensorSpec, output: TensorSpec, mine: Sequence[Axis], theirs: Sequence[Axis]) -> None:
    """Refuse axes that never fit each other.

    Raises:
        SignatureError: their number differs, or sizes that are fixed do.
    """
    is_open = (isinstance(one, str) or isinstance(other, str) for one, other in zip(mine, theirs, strict=False))
    same = (one == other for one, other in zip(mine, theirs, strict=False))
    if len(mine) != len(theirs) or not all(a or b for a, b in zip(is_open, same, strict=True)):
        raise _unfit(spec, output, spec.describe(), output.describe())


def _check_shared_axes(feeds: Sequence[FedInput], signature: Signature, outputs: _Specs) -> None:
    """Refuse inputs that share a free axis, and would not after a step."""
    by_name = {feed.name: feed for feed in feeds}
    known = {axis for spec in signature.inputs for axis in spec.shape if isinstance(axis, str)}
    after: dict[str, tuple[str, str]] = {}
    for spec in signature.inputs:
        for place, axis in enumerate(spec.shape):
            size = _size_after(by_name.get(spec.name), place, axis, outputs, known) if isinstance(axis, str) else None
            if size is None or isinstance(axis, int):
                continue
            other, first = after.setdefault(axis, (spec.name, size))
            if first != size:
                what = f"parts inputs `{other}` and `{spec.name}`, which share the axis `{axis}`"
                raise _misfit("feeds", what, "the same for both", f"`{other}` {first}, `{spec.name}` {size}")


def _size_after(feed: FedInput | None, place: int, axis: str, outputs: _Specs, known: Collection[str]) -> str | None:
    """Return in words what becomes of an axis in a step; None where that is known only when the output is there."""
    if feed is None:
        return _STAYS
    shape = outputs[feed.output].shape
    is_behind = feed.is_item and feed.axis is not None and place > feed.axis
    grows = feed.axis == place
    size = 1 if grows and feed.is_item else shape[place - is_behind]
    if size == axis and not grows:
        return _STAYS
    if isinstance(size, str) and size not in known:
        return None
    return f"grows by {size}" if grows else f"becomes {size}"


def _zeros(patterns: Sequence[str], inputs: _Specs, fed: Collection[str]) -> tuple[TensorSpec, ...]:
    found: dict[str, TensorSpec] = {}
    for pattern in patterns:
        matching = _matching(pattern, inputs)
        if not matching:
            _require("initial_zeros", pattern, inputs, "input")
        for name in matching:
            if name not in fed:
                known = ", ".join(f"`{one}`" for one in inputs if one in fed)
                raise _misfit("initial_zeros", f"names input `{name}`, which is not fed back", known, f"`{name}`")
            found[name] = inputs[name]
    if len(found) == len(inputs):
        raise _misfit("initial_zeros", "names all inputs, so that a request could say nothing", "not all of them")
    return tuple(found.values())


def _default_emits(feeds: Sequence[FedInput], signature: Signature, stop: Stop | None) -> tuple[str, ...]:
    """Return all outputs but those that merely take the place of an input, as a cache does."""
    hidden = {feed.output for feed in feeds if feed.axis is None} - ({stop.output} if stop is not None else set[str]())
    found = tuple(spec.name for spec in signature.outputs if spec.name not in hidden)
    if not found:
        known = ", ".join(f"`{spec.name}`" for spec in signature.outputs)
        raise _misfit("emits", "is not set, and every output merely takes the place of an input", f"some of {known}")
    return found


def _stop(settings: StopSettings, outputs: _Specs, batch: str | None) -> Stop | None:
    if not settings.output:
        return None
    _require("stop.output", settings.output, outputs, "output")
    spec = outputs[settings.output]
    if not settings.values and spec.dtype != "bool":
        what = f"has no `equals`, and output `{spec.name}` is not of booleans"
        raise _misfit("stop", what, f"a value of {spec.dtype}", "nothing")
    typed: list[object] = []
    for value in settings.values:
        if not _is_value_of(spec.dtype, value):
            raise _misfit("stop.equals", f"is no value of output `{spec.name}`", spec.dtype, repr(value))
        typed.append(value if spec.dtype == "string" else numpy_dtype(spec.dtype).type(value))
    return Stop(spec.name, tuple(typed), batch is not None and spec.shape[:1] == (batch,))


def _is_value_of(dtype: str, value: bool | float | str) -> bool:
    """Tell whether a value of the settings may stand in a tensor of this dtype."""
    if dtype == "string" or isinstance(value, str):
        return dtype == "string" and isinstance(value, str)
    if dtype == "bool" or isinstance(value, bool):
        return dtype == "bool" and isinstance(value, bool)
    if is_float(dtype):
        return True
    limits = np.iinfo(dtype)
    return isinstance(value, int) and int(limits.min) <= value <= int(limits.max)


def _require(key: str, name: str, known: _Specs, kind: str) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=1)
    raise SignatureError(
        f"`stream.{key}` names {kind} `{name}`, which the model does not have",
        expected=", ".join(f"`{one}`" for one in known),
        received=f"`{name}`",
        remedy=f"Did you mean `{close[0]}`?" if close else None,
        field=f"stream.{key}",
    )


def _unfit(spec: TensorSpec, output: TensorSpec, expected: str, received: str) -> SignatureError:
    what = f"puts output `{output.name}` into input `{spec.name}`, where it does not fit"
    return _misfit("feeds", what, expected, received)


def _misfit(key: str, what: str, expected: object, received: object = None) -> SignatureError:
    return SignatureError(f"`stream.{key}` {what}", expected=expected, received=received, field=f"stream.{key}")
