"""Attention in all its variants, linear attention with state, rotary positions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from noa_conversion.importers.jax.dtypes import element_type, held_as
from noa_conversion.importers.jax.handlers import Tensor, register
from noa_conversion.importers.jax.indexing import check_range, take_from_front
from noa_conversion.importers.jax.sizes import Size, is_plain
from noa_conversion.importers.jax.softmaxes import softmax

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op

_RAW, _CAPPED, _BIASED, _PROBABILITIES = range(4)


@register("Attention", tensors=True)
def attention(
    op: Op,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor | tuple[Tensor | None, ...]:
    """Weigh values by the softmax of scaled products of queries and keys.

    Source: the schema and reference of onnx 1.23. A query that may see no key gives zeros.
    """
    if (past_key is None) != (past_value is None) or (lengths is not None and past_key is not None):
        op.refuse("the past keys and values come together, and without lengths")
    is_flat = query.ndim == 3
    q, k, v = _heads(op, query, "q_num_heads"), _heads(op, key, "kv_num_heads"), _heads(op, value, "kv_num_heads")
    offset: Any = 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        k, v = jnp.concatenate([past_key, k], axis=2), jnp.concatenate([past_value, v], axis=2)
    elif lengths is not None:
        offset = (lengths.reshape(-1, 1, 1, 1) - q.shape[2]).astype(jnp.int32)
    raw = _products(op, q, k)
    cap = op.attribute("softcap", 0.0)
    capped = cap * jnp.tanh(raw / cap) if cap else raw
    allowed, bias = _mask(op, mask, q.shape[2], k.shape[2], offset, lengths, q.dtype)
    scores = _biased(capped, allowed, bias)
    probabilities = _softmax(op, scores, _sees_nothing(allowed, bias)).astype(q.dtype)
    output = _weighted(probabilities, v)
    if is_flat:
        output = jnp.swapaxes(output, 1, 2).reshape(query.shape[0], query.shape[1], -1)
    if op.num_outputs == 1:
        return output
    return output, k, v, _shown(op, (raw, capped, scores, probabilities)).astype(q.dtype)


def _heads(op: Op, x: Tensor, count: str) -> Tensor:
    """Return (batch, heads, seq, size) of a tensor that may hold its heads side by side."""
    if x.ndim == 4:
        return x
    heads = op.attribute(count)
    batch, seq, hidden = x.shape
    return jnp.swapaxes(x.reshape(batch, seq, heads, hidden // heads), 1, 2)


def _products(op: Op, q: Tensor, k: Tensor) -> Tensor:
    """Multiply queries and keys, a group of query heads sharing one key head."""
    scale = op.attribute("scale", 0.0) or 1 / math.sqrt(q.shape[-1])
    if q.dtype.itemsize >= 4:
        q = q * scale
    else:  # half floats overflow unless both sides are scaled
        q, k = q * jnp.asarray(math.sqrt(scale), q.dtype), k * jnp.asarray(math.sqrt(scale), k.dtype)
    batch, heads, seq, size = q.shape
    shared = k.shape[1]
    if heads == shared:
        return jnp.einsum("bhqd,bhkd->bhqk", q, k)
    if heads % shared:
        op.refuse(f"{heads} query heads cannot share {shared} key heads")
    grouped = q.reshape(batch, shared, heads // shared, seq, size)
    return jnp.einsum("bhgqd,bhkd->bhgqk", grouped, k).reshape(batch, heads, seq, k.shape[2])


def _weighted(probabilities: Tensor, v: Tensor) -> Tensor:
    batch, heads, seq, keys = probabilities.shape
    shared = v.shape[1]
    if heads == shared:
        return jnp.einsum("bhqk,bhkd->bhqd", probabilities, v)
    grouped = probabilities.reshape(batch, shared, heads // shared, seq, keys)
    return jnp.einsum("bhgqk,bhkd->bhgqd", grouped, v).reshape(batch, heads, seq, v.shape[-1])


def _mask(
    op: Op, mask: Tensor | None, queries: Size, keys: Size, offset: Any, lengths: Tensor | None, dtype: Any
) -> tuple[Tensor | None, Tensor | None]:
    """Return which keys are allowed and what is added to the scores, both broadcastable and both optional."""
    allowed, bias = None, None
    if mask is not None:
        missing = keys - mask.shape[-1]
        if not (is_plain(missing) and missing == 0):
            fill = np.False_ if mask.dtype == np.bool_ else np.asarray(-np.inf, mask.dtype)[()]
            mask = lax.pad(mask, fill, [(0, 0, 0)] * (mask.ndim - 1) + [(0, missing, 0)])
        allowed, bias = (mask, None) if mask.dtype == np.bool_ else (None, mask.astype(dtype))
    at = lax.broadcasted_iota(jnp.int32, (queries, keys), 0) + offset
    key = lax.broadcasted_iota(jnp.int32, (queries, keys), 1)
    left, right = op.attribute("left_window_size", -1), op.attribute("right_window_size", -1)
    rules: list[Tensor] = []
    if op.attribute("is_causal", 0):
        rules.append(key <= at)
    if left >= 0:
        rules.append(key >= at - left)
    if right >= 0:
        rules.append(key <= at + right)
    if lengths is not None:
        rules.append(key < lengths.reshape(-1, 1, 1, 1))
    for rule in rules:
        allowed = rule if allowed is None else allowed & rule
    return allowed, bias


def _biased(scores: Tensor, allowed: Tensor | None, bias: Tensor | None) -> Tensor:
    scores = scores if bias is None else scores + bias
    return scores if allowed is None else jnp.where(allowed, scores, -jnp.inf)


def _sees_nothing(allowed: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if allowed is None and bias is None:
        return None
    seen = True if bias is None else bias != -jnp.inf
    return ~jnp.any(seen if allowed is None else seen & allowed, axis=-1, keepdims=True)


def _softmax(op: Op, scores: Tensor, nothing: Tensor | None) -> Tensor:
    if op.has("softmax_precision"):
        scores = scores.astype(held_as(element_type(op, op.attribute("softmax_precision"))))
    if nothing is None:
        return softmax(scores, -1)
    # Zeroed before and after: the gradient of a softmax over nothing but minus infinity is not a number.
    return jnp.where(nothing, 0, softmax(jnp.where(nothing, 0, scores), -1))


def _shown(op: Op, stages: tuple[Tensor, ...]) -> Tensor:
    """Return what `qk_matmul_output_mode` asks for; 0: the bare products, as in onnxruntime."""
    mode = op.attribute("qk_matmul_output_mode", _RAW)
    if mode not in range(4):
        op.refuse(f"`qk_matmul_output_mode` is {mode}")
    return stages[mode]


@register("FlexAttention", domain="ai.onnx.preview", tensors=True)
def flex_attention(op: Op, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with graphs that change the scores and the probabilities."""
    if op.has("softmax_precision"):
        wide: Any = held_as(element_type(op, op.attribute("softmax_precision")))
    else:
        wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = _products(op, q, k).astype(wide)
    if op.has("score_mod"):
        scores = op.tensor(op.run(op.attribute("score_mod"), [scores])[0])
    probabilities = softmax(scores, -1)
    if op.has("prob_mod"):
        probabilities = op.tensor(op.run(op.attribute("prob_mod"), [probabilities])[0])
    return _weighted(probabilities, v.astype(wide)).astype(v.dtype)


@register("RotaryEmbedding")
def rotary_embedding(op: Op, data: Any, cosines: Any, sines: Any, positions: Any = None) -> Tensor:
    """Rotate pairs of channels by an angle that grows with position."""
    x, cosine, sine = op.tensor(data), op.tensor(cosines), op.tensor(sines)
    shape = x.shape
    if x.ndim == 4:
        x = jnp.swapaxes(x, 1, 2)
    else:
        heads = op.attribute("num_heads")
        x = x.reshape(shape[0], shape[1], heads, shape[2] // heads)
    turned = op.attribute("rotary_embedding_dim", 0) or x.shape[-1]
    if positions is not None:
        check_range(op, positions, cosine.shape[0])
        cosine, sine = (take_from_front(cache, op.tensor(positions), 0) for cache in (cosine, sine))
    cosine, sine = jnp.expand_dims(cosine, 2), jnp.expand_dims(sine, 2)
    part, rest = x[..., :turned], x[..., turned:]
    interleaved = bool(op.attribute("interleaved", 0))
    first, second = (part[..., 0::2], part[..., 1::2]) if interleaved else jnp.split(part, 2, axis=-1)
    real, imaginary = cosine * first - sine * second, sine * first + cosine * second
    if interleaved:
        part = jnp.stack([real, imaginary], axis=-1).reshape(part.shape)
    else:
        part = jnp.concatenate([real, imaginary], axis=-1)
    result = jnp.concatenate([part, rest], axis=-1)
    return jnp.swapaxes(result, 1, 2) if len(shape) == 4 else result.reshape(shape)


@register("LinearAttention", tensors=True)
def linear_attention(
    op: Op,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend through a state of key times value that is decayed, corrected and written once per step."""
    rule = op.attribute("update_rule", "gated_delta")
    if rule not in ("linear", "gated", "delta", "gated_delta"):
        op.refuse(f"`update_rule` is {rule!r}")
    if (decay is not None) != rule.startswith("gated") or (beta is not None) != rule.endswith("delta"):
        op.refuse(f"`decay` and `beta` do not fit the rule {rule!r}")
    heads, shared = op.attribute("q_num_heads"), op.attribute("kv_num_heads")
    batch, seq, _ = query.shape
    q, k, v = (
        jnp.moveaxis(x.reshape(batch, seq, count, -1), 1, 0).astype(jnp.float32)
        for x, count in ((query, heads), (key, shared), (value, shared))
    )
    keys, values = k.shape[-1], v.shape[-1]
    scale = op.attribute("scale", 0.0) or 1 / math.sqrt(keys)
    inputs: dict[str, Tensor] = {"q": q, "k": k, "v": v}
    if decay is not None:
        inputs["decay"] = jnp.moveaxis(decay.reshape(batch, seq, shared, -1), 1, 0).astype(jnp.float32)
    if beta is not None:
        inputs["beta"] = jnp.moveaxis(beta.reshape(batch, seq, -1, 1), 1, 0).astype(jnp.float32)

    def step(state: Tensor, at: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        written = at["v"]
        if "decay" in at:
            state = state * jnp.exp(at["decay"])[..., None]
        if "beta" in at:
            written = at["beta"] * (written - jnp.einsum("bhdm,bhd->bhm", state, at["k"]))
        state = state + at["k"][..., :, None] * written[..., None, :]
        grouped = at["q"].reshape(batch, shared, heads // shared, keys)
        return state, scale * jnp.einsum("bhgd,bhdm->bhgm", grouped, state)

    start = jnp.zeros((batch, shared, keys, values), jnp.float32) if past is None else past.astype(jnp.float32)
    state, read = lax.scan(step, start, inputs)
    output = jnp.moveaxis(read, 0, 1).reshape(batch, seq, heads * values).astype(query.dtype)
    return output, state.astype(query.dtype if past is None else past.dtype)
