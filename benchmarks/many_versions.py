"""What the number of versions costs: promote, rollback and resolve at 10 to 100,000 versions of one model.

Stock MLflow's alias write beside it, at 10 and 10,000. Every size has a database of its own, and the bursts of all
sizes take turns, so that a busy moment of the machine hits them alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks.bulk_versions import fill_versions
from benchmarks.models import register_version
from benchmarks.rows import Row, median_seconds
from noa.settings import RegistrySettings
from noa_registry import Registry

MODEL = "bench"
_REAL = 2


def measure(root: Path, *, quick: bool) -> list[Row]:
    """Return the medians at each size, each with that at the smallest as its peer."""
    sizes = (10, 1_000) if quick else (10, 1_000, 100_000)
    stock_sizes = (10, 1_000) if quick else (10, 10_000)
    bursts = 5 if quick else 20
    with ExitStack() as stack:
        registries = {
            size: stack.enter_context(_filled(root / str(size), size)) for size in sorted({*sizes, *stock_sizes})
        }
        ours = {size: _actions(registries[size]) for size in sizes}
        stock = {size: {"alias write of stock MLflow": _stock_write(root / str(size))} for size in stock_sizes}
        return [*_rows(_medians(ours, bursts, repeats=10)), *_rows(_medians(stock, 3, repeats=4))]


def _filled(folder: Path, size: int) -> Registry:
    registry = Registry.open(_settings(folder))
    for seed in range(_REAL):
        register_version(registry, MODEL, seed=seed)
    fill_versions(registry, MODEL, size - _REAL)
    for number in (1, 2, 1):
        registry.promote(MODEL, number, reason="bench", actor="bench")
    return registry


def _settings(folder: Path) -> RegistrySettings:
    return RegistrySettings(database_url=f"sqlite:///{folder / 'noa.db'}", artifact_dir=folder / "artifacts")


def _actions(registry: Registry) -> dict[str, Callable[[], object]]:
    turn: Iterator[int] = iter(range(10**9))
    return {
        "promote": lambda: registry.promote(MODEL, 2 - next(turn) % 2, reason="bench", actor="bench"),
        "rollback": lambda: registry.rollback(MODEL, reason="bench", actor="bench"),
        "resolve": lambda: registry.resolve(f"{MODEL}@champion"),
    }


def _stock_write(folder: Path) -> Callable[[], object]:
    from mlflow import MlflowClient

    url = _settings(folder).database_url
    client = MlflowClient(url, url)
    turn: Iterator[int] = iter(range(10**9))
    return lambda: client.set_registered_model_alias(MODEL, "stock", 1 + next(turn) % 2)


def _medians(
    actions: Mapping[int, Mapping[str, Callable[[], object]]], bursts: int, *, repeats: int
) -> dict[str, dict[int, float]]:
    """Return the median over bursts of the medians within a burst, seconds, by action and size."""
    times: dict[str, dict[int, list[float]]] = {}
    for burst in range(bursts + 1):
        for size, named in actions.items():
            for name, action in named.items():
                found = median_seconds(action, repeats=repeats)
                if burst:  # the first one warms up
                    times.setdefault(name, {}).setdefault(size, []).append(found)
    return {name: {size: statistics.median(all_) for size, all_ in sizes.items()} for name, sizes in times.items()}


def _rows(medians: Mapping[str, Mapping[int, float]]) -> Iterator[Row]:
    for name, by_size in medians.items():
        smallest = min(by_size)
        for size, seconds in by_size.items():
            if size != smallest:
                yield Row(
                    what=f"{name} at {size:,} versions, p50",
                    figure=seconds * 1e3,
                    unit="ms",
                    peer=f"at {smallest}",
                    peer_figure=by_size[smallest] * 1e3,
                )
