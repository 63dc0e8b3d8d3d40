"""Functions of structure for the JAX exporter's tests: loops, branches, order, accumulation, places in arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax_export_kit import B, Case


def _lstm(params: dict[str, Any], x: Any) -> tuple[Any, ...]:
    def step(state: tuple[Any, Any], row: Any) -> tuple[tuple[Any, Any], Any]:
        hidden, cell = state
        gates = row @ params["wx"] + hidden @ params["wh"] + params["b"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    zeros = jnp.zeros((x.shape[0], 4))
    (hidden, cell), outputs = lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1))
    return hidden, cell, jnp.swapaxes(outputs, 0, 1)


def _newton(params: dict[str, Any], x: Any) -> Any:
    target = jnp.abs(x) + 1

    def is_on(state: tuple[Any, Any]) -> Any:
        return jnp.any(jnp.abs(state[0] * state[0] - target) > 1e-3 * target) & (state[1] < 50)

    return lax.while_loop(is_on, lambda s: (0.5 * (s[0] + target / s[0]), s[1] + 1), (target, 0))[0]


def _collatz(p: Any, x: Any) -> Any:
    def steps(number: Any) -> Any:
        return lax.while_loop(
            lambda s: s[0] > 1, lambda s: (jnp.where(s[0] % 2 == 0, s[0] // 2, 3 * s[0] + 1), s[1] + 1), (number, 0)
        )[1]

    return jax.vmap(steps)(x + 1)


def _special(rng: np.random.Generator, batch: int) -> list[np.ndarray]:
    values = rng.normal(size=(batch, 8)).astype(np.float32).round(0)
    values[rng.random(values.shape) < 0.25] = np.nan
    values[rng.random(values.shape) < 0.2] = np.inf
    values[rng.random(values.shape) < 0.2] = -np.inf
    return [values]


def _switch(p: Any, x: Any) -> Any:
    place = jnp.int32(jnp.floor(x.sum()))
    return lax.switch(place, [lambda v: v + 1, lambda v: v * 2, lambda v: -v, lambda v: v @ v.T @ v], x)


STRUCTURE_CASES: dict[str, Case] = {
    "scan long": Case(
        function=lambda p, x: (
            *lax.scan(lambda c, w: (jnp.tanh(c @ w), c.sum()), x, p["w"]),
            *lax.scan(lambda c, w: (c + w.sum(), c * 2), x, p["w"], reverse=True),
            lax.scan(lambda c, _: (c * 0.9 + 1, None), x, length=100)[0],
        ),
        params={"w": (9, 3, 3)},
    ),
    "scan along the free axis": Case(
        function=lambda p, x: (*lax.scan(lambda c, r: (c + r, c * r), jnp.ones(3), x), lax.cumsum(x, 0, reverse=True))
    ),
    "scan of nothing": Case(
        function=lambda p, x: lax.scan(lambda c, r: (c + r, c), x, jnp.zeros((0, 3)))[0],
    ),
    "lstm": Case(
        function=_lstm, shapes=((B, 6, 3),), params={"wx": (3, 16), "wh": (4, 16), "b": (16,)}, tolerance=1e-5
    ),
    "nested loops": Case(
        function=lambda p, x: lax.fori_loop(
            0, 5, lambda i, c: lax.scan(lambda d, w: (jnp.tanh(d * w) + i, None), c, p["w"])[0], x
        ),
        params={"w": (4, 3)},
    ),
    "while": Case(function=_newton, tolerance=1e-3),
    "while for each": Case(function=_collatz, shapes=((B,),), dtypes=("int32",)),
    "while until known": Case(function=lambda p, x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x)),
    "cond": Case(
        function=lambda p, x: (
            lax.cond(x.sum() > 0, lambda v: (v + p["w"], v.sum()), lambda v: (v * 2, p["w"].sum()), x)[0],
            lax.cond(x[0, 0] > 0, lambda: jnp.float32(1), lambda: jnp.float32(2)),
        ),
        params={"w": (3,)},
        batches=(1, 2, 3, 4, 5),
    ),
    "switch": Case(function=_switch, batches=(1, 2, 3, 4, 5, 6)),
    "cond for each": Case(
        function=lambda p, x: jax.vmap(lambda r: lax.cond(r[0] > 0, jnp.sin, jnp.cos, r))(x), batches=(1, 5)
    ),
    "cond in scan": Case(
        function=lambda p, x: lax.scan(
            lambda c, w: (lax.cond(c.sum() > w, lambda v: v - w, lambda v: v + w, c), c), x, jnp.arange(6.0)
        )[0]
    ),
    "recomputed": Case(
        function=lambda p, x: jax.grad(lambda v: jax.checkpoint(lambda u: jnp.sin(u @ p["w"]) ** 2)(v).sum())(x),
        params={"w": (3, 4)},
    ),
    "custom rules": Case(
        function=lambda p, x: (
            _tripled(x),
            _clipped(x),
            jax.grad(lambda v: (_tripled(v) ** 2).sum())(x),
            jax.grad(lambda v: _clipped(v).sum())(x),
        ),
    ),
    "order of all dtypes": Case(
        function=lambda p, x: (
            *(jnp.sort(x.astype(dtype), 1) for dtype in ("int32", "uint8", "int16", "bool", "float16", "uint32")),
            *(jnp.argsort(x.astype(dtype), 1) for dtype in ("int8", "float16", "bool")),
            jnp.sort(x, 1, descending=True),
            jnp.argsort(x, 1, descending=True),
        ),
        dtypes=("int32",),
        shapes=((B, 7),),
    ),
    "order of the free axis": Case(function=lambda p, x: (jnp.sort(x, 0), jnp.argsort(x, 0), jnp.median(x, axis=0))),
    "order by several keys": Case(
        function=lambda p, x: (
            *lax.sort((jnp.round(x), jnp.abs(x), x), dimension=1, num_keys=2),
            *lax.sort_key_val(jnp.round(x), x),
            jnp.lexsort((x, jnp.round(x)), axis=1),
        ),
        shapes=((B, 7),),
    ),
    "order of nan and infinity": Case(
        function=lambda p, x: (jnp.sort(x, 1), jnp.argsort(x, 1), *lax.top_k(x, 8), *lax.top_k(jnp.nan_to_num(x), 3)),
        shapes=((B, 8),),
        draw=_special,
    ),
    "signs of zero": Case(
        function=lambda p, x: (
            *(lax.top_k(jnp.round(x).astype(dtype), 3)[1] for dtype in ("float32", "float16", "bfloat16")),
            *(function(jnp.round(x), axis=1) for function in (jnp.argsort, jnp.argmax, jnp.argmin)),
            *(lax.approx_max_k(jnp.round(x), 3)[1], jnp.argsort(jnp.round(x), axis=1, descending=True)),
            *lax.sort((jnp.round(x), jnp.abs(x)), dimension=1, num_keys=2),
        ),
        shapes=((B, 9),),
        draw=lambda rng, batch: [rng.uniform(-0.8, 0.8, (batch, 9)).astype("f")],
    ),
    "top of integers": Case(
        function=lambda p, x: (*lax.top_k(x, 3), *lax.approx_max_k(x * 1.5, 2)), shapes=((B, 6),), dtypes=("int32",)
    ),
    "accumulations": Case(
        function=lambda p, x: (
            *(function(x, axis=1) for function in (lax.cumprod, lax.cummax, lax.cummin, lax.cumlogsumexp)),
            *(function(x, axis=1, reverse=True) for function in (lax.cumprod, lax.cummax, lax.cumlogsumexp)),
            *(function(x, axis=0) for function in (lax.cumprod, lax.cummin, lax.cumlogsumexp)),
            jnp.cumprod(x.astype("int32"), 1),
            lax.cummax(x.astype("int8"), axis=1),
            lax.associative_scan(jnp.add, x, axis=1),
        ),
        shapes=((B, 7),),
    ),
    "segment sum": Case(
        function=lambda p, x: (
            jax.ops.segment_sum(x, jnp.array([0, 1, 0, 4, 9]), num_segments=5),
            jax.ops.segment_max(x, jnp.array([0, 1, 0, 4, -1]), num_segments=5),
            jax.ops.segment_sum(x, jnp.int32(jnp.abs(x[:, 0]) * 4), num_segments=3),
        ),
        shapes=((5, 3),),
    ),
    "writes": Case(
        function=lambda p, x, i: (
            x.at[:, 1].set(0.0),
            x.at[:, -1].add(2.0),
            x.at[:, i[0, 0]].set(7.0),
            x.at[:, i[0, 0] * 9].set(7.0),
            x.at[:, i[0, 0] * 9].set(7.0, mode="clip"),
            x.at[:, jnp.array([0, 2, 0])].add(1.0),
            x.at[:, jnp.array([0, 2])].multiply(3.0),
            x.at[:, 1:3].set(-1.0),
            x.at[0].set(5.0),
            x.at[0, i[0, 0]].max(0.3),
            x.at[jnp.arange(x.shape[0]), i[:, 0]].set(9.0),
            x.at[jnp.arange(x.shape[0])[:, None], i].add(2.0),
            x.at[:, ::2].min(0.0),
            x.at[:, 1].subtract(2.0),
        ),
        shapes=((B, 5), (B, 2)),
        dtypes=("float32", "int32"),
    ),
    "writes of other dtypes": Case(
        function=lambda p, x: (
            x.at[:, 1].set(3),
            x.at[:, jnp.array([0, 1, 0])].add(200),
            x.astype("int8").at[:, jnp.array([0, 1, 0])].add(100),
            x.astype("uint8").at[:, 2].max(4),
            (x > 2).at[:, 1].set(True),
            x.astype("float16").at[:, jnp.array([2, 2])].add(1),
            x.astype("uint32").at[:, jnp.array([2, 2])].add(jnp.uint32(4294967295)),
        ),
        shapes=((B, 4),),
        dtypes=("int32",),
    ),
    "writes of windows": Case(
        function=lambda p, x, i: (
            lax.scatter_add(
                x,
                i[:1],
                jnp.ones((2, 2)),
                lax.ScatterDimensionNumbers((0, 1), (), (1,)),
            ),
            jax.vmap(lambda row, at: row.at[at].set(8.0))(x, jnp.array([1, 9])),
            jax.vmap(lambda row, at: row.at[at].add(row[:2]))(x, jnp.array([[1, 1], [0, 7]])),
        ),
        shapes=((2, 5), (1,)),
        dtypes=("float32", "int32"),
    ),
    "computed updates of slices": Case(
        function=lambda p, x, i: (
            lax.dynamic_update_slice(x, x[:, :2] * 2, (0, i[0])),
            lax.dynamic_update_slice(x, x[:, :2] * 2, (0, i[0] * 9)),
            lax.dynamic_update_slice(x, x[:, :1], (0, i[0])),
            lax.dynamic_update_slice(x, x[:1], (i[0], 0)),
            lax.dynamic_update_slice(x, x[:1, :2], (i[0] - 1, i[0])),
        ),
        shapes=((B, 5), (1,)),
        dtypes=("float32", "int32"),
    ),
    "computed slices": Case(
        function=lambda p, x, i: (
            lax.dynamic_slice(x, (i[0], i[0]), (1, 3)),
            lax.dynamic_slice_in_dim(x, i[0], 1, 0),
            lax.dynamic_index_in_dim(x, i[0], 1),
            jax.vmap(lambda row: lax.dynamic_slice_in_dim(row, i[0], 2))(x),
            jax.vmap(lambda row, at: lax.dynamic_slice_in_dim(row, at, 2))(x, jnp.argmax(x, 1)),
        ),
        shapes=((B, 5), (1,)),
        dtypes=("float32", "int32"),
    ),
    "lookups of other forms": Case(
        function=lambda p, x, i: (
            x[:, i[0, 0], 1:3],
            x[i[:, 0] % x.shape[0], :, 1],
            jax.vmap(lambda table, at: table[at])(x, i),
            jax.vmap(lambda table, at: table[:, at])(x, i),
            jax.vmap(lambda table, at: table[at, at])(x, i),
            jnp.take_along_axis(x, i[:, :, None] % 4, axis=1, mode="clip"),
            x[:, jnp.array([[0, 1], [2, 3]]), jnp.array([0, 1])],
            jnp.take(x, i + 2, axis=1, mode="wrap")[0],
            jnp.take(x, jnp.array([0, 9]), axis=1, mode="fill", fill_value=-1.0),
        ),
        shapes=((B, 4, 3), (B, 2)),
        dtypes=("float32", "int32"),
    ),
    "searches": Case(
        function=lambda p, x: (
            jnp.searchsorted(jnp.sort(p["t"]), x),
            jnp.interp(x, jnp.sort(p["t"]), p["t"]),
            jnp.digitize(x, jnp.array([-1.0, 0.0, 1.0])),
            jnp.percentile(x, 30.0, axis=1),
            jnp.bincount(jnp.int32(jnp.abs(x[0])), length=4),
        ),
        params={"t": (8,)},
    ),
    "inner padding": Case(
        function=lambda p, x: (
            lax.pad(x, jnp.float32(2), ((0, 0, 0), (0, 0, 1))),
            lax.pad(x, jnp.float32(0), ((0, 0, 0), (-1, 2, 2))),
            lax.pad(x, jnp.float32(0), ((1, 2, 1), (-1, -1, 1)))[0],
            lax.pad(x > 0, True, ((0, 0, 0), (1, 0, 1))),
        ),
        shapes=((B, 5),),
    ),
    "repeats": Case(
        function=lambda p, x: (
            jnp.tile(x, (1, 3)),
            jnp.repeat(x, 2, axis=1),
            jnp.roll(x, 1, axis=1),
            jnp.rot90(x[:, :2].T),
            *jnp.unstack(x, axis=1),
        )
    ),
}


@jax.custom_vjp
def _clipped(x: Any) -> Any:
    return jnp.clip(x, -0.5, 0.5)


_clipped.defvjp(lambda x: (_clipped(x), x), lambda x, g: (g * jnp.where(jnp.abs(x) < 2, 1.0, 0.1),))


@jax.custom_jvp
def _tripled(x: Any) -> Any:
    return x * 3


_tripled.defjvp(lambda primals, tangents: (_tripled(primals[0]), tangents[0] * 2))
