"""Registry: resolve and promote, against stock MLflow on the same database; and what much of something costs.

Much of something: versions (`many_versions`), writers (`many_writers`), versions to search (`search_pages`), runs
(`run_pages`), bytes (`large_models`).
"""

from __future__ import annotations

import cProfile
import pstats
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks import large_models, many_versions, many_writers, run_pages, search_pages
from benchmarks.models import register_version
from benchmarks.rows import Row, median_seconds
from noa.settings import RegistrySettings
from noa_registry import Registry

_PROFILED_CALLS = 300
_SHOWN = 18


def run(*, quick: bool) -> list[Row]:
    versions = 5 if quick else 20
    with _registry(versions) as (root, registry, url):
        rows = measure(registry, url, versions=versions, repeats=50 if quick else 400)
        for topic in (many_versions, many_writers, search_pages, run_pages, large_models):  # each a registry of its own
            rows += topic.measure(root / topic.__name__.rpartition(".")[2], quick=quick)
        return rows


def profile() -> None:
    """Print where the time of `resolve` and of `promote` goes: the functions with most time of their own."""
    with _registry(2) as (_, registry, _):
        turn = iter(range(10**9))
        actions: dict[str, Callable[[], object]] = {
            "resolve": lambda: registry.resolve("bench@champion"),
            "promote": lambda: registry.promote("bench", 1 + next(turn) % 2, reason="bench", actor="bench"),
        }
        registry.promote("bench", 2, reason="bench", actor="bench")
        for name, action in actions.items():
            action()  # what is done once is not what is asked for
            recorded = cProfile.Profile()
            with recorded:
                for _ in range(_PROFILED_CALLS):
                    action()
            print(f"{name}: {_PROFILED_CALLS} calls")
            pstats.Stats(recorded).strip_dirs().sort_stats("tottime").print_stats(_SHOWN)


@contextmanager
def _registry(versions: int) -> Iterator[tuple[Path, Registry, str]]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = RegistrySettings(database_url=f"sqlite:///{root / 'noa.db'}", artifact_dir=root / "artifacts")
        with Registry.open(settings) as registry:
            for _ in range(versions):
                register_version(registry, "bench", seed=int(np.random.default_rng(0).integers(9)))
            yield root, registry, settings.database_url


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
