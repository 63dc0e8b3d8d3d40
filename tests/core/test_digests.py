"""Digests name bytes: the same bytes have the same name, and any difference is found and named."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noa.digests import (
    FileDigest,
    Manifest,
    build_manifest,
    canonical_json,
    compare_folder,
    digest_arrays,
    digest_json,
    sha256_file,
    verify_folder,
)
from noa.errors import IntegrityError, InvalidInputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "sub").mkdir(parents=True)
    (root / "a.bin").write_bytes(b"a" * 3_000_000)
    (root / "sub" / "b.txt").write_text("b")
    return root


def test_a_file_digest_is_the_sha256_of_its_bytes(folder: Path) -> None:
    assert sha256_file(folder / "a.bin") == "sha256:" + hashlib.sha256(b"a" * 3_000_000).hexdigest()


def test_an_untouched_folder_verifies(folder: Path) -> None:
    verify_folder(folder, build_manifest(folder))


def test_one_flipped_byte_is_found_and_the_file_named(folder: Path) -> None:
    manifest = build_manifest(folder)
    data = bytearray((folder / "a.bin").read_bytes())
    data[1_500_000] ^= 1
    (folder / "a.bin").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"`a\.bin` was changed") as caught:
        verify_folder(folder, manifest)
    assert caught.value.facts["file"] == "a.bin"


def test_missing_and_extra_files_are_both_named(folder: Path) -> None:
    manifest = build_manifest(folder)
    (folder / "sub" / "b.txt").unlink()
    (folder / "c.py").write_text("evil")
    with pytest.raises(IntegrityError) as caught:
        verify_folder(folder, manifest)
    assert "`sub/b.txt` is missing" in str(caught.value)
    assert "`c.py` was added" in str(caught.value)


def test_links_are_refused(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(IntegrityError, match="`link` is a link"):
        build_manifest(folder)


def test_a_manifest_survives_its_json(folder: Path) -> None:
    manifest = build_manifest(folder)
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", ""])
def test_a_manifest_that_leaves_its_folder_is_refused(path: str) -> None:
    text = canonical_json([{"path": path, "size_bytes": 1, "digest": "sha256:00"}]).decode()
    with pytest.raises(IntegrityError):
        Manifest.from_json(text)


def test_canonical_json_refuses_what_json_cannot_say() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json(float("nan"))


@given(st.dictionaries(st.text(max_size=5), st.integers(), max_size=5))
def test_the_digest_of_json_does_not_depend_on_key_order(table: dict[str, int]) -> None:
    assert digest_json(table) == digest_json(dict(reversed(table.items())))


def test_array_digests_tell_names_dtypes_shapes_and_values_apart() -> None:
    base = np.arange(6, dtype=np.float32)
    digests = {
        digest_arrays({"x": base}),
        digest_arrays({"y": base}),
        digest_arrays({"x": base.astype(np.float64)}),
        digest_arrays({"x": base.reshape(2, 3)}),
        digest_arrays({"x": base + 1}),
    }
    assert len(digests) == 5


def test_array_digests_do_not_depend_on_memory_layout() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert digest_arrays({"x": array}) == digest_arrays({"x": np.asfortranarray(array)})
    assert digest_arrays({"x": array}) == digest_arrays({"x": array.astype(">f4")})


def test_empty_arrays_have_digests_and_object_arrays_are_refused() -> None:
    assert digest_arrays({"x": np.zeros((0, 3))}).startswith("sha256:")
    with pytest.raises(InvalidInputError, match="`x` holds Python objects"):
        digest_arrays({"x": np.array([object()])})


def test_a_folder_in_which_nothing_is_was_not_sealed(folder: Path) -> None:
    manifest = build_manifest(folder)
    (folder / "hollow" / "inner").mkdir(parents=True)
    with pytest.raises(IntegrityError, match="`hollow/inner` was added"):
        verify_folder(folder, manifest)


def test_of_a_folder_that_is_not_there_everything_is_missing(tmp_path: Path) -> None:
    file = FileDigest(path="a", size_bytes=1, digest="sha256:" + "0" * 64)
    assert [str(one) for one in compare_folder(tmp_path / "none", Manifest.of([file]))] == ["`a` is missing"]
