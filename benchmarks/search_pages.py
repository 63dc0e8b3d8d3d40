"""Search: the first page of every kind of term, and a page from the middle, over very many versions."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bulk_versions import dataset_digest, fill_versions
from benchmarks.rows import Row, median_seconds
from noa.settings import RegistrySettings
from noa_registry import Registry

MODEL, OTHER = "bench", "other"
PAGE = 50


def measure(root: Path, *, quick: bool) -> list[Row]:
    """Return the median time of each query; the slowest is the one to quote."""
    count = 10_000 if quick else 100_000
    settings = RegistrySettings(database_url=f"sqlite:///{root / 'noa.db'}", artifact_dir=root / "artifacts")
    with Registry.open(settings) as registry:
        fill_versions(registry, MODEL, count - count // 10)
        fill_versions(registry, OTHER, count // 10, seed=1)
        digest = registry.resolve(f"{MODEL}/{count // 2}").digest
        times = {
            query: median_seconds(lambda query=query: registry.search(query, limit=PAGE), repeats=9)
            for query in _queries(count, digest)
        }
        page = registry.search(MODEL, limit=PAGE)
        second = registry.search(MODEL, limit=PAGE, cursor=page.next_cursor)
        times["(second page)"] = median_seconds(
            lambda: registry.search(MODEL, limit=PAGE, cursor=second.next_cursor), repeats=9
        )
    slowest = max(times, key=lambda query: times[query])
    rows = [
        Row(what=f"search {count:,} versions: {query[:34]}", figure=seconds * 1e3, unit="ms")
        for query, seconds in times.items()
    ]
    worst = f"search {count:,} versions, the slowest kind: {slowest[:24]}"
    return [*rows, Row(what=worst, figure=times[slowest] * 1e3, unit="ms")]


def _queries(count: int, digest: str) -> tuple[str, ...]:
    """Return a query of every kind; those that find nothing have looked at most."""
    return (
        MODEL,
        "tag.team=vision",
        f"tag.build=0-{count // 3}",
        "tag.team=nobody",
        "metric.accuracy>=0.999",
        "metric.accuracy>=2",
        "sort:metric.accuracy",
        "tag.team=vision metric.accuracy>=0.98 sort:metric.accuracy",
        f"digest:{digest[7:19]}",
        f"number:{count // 4}",
        "name:oth*",
        "native:torch",
        "format:onnx",
        "-format:onnx",
        f"dataset:{dataset_digest(7)[7:19]}",
        "created>=2026-01-20 created<2026-01-21",
        "by:bulk -tag.team=vision",
        "is:live",
        "is:trashed",
    )
