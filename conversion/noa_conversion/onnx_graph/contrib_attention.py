"""Bodies of onnxruntime's attention operators, written as the products and the softmax that they are."""

from __future__ import annotations

import math

import numpy as np

from noa_conversion.onnx_graph.contrib_body import Body, Writer
from noa_conversion.onnx_graph.contrib_quantised import integer_product


def split_heads(b: Body, x: str, num_heads: int) -> str:
    """Turn `batch seq hidden` into `batch head seq dim`."""
    return b.op("Transpose", b.op("Reshape", x, b.ints(0, 0, num_heads, -1)), perm=[0, 2, 1, 3])


def merge_heads(b: Body, x: str) -> str:
    """Turn `batch head seq dim` into `batch seq hidden`."""
    return b.op("Reshape", b.op("Transpose", x, perm=[0, 2, 1, 3]), b.ints(0, 0, -1))


def weighted_values(b: Body, scores: str, values: str) -> str:
    """Weigh values by the softmax of scores."""
    return b.op("MatMul", b.op("Softmax", scores, axis=-1), values)


def size(b: Body, x: str, axis: int) -> str:
    """Return a size as a scalar."""
    return b.op("Squeeze", b.op("Shape", x, start=axis, end=axis + 1), b.ints(0))


def positions(b: Body, start: str, end: str) -> str:
    """Return the whole numbers from `start` up to `end`."""
    return b.op("Range", start, end, b.constant(1, np.int64))


def is_causal(b: Body, query: str, keys: str) -> str:
    """Return, as `seq total`, which keys come not after each query; the last query stands at the last key."""
    length, total = size(b, query, 2), size(b, keys, 2)
    rows = b.op("Unsqueeze", positions(b, b.op("Sub", total, length), total), b.ints(1))
    columns = b.op("Unsqueeze", positions(b, b.constant(0, np.int64), total), b.ints(0))
    return b.op("LessOrEqual", columns, rows)


def _penalty(b: Body, allowed: str, value: float) -> str:
    return b.op("Where", allowed, b.number(0.0), b.number(value))


def _padding(b: Body, at: int, query: str, keys: str) -> str | None:
    """Return, as `batch 1 seq total`, which keys the mask at input `at` allows."""
    mask = b.input(at)
    if mask is None:
        return None
    rank = b.rank(at)
    if rank == 1:
        lengths = b.op("Reshape", mask, b.op("Concat", b.op("Shape", query, start=0, end=1), b.ints(1, 1, 1), axis=0))
        columns = positions(b, b.constant(0, np.int64), size(b, keys, 2))
        return b.op("Less", columns, b.op("Cast", lengths, to=7))
    if rank not in (2, 3):
        b.refuse(f"a mask of {rank} axes is not implemented")
    axes = b.ints(1, 2) if rank == 2 else b.ints(1)
    return b.op("Greater", b.op("Unsqueeze", mask, axes), b.constant(0, b.dtype(at)))


def _attend(b: Body, query: str, keys: str, values: str, *, mask: int, bias: int | None, head_dim: int | None) -> str:
    """Attend with `batch head seq dim` tensors, a padding mask and a bias at these inputs."""
    scale = b.node.attributes.get("scale") or None
    if scale is None and head_dim is None:
        b.refuse("the size of its heads is not known, and so is its scale")
    factor = scale if scale is not None else 1 / math.sqrt(head_dim or 1)
    assert isinstance(factor, float)
    scores = b.op("MatMul", b.op("Mul", query, b.number(factor)), b.op("Transpose", keys, perm=[0, 1, 3, 2]))
    if (allowed := _padding(b, mask, query, keys)) is not None:
        scores = b.op("Add", scores, _penalty(b, allowed, b.attribute("mask_filter_value", -10000.0)))
    if bias is not None and (extra := b.input(bias)) is not None:
        scores = b.op("Add", scores, extra)
    if b.attribute("unidirectional", 0):
        lowest = float(np.finfo(np.float16 if b.dtype() == np.float16 else np.float32).min)
        scores = b.op("Where", is_causal(b, query, keys), scores, b.number(lowest))
    return merge_heads(b, weighted_values(b, scores, values))


def _attention(b: Body) -> tuple[str, str | None]:
    b.allow(do_rotary=0, past_present_share_buffer=0)
    b.refuse_inputs(past_sequence_length=6)
    projected = b.op("MatMul", b.needed(0), b.needed(1))
    if (bias := b.input(2)) is not None:
        projected = b.op("Add", projected, bias)
    hidden = b.type(1).shape[-1]
    return _self_attention(b, projected, hidden, mask=3, past=4, bias=5)


def _quantised_attention(b: Body) -> tuple[str, str | None]:
    product = integer_product(b, b.needed(0), b.needed(1), b.input(6), b.input(7))
    factor = b.op("Mul", b.needed(3), b.needed(4))
    projected = b.op("Add", b.op("Mul", b.op("Cast", product, to=1), factor), b.needed(2))
    return _self_attention(_Floating(b), projected, b.type(1).shape[-1], mask=5, past=8, bias=None)


class _Floating(Body):
    """A body whose constants are float32 although its first input is quantised."""

    def __init__(self, body: Body) -> None:
        self.__dict__.update(body.__dict__)

    def number(self, value: float, index: int = 0) -> str:
        """Add a constant in float32."""
        return self.constant(value, np.float32)


def _self_attention(
    b: Body, projected: str, hidden: int | None, *, mask: int, past: int, bias: int | None
) -> tuple[str, str | None]:
    num_heads = b.attribute("num_heads")
    if hidden is None:
        b.refuse("the size of its weights is a free axis")
    sizes = b.attribute("qkv_hidden_sizes", []) or [hidden // 3] * 3
    parts = b.several("Split", projected, b.ints(*sizes), outputs=3, axis=-1)
    query, keys, values = (split_heads(b, part, num_heads) for part in parts)
    present = None
    if (before := b.input(past)) is not None:
        old = [b.op("Gather", before, b.constant(index, np.int64), axis=0) for index in (0, 1)]
        keys, values = (b.op("Concat", o, new, axis=2) for o, new in zip(old, (keys, values), strict=True))
    if b.wants(1):
        present = b.op("Concat", *(b.op("Unsqueeze", x, b.ints(0)) for x in (keys, values)), axis=0)
    y = _attend(b, query, keys, values, mask=mask, bias=bias, head_dim=sizes[0] // num_heads)
    return y, present


def _multi_head_attention(b: Body) -> tuple[str, str, str]:
    b.refuse_inputs(past_sequence_length=8, cache_indirection=9)
    num_heads = b.attribute("num_heads")
    query, keys, values = _projections(b, num_heads)
    for at, name in ((6, "keys"), (7, "values")):
        if (old := b.input(at)) is not None:
            if b.rank(1) == 4:
                b.refuse("keys of a cross attention together with a past are not implemented")
            joined = b.op("Concat", old, keys if name == "keys" else values, axis=2)
            keys, values = (joined, values) if name == "keys" else (keys, joined)
    head_dim = b.type(0).shape[-1]
    if head_dim is not None and b.rank(0) == 3:
        head_dim //= num_heads
    y = _attend(b, query, keys, values, mask=4, bias=5, head_dim=head_dim)
    return y, keys, values


def _projections(b: Body, num_heads: int) -> tuple[str, str, str]:
    if b.rank(0) == 5:
        if b.input(1) is not None or b.input(3) is not None:
            b.refuse("packed queries, keys and values with a bias are not implemented")
        parts = [b.op("Gather", b.needed(0), b.constant(index, np.int64), axis=3) for index in range(3)]
        query, keys, values = (b.op("Transpose", part, perm=[0, 2, 1, 3]) for part in parts)
        return query, keys, values
    if b.input(1) is None or b.input(2) is None or b.rank(1) == 5:
        b.refuse("packed keys and values are not implemented")
    parts = [b.needed(index) for index in range(3)]
    if (bias := b.input(3)) is not None:
        if b.rank(1) == 4:
            b.refuse("keys of a cross attention together with a bias are not implemented")
        sizes = [b.size(index, -1, "a hidden size") for index in range(3)]
        biases = b.several("Split", bias, b.ints(*sizes), outputs=3, axis=0)
        parts = [b.op("Add", part, own) for part, own in zip(parts, biases, strict=True)]
    query = split_heads(b, parts[0], num_heads)
    keys, values = (
        part if b.rank(index) == 4 else split_heads(b, part, num_heads)
        for index, part in ((1, parts[1]), (2, parts[2]))
    )
    return query, keys, values


ATTENTION: dict[str, Writer] = {
    "Attention": _attention,
    "MultiHeadAttention": _multi_head_attention,
    "QAttention": _quantised_attention,
}
