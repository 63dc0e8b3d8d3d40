"""Bodies of the operators of decoders: rotary positions, and attention in which queries share keys in groups."""

from __future__ import annotations

import math

import numpy as np

from noa_conversion.onnx_graph.contrib_attention import merge_heads, positions, size, split_heads, weighted_values
from noa_conversion.onnx_graph.contrib_body import Body, Writer


def rotated(b: Body, x: str, cosine: str, sine: str, *, rotary_dim: int, head_dim: int, interleaved: bool) -> str:
    """Rotate the first `rotary_dim` channels of `batch head seq dim`; `cosine` and `sine` are `batch 1 seq dim/2`."""
    turned, rest = x, None
    if rotary_dim != head_dim:
        turned, rest = b.several("Split", x, b.ints(rotary_dim, head_dim - rotary_dim), outputs=2, axis=-1)
    if interleaved:
        pairs = b.op("Reshape", turned, b.ints(0, 0, 0, rotary_dim // 2, 2))
        first, second = (b.op("Gather", pairs, b.constant(index, np.int64), axis=-1) for index in (0, 1))
    else:
        first, second = b.several("Split", turned, b.ints(rotary_dim // 2, rotary_dim // 2), outputs=2, axis=-1)
    real = b.op("Sub", b.op("Mul", first, cosine), b.op("Mul", second, sine))
    imaginary = b.op("Add", b.op("Mul", first, sine), b.op("Mul", second, cosine))
    if interleaved:
        both = b.op("Concat", *(b.op("Unsqueeze", part, b.ints(-1)) for part in (real, imaginary)), axis=-1)
        turned = b.op("Reshape", both, b.ints(0, 0, 0, rotary_dim))
    else:
        turned = b.op("Concat", real, imaginary, axis=-1)
    return turned if rest is None else b.op("Concat", turned, rest, axis=-1)


def _rotary_embedding(b: Body) -> str:
    b.allow(scale=1.0, is_packed_batching=0)
    x, places = b.needed(0), b.needed(1)
    half = b.size(2, -1, "the size of the cosines")
    rotary_dim = b.attribute("rotary_embedding_dim", 0) or 2 * half
    is_flat = b.rank(0) == 3
    if is_flat:
        hidden = b.size(0, -1, "the hidden size")
        num_heads = b.attribute("num_heads", 0) or hidden // (2 * half)
        head_dim = hidden // num_heads
        x = split_heads(b, x, num_heads)
    else:
        head_dim = b.size(0, -1, "the size of the heads")
    if b.rank(1) == 1:
        length = size(b, x, 2)
        row = positions(b, b.constant(0, np.int64), length)
        places = b.op("Unsqueeze", b.op("Add", b.op("Cast", places, to=7), row), b.ints(0))
    cosine, sine = (b.op("Unsqueeze", b.op("Gather", b.needed(at), places), b.ints(1)) for at in (2, 3))
    y = rotated(
        b,
        x,
        cosine,
        sine,
        rotary_dim=rotary_dim,
        head_dim=head_dim,
        interleaved=bool(b.attribute("interleaved", 0)),
    )
    return merge_heads(b, y) if is_flat else y


def _group_query_attention(b: Body) -> tuple[str, str, str]:
    b.allow(smooth_softmax=0, qk_output=0, k_quant_type="NONE", v_quant_type="NONE", kv_cache_bit_width=0)
    b.refuse_inputs(head_sink=11)
    num_heads, kv_heads = b.attribute("num_heads"), b.attribute("kv_num_heads")
    query, keys, values, head_dim = _grouped_projections(b, num_heads, kv_heads)
    length = b.size(0, 1, "the sequence")
    past = b.size(3, 2, "the past") if b.input(3) is not None else 0
    known = b.type(6).array
    if known is None:
        b.refuse("the total length of the sequence is known only at run time")
    total = int(known.reshape(-1)[0])
    is_first = length == total
    start = _past_lengths(b, length, is_first=is_first)
    rows = b.op("Add", start, b.op("Unsqueeze", b.constant(list(range(length)), np.int64), b.ints(0)))
    if b.attribute("do_rotary", 0):
        query, keys = _turned(b, query, keys, rows, head_dim)
    buffer = max(past, total)
    keys = _appended(b, b.input(3), keys, start, buffer, length, past)
    values = _appended(b, b.input(4), values, start, buffer, length, past)
    groups = num_heads // kv_heads
    all_keys, all_values = (_repeated(b, x, groups, num_heads, buffer, head_dim) for x in (keys, values))
    scores = _grouped_scores(b, query, all_keys, rows, buffer, head_dim)
    return merge_heads(b, weighted_values(b, scores, all_values)), keys, values


def _grouped_projections(b: Body, num_heads: int, kv_heads: int) -> tuple[str, str, str, int]:
    hidden = b.size(0, -1, "the hidden size")
    if b.input(1) is not None:
        parts = [b.needed(index) for index in range(3)]
        head_dim = hidden // num_heads
    else:
        head_dim = hidden // (num_heads + 2 * kv_heads)
        sizes = [num_heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        parts = b.several("Split", b.needed(0), b.ints(*sizes), outputs=3, axis=-1)
    query = split_heads(b, parts[0], num_heads)
    keys, values = (split_heads(b, part, kv_heads) for part in parts[1:])
    return query, keys, values, head_dim


def _past_lengths(b: Body, length: int, *, is_first: bool) -> str:
    """Return, as `batch 1`, how many tokens came before these."""
    totals = b.op("Unsqueeze", b.op("Cast", b.op("Reshape", b.needed(5), b.ints(-1)), to=7), b.ints(1))
    if is_first:
        return b.op("Mul", totals, b.constant(0, np.int64))
    return b.op("Add", totals, b.constant(1 - length, np.int64))


def _turned(b: Body, query: str, keys: str, rows: str, head_dim: int) -> tuple[str, str]:
    half = b.size(7, -1, "the size of the cosines")
    places = b.input(9) or rows
    cosine, sine = (b.op("Unsqueeze", b.op("Gather", b.needed(at), places), b.ints(1)) for at in (7, 8))
    is_interleaved = bool(b.attribute("rotary_interleaved", 0))
    first, second = (
        rotated(b, x, cosine, sine, rotary_dim=2 * half, head_dim=head_dim, interleaved=is_interleaved)
        for x in (query, keys)
    )
    return first, second


def _appended(b: Body, old: str | None, new: str, start: str, buffer: int, length: int, past: int) -> str:
    """Return the past with the new keys or values after it, in each row of the batch at its own place; zeros behind."""
    if past == 0 and buffer == length:
        return new
    columns = b.constant([list(range(buffer))], np.int64)
    place = b.op("Sub", columns, start)
    is_new = b.op(
        "And", b.op("GreaterOrEqual", place, b.constant(0, np.int64)), b.op("Less", place, b.constant(length, np.int64))
    )
    inside = b.op("Clip", place, b.constant(0, np.int64), b.constant(length - 1, np.int64))
    taken = _taken(b, new, inside)
    if old is None or past == 0:
        older = b.op("Mul", taken, b.number(0.0))
    else:
        pad = b.ints(0, 0, 0, 0, 0, 0, buffer - past, 0)
        older = b.op("Pad", old, pad, b.number(0.0)) if buffer != past else old
        is_old = _wide(b, b.op("Less", place, b.constant(0, np.int64)))
        older = b.op("Where", is_old, older, b.number(0.0))
    return b.op("Where", _wide(b, is_new), taken, older)


def _taken(b: Body, x: str, place: str) -> str:
    """Take, from `batch head seq dim`, the place in the sequence that each row of `batch total` names."""
    shape = b.op(
        "Concat", b.op("Shape", x, start=0, end=2), b.op("Shape", place, start=1), b.op("Shape", x, start=3), axis=0
    )
    return b.op("GatherElements", x, b.op("Expand", _wide(b, place), shape), axis=2)


def _wide(b: Body, x: str) -> str:
    """Turn `batch total` into `batch 1 total 1`."""
    return b.op("Unsqueeze", x, b.ints(1, 3))


def _repeated(b: Body, x: str, groups: int, num_heads: int, buffer: int, head_dim: int) -> str:
    if groups == 1:
        return x
    batch = b.op("Shape", x, start=0, end=1)
    shape = b.op("Concat", batch, b.ints(num_heads // groups, groups, buffer, head_dim), axis=0)
    copies = b.op("Expand", b.op("Unsqueeze", x, b.ints(2)), shape)
    return b.op("Reshape", copies, b.ints(0, num_heads, buffer, head_dim))


def _grouped_scores(b: Body, query: str, keys: str, rows: str, buffer: int, head_dim: int) -> str:
    scale = b.attribute("scale", 0.0) or 1 / math.sqrt(head_dim)
    scores = b.op("MatMul", b.op("Mul", query, b.number(scale)), b.op("Transpose", keys, perm=[0, 1, 3, 2]))
    if cap := b.attribute("softcap", 0.0):
        scores = b.op("Mul", b.op("Tanh", b.op("Div", scores, b.number(cap))), b.number(cap))
    if (bias := b.input(10)) is not None:
        scores = b.op("Add", scores, bias)
    columns = b.constant(list(range(buffer)), np.int64)
    last = b.op("Unsqueeze", rows, b.ints(1, 3))
    allowed = b.op("LessOrEqual", columns, last)
    if (window := b.attribute("local_window_size", -1)) >= 0:
        allowed = b.op("And", allowed, b.op("Greater", columns, b.op("Sub", last, b.constant(window, np.int64))))
    return b.op(
        "Where", allowed, scores, b.number(float(np.finfo(np.float16 if b.dtype() == np.float16 else np.float32).min))
    )


GROUPED: dict[str, Writer] = {
    "GroupQueryAttention": _group_query_attention,
    "RotaryEmbedding": _rotary_embedding,
}
