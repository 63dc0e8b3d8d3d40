"""Matrix products, `Gemm`, `Einsum`, determinants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from noa_conversion.importers.jax.casting import cut_to_whole
from noa_conversion.importers.jax.dtypes import is_float
from noa_conversion.importers.jax.handlers import Tensor, register

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op


@register("MatMul", tensors=True)
def matmul(op: Op, a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices, broadcasting the axes before them."""
    return jnp.matmul(a, b)


@register("Gemm", tensors=True)
def gemm(op: Op, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha * A @ B + beta * C, either matrix transposed on the way."""
    alpha, beta = op.attribute("alpha", 1.0), op.attribute("beta", 1.0)
    a = a.T if op.attribute("transA", 0) else a
    b = b.T if op.attribute("transB", 0) else b
    if not is_float(a):
        return _integer_gemm(jnp.matmul(a, b), alpha, c, beta)
    result = _scaled(jnp.matmul(a, b), alpha)
    return result if c is None or beta == 0 else result + _scaled(c, beta)


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor


def _integer_gemm(product: Tensor, alpha: float, c: Tensor | None, beta: float) -> Tensor:
    """Scale a product that is wrapped to its type, in double precision; only the sum is cut to a whole number."""
    if alpha == 1 and (c is None or beta == 1):
        return product if c is None else product + c
    total = product.astype(jnp.float64) * alpha
    if c is not None and beta != 0:
        total = total + c.astype(jnp.float64) * beta
    return cut_to_whole(total, product.dtype)


@register("Einsum", tensors=True)
def einsum(op: Op, *operands: Tensor) -> Tensor:
    """Sum products over the letters of an equation."""
    equation: Any = op.attribute("equation")
    return jnp.einsum(equation.replace(" ", ""), *operands)


@register("Inverse", domain="com.microsoft", tensors=True)
def inverse(op: Op, x: Tensor) -> Tensor:
    """Return the inverses of square matrices."""
    return jnp.linalg.inv(x)


@register("Det", tensors=True)
def determinant(op: Op, x: Tensor) -> Tensor:
    """Return the determinants of square matrices. Up to 3 rows by the formula, which has a gradient everywhere."""
    size = x.shape[-1]
    if size == 1:
        return x[..., 0, 0]
    if size == 2:
        return x[..., 0, 0] * x[..., 1, 1] - x[..., 0, 1] * x[..., 1, 0]
    if size == 3:
        crossed = jnp.cross(x[..., 1, :], x[..., 2, :])
        return (x[..., 0, :] * crossed).sum(-1)
    return jnp.linalg.det(x)
