"""A path without detours is the same place."""

from __future__ import annotations

from pathlib import Path

import pytest

from noa.plain_paths import plain_path


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("a/../d.noa", "d.noa"),
        ("a/b/../../d.noa", "d.noa"),
        ("nothing/../d.noa", "d.noa"),
        ("./a/./d.noa", "a/d.noa"),
        ("link/d.noa", "link/d.noa"),
        ("link/../d.noa", "link/../d.noa"),
        ("link/../../d.noa", "link/../../d.noa"),
        ("link/../a/../d.noa", "link/../d.noa"),
    ],
)
def test_a_plain_path_names_the_same_place(
    given: str, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path)
    assert plain_path(Path(given)) == tmp_path / plain
    if "nothing" not in given:
        assert plain_path(Path(given)).resolve() == Path(given).resolve()


def test_nothing_is_above_the_root() -> None:
    assert plain_path(Path("/../../etc")) == Path("/etc")
