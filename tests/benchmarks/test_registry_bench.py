"""The registry's benchmark runs to its end, each part with a registry of its own. No figure is judged."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.rows import Row

from benchmarks import bench_registry, large_models, many_versions, many_writers, run_pages, search_pages


@pytest.mark.slow
def test_every_part_gives_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_rows(folder: Path, *, quick: bool) -> list[Row]:
        del folder, quick
        return []

    # These fill in thousands of versions; what fills them is tested by `test_bulk_versions.py`.
    monkeypatch.setattr(many_versions, "measure", no_rows)
    monkeypatch.setattr(search_pages, "measure", no_rows)
    monkeypatch.setattr(run_pages, "measure", no_rows)
    monkeypatch.setattr(large_models, "GIGABYTE", 20_000_000)
    monkeypatch.setattr(many_writers, "WRITERS", 2)
    rows = bench_registry.run(quick=True)
    told = [row.what for row in rows]
    for what in ("resolve", "promote", "register", "open_format", "export", "import"):
        assert any(one.startswith(what) for one in told), told
    assert all(row.figure > 0 for row in rows)
