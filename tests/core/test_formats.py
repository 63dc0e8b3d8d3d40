"""Formats are found by name, and what is installed is looked up once."""

from __future__ import annotations

import pytest

import noa.formats
from noa.errors import NotFoundError
from noa.formats import find_adapter, format_names


def test_an_unknown_format_is_told_with_those_that_there_are() -> None:
    with pytest.raises(NotFoundError, match=r"no format `onnxx`; expected .*\bonnx, .*\btorch; received onnxx"):
        find_adapter("onnxx")


def test_the_metadata_of_all_packages_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To read it takes ten milliseconds, and a registration asks for each of its formats."""
    names = format_names()
    monkeypatch.setattr(noa.formats, "entry_points", lambda **_: [])
    assert format_names() == names
    assert find_adapter("onnx").name == "onnx"
