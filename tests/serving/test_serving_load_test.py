"""The load test: it counts what was answered and what was not, and draws it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from http_kit import serving_http
from serving_kit import Project

from noa.errors import InvalidInputError
from noa.signatures import TensorSpec
from noa_cli.__main__ import run
from noa_serving import AsyncClient
from noa_serving._asgi import AsgiApplication
from noa_serving.load_test import LoadResult, example_inputs, plot_latencies, run_load


def test_every_request_is_counted_and_refusals_are_told_before(app: AsgiApplication) -> None:
    async def run(url: str) -> list[LoadResult]:
        async with AsyncClient(url) as client:
            with pytest.raises(InvalidInputError, match="wrong shape"):
                await run_load(client, "digits", np.ones((1, 3), np.float32), connections=[1], seconds=1)
            return await run_load(client, "digits", np.ones((1, 4), np.float32), connections=[1, 3], seconds=0.3)

    with serving_http(app) as url:
        results = asyncio.run(run(url))
    assert [one.connections for one in results] == [1, 3]
    for one in results:
        assert one.statuses == {200: len(one.latencies_ms)}
        assert one.rate > 0
        assert 0 < one.percentile_ms(50) <= one.percentile_ms(99)


def test_example_inputs_fit_the_signature() -> None:
    specs = (
        TensorSpec(name="x", dtype="float16", shape=("batch", 2)),
        TensorSpec(name="index", dtype="int64", shape=("batch",)),
    )
    arrays = example_inputs(specs, batch=3, seed=1)
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == {
        "x": ((3, 2), "float16"),
        "index": ((3,), "int64"),
    }
    assert not arrays["index"].any()


def test_a_plot_is_written_although_a_run_had_no_answer(tmp_path: Path) -> None:
    good = LoadResult(connections=1, seconds=1.0, statuses={200: 3}, latencies_ms=np.array([1.0, 2.0, 3.0]))
    none = LoadResult(connections=9, seconds=1.0, statuses={0: 3}, latencies_ms=np.array([]))
    plot_latencies([good, none], tmp_path / "plot.png", title="digits")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_noa_bench_prints_a_row_per_number_of_connections(
    app: AsgiApplication,
    project: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    plot = tmp_path / "latency.png"
    with serving_http(app) as url:
        command = ["bench", "digits", "--url", url, "-c", "1,2", "-s", "0.2", "--plot", str(plot), "--json"]
        assert run(command) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [row["connections"] for row in runs] == [1, 2]
    assert all(row["requests_per_s"] > 0 and row["refused"] == row["failed"] == 0 for row in runs)
    assert plot.exists()
    assert run(["bench", "digits", "--url", url, "-c", "0"]) != 0
