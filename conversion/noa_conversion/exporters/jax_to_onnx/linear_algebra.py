"""Solving and factorising matrices, one column per step of a loop: LU, Cholesky, QR and triangular systems.

Each is a JAX function over batches of matrices, without writes in place, which is traced and walked in the primitive's
place; its loop becomes Scan. Signs and pivots are LAPACK's, so that the factors are the ones JAX gives.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler


def _lu(x: Any) -> tuple[Any, Any, Any]:
    """Return the factors in one matrix, the pivots, and the permutation of the rows; partial pivoting."""
    from jax import lax
    from jax import numpy as jnp

    *batch, rows, columns = x.shape
    count = min(rows, columns)
    row, column = jnp.arange(rows), jnp.arange(columns)

    def step(state: tuple[Any, Any], k: Any) -> tuple[tuple[Any, Any], Any]:
        a, permutation = state
        sizes = jnp.where(row >= k, jnp.abs(_line(a, k, -1)), -1.0)
        pivot = lax.argmax(sizes, a.ndim - 2, np.int32)[..., None]
        order = jnp.where(row == k, pivot, jnp.where(row == pivot, k, row))
        a = jnp.take_along_axis(a, jnp.broadcast_to(order[..., None], a.shape), axis=-2, mode="clip")
        permutation = jnp.take_along_axis(permutation, order, axis=-1, mode="clip")
        head = _line(_line(a, k, -2), k, -1)[..., None]
        given = _line(a, k, -1)
        is_divided = (row > k) & (head != 0)
        factors = jnp.where(is_divided, given / jnp.where(head == 0, 1, head), given)
        a = jnp.where(column == k, factors[..., None], a)
        outer = factors[..., None] * _line(a, k, -2)[..., None, :]
        a = a - jnp.where((row[:, None] > k) & (column > k), outer, 0)
        return (a, permutation), pivot[..., 0]

    first = jnp.broadcast_to(row, (*batch, rows))
    (factors, permutation), pivots = lax.scan(step, (x, first), jnp.arange(count))
    return factors, jnp.moveaxis(pivots, 0, -1), permutation


def _line(a: Any, k: Any, axis: int) -> Any:
    from jax import lax

    return lax.dynamic_index_in_dim(a, k, axis, keepdims=False)


def _permutation(pivots: Any, *, size: int) -> Any:
    """Return the order of rows that swapping row `k` with row `pivots[k]`, one after the other, leads to."""
    from jax import lax
    from jax import numpy as jnp

    place = jnp.arange(size)

    def step(order: Any, given: tuple[Any, Any]) -> tuple[Any, None]:
        k, pivot = given
        swapped = jnp.where(place == k, pivot[..., None], jnp.where(place == pivot[..., None], k, place))
        return jnp.take_along_axis(order, swapped, axis=-1, mode="clip"), None

    first = jnp.broadcast_to(place, (*pivots.shape[:-1], size))
    return lax.scan(step, first, (jnp.arange(pivots.shape[-1]), jnp.moveaxis(pivots, -1, 0)))[0]


def _triangular_solve(
    a: Any,
    b: Any,
    *,
    left_side: bool,
    lower: bool,
    transpose_a: bool,
    conjugate_a: bool,
    unit_diagonal: bool,
) -> Any:
    """Turn the system into one with a lower triangle on the left, and substitute forward."""
    from jax import numpy as jnp

    del conjugate_a  # real numbers only
    if transpose_a:
        a, lower = jnp.swapaxes(a, -1, -2), not lower
    if not left_side:
        a, b, lower = jnp.swapaxes(a, -1, -2), jnp.swapaxes(b, -1, -2), not lower
    if not lower:
        a, b = jnp.flip(a, (-1, -2)), jnp.flip(b, -2)
    x = _substitute(a, b, unit_diagonal=unit_diagonal)
    x = x if lower else jnp.flip(x, -2)
    return x if left_side else jnp.swapaxes(x, -1, -2)


def _substitute(a: Any, b: Any, *, unit_diagonal: bool) -> Any:
    from jax import lax
    from jax import numpy as jnp

    size = a.shape[-1]
    place = jnp.arange(size)

    def step(x: Any, given: tuple[Any, Any, Any]) -> tuple[Any, None]:
        k, row, right = given
        known = jnp.sum(jnp.where(place < k, row, 0)[..., None] * x, axis=-2)
        solved = right - known
        if not unit_diagonal:
            solved = solved / _line(row, k, -1)[..., None]
        return jnp.where((place == k)[:, None], solved[..., None, :], x), None

    rows = (jnp.arange(size), jnp.moveaxis(a, -2, 0), jnp.moveaxis(b, -2, 0))
    return lax.scan(step, jnp.zeros(b.shape, b.dtype), rows)[0]


def _cholesky(x: Any) -> Any:
    """Return the lower factor; NaN everywhere if the matrix is not positive definite."""
    from jax import lax
    from jax import numpy as jnp

    size = x.shape[-1]
    place = jnp.arange(size)

    def step(factor: Any, k: Any) -> tuple[Any, Any]:
        rest = _line(x, k, -1) - jnp.sum(factor * _line(factor, k, -2)[..., None, :], axis=-1)
        head = _line(rest, k, -1)[..., None]
        root = jnp.sqrt(jnp.where(head > 0, head, 1))
        column = jnp.where(place > k, rest / root, jnp.where(place == k, root, 0))
        return jnp.where(place == k, column[..., None], factor), head[..., 0] > 0

    factor, is_positive = lax.scan(step, jnp.zeros(x.shape, x.dtype), jnp.arange(size))
    return jnp.where(jnp.all(is_positive, axis=0)[..., None, None], factor, jnp.nan)


def _qr(x: Any, *, full_matrices: bool) -> tuple[Any, Any]:
    """Reflect each column onto its axis. Source: Golub & Van Loan, section 5.1.2; the signs are those of LAPACK."""
    from jax import lax
    from jax import numpy as jnp

    *batch, rows, columns = x.shape
    place = jnp.arange(rows)

    def step(state: tuple[Any, Any], k: Any) -> tuple[tuple[Any, Any], None]:
        q, r = state
        column = jnp.where(place >= k, _line(r, k, -1), 0)
        head = _line(column, k, -1)[..., None]
        tail = jnp.sum(jnp.where(place > k, column * column, 0), axis=-1, keepdims=True)
        is_flat = tail == 0
        size = jnp.sqrt(jnp.where(is_flat, 1, head * head + tail))
        target = jnp.where(head >= 0, -size, size)
        scale = jnp.where(is_flat, 0, (target - head) / target)
        vector = jnp.where(place == k, 1, column / jnp.where(is_flat, 1, head - target))
        r = r - (scale * vector)[..., None] * jnp.sum(vector[..., None] * r, axis=-2, keepdims=True)
        q = q - jnp.sum(q * vector[..., None, :], axis=-1, keepdims=True) * (scale * vector)[..., None, :]
        return (q, r), None

    count = min(rows, columns)
    first = (jnp.broadcast_to(jnp.eye(rows, dtype=x.dtype), (*batch, rows, rows)), x)
    (q, r), _ = lax.scan(step, first, jnp.arange(count))
    r = jnp.where(place[:, None] <= jnp.arange(columns), r, 0)
    return (q, r) if full_matrices else (q[..., :count], r[..., :count, :])


def _write_qr(call: Call) -> list[Operand]:
    if call.params.get("pivoting"):
        raise call.refuse("it pivots columns")
    return list(call.trace(partial(_qr, full_matrices=bool(call.params["full_matrices"])), *call.inputs))


def _write_permutation(call: Call) -> list[Operand]:
    return list(call.trace(partial(_permutation, size=int(call.params["permutation_size"])), *call.inputs))


def _write_triangular_solve(call: Call) -> list[Operand]:
    return list(call.trace(partial(_triangular_solve, **call.params), *call.inputs))


def _linear_solve(call: Call) -> list[Operand]:
    """A solver of the caller's own comes with a function that solves: write that one."""
    counts = call.params["const_lengths"]
    before = counts.matvec + counts.vecmat
    total = before + counts.solve + counts.transpose_solve
    constants = call.inputs[before : before + counts.solve]
    return list(call.inline(call.params["jaxprs"].solve, [*constants, *call.inputs[total:]]))


HANDLERS: dict[str, Handler] = {
    "lu": lambda call: list(call.trace(_lu, *call.inputs)),
    "lu_pivots_to_permutation": _write_permutation,
    "triangular_solve": _write_triangular_solve,
    "cholesky": lambda call: list(call.trace(_cholesky, *call.inputs)),
    "qr": _write_qr,
    "custom_linear_solve": _linear_solve,
}
