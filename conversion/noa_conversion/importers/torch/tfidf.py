"""`TfIdfVectorizer` on whole numbers: how often each n-gram of a pool occurs."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from noa_conversion.importers.free_sizes import fixing
from noa_conversion.importers.op import Op
from noa_conversion.importers.torch.operands import is_static
from noa_conversion.importers.torch.table import register


@register("TfIdfVectorizer", tensors=True)
def tfidf_vectorizer(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Count n-grams of lengths and gaps in a range, each in its own column."""
    pool = op.attribute("pool_int64s", None)
    if pool is None:
        op.refuse("its pool holds texts, which PyTorch has no tensors of")
    rows = x.unsqueeze(0) if x.ndim == 1 else x
    if not is_static(rows.shape[1]):
        op.refuse("the length of its sequences is a free axis", remedy=fixing(rows.shape[1]))
    columns = op.attribute("ngram_indexes")
    width = max(columns) + 1
    counts: list[torch.Tensor | None] = [None] * width
    for number, (gram, column) in enumerate(zip(_grams(op, pool), columns, strict=False)):
        if op.attribute("min_gram_length") <= len(gram) <= op.attribute("max_gram_length"):
            found = _weighted(op, _occurrences(op, rows, gram), number)
            before = counts[column]
            counts[column] = found if before is None else before + found
    empty = torch.zeros_like(rows[:, 0], dtype=torch.float32)
    result = torch.stack([empty if count is None else count for count in counts], 1)
    return result[0] if x.ndim == 1 else result


def _grams(op: Op, pool: list[int]) -> list[list[int]]:
    starts = [*op.attribute("ngram_counts"), len(pool)]
    grams: list[list[int]] = []
    for length, (start, end) in enumerate(itertools.pairwise(starts), 1):
        grams += [pool[at : at + length] for at in range(start, end, length)]
    return grams


def _occurrences(op: Op, rows: torch.Tensor, gram: list[int]) -> torch.Tensor:
    """Count a gram with each gap between its members; a single one has no gaps."""
    gaps = range(1, op.attribute("max_skip_count") + 2) if len(gram) > 1 else range(1, 2)
    total = torch.zeros_like(rows[:, 0], dtype=torch.float32)
    for gap in gaps:
        places = rows.shape[1] - (len(gram) - 1) * gap
        if places <= 0:
            continue
        is_here = rows[:, :places] == gram[0]
        for step, member in enumerate(gram[1:], 1):
            is_here = is_here & (rows[:, step * gap : step * gap + places] == member)
        total = total + is_here.sum(1).to(torch.float32)
    return total


def _weighted(op: Op, count: torch.Tensor, number: int) -> torch.Tensor:
    mode = op.attribute("mode")
    weights = op.attribute("weights", None)
    weight = 1.0 if weights is None else float(np.float32(weights[number]))
    if mode == "TF":
        return count
    if mode == "IDF":
        return (count > 0).to(torch.float32) * weight
    if mode == "TFIDF":
        return count * weight
    return op.refuse(f"the mode `{mode}` is unknown")
