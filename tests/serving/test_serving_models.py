"""What the Open Inference Protocol tells about models beside inference: statistics and configuration."""

from __future__ import annotations

import numpy as np
import pytest
from serving_kit import Project, ask, build_app

from noa_serving._asgi import AsgiApplication


@pytest.fixture
def fresh(content: Project) -> AsgiApplication:
    """An application in which nothing was counted yet."""
    return build_app(content.settings, digits="digits@champion", absent="digits@nobody")


def statistics(app: AsgiApplication, path: str = "/v2/models/digits/stats") -> dict[str, dict[str, dict[str, int]]]:
    rows = ask(app, "GET", path).json["model_stats"]
    assert isinstance(rows, list)
    return rows[0]


def test_statistics_count_requests_runs_items_and_refusals(fresh: AsgiApplication) -> None:
    assert statistics(fresh)["inference_count"] == 0
    for rows in (1, 3, 3):
        answer = ask(fresh, "POST", "/predict/digits", {"inputs": np.ones((rows, 4)).tolist()})
        assert answer.status == 200
    assert ask(fresh, "POST", "/predict/digits", {"inputs": [[1]]}).status == 400
    found = statistics(fresh, "/v2/models/digits/versions/2/stats")
    assert (found["inference_count"], found["execution_count"]) == (7, 3)
    stats = found["inference_stats"]
    assert {name: row["count"] for name, row in stats.items()} == {
        "success": 3, "fail": 1, "queue": 3, "compute_input": 3, "compute_infer": 3, "compute_output": 3,
        "cache_hit": 0, "cache_miss": 0,
    }  # fmt: skip
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert sum(stats[name]["ns"] for name in parts) == stats["success"]["ns"] > 0
    assert [(row["batch_size"], row["compute_infer"]["count"]) for row in found["batch_stats"]] == [(1, 1), (3, 2)]
    assert found["last_inference"] > 1_600_000_000_000


def test_statistics_of_all_models_leave_out_what_is_not_loaded(fresh: AsgiApplication) -> None:
    assert statistics(fresh, "/v2/models/stats")["name"] == "digits"
    assert ask(fresh, "GET", "/v2/models/absent/stats").status == 503
    assert ask(fresh, "GET", "/v2/models/digits/versions/1/stats").status == 404
    assert ask(fresh, "POST", "/v2/models/stats").status == 405


def test_the_configuration_says_what_a_load_generator_needs(app: AsgiApplication) -> None:
    config = ask(app, "GET", "/v2/models/digits/config").json
    assert config["max_batch_size"] == 4096
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
    assert config["output"][1] == {"name": "total", "data_type": "TYPE_FP32", "dims": []}
    assert config["platform"] == "onnxruntime_onnx"
