"""Twenty-four JAX functions that go to ONNX and come back, with shapes to run them at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from noa.signatures import Axis, DType, Signature, TensorSpec
from noa_conversion import JaxModel

B, S = "batch", "seq"
Specs = dict[str, tuple[DType, tuple[Axis, ...]]]


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function of params and inputs, or a live module, and the sizes of free axes to try."""

    function: Callable[..., Any] | None = None
    make: Callable[[Signature], JaxModel] | None = None
    params: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    inputs: Specs = field(default_factory=lambda: {"x": ("float32", (B, 6))})
    outputs: Specs = field(default_factory=lambda: {"y": ("float32", (B, 6))})
    sizes: tuple[dict[str, int], ...] = ({B: 1}, {B: 3}, {B: 5})
    highest: int = 5
    tolerance: float = 2e-5
    has_gradient: bool = True
    """Why the gradient is not compared, if it is not."""

    def model(self) -> JaxModel:
        signature = Signature(
            inputs=tuple(TensorSpec(name=name, dtype=d, shape=shape) for name, (d, shape) in self.inputs.items()),
            outputs=tuple(TensorSpec(name=name, dtype=d, shape=shape) for name, (d, shape) in self.outputs.items()),
        )
        if self.make is not None:
            return self.make(signature)
        assert self.function is not None
        rng = np.random.default_rng(3)
        params: dict[str, Any] = {}
        for name, shape in self.params.items():
            *groups, leaf = name.split(".")
            here = params
            for group in groups:
                here = here.setdefault(group, {})
            here[leaf] = jnp.asarray((rng.normal(size=shape) / np.sqrt(shape[0])).astype("f"))
        return JaxModel(apply=self.function, params=params, signature=signature)

    def draw(self, sizes: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        drawn: dict[str, np.ndarray] = {}
        for name, (dtype, shape) in self.inputs.items():
            full = [sizes[axis] if isinstance(axis, str) else axis for axis in shape]
            is_float = dtype.startswith("float")
            high = 2**32 if dtype == "uint32" else self.highest
            drawn[name] = (rng.normal(size=full) if is_float else rng.integers(0, high, full)).astype(dtype)
        return drawn


class NnxNet(nnx.Module):
    """Convolutions, batch normalisation, dropout, a list of layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(32, 16, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)])
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, image: Any) -> Any:
        hidden = nnx.relu(self.norm(self.stem(image)))
        hidden = nnx.max_pool(hidden, (4, 4), (4, 4)).reshape(image.shape[0], -1)
        for layer in self.layers:
            hidden = nnx.gelu(layer(self.dropout(hidden)))
        return self.head(hidden)


class NnxAttention(nnx.Module):
    """A transformer block of Flax."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(11, 16, rngs=rngs)
        self.norm = nnx.RMSNorm(16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.head = nnx.Linear(16, 11, rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        hidden = self.embed(tokens)
        hidden = hidden + self.attention(self.norm(hidden), mask=nnx.make_causal_mask(tokens))
        return self.head(hidden)


def _nnx(module: type[nnx.Module]) -> Callable[[Signature], JaxModel]:
    return lambda signature: JaxModel.from_nnx(module(nnx.Rngs(0)), signature)  # pyright: ignore[reportCallIssue]


def _equinox_mlp(signature: Signature) -> JaxModel:
    return JaxModel.from_equinox(equinox.nn.MLP(6, 6, 16, 2, key=jax.random.key(0)), signature)


def _equinox_gru(signature: Signature) -> JaxModel:
    cell = equinox.nn.GRUCell(3, 6, key=jax.random.key(1))

    def call(cell: Any, rows: Any) -> Any:
        return lax.scan(lambda hidden, row: (cell(row, hidden), None), jnp.zeros(6), rows)[0]

    return JaxModel.from_equinox(cell, signature, call=call)


def _mlp(p: dict[str, Any], x: Any) -> Any:
    hidden = jax.nn.silu(x @ p["first"]["kernel"] + p["first"]["bias"])
    return hidden @ p["second"]["kernel"]


def _lstm(p: dict[str, Any], x: Any) -> Any:
    def step(state: tuple[Any, Any], row: Any) -> tuple[tuple[Any, Any], Any]:
        hidden, cell = state
        i, f, g, o = jnp.split(row @ p["wx"] + hidden @ p["wh"] + p["b"], 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    zeros = jnp.zeros((x.shape[0], 6))
    return jnp.swapaxes(lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1))[1], 0, 1)


def _newton(p: dict[str, Any], x: Any) -> Any:
    target = jnp.abs(x @ p["w"]) + 1
    return lax.while_loop(
        lambda s: (s[1] < 20) & jnp.any(jnp.abs(s[0] ** 2 - target) > 1e-4 * target),
        lambda s: (0.5 * (s[0] + target / s[0]), s[1] + 1),
        (target, 0),
    )[0]


def _attention(p: dict[str, Any], x: Any) -> Any:
    query, key, value = (jnp.einsum("bsc,chd->bshd", x, p["attention"][name]) for name in ("query", "key", "value"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / 2.0
    seq = jnp.arange(x.shape[1])
    weights = jax.nn.softmax(jnp.where(seq[None] <= seq[:, None], scores, -jnp.inf))
    return jnp.einsum("bhqk,bkhd,hdc->bqc", weights, value, p["attention"]["out"])


def _solve(p: dict[str, Any], x: Any) -> Any:
    matrix = p["w"] @ p["w"].T + 2 * jnp.eye(6)
    lower = jnp.linalg.cholesky(matrix)
    return jnp.linalg.solve(matrix, x.T).T + jax.scipy.linalg.solve_triangular(lower, x.T, lower=True).T


def _noise(p: dict[str, Any], x: Any, key: Any) -> Any:
    first, second = jax.random.split(jax.random.wrap_key_data(key))
    kept = jax.random.bernoulli(second, 0.5, (6,))
    return (x * p["scale"] + jax.random.normal(first, (6,))) * kept


def _norm(p: dict[str, Any], x: Any) -> Any:
    scale = p["scale"] * lax.rsqrt(p["var"] ** 2 + 1e-5)
    image = (x - p["mean"][:, None, None]) * scale[:, None, None] + p["bias"][:, None, None]
    return jax.nn.relu(image)


def _conv(p: dict[str, Any], x: Any) -> Any:
    dims = ("NHWC", "HWIO", "NHWC")
    hidden = lax.conv_general_dilated(x, p["stem"], (2, 2), "SAME", dimension_numbers=dims)
    hidden = lax.conv_general_dilated(hidden, p["depth"], (1, 1), "SAME", dimension_numbers=dims, feature_group_count=8)
    return lax.conv_transpose(jax.nn.relu(hidden), p["up"], (2, 2), "SAME", dimension_numbers=dims)


@jax.custom_vjp
def _bounded(x: Any) -> Any:
    return jnp.clip(x, -1.0, 1.0)


_bounded.defvjp(lambda x: (_bounded(x), x), lambda x, g: (g * (jnp.abs(x) <= 1),))


@jax.custom_jvp
def _smooth(x: Any) -> Any:
    return jnp.log1p(jnp.exp(x))


_smooth.defjvp(lambda primals, tangents: (_smooth(*primals), jax.nn.sigmoid(primals[0]) * tangents[0]))


def _updated(p: dict[str, Any], x: Any, place: Any) -> Any:
    rows = jax.vmap(lambda row, at: lax.dynamic_update_slice(row, row[:2] * p["w"][0], (at,)))(x, place)
    return rows.at[:, 3].add(1.0) + lax.dynamic_slice(p["w"], (place[0],), (1,))


FUNCTIONS: dict[str, Function] = {
    "mlp": Function(function=_mlp, params={"first.kernel": (6, 16), "first.bias": (16,), "second.kernel": (16, 6)}),
    "flax nnx": Function(
        make=_nnx(NnxNet), inputs={"image": ("float32", (B, 8, 8, 3))}, outputs={"logits": ("float32", (B, 4))}
    ),
    "flax nnx attention": Function(
        make=_nnx(NnxAttention),
        inputs={"tokens": ("int32", (B, 7))},
        outputs={"logits": ("float32", (B, 7, 11))},
        highest=11,
    ),
    "equinox": Function(make=_equinox_mlp),
    "equinox scan": Function(make=_equinox_gru, inputs={"x": ("float32", (B, 5, 3))}),
    "scan": Function(
        function=_lstm,
        params={"wx": (3, 24), "wh": (6, 24), "b": (24,)},
        inputs={"x": ("float32", (B, 5, 3))},
        outputs={"y": ("float32", (B, 5, 6))},
    ),
    "while": Function(
        function=_newton,
        params={"w": (6, 6)},
        has_gradient=False,  # JAX refuses to differentiate `while_loop`
        tolerance=1e-4,
    ),
    "cond": Function(
        function=lambda p, x: lax.cond(x.sum() > 0, lambda v: v @ p["w"], lambda v: jnp.tanh(v) * p["w"][0], x),
        params={"w": (6, 6)},
    ),
    "fft": Function(
        function=lambda p, x: jnp.fft.irfft(jnp.fft.rfft(x) * jax.nn.sigmoid(p["filter"])) + jnp.abs(jnp.fft.fft(x)),
        params={"filter": (4,)},
        tolerance=1e-4,
    ),
    "sort": Function(
        function=lambda p, x: jnp.sort(x * p["w"], axis=1) + jnp.asarray(x)[:, jnp.argsort(p["w"])], params={"w": (6,)}
    ),
    "gather and scatter": Function(
        function=lambda p, x, place: p["table"][place] * x + jnp.zeros((9, 6)).at[place].add(x)[place],
        params={"table": (9, 6)},
        inputs={"x": ("float32", (B, 6)), "place": ("int32", (B,))},
        highest=9,
    ),
    "cumulative": Function(
        function=lambda p, x: (
            jnp.cumsum(x, 1) * jnp.cumprod(p["w"]) + lax.cummax(x, axis=1) + lax.cumlogsumexp(x, axis=1)
        ),
        params={"w": (6,)},
        tolerance=1e-4,
    ),
    "solve": Function(function=_solve, params={"w": (6, 6)}, tolerance=1e-4),
    "random with a key": Function(
        function=_noise,
        params={"scale": (6,)},
        inputs={"x": ("float32", (B, 6)), "key": ("uint32", (2,))},
        tolerance=1e-5,
    ),
    "conv": Function(
        function=_conv,
        params={"stem": (3, 3, 3, 8), "depth": (3, 3, 1, 8), "up": (3, 3, 8, 2)},
        inputs={"x": ("float32", (B, 8, 8, 3))},
        outputs={"y": ("float32", (B, 8, 8, 2))},
    ),
    "attention": Function(
        function=_attention,
        params={
            "attention.query": (8, 2, 4),
            "attention.key": (8, 2, 4),
            "attention.value": (8, 2, 4),
            "attention.out": (2, 4, 8),
        },
        inputs={"x": ("float32", (B, S, 8))},
        outputs={"y": ("float32", (B, S, 8))},
        sizes=({B: 1, S: 4}, {B: 3, S: 7}),
    ),
    "einsum": Function(
        function=lambda p, x: jnp.einsum("bij,jkl,ik->bl", x.reshape(-1, 2, 3), p["w"], p["v"]),
        params={"w": (3, 4, 6), "v": (2, 4)},
    ),
    "batch norm": Function(
        function=_norm,
        params={"scale": (3,), "bias": (3,), "mean": (3,), "var": (3,)},
        inputs={"x": ("float32", (B, 3, 4, 4))},
        outputs={"y": ("float32", (B, 3, 4, 4))},
    ),
    "top k": Function(
        function=lambda p, x: jax.nn.softmax(lax.top_k(x @ p["w"], 3)[0]) @ p["v"], params={"w": (6, 9), "v": (3, 6)}
    ),
    "segment sum": Function(
        function=lambda p, x: jax.ops.segment_sum(x.T * p["w"][:, None], jnp.array([0, 2, 1, 0, 2, 5]), 6).T,
        params={"w": (6,)},
    ),
    "dynamic slice": Function(
        function=_updated,
        params={"w": (6,)},
        inputs={"x": ("float32", (B, 6)), "place": ("int32", (B,))},
        highest=6,
    ),
    "vmap": Function(
        function=lambda p, x: jax.vmap(lambda row: jax.vmap(lambda w: jnp.tanh(row @ w))(p["w"]).sum(0))(x),
        params={"w": (4, 6, 6)},
    ),
    "custom rules": Function(
        function=lambda p, x: _bounded(x * p["w"]) + _smooth(x) + jax.checkpoint(jnp.sin)(x * p["w"]),
        params={"w": (6,)},
    ),
    "windows, one hot and erf": Function(
        function=lambda p, x: (
            lax.reduce_window(x, -jnp.inf, lax.max, (1, 3), (1, 1), "SAME")
            + lax.reduce_window(x * p["w"], 0.0, lax.add, (1, 2), (1, 1), "SAME")
            + jax.nn.one_hot(jnp.argmax(x, 1), 6) * jax.nn.gelu(x, approximate=False)
            + lax.erf_inv(jnp.tanh(x) * 0.9)
        ),
        params={"w": (6,)},
    ),
}
