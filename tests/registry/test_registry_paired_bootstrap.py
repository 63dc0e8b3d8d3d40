from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gate_kit import candidate, judge, logits_that_are_right, measured, verdict
from noa.errors import InvalidInputError
from noa.metrics import MetricAdapter, find_metric, metric_names
from noa.settings import GateSettings
from noa_registry import BootstrapPlan, Predictions
from noa_registry.gates import paired_difference
from noa_training import metrics_of

FEW = BootstrapPlan(resamples=100)
STRICT = GateSettings(max_regression={"accuracy": 0.0}, confidence=0.95, resamples=200)


def of_objective(objective: str, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    if objective == "mse":
        return random.normal(size=(rows, 2)), random.normal(size=(rows, 2))
    if objective == "binary_cross_entropy":
        return random.normal(size=rows), random.integers(0, 2, rows)
    return random.normal(size=(rows, 4)), random.integers(0, 4, rows)


def compare(
    metric: MetricAdapter,
    holder: np.ndarray,
    challenger: np.ndarray,
    targets: np.ndarray,
    objective: str,
    seed: int = 0,
) -> tuple[float, float, float]:
    found = paired_difference(
        metric,
        Predictions(outputs=holder, targets=targets),
        Predictions(outputs=challenger, targets=targets),
        objective=objective,
        plan=BootstrapPlan(resamples=100, seed=seed),
    )
    return found.difference, found.lower, found.upper


CASES = [
    (name, objective)
    for objective in ("cross_entropy", "binary_cross_entropy", "mse")
    for name in metrics_of(objective)
]


@pytest.mark.parametrize(("name", "objective"), CASES)
@settings(max_examples=15)
@given(rows=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_identical_predictions_of_the_same_bytes_differ_by_exactly_nothing_and_of_others_not_surely(
    name: str, objective: str, rows: int, seed: int
) -> None:
    outputs, targets = of_objective(objective, rows, seed)
    one = Predictions(outputs=outputs, targets=targets)
    plan = BootstrapPlan(resamples=100, seed=seed)
    same, other = (
        paired_difference(find_metric(name), one, one, objective=objective, plan=plan, is_same=is_same)
        for is_same in (True, False)
    )
    assert (same.difference, same.lower, same.upper, same.is_same) == (0.0, 0.0, 0.0, True)
    assert (other.difference, other.differing_rows) == (0.0, 0)
    assert other.lower == pytest.approx(-other.upper)
    assert other.lower < 0 or rows == 1  # of a single loss nobody knows how far others are


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_rows_that_differ_are_counted(name: str, objective: str) -> None:
    outputs, targets = of_objective(objective, 30, 1)
    changed = outputs.copy()
    changed[:7] = 10 * outputs[::-1][:7] + 1
    for other, most in ((outputs.copy(), 0), (changed, 7)):
        found = paired_difference(
            find_metric(name),
            Predictions(outputs=outputs, targets=targets),
            Predictions(outputs=other, targets=targets),
            objective=objective,
            plan=FEW,
        )
        assert found.rows == 30
        assert found.differing_rows <= most
        assert found.upper > found.lower


@pytest.mark.parametrize(("name", "objective"), CASES)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_exchanging_the_two_exchanges_the_signs(name: str, objective: str, seed: int) -> None:
    first, targets = of_objective(objective, 30, seed)
    second, _ = of_objective(objective, 30, seed + 1)
    difference, lower, upper = compare(find_metric(name), first, second, targets, objective)
    backwards = compare(find_metric(name), second, first, targets, objective)
    assert backwards == pytest.approx((-difference, -upper, -lower))
    assert lower <= upper


@settings(max_examples=30)
@given(right=st.integers(0, 2**30 - 1), more=st.integers(1, 2**30 - 1))
def test_a_challenger_that_is_right_wherever_the_holder_is_passes_and_the_other_way_round_is_never_better(
    right: int, more: int
) -> None:
    targets = np.arange(30) % 3
    bits = np.asarray([(right >> place) & 1 for place in range(30)], bool)
    better = bits | np.asarray([(more >> place) & 1 for place in range(30)], bool)
    worse_one = candidate(*measured(logits_that_are_right(targets, bits), targets), reference="digits/1")
    better_one = candidate(*measured(logits_that_are_right(targets, better), targets))
    # Twelve hundredths are what thirty rows in which it is never worse leave open.
    assert judge(better_one, STRICT.model_copy(update={"max_regression": {"accuracy": 0.12}}), worse_one).passed
    backwards = verdict(
        judge(candidate(*worse_one.evidence[1:]), STRICT, candidate(*better_one.evidence[1:], reference="digits/1")),
        "max_regression.accuracy",
    )
    assert backwards.passed is bool((bits == better).all())  # some draw holds a row where it is worse


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), gap=st.integers(30, 100))
def test_a_strictly_worse_challenger_on_enough_rows_is_refused(seed: int, gap: int) -> None:
    random = np.random.default_rng(seed)
    targets = random.integers(0, 3, 400)
    right = random.random(400) < 0.95
    spoilt = right.copy()
    spoilt[np.flatnonzero(right)[:gap]] = False
    holder = candidate(*measured(logits_that_are_right(targets, right), targets), reference="digits/1")
    worse = candidate(*measured(logits_that_are_right(targets, spoilt), targets))
    policy = GateSettings(max_regression={"accuracy": 0.01}, confidence=0.95, resamples=200)
    assert not judge(worse, policy, holder).passed
    assert judge(candidate(*holder.evidence[1:]), policy, candidate(*worse.evidence[1:], reference="digits/1")).passed


def test_the_interval_is_that_of_the_same_draws_done_one_by_one() -> None:
    outputs, targets = of_objective("cross_entropy", 50, 3)
    other, _ = of_objective("cross_entropy", 50, 4)
    metric = find_metric("f1")
    drawn = np.random.default_rng(0).integers(0, 50, size=(100, 50), dtype=np.int32)
    from noa_training.metrics import compute_metrics

    def f1(values: np.ndarray, rows: np.ndarray) -> float:
        return compute_metrics(("f1",), values[rows], targets[rows], objective="cross_entropy")["f1"]

    differences = sorted(f1(other, rows) - f1(outputs, rows) for rows in drawn)
    _, lower, upper = compare(metric, outputs, other, targets, "cross_entropy")
    assert (lower, upper) == pytest.approx((differences[1], differences[98]))  # (100 + 1) * 0.025 is 2.5, so the second


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_a_metric_from_counts_is_the_metric_of_the_repeated_rows(name: str, objective: str) -> None:
    from noa_training.metrics import compute_metrics

    outputs, targets = of_objective(objective, 40, 7)
    counts = np.random.default_rng(1).integers(0, 4, size=(20, 40))
    found = find_metric(name).weighted(outputs, targets, counts, objective=objective)
    for row, value in zip(counts, found, strict=True):
        index = np.repeat(np.arange(40), row)
        expected = compute_metrics((name,), outputs[index], targets[index], objective=objective)  # type: ignore[arg-type]
        assert value == pytest.approx(expected[name])


def test_the_seed_decides_the_draws() -> None:
    outputs, targets = of_objective("mse", 30, 1)
    other, _ = of_objective("mse", 30, 2)
    first, again, second = (compare(find_metric("mae"), outputs, other, targets, "mse", seed) for seed in (0, 0, 1))
    assert first == again
    assert first[0] == second[0]
    assert first[1:] != second[1:]


def test_a_higher_confidence_gives_a_wider_interval() -> None:
    outputs, targets = of_objective("mse", 60, 1)
    other, _ = of_objective("mse", 60, 2)
    pair = (Predictions(outputs=outputs, targets=targets), Predictions(outputs=other, targets=targets))
    widths = []
    for confidence in (0.6, 0.8, 0.95, 0.999):
        plan = BootstrapPlan(confidence=confidence, resamples=2000)
        found = paired_difference(find_metric("mse"), *pair, objective="mse", plan=plan)
        widths.append(found.upper - found.lower)
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # 300 pairs of models whose true difference of accuracy is 0.05, 400 rows each.
    random = np.random.default_rng(5)
    covered = 0
    accuracy = find_metric("accuracy")
    targets = np.zeros(400, np.int64)
    for seed in range(300):
        draw = random.random(400)
        old, new = draw < 0.80, (draw < 0.75) | (draw > 0.90)
        found = paired_difference(
            accuracy,
            Predictions(outputs=logits_that_are_right(targets, old), targets=targets),
            Predictions(outputs=logits_that_are_right(targets, new), targets=targets),
            objective="cross_entropy",
            plan=BootstrapPlan(confidence=0.9, resamples=200, seed=seed),
        )
        covered += found.lower <= 0.05 <= found.upper
    assert 0.85 <= covered / 300 <= 0.95


@pytest.mark.parametrize("worse_rows", [1, 3, 7, 19])
def test_the_boundary_of_the_lower_bound_is_exact(worse_rows: int) -> None:
    targets = np.arange(100) % 3
    whole = logits_that_are_right(targets, np.ones(100, bool))
    spoilt = logits_that_are_right(targets, np.arange(100) >= worse_rows)
    _, lower, _ = compare(find_metric("accuracy"), whole, spoilt, targets, "cross_entropy")
    assert lower < -worse_rows / 100
    holder, subject = candidate(*measured(whole, targets), reference="digits/1"), candidate(*measured(spoilt, targets))
    for allowed, passed in ((-lower, True), (-lower - 1e-9, False), (-lower + 1e-9, True)):
        policy = GateSettings(max_regression={"accuracy": allowed}, confidence=0.95, resamples=100)
        assert judge(subject, policy, holder).passed is passed


def lower_bounds(rows: int, worse: float, better: float, models: int) -> np.ndarray:
    """Return the lower bounds of models that are worse and better than the holder in these shares of all rows."""
    drawn = np.random.default_rng(7).multinomial(rows, [worse, better, 1 - worse - better], size=models)
    found: dict[tuple[int, int], float] = {}
    zeros = np.zeros(rows, np.int64)
    for lost, won in {(int(one[0]), int(one[1])) for one in drawn}:
        holder, subject = np.ones(rows, bool), np.ones(rows, bool)
        subject[:lost] = False
        holder[rows - won :] = False
        pair = (Predictions(outputs=logits_that_are_right(zeros, one), targets=zeros) for one in (holder, subject))
        plan = BootstrapPlan(confidence=0.95, resamples=200)
        bound = paired_difference(find_metric("accuracy"), *pair, objective="cross_entropy", plan=plan).lower
        found[lost, won] = bound
    return np.asarray([found[int(one[0]), int(one[1])] for one in drawn])


@pytest.mark.parametrize(
    ("rows", "worse", "better", "allowed"),
    [
        (30, 0.03, 0.0, 0.01),
        (100, 0.02, 0.0, 0.01),
        (360, 0.005, 0.0, 0.0),
        (100, 0.03, 0.0, 0.03),  # worse by just as much as is allowed
        (200, 0.03, 0.0, 0.03),
        (360, 0.03, 0.01, 0.02),
    ],
)
def test_a_worse_model_that_seldom_differs_passes_no_oftener_than_the_confidence_says(
    rows: int, worse: float, better: float, allowed: float
) -> None:
    assert float((lower_bounds(rows, worse, better, 2000) >= -allowed).mean()) <= 0.05


def test_an_equal_model_passes_on_enough_rows() -> None:
    for share in (0.0, 0.005):
        assert float((lower_bounds(2000, share, share, 300) >= -0.01).mean()) > 0.9


def test_a_few_rows_that_differ_do_not_make_a_loss_sure() -> None:
    """A regression model is off by 1 in one of a hundred rows; of thirty rows, seldom one is among them."""
    random = np.random.default_rng(3)
    passed = 0
    for seed in range(200):
        targets = random.normal(size=(30, 1))
        outputs = targets + random.normal(size=(30, 1))
        worse = np.where(random.random((30, 1)) < 0.03, targets + 3, outputs)
        found = paired_difference(
            find_metric("mse"),
            Predictions(outputs=outputs, targets=targets),
            Predictions(outputs=worse, targets=targets),
            objective="mse",
            plan=BootstrapPlan(resamples=100, seed=seed),
        )
        passed += found.upper <= 0.1
    assert passed <= 10


def test_the_bound_of_a_loss_is_its_upper_one() -> None:
    targets = np.arange(200) % 3
    flat = np.zeros((200, 3), np.float32)
    sure = logits_that_are_right(targets, np.ones(200, bool))
    policy = GateSettings(max_regression={"loss": 0.0}, confidence=0.95, resamples=100)
    flat_one, sure_one = (candidate(*measured(logits, targets)) for logits in (flat, sure))
    assert judge(sure_one, policy, candidate(*flat_one.evidence[1:], reference="digits/1")).passed
    assert not judge(flat_one, policy, candidate(*sure_one.evidence[1:], reference="digits/1")).passed


def test_ten_thousand_rows_a_thousand_times_take_less_than_a_second() -> None:
    random = np.random.default_rng(0)
    targets = random.integers(0, 10, 10_000)
    holder, challenger = (random.normal(size=(10_000, 10)).astype(np.float32) for _ in range(2))
    for name in ("accuracy", "loss"):
        begun = time.process_time()
        paired_difference(
            find_metric(name),
            Predictions(outputs=holder, targets=targets),
            Predictions(outputs=challenger, targets=targets),
            objective="cross_entropy",
            plan=BootstrapPlan(),
        )
        assert time.process_time() - begun < 1


def test_predictions_of_another_number_of_rows_cannot_be_paired() -> None:
    outputs, targets = of_objective("mse", 5, 0)
    with pytest.raises(InvalidInputError, match="different rows"):
        paired_difference(
            find_metric("mse"),
            Predictions(outputs=outputs[:4], targets=targets[:4]),
            Predictions(outputs=outputs, targets=targets),
            objective="mse",
            plan=FEW,
        )


def test_all_metrics_of_the_training_room_are_offered_with_their_direction() -> None:
    from noa_training import is_larger_better

    assert set(metric_names()) >= {name for name, _ in CASES}
    for name, _ in CASES:
        assert isinstance(find_metric(name), MetricAdapter)
        assert find_metric(name).larger_is_better is is_larger_better(name)


def test_a_metric_of_another_objective_is_refused() -> None:
    outputs, targets = of_objective("mse", 5, 0)
    with pytest.raises(InvalidInputError, match="not defined for this objective"):
        compare(find_metric("auc"), outputs, outputs, targets, "mse")
