"""Losses of classification."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from noa_conversion.importers.jax.handlers import Tensor, register
from noa_conversion.importers.jax.indexing import from_front
from noa_conversion.importers.jax.softmaxes import log_softmax

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op


@register("NegativeLogLikelihoodLoss", tensors=True)
def negative_log_likelihood_loss(op: Op, scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return minus the score of the target class, weighted by class and averaged, summed or neither."""
    return _loss(op, scores, target, weight)


@register("SoftmaxCrossEntropyLoss", tensors=True)
def softmax_cross_entropy_loss(
    op: Op, scores: Tensor, labels: Tensor, weight: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the negative log likelihood of the softmax over the classes, and its logarithm if asked for."""
    log_probabilities = log_softmax(scores, 1)
    loss = _loss(op, log_probabilities, labels, weight)
    return (loss, log_probabilities) if op.num_outputs > 1 else loss


def _loss(op: Op, log_probabilities: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    reduction = op.attribute("reduction", "mean")
    if reduction not in ("mean", "sum", "none"):
        op.refuse(f"`reduction` is {reduction!r}")
    label = target.astype(jnp.int32)
    place = from_front(label, log_probabilities.shape[1])  # NaN for a class that there is not, if it is not ignored
    picked = jnp.take_along_axis(log_probabilities, jnp.expand_dims(place, 1), axis=1, mode="fill")
    loss = -jnp.squeeze(picked, 1)
    factor = None if weight is None else jnp.take(weight, place, axis=0, mode="fill")
    if op.has("ignore_index"):
        counts = label != op.attribute("ignore_index")
        factor = counts.astype(loss.dtype) if factor is None else jnp.where(counts, factor, 0)
        loss = jnp.where(counts, loss, 0)
    loss = loss if factor is None else loss * factor
    match reduction:
        case "none":
            return loss
        case "sum":
            return loss.sum()
        case _:
            return loss.mean() if factor is None else loss.sum() / factor.sum()
