"""Which values a metric can have at all, told by the names that the field uses; never guessed.

`f1_macro`, `val/accuracy` and `recall@10` are fractions; `accuracy_percent` is none, and of `score` nothing is known.
"""

from __future__ import annotations

import math
import re
from typing import Final

_FRACTIONS: Final = frozenset({
    "accuracy", "acc", "precision", "recall", "f1", "fbeta", "auc", "auroc", "auprc", "sensitivity", "specificity",
    "tpr", "tnr", "fpr", "fnr", "iou", "miou", "jaccard", "dice",
})  # fmt: skip
_SAYS_WHICH: Final = frozenset({
    "score", "balanced", "macro", "micro", "weighted", "samples", "binary", "mean", "top", "k", "at", "categorical",
    "sparse", "ovr", "ovo", "roc", "pr", "average", "train", "training", "val", "valid", "validation", "test", "eval",
})  # fmt: skip
_ROUNDING: Final = 1e-9  # of sums of weights, e.g. an area under a curve


def is_fraction(name: str) -> bool:
    """Tell whether a metric of this name is between 0 and 1, as far as the name says it."""
    parts = [part for part in re.split(r"[^a-z0-9]+", name.lower()) if part and not part.isdecimal()]
    plain = [part if part in _FRACTIONS else part.rstrip("0123456789") for part in parts]
    return any(part in _FRACTIONS for part in plain) and all(part in _FRACTIONS | _SAYS_WHICH for part in plain)


def is_possible(name: str, value: float) -> bool:
    """Tell whether a metric of this name can have this value; of those that are no numbers nothing is said."""
    return not math.isfinite(value) or not is_fraction(name) or -_ROUNDING <= value <= 1 + _ROUNDING
