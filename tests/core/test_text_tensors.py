"""Texts as tensors: what is one, how they are packed, kept in files and hashed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from noa.digests import digest_arrays
from noa.errors import InvalidInputError, SignatureError
from noa.signatures import Signature, TensorSpec, dtype_name, numpy_dtype
from noa.tensor_files import load_tensors, save_tensors
from noa.text_tensors import pack_texts, size_bytes, text_array, unpack_texts

SIGNATURE = Signature(
    inputs=(TensorSpec(name="text", dtype="string", shape=("batch", 2)),),
    outputs=(TensorSpec(name="label", dtype="string", shape=("batch",)),),
)
TEXTS = st.lists(st.text(max_size=12), max_size=8)


def objects(values: object) -> np.ndarray:
    return np.array(values, dtype=object)


@given(texts=TEXTS)
def test_packed_texts_are_read_again(texts: list[str]) -> None:
    array = text_array(texts, (len(texts),))
    assert array.tolist() == texts
    found = unpack_texts(memoryview(pack_texts(array)), array.shape, field="x", name="x")
    assert found.tolist() == texts
    assert found.dtype == object


@given(data=st.binary(max_size=40), count=st.integers(0, 8))
def test_any_bytes_are_read_to_the_last_or_refused(data: bytes, count: int) -> None:
    try:
        found = unpack_texts(memoryview(data), (count,), field="x", name="input `x`")
    except SignatureError as exc:
        assert exc.facts["field"] == "x"
    else:
        assert pack_texts(found) == data


def test_a_claimed_shape_is_refused_before_anything_of_its_size_is_made() -> None:
    for shape in ((2**31,), (2**62, 2**62), (17,)):
        with pytest.raises(SignatureError, match="wrong number of bytes"):
            unpack_texts(memoryview(bytes(64)), shape, field="x", name="x")


def test_signatures_of_texts_are_kept_and_checked(tmp_path: Path) -> None:
    SIGNATURE.save(tmp_path)
    assert Signature.load(tmp_path) == SIGNATURE
    assert SIGNATURE.validate({"text": objects([["a", "é"]] * 3)}) == 3
    assert SIGNATURE.validate({"text": np.array([["a", "é"]])}) == 1, "NumPy's own texts are texts too"
    SIGNATURE.validate_outputs({"label": objects(["a"])}, sizes={"batch": 1})
    for wrong, reason in (
        (objects([["a", 1]]), "received int"),
        (objects([["a", None]]), "received NoneType"),
        (objects([["a", "\ud800"]]), "no UTF-8"),
        (np.array([["\ud800", "a"]]), "no UTF-8"),
        (np.zeros((1, 2)), "expected string; received float64"),
        (np.array([[b"a", b"b"]]), "expected string; received bytes8"),
        (objects(["a"]), "wrong shape"),
    ):
        with pytest.raises(SignatureError, match=reason):
            SIGNATURE.validate({"text": wrong})
    with pytest.raises(SignatureError, match=r"expected string\(batch=1\); received float32"):
        SIGNATURE.validate_outputs({"label": np.zeros(1, np.float32)}, sizes={"batch": 1})
    numbers = TensorSpec(name="x", dtype="float32", shape=("batch",))
    with pytest.raises(SignatureError, match="expected float32; received string"):
        Signature(inputs=(numbers,), outputs=(numbers,)).validate({"x": objects(["1"])})


def test_dtypes_have_one_name() -> None:
    for name in ("string", "float32", "bool", "uint64"):
        assert dtype_name(numpy_dtype(name)) == name
    with pytest.raises(InvalidInputError, match="Texts are `string`"):
        TensorSpec(name="x", dtype="object", shape=())  # type: ignore[arg-type]  # what is refused


@given(texts=st.lists(st.text(max_size=5), min_size=1, max_size=5))
def test_texts_have_a_digest_of_their_own(texts: list[str]) -> None:
    array = objects(texts)
    assert digest_arrays({"x": array}) == digest_arrays({"x": array.copy()})
    assert digest_arrays({"x": array}) != digest_arrays({"x": array[:, None]})
    assert digest_arrays({"x": array}) != digest_arrays({"x": objects([*texts[:-1], texts[-1] + "."])})


def test_digests_of_numbers_and_fixed_text_are_what_they_were() -> None:
    numbers = digest_arrays({"x": np.arange(3, dtype=np.float32)})
    assert numbers == "sha256:a32c9befe2757ba4ca7514de02dff06c72309d614ae63babaf47adb007f2cfeb"
    assert (
        digest_arrays({"x": np.array(["a", "bc"])})
        == "sha256:c156fe0343e2f247e2699b579d75be765b7c800a630f5197829c052915515ca6"
    )


def test_files_keep_texts_beside_numbers_and_those_of_numbers_are_as_they_were(tmp_path: Path) -> None:
    numbers = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([1, 2])}
    save_tensors(numbers, tmp_path / "numbers")
    assert (tmp_path / "numbers").read_bytes() == save(numbers)
    texts = {**numbers, "text": objects([["a\0", "é😀"], ["", "b"]]), "wide": np.array(["x"])}
    save_tensors(texts, tmp_path / "texts")
    found = load_tensors((tmp_path / "texts").read_bytes())
    assert found["text"].tolist() == texts["text"].tolist()
    assert found["wide"].tolist() == ["x"]
    assert np.array_equal(found["b"], numbers["b"])
    data = (tmp_path / "texts").read_bytes()
    for damaged in (data[:-1], data[:5], data.replace(b'\\"text\\":[2,2]', b'\\"text\\":[2,9]'), b""):
        with pytest.raises(InvalidInputError):
            load_tensors(damaged)


def test_texts_weigh_what_they_take() -> None:
    assert size_bytes(np.zeros(3)) == 24
    assert size_bytes(objects(["x" * 1000])) > 1000
