"""Functions of tensors for the JAX exporter's tests: elements, shapes, reductions, windows, lookups, calls."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax_export_kit import B, Case

IMAGE = ("NCHW", "OIHW", "NCHW")


def _positive(x: Any) -> Any:
    return jnp.abs(x) + 0.5


def _nan(x: Any) -> Any:
    return jnp.where(x > 0, jnp.nan, x)


def _pools(x: Any, padding: Any, stride: int) -> tuple[Any, ...]:
    window, strides = (1, 1, 3, 3), (1, 1, stride, stride)
    pads = padding if isinstance(padding, str) else ((0, 0), (0, 0), *padding)
    return (
        lax.reduce_window(x, -jnp.inf, lax.max, window, strides, pads),
        lax.reduce_window(x, 0.0, lax.add, window, strides, pads),
        lax.reduce_window(x, jnp.inf, lax.min, window, strides, pads),
    )


_SMOOTH = ("exp", "tanh", "logistic", "erf", "sin", "cos", "tan", "sinh", "cosh", "asinh", "atan", "square", "cbrt")
_SMOOTH += ("exp2", "expm1", "erfc", "neg")
_STEPS = ("abs", "sign", "floor", "ceil", "is_finite")
_ABOVE_ZERO = ("log", "sqrt", "rsqrt", "log1p")
_WITHIN_ONE = ("asin", "acos", "atanh")
_ACTIVATIONS = ("softmax", "log_softmax", "logsumexp", "relu", "gelu", "silu", "elu", "leaky_relu", "softplus", "relu6")
_ACTIVATIONS += ("selu", "mish", "hard_swish", "sigmoid", "swish", "celu", "log_sigmoid", "standardize")
_INTEGERS = ("int32", "int8", "uint8", "int16", "uint32")
_EINSUMS = {
    "bi,io->bo": ((B, 3), (3, 4)),
    "bti,io->bto": ((B, 2, 3), (3, 4)),
    "bqhd,bkhd->bhqk": ((B, 3, 2, 4), (B, 5, 2, 4)),
    "bhqk,bkhd->bqhd": ((B, 2, 3, 5), (B, 5, 2, 4)),
    "bi,bi->b": ((B, 3), (B, 3)),
    "bi,bj->bij": ((B, 2), (B, 3)),
    "bij,ij->b": ((B, 2, 3), (2, 3)),
    "bi,i->b": ((B, 3), (3,)),
    "ij,bjk->bik": ((2, 3), (B, 3, 4)),
    "bthd,hdo->bto": ((B, 2, 3, 4), (3, 4, 5)),
    "bti,ihd->bthd": ((B, 2, 3), (3, 4, 5)),
}

TENSOR_CASES: dict[str, Case] = {
    "smooth": Case(function=lambda p, x: tuple(getattr(lax, name)(x) for name in _SMOOTH)),
    "steps": Case(function=lambda p, x: tuple(getattr(lax, name)(x * 3) for name in _STEPS)),
    "above zero": Case(function=lambda p, x: tuple(getattr(lax, name)(_positive(x)) for name in _ABOVE_ZERO)),
    "within one": Case(function=lambda p, x: tuple(getattr(lax, name)(jnp.tanh(x) * 0.9) for name in _WITHIN_ONE)),
    "acosh": Case(function=lambda p, x: lax.acosh(_positive(x) + 1)),
    "near zero keeps digits": Case(function=lambda p, x: (jnp.log1p(x * 1e-7) * 1e7, jnp.expm1(x * 1e-7) * 1e7)),
    "far values": Case(function=lambda p, x: (jnp.expm1(x * 200), jnp.log1p(_positive(x) * 1e38), jnp.exp(x * 200))),
    "rounding": Case(
        function=lambda p, x: tuple(
            lax.round(value, lax.RoundingMethod(method))
            for value in (x * 2.5, jnp.round(x) + 0.5, x * 0 + 0.49999997, x * 0 - 0.5)
            for method in (0, 1)
        )
    ),
    "arithmetic": Case(
        function=lambda p, x, y: (x + y, x - y, x * y, x / _positive(y), lax.rem(x, _positive(y)), _positive(x) ** y),
        shapes=((B, 3), (B, 3)),
    ),
    "comparison": Case(
        function=lambda p, x, y: (x == y, x != y, x < y, x <= y, x > y, x >= y, jnp.maximum(x, y), jnp.minimum(x, y)),
        shapes=((B, 3), (B, 3)),
    ),
    **{
        f"integers {dtype}": Case(
            function=lambda p, x, y: (
                *(x + y, x - y, x * y, lax.div(x, y + 1), lax.rem(x, y + 1), jnp.maximum(x, y), jnp.minimum(x, y)),
                *(x == y, x != y, x < y, x >= y, x & y, x | y, x ^ y, ~x, x**2, x**3, jnp.clip(x, 1, 3)),
            ),
            shapes=((B, 3), (B, 3)),
            dtypes=(dtype, dtype),
        )
        for dtype in _INTEGERS
    },
    "logic": Case(
        function=lambda p, x, y: (x & y, x | y, x ^ y, ~x, x == y, lax.lt(x, y), jnp.maximum(x, y)),
        shapes=((B, 3), (B, 3)),
        dtypes=("bool", "bool"),
    ),
    "select": Case(
        function=lambda p, x, y: (
            jnp.where(x > 0, x, y),
            lax.select_n(jnp.int32(x > 0) + jnp.int32(y > 0), x, y, x + y),
            jnp.where(x[:1, :1].sum() > 0, x, y),
        ),
        shapes=((4, 3), (4, 3)),
    ),
    "clamp": Case(function=lambda p, x: (jnp.clip(x, -0.5, 0.5), lax.clamp(jnp.float32(0), x, jnp.float32(1)))),
    "casts": Case(
        function=lambda p, x: (
            *(x.astype("int32"), (x * 1e10).astype("int32"), x.astype(bool), (x * 300).astype("uint8")),
            *(x.astype("float16").astype("float32"), jnp.log(x).astype("int32"), (x * 300).astype("int8")),
        )
    ),
    "integer powers": Case(function=lambda p, x: (x**2, x**3, _positive(x) ** -1, _positive(x) ** -2, x**1, x**0)),
    "reshape": Case(
        function=lambda p, x: (x.reshape(x.shape[0], -1), x.reshape(x.shape[0], 2, 3, 2), x.reshape(-1, 4).sum(0)),
        shapes=((B, 3, 4),),
    ),
    "axes": Case(
        function=lambda p, x: (x.T, jnp.transpose(x, (1, 0, 2)), x[None], x[:, :, None], jnp.squeeze(x[:, :1], 1)),
        shapes=((B, 3, 4),),
    ),
    "broadcast": Case(
        function=lambda p, x: (
            *(jnp.broadcast_to(x, (2, *x.shape)), jnp.broadcast_to(x[:, :1], x.shape), jnp.zeros(x.shape)),
            *(
                jnp.ones((x.shape[0], 7)),
                jnp.broadcast_to(x.sum(), (x.shape[0], 2)),
                jnp.full((x.shape[0] * 2,), 3.0).sum(),
            ),
        )
    ),
    "join": Case(
        function=lambda p, x, y: (jnp.concatenate([x, y], 1), jnp.concatenate([x, y], 0).sum(0), jnp.stack([x, y], 1)),
        shapes=((B, 3), (B, 3)),
    ),
    "split": Case(function=lambda p, x: jnp.split(x, (1, 3), 1), shapes=((B, 6),)),
    "slice": Case(
        function=lambda p, x: (
            x[:, 1:],
            x[:, ::2],
            x[:, 0],
            x[:, -1],
            x[:, ::-1],
            x[..., 1:3, 0],
            x[:, None, 0],
            x[::-1],
        ),
        shapes=((B, 6, 2),),
    ),
    "dynamic slice": Case(
        function=lambda p, x, i: (
            lax.dynamic_slice_in_dim(x, 1, 2, 1),
            lax.dynamic_slice_in_dim(x, i[0], 2, 1),
            lax.dynamic_slice_in_dim(x, i[0] * 9, 2, 1),
            lax.dynamic_update_slice(x, x[:, :2] * 2, (0, 1)),
        ),
        shapes=((B, 5), (1,)),
        dtypes=("float32", "int32"),
    ),
    **{
        f"pad {dtype}": Case(
            function=lambda p, x: (jnp.pad(x, ((0, 0), (1, 2))), lax.pad(x, x.dtype.type(1), ((0, 0, 0), (-1, 2, 0)))),
            shapes=((B, 5),),
            dtypes=(dtype,),
        )
        for dtype in ("float32", "float16", "int32", "int16", "uint8", "bool")
    },
    "reductions": Case(
        function=lambda p, x: (
            *(x.sum(), x.sum(0), x.max(1), x.min((1, 2)), x.prod(1), x.mean(), x.mean(0), x.var(1), x.std(-1)),
            *((x > 0).all(1), (x > 0).any(), (x > 0).all(0)),
            *(jnp.argmax(x, 1), jnp.argmin(x, -1), jnp.argmax(x > 0, 1), jnp.argmax(jnp.round(x), 1)),
        ),
        shapes=((B, 3, 4),),
    ),
    **{
        f"integer reductions {dtype}": Case(
            function=lambda p, x: (x.max(1), x.min(0), x.sum(1), jnp.argmax(x, 1), jnp.cumsum(x, 1)), dtypes=(dtype,)
        )
        for dtype in ("int32", "uint8", "int16")
    },
    "nan": Case(
        function=lambda p, x: (
            *(_nan(x).max(1), _nan(x).min(0), jnp.maximum(_nan(x), 0), jnp.minimum(0, _nan(x)), _nan(x).sum(1)),
            *(jnp.argmax(_nan(x), 1), jnp.argmin(_nan(x), 1), jnp.clip(_nan(x), -1, 1), jax.nn.relu(_nan(x))),
        ),
        shapes=((B, 4),),
    ),
    "cumulative": Case(function=lambda p, x: (jnp.cumsum(x, 1), jnp.cumsum(x, 0), lax.cumsum(x, 1, reverse=True))),
    "order": Case(
        function=lambda p, x: (jnp.sort(x, 1), jnp.argsort(jnp.round(x), 1), *lax.top_k(x, 2), -jnp.sort(-x, 1)),
        shapes=((B, 5),),
    ),
    "activations": Case(
        function=lambda p, x: (
            *(getattr(jax.nn, name)(x) for name in _ACTIVATIONS),
            jax.nn.gelu(x, approximate=False),
            jax.nn.one_hot(jnp.argmax(x, 1), 5),
        ),
        shapes=((B, 5),),
    ),
    "counting": Case(
        function=lambda p, x: (
            *(x + jnp.arange(5), jnp.arange(x.shape[0]), lax.broadcasted_iota("int32", (x.shape[0], 3), 0)),
            *(lax.broadcasted_iota("float32", (x.shape[0], 3), 1), x @ jnp.tril(jnp.ones((5, 5))), x * x.shape[0]),
            x / (x.shape[0] * 2 + 1) + (x.shape[0] // 2) - (x.shape[0] % 3),
        ),
        shapes=((B, 5),),
    ),
    **{
        f"einsum {equation}": Case(
            function=lambda p, x, y, equation=equation: jnp.einsum(equation, x, y), shapes=shapes
        )
        for equation, shapes in _EINSUMS.items()
    },
    "integer dot": Case(function=lambda p, x, y: x @ y, shapes=((B, 3), (3, 4)), dtypes=("int32", "int32")),
    "dot of bytes": Case(
        function=lambda p, x, y: lax.dot(x, y, preferred_element_type="int32"),
        shapes=((B, 3), (3, 4)),
        dtypes=("int8", "int8"),
    ),
    **{
        f"conv {padding} {stride}": Case(
            function=lambda p, x, padding=padding, stride=stride: (
                lax.conv_general_dilated(x, p["w"], (stride, stride), padding, dimension_numbers=IMAGE),
                lax.conv_general_dilated(x, p["w"], (stride, 1), padding, rhs_dilation=(2, 1), dimension_numbers=IMAGE),
            ),
            shapes=((B, 2, 7, 6),),
            params={"w": (4, 2, 3, 3)},
        )
        for padding in ("SAME", "VALID", ((1, 2), (0, 1)))
        for stride in (1, 2)
    },
    "conv channels last": Case(
        function=lambda p, x: lax.conv_general_dilated(
            x, p["w"], (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        shapes=((B, 7, 6, 2),),
        params={"w": (3, 3, 2, 4)},
    ),
    "conv groups": Case(
        function=lambda p, x: lax.conv_general_dilated(
            x, p["w"], (1, 1), "SAME", feature_group_count=2, dimension_numbers=IMAGE
        ),
        shapes=((B, 4, 5, 5),),
        params={"w": (6, 2, 3, 3)},
    ),
    "conv one axis": Case(
        function=lambda p, x: lax.conv_general_dilated(
            x, p["w"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        ),
        shapes=((B, 5, 4),),
        params={"w": (3, 4, 2)},
    ),
    **{
        f"pool {padding} {stride}": Case(
            function=lambda p, x, padding=padding, stride=stride: _pools(x, padding, stride), shapes=((B, 2, 7, 6),)
        )
        for padding in ("SAME", "VALID", ((1, 2), (0, 1)))
        for stride in (1, 2)
    },
    "pool other layouts": Case(
        function=lambda p, x: (
            lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"),
            lax.reduce_window(x[:, 0, 0], -jnp.inf, lax.max, (1, 2), (1, 1), "VALID"),
            lax.reduce_window(x[:, None], -jnp.inf, lax.max, (1, 1, 1, 2, 2), (1, 1, 1, 2, 2), "SAME"),
            lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "SAME", window_dilation=(1, 2, 1, 1)),
            lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "VALID", window_dilation=(1, 2, 1, 1)),
        ),
        shapes=((B, 7, 6, 2),),
    ),
    "lookup": Case(
        function=lambda p, x: (
            *(p["t"][x], jnp.take(p["t"], x, axis=0), jnp.take(p["t"], x + 2, axis=0), p["t"].T[:, x]),
            *(jnp.take(p["t"], x - 2, axis=0, mode="clip"), jnp.take(p["t"].astype("int32"), x + 3, axis=0)),
            *(p["t"][x, x % 3], p["t"][x[:, 0], 1], p["t"][2], p["t"][jnp.array([1, 3])], p["t"][-1]),
        ),
        dtypes=("int32",),
        params={"t": (5, 4)},
    ),
    "along an axis": Case(
        function=lambda p, x: (
            jnp.take_along_axis(x, jnp.argsort(x, 1), 1),
            jnp.take_along_axis(x, jnp.argmax(x, 1)[:, None], 1),
            jnp.take_along_axis(x, jnp.argmax(x, 1)[:, None] + 3, 1, mode="fill"),
        ),
        shapes=((B, 5),),
    ),
    "lookup along the free axis": Case(
        function=lambda p, x: (x[jnp.argmax(x, 0)], x[0], x[-1], jnp.take(x, jnp.array([0, 4]), axis=0))
    ),
    "scan": Case(
        function=lambda p, x: (
            *lax.scan(lambda c, w: (jnp.tanh(c @ w), c.sum()), x, p["w"]),
            *lax.scan(lambda c, w: (c + w.sum(), c * 2), x, p["w"], reverse=True),
        ),
        params={"w": (4, 3, 3)},
    ),
    "calls": Case(
        function=lambda p, x: (
            jax.vmap(lambda row: jnp.tanh(p["w"] @ row))(x),
            jax.checkpoint(lambda v: jnp.sin(v) * 2)(x),
            jax.jit(lambda v: v + 1)(lax.stop_gradient(x)),
            lax.optimization_barrier(x),
            lax.reduce_precision(x, 8, 23),
        ),
        params={"w": (4, 3)},
    ),
    "gradient": Case(
        function=lambda p, x: jax.grad(lambda v: (jax.nn.gelu(v @ p["w"]) ** 2).sum())(x), params={"w": (3, 4)}
    ),
}
