"""Functions of numbers for the JAX exporter's tests: bits, dtypes, special functions, matrices, random numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax_export_kit import B, Case


def _words(dtype: str, *, low: int | None = None) -> Any:
    bounds = np.iinfo(dtype)

    def draw(rng: np.random.Generator, batch: int) -> list[np.ndarray]:
        values = rng.integers(bounds.min if low is None else low, bounds.max, (2, batch, 5), dtype=dtype, endpoint=True)
        values[0, 0, :2] = bounds.min, bounds.max
        values[1, 0, :3] = 0, 1, bounds.max if bounds.min == 0 else -1
        return [*values]

    return draw


def _keys(rng: np.random.Generator, batch: int) -> list[np.ndarray]:
    return [rng.normal(size=(batch, 3)).astype("f"), rng.integers(0, 2**32, 2, dtype=np.uint32)]


def _key_case(function: Any) -> Case:
    return Case(function=function, shapes=((B, 3), (2,)), dtypes=("float32", "uint32"), draw=_keys, tolerance=1e-5)


def _spd(x: Any) -> Any:
    return x @ jnp.swapaxes(x, -1, -2) + 0.5 * jnp.eye(x.shape[-1])


def _through_scan(key: Any, x: Any) -> Any:
    def step(state: Any, _: Any) -> tuple[Any, Any]:
        state, now = jax.random.split(state)
        return state, jax.random.normal(now, (3,))

    return lax.scan(step, jax.random.wrap_key_data(key), length=4)[1]


def _wide(rng: np.random.Generator, batch: int) -> list[np.ndarray]:
    values = (rng.normal(size=(batch, 6)) * 10.0 ** rng.integers(-42, 38, (batch, 6))).astype(np.float32)
    values[0, :6] = 0.0, -0.0, np.inf, -np.inf, 1.0, 1e-45
    return [values]


def _near(rng: np.random.Generator, batch: int) -> list[np.ndarray]:
    values = rng.normal(size=(2, batch, 6)).astype(np.float32)
    values[0, 0] = 0.0, -0.0, 0.0, -0.0, np.inf, -np.inf
    values[1, 0] = 0.0, 0.0, -0.0, -0.0, np.inf, -np.inf
    return [*values]


def _total(x: Any, y: Any) -> tuple[Any, ...]:
    return tuple(primitive.bind(x, y) for primitive in (lax.eq_to_p, lax.lt_to_p, lax.le_to_p))


_ENDS = (-1.0, 1.0, 0.0, -0.0, np.inf, -np.inf, np.nan, -2.0, 3e38)
_IMAGE = ("NCHW", "OIHW", "NCHW")

NUMBER_CASES: dict[str, Case] = {
    **{
        f"bits of {dtype}": Case(
            function=lambda p, x, y: (
                *(x + y, x - y, x * y, lax.div(x, y), lax.rem(x, y), x // (y | 1), jnp.maximum(x, y), -x),
                *(x << (y & 7), lax.shift_right_logical(x, y & 7), x >> (y & 7), x < y, x >= y, x == y, ~x),
                *(lax.shift_left(x, y), lax.shift_right_arithmetic(x, y), lax.shift_right_logical(x, y)),
                *(lax.population_count(x), lax.clz(x), jnp.sum(x, 1, dtype=x.dtype), lax.rem(x, lax.full_like(x, 3))),
                *(jnp.prod(x, 1, dtype=x.dtype), jnp.abs(x), jnp.sign(x), lax.cumsum(x, 1), x.max(1), jnp.argmin(x, 1)),
            ),
            shapes=((B, 5), (B, 5)),
            dtypes=(dtype, dtype),
            draw=_words(dtype),
        )
        for dtype in ("int32", "uint32", "int8", "uint8", "int16", "uint16")
    },
    "bits read as others": Case(
        function=lambda p, x: (
            lax.bitcast_convert_type(x, "uint32"),
            lax.bitcast_convert_type(x, "int32"),
            lax.bitcast_convert_type(lax.bitcast_convert_type(x, "int32"), "float32"),
            lax.bitcast_convert_type(lax.bitcast_convert_type(x, "uint32") >> 1, "float32"),
            jnp.signbit(x),
            jnp.copysign(jnp.abs(x), -x),
        ),
        shapes=((B, 6),),
        draw=_wide,
    ),
    "angles": Case(
        function=lambda p, x, y: (
            lax.atan2(x, y),
            jnp.hypot(x, y),
            *_total(x, y),
            *_total(x, jnp.where(x > 1, jnp.nan, y)),
        ),
        shapes=((B, 6), (B, 6)),
        draw=_near,
    ),
    "special functions": Case(
        function=lambda p, x: (
            *(lax.erf_inv(jnp.tanh(x)), lax.lgamma(x * 3), lax.lgamma(jnp.abs(x) * 20), lax.digamma(jnp.abs(x) + 0.1)),
            *(
                jnp.logaddexp(x, x * 2),
                jnp.sinc(x),
                jnp.floor_divide(x, 0.3),
                jnp.mod(x, 0.7),
                jax.scipy.special.ndtri(jax.nn.sigmoid(x)),
            ),
            *(jax.scipy.stats.norm.logcdf(x), lax.digamma(x - 3), lax.erf_inv(jnp.sign(x))),
        ),
        shapes=((B, 7),),
        tolerance=2e-4,
    ),
    "at the ends of a domain": Case(
        function=lambda p, x: (
            *(jnp.log1p(x), lax.erf_inv(x), jnp.expm1(x), lax.erfc(x), lax.cbrt(x)),
            *(
                jnp.log(x),
                jnp.arctanh(x),
                jnp.arccosh(x),
                jnp.sqrt(x),
                1 / x,
                lax.erf(x),
                lax.lgamma(x),
                lax.digamma(x),
            ),
        ),
        shapes=((B, 9),),
        draw=lambda rng, batch: [np.tile(np.asarray(_ENDS, np.float32), (batch, 1))],
    ),
    "half precision": Case(
        function=lambda p, x: (
            jax.nn.gelu(x.astype("float16") @ p["w"].astype("float16")).astype("float32"),
            jax.nn.softmax(x.astype("float16")).sum(1, keepdims=True).astype("float32"),
            jnp.maximum(x.astype("float16"), 0),
            jnp.where(x > 0, x.astype("float16"), jnp.float16(2)),
        ),
        params={"w": (3, 4)},
        tolerance=4e-3,
    ),
    "brain floats": Case(
        function=lambda p, x: (
            (x.astype("bfloat16") @ p["w"].astype("bfloat16")).astype("float32"),
            jnp.where(x > 0, x.astype("bfloat16"), jnp.bfloat16(2)).astype("float32"),
            (x.astype("bfloat16") * 3 + 1).astype("float32"),
            jnp.pad(x.astype("bfloat16"), ((0, 0), (1, 2))).astype("float32"),
            jnp.sort(x.astype("bfloat16"), 1).astype("float32"),
            x.astype("bfloat16").astype("int32"),
            lax.reduce_precision(x, 8, 7),
            lax.dot(x.astype("bfloat16"), p["w"].astype("bfloat16"), preferred_element_type="float32"),
            jnp.max(x.astype("bfloat16"), 1).astype("float32"),
            lax.scan(lambda c, w: (c * 2 + w, c), x.astype("bfloat16"), jnp.ones(4, "bfloat16"))[0].astype("float32"),
        ),
        params={"w": (3, 4)},
        tolerance=2e-2,
    ),
    "solve": Case(
        function=lambda p, x: (
            jnp.linalg.solve(x, jnp.ones((4, 2))),
            jnp.linalg.solve(x, jnp.ones((x.shape[0], 4, 1))),
            jnp.linalg.inv(x),
            jnp.linalg.det(x),
            *jnp.linalg.slogdet(x),
        ),
        shapes=((B, 4, 4),),
        tolerance=1e-3,
    ),
    "factors": Case(
        function=lambda p, x: (
            jnp.linalg.cholesky(_spd(x)),
            jnp.linalg.cholesky(-_spd(x)),
            jnp.linalg.cholesky(_spd(x), upper=True),
            *jnp.linalg.qr(x),
            *jnp.linalg.qr(x[:, :, :2], mode="complete"),
            *lax.linalg.lu(x),
            *lax.linalg.lu(x[:, :, :3]),
            lax.linalg.lu_pivots_to_permutation(lax.linalg.lu(x)[1], 4),
            jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(_spd(x)), True), jnp.ones((x.shape[0], 4, 1))),
        ),
        shapes=((B, 4, 4),),
        tolerance=1e-3,
    ),
    "triangles": Case(
        function=lambda p, x, y: tuple(
            lax.linalg.triangular_solve(
                x + 4 * jnp.eye(3),
                y if left else jnp.swapaxes(y, 1, 2),
                left_side=left,
                lower=lower,
                transpose_a=transposed,
                unit_diagonal=unit,
            )
            for left in (True, False)
            for lower in (True, False)
            for transposed in (True, False)
            for unit in (True, False)
        ),
        shapes=((B, 3, 3), (B, 3, 2)),
        tolerance=1e-4,
    ),
    "own solver": Case(
        function=lambda p, x: lax.custom_linear_solve(
            lambda v: v * 3.0, x, solve=lambda matvec, b: b / 3.0, transpose_solve=lambda matvec, b: b / 3.0
        )
    ),
    "transforms": Case(
        function=lambda p, x: (
            jnp.abs(jnp.fft.rfft(x)),
            jnp.fft.rfft(x).real,
            jnp.fft.fft(x).imag,
            jnp.fft.irfft(jnp.fft.rfft(x) * jnp.exp(-jnp.arange(4.0))),
            jnp.fft.irfft(jnp.fft.rfft(x[:, :5]), n=5),
            jnp.abs(jnp.fft.ifft(jnp.fft.fft(x))),
            jnp.fft.irfft2(jnp.fft.rfft2(x.reshape(-1, 2, 3)) * 2, s=(2, 3)),
            jnp.real(jnp.fft.fft2(x.reshape(-1, 2, 3))),
            jnp.abs(jnp.fft.fftshift(jnp.fft.fft(x), axes=1)[:, ::-1]),
            jnp.real(jnp.conj(jnp.fft.fft(x)) * jnp.fft.fft(x) / (1 + jnp.fft.fft(x * 0))),
            jnp.imag(-(jnp.fft.fft(x) - lax.complex(x, x * 2) + x)),
            jnp.convolve(x[0], x[0], mode="same"),
            jnp.fft.fft(lax.complex(x, x)).sum(1).real,
        ),
        shapes=((B, 6),),
        tolerance=1e-4,
    ),
    "random bits": _key_case(
        lambda p, x, k: (
            jax.random.bits(k, (3, 2)),
            jax.random.bits(k, (5,), "uint8"),
            jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(k), 7)),
            jax.random.key_data(jax.random.split(jax.random.wrap_key_data(k), 3)),
            jax.random.key_data(jax.random.key(jnp.int32(x.sum() * 100))),
            jax.random.key_data(jax.random.clone(jax.random.wrap_key_data(k))),
        )
    ),
    "random floats": _key_case(
        lambda p, x, k: (
            jax.random.uniform(k, (3, 4)),
            jax.random.normal(k, (7,)),
            x + jax.random.normal(jax.random.key(3), (3,)),
            jax.random.bernoulli(k, 0.3, (6,)),
            jax.random.gumbel(k, (6,)),
            jax.random.truncated_normal(k, -1.0, 1.0, (5,)),
            jax.random.exponential(k, (4,)),
            jax.random.uniform(k, (5,), "float32", -2.0, 3.0),
        )
    ),
    "random choices": _key_case(
        lambda p, x, k: (
            jax.random.randint(k, (6,), 0, 10),
            jax.random.randint(k, (6,), -5, 100000),
            jax.random.permutation(k, 9),
            jax.random.categorical(k, x[0], shape=(5,)),
            jax.random.choice(k, 8, (4,), replace=False),
            _through_scan(k, x),
            jax.vmap(lambda key: jax.random.uniform(key, (2,)))(jax.random.split(jax.random.wrap_key_data(k), 4)),
        )
    ),
    **{
        f"transposed conv {padding} {stride}": Case(
            function=lambda p, x, padding=padding, stride=stride: (
                lax.conv_transpose(x, p["w"], (stride, stride), padding, dimension_numbers=_IMAGE),
                lax.conv_transpose(x, p["w"], (stride, 1), padding, rhs_dilation=(2, 1), dimension_numbers=_IMAGE),
            ),
            shapes=((B, 2, 4, 5),),
            params={"w": (3, 2, 3, 2)},
        )
        for padding in ("SAME", "VALID", ((1, 0), (4, 2)), ((0, 1), (0, 0)))
        for stride in (1, 2, 3)
    },
    "transposed conv with kernel flipped": Case(
        function=lambda p, x: lax.conv_transpose(
            x, p["w"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), transpose_kernel=True
        ),
        shapes=((B, 4, 5, 3),),
        params={"w": (3, 3, 2, 3)},
    ),
    "conv of other forms": Case(
        function=lambda p, x: (
            lax.conv_general_dilated(
                x,
                p["w"],
                (1, 1),
                ((1, 2), (1, 1)),
                lhs_dilation=(2, 2),
                feature_group_count=2,
                dimension_numbers=_IMAGE,
            ),
            lax.conv_general_dilated(
                x, p["w"], (2, 1), ((1, 2), (0, 1)), feature_group_count=2, dimension_numbers=_IMAGE
            ),
            lax.conv_general_dilated(
                x,
                p["w"],
                (2, 2),
                ((1, 1), (2, 0)),
                lhs_dilation=(2, 1),
                feature_group_count=2,
                dimension_numbers=_IMAGE,
            ),
            lax.conv_general_dilated(
                x.astype("bfloat16"),
                p["w"].astype("bfloat16"),
                (1, 1),
                "SAME",
                feature_group_count=2,
                dimension_numbers=_IMAGE,
                preferred_element_type="float32",
            ),
        ),
        shapes=((B, 4, 5, 6),),
        params={"w": (6, 2, 3, 3)},
    ),
    "gradients of conv and pool": Case(
        function=lambda p, x: (
            jax.grad(lambda w: (lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=_IMAGE) ** 2).sum())(
                p["w"]
            ),
            jax.grad(
                lambda v: (lax.conv_general_dilated(v, p["w"], (2, 2), "SAME", dimension_numbers=_IMAGE) ** 2).sum()
            )(x),
            jax.grad(
                lambda v: (lax.reduce_window(v, -jnp.inf, lax.max, (1, 1, 3, 3), (1, 1, 2, 2), "SAME") ** 2).sum()
            )(x),
            jax.grad(lambda v: (lax.reduce_window(v, 0.0, lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID") ** 2).sum())(x),
        ),
        shapes=((2, 2, 7, 6),),
        params={"w": (4, 2, 3, 3)},
        batches=(2,),
        tolerance=1e-4,
    ),
    "conv in groups of the batch": Case(
        function=lambda p, x: lax.conv_general_dilated(
            x, p["w"], (1, 1), "SAME", batch_group_count=2, dimension_numbers=_IMAGE
        ),
        shapes=((4, 3, 5, 5),),
        params={"w": (6, 3, 3, 3)},
        batches=(4,),
    ),
    "pool of other dtypes and forms": Case(
        function=lambda p, x: (
            lax.reduce_window(x.astype("int32"), np.int32(-(2**31)), lax.max, (1, 2, 2), (1, 1, 2), "SAME"),
            lax.reduce_window(x.astype("int32"), np.int32(0), lax.add, (1, 3, 1), (1, 1, 1), "SAME"),
            lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2), (1, 1, 1), ((0, 0), (3, 2), (0, 0))),
            lax.reduce_window(x, 0.0, lax.add, (1, 2, 2), (1, 1, 1), "SAME", base_dilation=(1, 2, 1)),
            lax.reduce_window(x, 0.0, lax.add, (1, 5, 1), (1, 1, 1), ((0, 0), (4, 0), (0, 0))),
        ),
        shapes=((B, 5, 6),),
    ),
    "dot of all layouts": Case(
        function=lambda p, x, y: (
            jnp.einsum("bihd,hdo->bio", x, p["w"]),
            jnp.einsum("bihd,ohd->bio", x, p["v"]),
            jnp.einsum("bihd,bjhd->bij", x, y),
            jnp.einsum("bihd,bihd->bh", x, x),
            jnp.einsum("bihd,bjhd->bhij", x, y),
            jnp.einsum("bihd,cjhd->bicj", x, y[:1]),
            jnp.einsum("bihd,bjkd->bihjk", x, y),
            jnp.tensordot(x, p["w"], 2),
            lax.dot_general(x.astype("uint8"), y.astype("uint8"), (((3,), (3,)), ((0, 2), (0, 2)))),
            lax.dot_general(x.astype("int16"), y.astype("int16"), (((3,), (3,)), ((0, 2), (0, 2)))),
        ),
        shapes=((B, 3, 2, 4), (B, 5, 2, 4)),
        params={"w": (2, 4, 6), "v": (5, 2, 4)},
    ),
    "attention": Case(
        function=lambda p, x: (
            jax.nn.dot_product_attention(x, x, x, is_causal=True),
            jax.nn.dot_product_attention(x, x[:, :, :2], x[:, :, :2]),
        ),
        shapes=((B, 5, 4, 3),),
    ),
    "resized images": Case(
        function=lambda p, x: (
            jax.image.resize(x, (x.shape[0], 8, 9), "linear"),
            jax.image.resize(x, (x.shape[0], 3, 2), "nearest"),
            jax.image.resize(x, (x.shape[0], 7, 7), "cubic"),
        ),
        shapes=((B, 4, 5),),
    ),
}
