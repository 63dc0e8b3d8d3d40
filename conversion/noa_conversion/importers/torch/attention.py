"""Attention: PyTorch's fused operator where nothing of its inside is asked for, else written out."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Size
from noa_conversion.importers.torch.casting import named_dtype
from noa_conversion.importers.torch.dtypes import torch_dtype_of
from noa_conversion.importers.torch.operands import is_static
from noa_conversion.importers.torch.table import register
from noa_conversion.onnx_graph.model import OnnxGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heads:
    """Queries, keys and values as (batch, head, position, channel), the past joined to keys and values."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    past: Size
    lengths: torch.Tensor | None
    """How many keys of each sample are real."""


@register("Attention", tensors=True)
def attention(
    op: Op,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    past_key: torch.Tensor | None = None,
    past_value: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """Scaled dot products with masks, grouped heads, a cache of keys and values, a soft cap and windows."""
    is_flat = q.ndim == 3
    heads = _heads(op, q, k, v, past_key, past_value, lengths)
    is_inside_wanted = op.wants(3) or op.attribute("softcap", 0.0) != 0.0
    if is_inside_wanted or _softmax_type(op, q) not in (q.dtype, torch.float32):
        y, inside = _written_out(op, heads, mask)
    else:
        y, inside = _fused(op, heads, mask), heads.q
    if is_flat:
        y = y.transpose(1, 2).flatten(2)
    return y, heads.k, heads.v, inside


def _heads(
    op: Op,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_key: torch.Tensor | None,
    past_value: torch.Tensor | None,
    lengths: torch.Tensor | None,
) -> _Heads:
    if (past_key is None) != (past_value is None):
        op.refuse("it has one of `past_key` and `past_value` without the other")
    if lengths is not None and past_key is not None:
        op.refuse("`nonpad_kv_seqlen` cannot go with `past_key`")
    if q.ndim == 3:
        q_heads, kv_heads = op.attribute("q_num_heads"), op.attribute("kv_num_heads")
        q, k, v = (_split_heads(x, n) for x, n in ((q, q_heads), (k, kv_heads), (v, kv_heads)))
    past: Size = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    return _Heads(q=q, k=k, v=v, past=past, lengths=None if lengths is None else lengths.reshape(-1).to(torch.int64))


def _split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def _softmax_type(op: Op, q: torch.Tensor) -> torch.dtype | None:
    return (
        torch_dtype_of(named_dtype(op, op.attribute("softmax_precision"))) if op.has("softmax_precision") else q.dtype
    )


def _scale(op: Op, heads: _Heads) -> float | None:
    given = op.attribute("scale", None)
    return None if given is None or (op.version < 25 and given == 0.0) else given


def _allowed(op: Op, heads: _Heads) -> torch.Tensor | None:
    """Return which keys each query may see, by order, window and length; None if all."""
    left, right = op.attribute("left_window_size", -1), op.attribute("right_window_size", -1)
    is_causal = bool(op.attribute("is_causal", 0))
    keys = torch.arange(heads.k.shape[2])
    allowed: torch.Tensor | None = None
    if is_causal or left >= 0 or right >= 0:
        queries = torch.arange(heads.q.shape[2]).unsqueeze(1)
        if heads.lengths is not None:
            queries = queries + (heads.lengths - heads.q.shape[2]).reshape(-1, 1, 1, 1)
        elif not isinstance(heads.past, int) or heads.past:
            queries = queries + heads.past
        distance = queries - keys
        rules = [distance >= 0] if is_causal else []
        rules += [distance <= left] if left >= 0 else []
        rules += [distance >= -right] if right >= 0 else []
        allowed = functools.reduce(torch.logical_and, rules)
    if heads.lengths is not None:
        is_real = keys < heads.lengths.reshape(-1, 1, 1, 1)
        allowed = is_real if allowed is None else allowed & is_real
    return allowed


def _bias(op: Op, heads: _Heads, mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return what is added to the products, or a tensor of truth values if all of it is choice."""
    allowed = _allowed(op, heads)
    if mask is not None:
        missing = heads.k.shape[2] - mask.shape[-1]
        if not is_static(missing) or missing:
            is_choice = mask.dtype == torch.bool
            wide = mask.to(torch.uint8) if is_choice else mask
            mask = functional.pad(wide, (0, missing), value=0 if is_choice else -math.inf).to(mask.dtype)
    if mask is None or allowed is None:
        return mask if allowed is None else allowed
    if mask.dtype == torch.bool:
        return mask & allowed
    return torch.where(allowed, mask, torch.full_like(mask, -math.inf))


def _repeats(heads: _Heads) -> int:
    return heads.q.shape[1] // heads.k.shape[1]


def _fused(op: Op, heads: _Heads, mask: torch.Tensor | None) -> torch.Tensor:
    is_plain = mask is None and heads.lengths is None and isinstance(heads.past, int) and heads.past == 0
    is_plain = is_plain and op.attribute("left_window_size", -1) < 0 and op.attribute("right_window_size", -1) < 0
    is_causal = is_plain and bool(op.attribute("is_causal", 0))
    bias = None if is_causal else _bias(op, heads, mask)
    if bias is not None and bias.ndim < 4:
        bias = bias.reshape([1] * (4 - bias.ndim) + list(bias.shape))
    return functional.scaled_dot_product_attention(
        heads.q,
        heads.k,
        heads.v,
        bias,
        is_causal=is_causal,
        scale=_scale(op, heads),
        enable_gqa=_repeats(heads) != 1,
    )


def _written_out(op: Op, heads: _Heads, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the result and what `qk_matmul_output_mode` asks for."""
    mode, cap = op.attribute("qk_matmul_output_mode", 0), op.attribute("softcap", 0.0)
    given = _scale(op, heads)
    factor = math.sqrt(1 / math.sqrt(heads.q.shape[3]) if given is None else given)
    k, v = heads.k, heads.v
    if _repeats(heads) != 1:
        k, v = (x.repeat_interleave(_repeats(heads), 1) for x in (k, v))
    stages = [torch.matmul(heads.q * factor, (k * factor).transpose(2, 3))]
    stages.append(torch.tanh(stages[0] / cap) * cap if cap else stages[0])
    bias = _bias(op, heads, mask)
    added: torch.Tensor | None = None
    if bias is not None:
        dtype = stages[0].dtype
        zero = torch.zeros((), dtype=dtype)
        added = torch.where(bias, zero, -math.inf) if bias.dtype == torch.bool else bias.to(dtype)
    stages.append(stages[1] if added is None else stages[1] + added)
    softmax_type = _softmax_type(op, heads.q)
    weights = torch.softmax(stages[2], -1, dtype=softmax_type)
    if added is not None:
        is_empty = torch.isneginf(added.amax(-1, keepdim=True))
        weights = torch.where(is_empty, torch.zeros_like(weights), weights)
    stages.append(weights.to(heads.q.dtype))
    if mode not in range(4):
        op.refuse(f"the `qk_matmul_output_mode` {mode} is unknown")
    return torch.matmul(stages[3], v), stages[mode]


@register("FlexAttention", domain="ai.onnx.preview", tensors=True)
def flex_attention(op: Op, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention whose scores and probabilities go through graphs of the file."""
    heads = _Heads(q=q, k=k, v=v, past=0, lengths=None)
    given = op.attribute("scale", None)
    factor = math.sqrt(1 / math.sqrt(q.shape[3]) if given is None else given)
    if _repeats(heads) != 1:
        k, v = (x.repeat_interleave(_repeats(heads), 1) for x in (k, v))
    scores = torch.matmul(q * factor, (k * factor).transpose(2, 3))
    wide = _softmax_type(op, q) if op.has("softmax_precision") else torch.promote_types(q.dtype, torch.float32)
    assert wide is not None
    scores = _through(op, "score_mod", scores.to(wide)).to(wide)
    weights = _through(op, "prob_mod", torch.softmax(scores, -1)).to(wide)
    return torch.matmul(weights, v.to(wide)).to(v.dtype)


def _through(op: Op, name: str, x: torch.Tensor) -> torch.Tensor:
    if not op.has(name):
        return x
    graph: OnnxGraph = op.attribute(name)
    return op.tensor(op.run(graph, [x])[0])


@register("RotaryEmbedding", tensors=True)
def rotary_embedding(
    op: Op, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """Rotate pairs of channels by an angle that grows with position."""
    is_flat = x.ndim == 3
    heads = x.reshape(x.shape[0], x.shape[1], op.attribute("num_heads"), -1) if is_flat else x.transpose(1, 2)
    width = op.attribute("rotary_embedding_dim", 0) or heads.shape[3]
    if positions is not None:
        cos, sin = functional.embedding(positions, cos), functional.embedding(positions, sin)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    turned, rest = heads[..., :width], heads[..., width:]
    if op.attribute("interleaved", 0):
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned.chunk(2, -1)
    parts = [cos * a - sin * b, sin * a + cos * b]
    turned = torch.stack(parts, -1).flatten(3) if op.attribute("interleaved", 0) else torch.cat(parts, -1)
    result = torch.cat([turned, rest], -1) if width != heads.shape[3] else turned
    return result.reshape(x.shape) if is_flat else result.transpose(1, 2)


@register("SwiGLU", tensors=True)
def swiglu(op: Op, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A gate times a value."""
    if list(a.shape) != list(b.shape):
        op.refuse(f"its inputs have the shapes {tuple(a.shape)} and {tuple(b.shape)}")
    alpha = op.attribute("alpha", 1.0)
    return (functional.silu(a) if alpha == 1.0 else a * torch.sigmoid(alpha * a)) * b


@register("CausalConvWithState", tensors=True)
def causal_conv_with_state(
    op: Op, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, past: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A convolution of each channel over what came before, with the last inputs as state."""
    width = weight.shape[2]
    padded = functional.pad(x, (width - 1, 0)) if past is None else torch.cat([past, x], 2)
    y = functional.conv1d(padded, weight, bias, groups=x.shape[1])
    activation = op.attribute("activation", "none")
    if activation not in ("none", "silu", "swish"):
        op.refuse(f"the activation `{activation}` is unknown")
    y = y if activation == "none" else functional.silu(y)
    return y, torch.narrow(padded, 2, padded.shape[2] - (width - 1), width - 1)
