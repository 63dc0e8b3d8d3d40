"""`TfIdfVectorizer` over tokens that are numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from noa_conversion.importers.jax.handlers import Tensor, register

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op

_MODES = ("TF", "IDF", "TFIDF")


@register("TfIdfVectorizer", tensors=True)
def tf_idf_vectorizer(op: Op, x: Tensor) -> Tensor:
    """Count the n-grams of a pool in each row, with and without equal gaps between tokens, and weigh the counts."""
    mode = op.attribute("mode")
    if mode not in _MODES or not op.has("pool_int64s"):
        op.refuse(f"mode {mode!r}, or a pool of texts")
    places = np.asarray(op.attribute("ngram_indexes"))
    grams = _pool(op)
    rows = x.reshape(1, -1) if x.ndim == 1 else x
    counts: Any = jnp.zeros((rows.shape[0], len(places)), jnp.float32)
    first = 0
    for length, pool in enumerate(grams, start=1):
        if op.attribute("min_gram_length") <= length <= op.attribute("max_gram_length") and len(pool):
            skips = op.attribute("max_skip_count") if length > 1 else 0
            found = sum((_count(rows, pool, gap) for gap in range(1, skips + 2)), start=jnp.zeros((), jnp.float32))
            counts = counts.at[:, first : first + len(pool)].add(found)
        first += len(pool)
    weights = np.asarray(op.attribute("weights", [1.0] * len(places)), np.float32)
    if mode == "IDF":
        counts = (counts > 0).astype(jnp.float32)
    weighed = counts if mode == "TF" else counts * weights
    width = int(places.max()) + 1
    result = jnp.zeros((rows.shape[0], width), jnp.float32).at[:, places].set(weighed)
    return result[0] if x.ndim == 1 else result


def _pool(op: Op) -> list[np.ndarray]:
    """Return the n-grams of each length, from 1 on."""
    flat, starts = np.asarray(op.attribute("pool_int64s")), [*op.attribute("ngram_counts")]
    ends = [*starts[1:], len(flat)]
    return [flat[a:b].reshape(-1, length) for length, (a, b) in enumerate(zip(starts, ends, strict=True), start=1)]


def _count(rows: Tensor, pool: np.ndarray, gap: int) -> Tensor:
    """Count each n-gram in each row, taking every `gap`-th token."""
    length = pool.shape[1]
    windows = rows.shape[1] - gap * (length - 1)
    if windows <= 0:
        return jnp.zeros((rows.shape[0], len(pool)), jnp.float32)
    index = np.arange(windows)[:, None] + gap * np.arange(length)[None]
    taken = rows[:, index]
    same = (taken[:, :, None, :] == jnp.asarray(pool, taken.dtype)).all(-1)
    return same.sum(1).astype(jnp.float32)
