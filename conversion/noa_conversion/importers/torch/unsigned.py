"""Order, division and shifts of 64-bit unsigned integers, computed in `int64` on the same bits."""

from __future__ import annotations

import torch

_SIGN = -(2**63)


def ordered(tensor: torch.Tensor) -> torch.Tensor:
    """Return signed integers in the order of the unsigned ones."""
    return tensor.to(torch.int64) ^ _SIGN


def in_order(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose signed order is its true order: 64-bit unsigned integers are moved, others widened."""
    if tensor.dtype == torch.uint64:
        return ordered(tensor)
    return tensor.to(torch.int64) if tensor.dtype in (torch.uint16, torch.uint32) else tensor


def divide(dividend: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    """Divide unsigned 64-bit integers that are held as `int64`."""
    small = torch.where(divisor < 0, torch.ones_like(divisor), divisor)
    half = torch.bitwise_right_shift(dividend, 1) & (2**63 - 1)
    quotient = torch.div(half, small, rounding_mode="floor") * 2
    rest = dividend - quotient * small
    quotient = quotient + ((rest ^ _SIGN) >= (small ^ _SIGN)).to(torch.int64)
    large = ((dividend ^ _SIGN) >= (divisor ^ _SIGN)).to(torch.int64)
    return torch.where(divisor < 0, large, quotient)


def shift_right(tensor: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Shift unsigned 64-bit integers that are held as `int64`; counts from 64 on give zero."""
    near = count.clamp(0, 63)
    shifted = torch.bitwise_right_shift(tensor, near)
    mask = torch.where(
        near == 0,
        torch.full_like(near, -1),
        torch.bitwise_left_shift(torch.ones_like(near), 64 - near.clamp(min=1)) - 1,
    )
    return torch.where((count < 0) | (count > 63), torch.zeros_like(shifted), shifted & mask)
