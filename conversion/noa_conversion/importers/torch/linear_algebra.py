"""Products of matrices and what follows from them."""

from __future__ import annotations

import torch
from torch.nn import functional

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Value
from noa_conversion.importers.torch.casting import cast_tensor
from noa_conversion.importers.torch.dtypes import dtype_of
from noa_conversion.importers.torch.operands import in_wider, is_integer, is_static
from noa_conversion.importers.torch.table import register


@register("MatMul", tensors=True)
def matmul(op: Op, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Product of matrices, batched like numpy's."""
    return in_wider(torch.matmul, a, b)


@register("Gemm", tensors=True)
def gemm(op: Op, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
    """`alpha * A @ B + beta * C`, A and B transposed if asked for: a linear layer in most files."""
    alpha, beta = op.attribute("alpha", 1.0), op.attribute("beta", 1.0)
    a = a.t() if op.attribute("transA", 0) else a
    if alpha == 1.0 and beta == 1.0 and not is_integer(a):
        weight = b if op.attribute("transB", 0) else b.t()
        if c is None or (c.ndim == 1 and is_static(c.shape[0]) and c.shape[0] == weight.shape[0]):
            return functional.linear(a, weight, c)
    b = b.t() if op.attribute("transB", 0) else b
    if is_integer(a):
        return _integer_gemm(op, in_wider(torch.matmul, a, b), alpha, c, beta)
    if c is None:
        return _scaled(torch.matmul(a, b), alpha)
    if alpha == 0.0:  # `addmm` would not look at A and B, whose infinities give NaN
        product = _scaled(torch.matmul(a, b), alpha)
        return product if beta == 0.0 else product + _scaled(c, beta)
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


def _scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x if factor == 1.0 else x * factor


def _integer_gemm(op: Op, product: torch.Tensor, alpha: float, c: torch.Tensor | None, beta: float) -> torch.Tensor:
    """Scale a product that is wrapped to its type, in double precision; only the sum is cut to a whole number."""
    dtype = dtype_of(product)
    if alpha == 1.0 and (c is None or beta == 1.0):
        return product if c is None else in_wider(torch.add, product, c)
    total = product.to(torch.float64) * alpha
    if c is not None and beta != 0.0:
        total = total + c.to(torch.float64) * beta
    return cast_tensor(op, total, dtype)


@register("Einsum", tensors=True)
def einsum(op: Op, *inputs: torch.Tensor) -> torch.Tensor:
    """Sums of products named by letters."""
    equation = op.attribute("equation").replace(" ", "")
    return in_wider(lambda *wide: torch.einsum(equation, list(wide)), *inputs)


@register("Det", tensors=True)
def det(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Determinants of the last two axes."""
    return torch.linalg.det(x)


@register("Inverse", domain="com.microsoft", tensors=True)
def inverse(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Inverses of the last two axes."""
    return torch.linalg.inv(x)


@register("MatMulInteger")
def matmul_integer(op: Op, a: Value, b: Value, a_zero_point: Value = None, b_zero_point: Value = None) -> torch.Tensor:
    """Product of small integers in 32 bits, less their zero points."""
    left, right = op.tensor(a).to(torch.int32), op.tensor(b).to(torch.int32)
    if a_zero_point is not None:
        zero = op.tensor(a_zero_point).to(torch.int32)
        left = left - (zero.unsqueeze(-1) if zero.ndim == 1 and zero.shape[0] != 1 else zero)
    if b_zero_point is not None:
        right = right - op.tensor(b_zero_point).to(torch.int32)
    return integer_matmul(left, right)


def integer_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiply matrices of 32-bit integers exactly: in double precision, which holds sums of products of 9 bits."""
    return torch.matmul(a.to(torch.float64), b.to(torch.float64)).to(torch.int32)
