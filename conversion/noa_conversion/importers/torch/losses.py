"""Losses of classifiers."""

from __future__ import annotations

import torch
from torch.nn import functional

from noa_conversion.importers.op import Op
from noa_conversion.importers.torch.table import register

_NONE = -(2**31) + 1
"""An index that no class has, for a loss that ignores nothing."""


def _negative_log_likelihood(
    op: Op, scores: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None
) -> torch.Tensor:
    reduction = op.attribute("reduction", "mean")
    if reduction not in ("none", "mean", "sum"):
        op.refuse(f"the reduction `{reduction}` is unknown")
    ignored = op.attribute("ignore_index", _NONE)
    if reduction == "none":
        return _each(scores, target.to(torch.int64), weight, ignored)
    if scores.ndim > 4 or scores.ndim == 3:
        scores = scores.reshape(scores.shape[0], scores.shape[1], -1)
        target = target.reshape(target.shape[0], -1)
    weight = None if weight is None else weight.detach()  # PyTorch has no gradient of it
    return functional.nll_loss(scores, target.to(torch.int64), weight, ignore_index=ignored, reduction=reduction)


def _each(scores: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, ignored: int) -> torch.Tensor:
    """The loss of each element. PyTorch's own operator is exported as one number."""
    is_kept = target != ignored
    label = torch.where(is_kept, target, torch.zeros_like(target))
    loss = -torch.gather(scores, 1, label.unsqueeze(1)).squeeze(1)
    if weight is not None:
        loss = loss * torch.index_select(weight, 0, label.reshape(-1)).reshape(label.shape)
    return torch.where(is_kept, loss, torch.zeros_like(loss))


@register("NegativeLogLikelihoodLoss", tensors=True)
def negative_log_likelihood(
    op: Op, scores: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Of log probabilities."""
    return _negative_log_likelihood(op, scores, target, weight)


@register("SoftmaxCrossEntropyLoss", tensors=True)
def softmax_cross_entropy(
    op: Op, scores: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...] | torch.Tensor:
    """Of scores; the log probabilities are the second output."""
    log_probability = torch.log_softmax(scores, 1)
    loss = _negative_log_likelihood(op, log_probability, target, weight)
    return (loss, log_probability) if op.num_outputs > 1 else loss
