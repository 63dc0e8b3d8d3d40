"""The direction of a metric is known by the field's names, and never guessed."""

from __future__ import annotations

import pytest

from noa.metric_directions import known_direction


@pytest.mark.parametrize(
    "name",
    [
        "loss", "log_loss", "logloss", "logLoss", "val/loss", "error_rate", "rmse", "mae", "mse", "mape", "rmse_test",
        "wer", "cer", "word-error-rate", "perplexity", "cross_entropy", "brier_score", "ece", "latency_p99", "fid",
        "mean_squared_error", "nll", "neg_log_likelihood", "loss2",
    ],
)  # fmt: skip
def test_less_of_a_loss_is_better(name: str) -> None:
    assert known_direction(name) == "lower"


@pytest.mark.parametrize(
    "name",
    [
        "accuracy", "top5_accuracy", "recall@10", "f1", "f1_macro", "roc_auc", "bleu", "bleu4", "rougeL", "rouge1",
        "ndcg@5", "mean_iou", "r2", "r2_score", "neg_mean_squared_error", "neg_log_loss", "log_likelihood",
    ],
)  # fmt: skip
def test_more_of_a_hit_rate_is_better(name: str) -> None:
    assert known_direction(name) == "higher"


@pytest.mark.parametrize("name", ["score", "quality", "accuracy_loss", "x", "", "width"])
def test_a_name_that_does_not_tell_is_not_guessed(name: str) -> None:
    assert known_direction(name) is None
