from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noa_training import Constant, Recipe, WarmupCosine, mlp
from noa_training.schedules import Plan, learning_rates, make_plan

PLAN = Plan(rows=10, batch_size=3, epochs=2, seed=5)


@given(rows=st.integers(1, 50), batch=st.integers(1, 60), epoch=st.integers(0, 3))
def test_an_epoch_visits_distinct_rows_in_full_batches(rows: int, batch: int, epoch: int) -> None:
    plan = Plan(rows=rows, batch_size=min(batch, rows), epochs=4, seed=1)
    order = plan.order(epoch)
    assert order.shape == (plan.steps_per_epoch, plan.batch_size)
    assert len(np.unique(order)) == order.size
    assert order.size > rows - plan.batch_size
    assert order.min() >= 0 and order.max() < rows


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    assert (PLAN.order(0) == PLAN.order(0)).all()
    assert (PLAN.order(0) != PLAN.order(1)).any()
    assert (PLAN.order(0) != replace(PLAN, seed=6).order(0)).any()


def test_a_dataset_smaller_than_the_batch_is_one_batch() -> None:
    recipe = Recipe(name="m", data=lambda: None, model=mlp(), objective="mse", batch_size=64)  # type: ignore[arg-type,return-value]
    plan = make_plan(recipe, 10)
    assert (plan.batch_size, plan.steps_per_epoch, plan.total_steps) == (10, 1, 10)


def test_warmup_rises_to_the_base_and_the_cosine_falls_to_its_floor() -> None:
    schedule = WarmupCosine(warmup_steps=4, final_fraction=0.1)
    rates = learning_rates(schedule, 2.0, first=0, count=20, total=20)
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[4] == pytest.approx(2.0)
    assert (np.diff(rates[4:]) < 0).all()
    assert rates[-1] == pytest.approx(0.2)


def test_rates_of_a_part_are_those_of_the_whole() -> None:
    schedule = WarmupCosine(warmup_steps=3)
    whole = learning_rates(schedule, 1.0, first=0, count=20, total=20)
    assert (learning_rates(schedule, 1.0, first=7, count=5, total=20) == whole[7:12]).all()
    assert (learning_rates(Constant(), 0.5, first=7, count=2, total=20) == 0.5).all()
