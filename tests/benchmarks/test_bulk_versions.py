"""Versions that a benchmark fills in are as good as registered ones, but for their files."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bulk_versions import fill_versions

from noa.settings import RegistrySettings
from noa_registry import Registry


def test_filled_versions_resolve_and_their_records_hold(tmp_path: Path) -> None:
    settings = RegistrySettings(database_url=f"sqlite:///{tmp_path / 'noa.db'}", artifact_dir=tmp_path / "artifacts")
    with Registry.open(settings) as registry:
        fill_versions(registry, "bench", 12)
        assert list(fill_versions(registry, "bench", 8, seed=1)) == list(range(13, 21))
        for number in range(1, 21):
            assert set(registry.resolve(f"bench/{number}").formats) == {"torch", "onnx"}
            assert {fact.kind for fact in registry.evidence("bench", number)} == {"metrics", "equivalence"}
        assert len(registry.search("bench", limit=50).hits) == 20
