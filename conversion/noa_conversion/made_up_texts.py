"""Texts that are made up for models that take some: short words, some with capitals and other letters, one empty.

A model that looks its texts up in a table knows none of them; only real inputs show what it does with those it knows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from noa.text_tensors import text_array

if TYPE_CHECKING:
    import numpy as np

WORDS: Final = ("a", "the", "not", "good", "bad film", "Red", "blue", "Zürich", "2026", "yes, it is", "no", "日本", "")


def draw_texts(generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Return texts in a shape."""
    return text_array([WORDS[index] for index in generator.integers(0, len(WORDS), math.prod(shape))], shape)
