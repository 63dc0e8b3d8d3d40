"""Registry: resolve and promote, against stock MLflow on the same database."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.models import register_version
from benchmarks.rows import Row, median_seconds
from noa.settings import RegistrySettings
from noa_registry import Registry


def run(*, quick: bool) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = RegistrySettings(database_url=f"sqlite:///{root / 'noa.db'}", artifact_dir=root / "artifacts")
        versions = 5 if quick else 20
        with Registry.open(settings) as registry:
            for _ in range(versions):
                register_version(registry, "bench", seed=int(np.random.default_rng(0).integers(9)))
            return measure(registry, settings.database_url, versions=versions, repeats=50 if quick else 400)


def measure(registry: Registry, url: str, *, versions: int, repeats: int) -> list[Row]:
    from mlflow import MlflowClient

    client = MlflowClient(url, url)
    registry.promote("bench", 1, reason="bench", actor="bench")
    client.get_model_version_by_alias("bench", "champion")
    stock_resolve = median_seconds(lambda: client.get_model_version_by_alias("bench", "champion"), repeats=repeats)
    resolve = median_seconds(lambda: registry.resolve("bench@champion"), repeats=repeats)
    turn = iter(range(10**9))
    stock_alias = median_seconds(
        lambda: client.set_registered_model_alias("bench", "other", 1 + next(turn) % versions), repeats=repeats // 4
    )
    promote = median_seconds(
        lambda: registry.promote("bench", 1 + next(turn) % versions, reason="bench", actor="bench"),
        repeats=repeats // 4,
    )
    return [
        Row(
            what="resolve name@alias, p50",
            figure=resolve * 1e3,
            unit="ms",
            peer="MLflow",
            peer_figure=stock_resolve * 1e3,
        ),
        Row(
            what="promote (gate, hash of all bytes, ledger), p50",
            figure=promote * 1e3,
            unit="ms",
            peer="MLflow alias write",
            peer_figure=stock_alias * 1e3,
        ),
    ]
