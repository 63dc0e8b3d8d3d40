"""Whether more or less of a metric is better, told by the names that the field uses; never guessed.

A name is read in parts (`val/log_loss`, `recall@10`, `neg_mean_squared_error`). It is known when its parts say one
thing; `accuracy_loss` or `score` say none, and then the user has to.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final, Literal, TypeAlias

Direction: TypeAlias = Literal["higher", "lower"]

_LOWER: Final = frozenset({
    "loss", "error", "err", "mse", "rmse", "mae", "mape", "smape", "mase", "rmsle", "msle", "medae", "rse", "rae",
    "brier", "perplexity", "ppl", "nll", "logloss", "entropy", "crossentropy", "wer", "cer", "ter", "mer", "eer",
    "fpr", "fnr", "ece", "mce", "ace", "latency", "fid", "kid", "lpips", "kld", "divergence", "deviance", "hinge",
    "regret", "crps", "pinball", "bpc", "bpb", "bpd",
})  # fmt: skip
_HIGHER: Final = frozenset({
    "accuracy", "acc", "precision", "recall", "f", "fbeta", "auc", "auroc", "auprc", "roc", "sensitivity",
    "specificity", "tpr", "tnr", "r", "bleu", "rouge", "rougel", "meteor", "chrf", "iou", "miou", "jaccard", "dice",
    "map", "mrr", "ndcg", "psnr", "ssim", "kappa", "mcc", "likelihood", "elbo", "correlation", "pearson",
    "spearman", "kendall", "throughput", "reward",
})  # fmt: skip
_NEGATED: Final = frozenset({"neg", "negative"})
_OPPOSITE: Final[dict[Direction, Direction]] = {"higher": "lower", "lower": "higher"}


def known_direction(name: str) -> Direction | None:
    """Return the direction of a metric of this name, None if the name does not tell.

    `neg_` turns it around, as in scikit-learn's scorers.
    """
    parts = [part for part in re.split(r"[^a-z0-9]+", name.lower()) if part]
    joined = ["".join(pair) for pair in pairwise(parts)]
    words = {word for part in (*parts, *joined) for word in (part, part.rstrip("0123456789"))}
    found: set[Direction] = set()
    if words & _LOWER:
        found.add("lower")
    if words & _HIGHER:
        found.add("higher")
    if len(found) != 1:
        return None
    direction = found.pop()
    return _OPPOSITE[direction] if _NEGATED & set(parts) else direction
