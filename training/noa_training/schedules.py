"""Batch order and learning rates, computed in numpy so that both backends see the same ones.

Everything is a function of (seed, epoch) or of the step, so a resumed job needs no state to continue exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from noa_training.recipes import Recipe, Schedule, WarmupCosine


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a recipe walks over `rows` rows: full batches only, so that no step has another shape than the others."""

    rows: int
    batch_size: int
    epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in an epoch."""
        return self.rows // self.batch_size

    @property
    def total_steps(self) -> int:
        """Steps of all epochs."""
        return self.steps_per_epoch * self.epochs

    def order(self, epoch: int) -> np.ndarray:
        """Return the rows of each step of an epoch, int32 (steps_per_epoch, batch_size)."""
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(self.rows).astype(np.int32)
        return shuffled[: self.steps_per_epoch * self.batch_size].reshape(self.steps_per_epoch, self.batch_size)


def make_plan(recipe: Recipe, rows: int) -> Plan:
    """Return the plan; a dataset smaller than the batch size is one batch."""
    return Plan(rows=rows, batch_size=min(recipe.batch_size, rows), epochs=recipe.epochs, seed=recipe.seed)


def learning_rates(schedule: Schedule, base: float, *, first: int, count: int, total: int) -> np.ndarray:
    """Return the learning rates of the steps `first .. first + count - 1` of `total`, float32 (count,).

    Warm-up reaches `base` at step `warmup_steps` (step 0 has `base / warmup_steps`, not zero, which would waste it).
    """
    if not isinstance(schedule, WarmupCosine):
        return np.full(count, base, np.float32)
    rates = [base * _warmup_cosine(schedule, step, total) for step in range(first, first + count)]
    return np.asarray(rates, np.float32)


def _warmup_cosine(schedule: WarmupCosine, step: int, total: int) -> float:
    warmup = min(schedule.warmup_steps, total)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - 1 - warmup)
    floor = schedule.final_fraction
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
