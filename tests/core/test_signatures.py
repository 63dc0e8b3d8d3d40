"""Signatures say exactly which tensor is wrong and how."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noa.errors import InvalidInputError, SignatureError
from noa.signatures import Axis, Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 8)),
        TensorSpec(name="age", dtype="int64", shape=("batch",)),
    ),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 10)),),
)


def good(batch: int = 3) -> dict[str, np.ndarray]:
    return {"image": np.zeros((batch, 1, 8, 8), np.float32), "age": np.zeros(batch, np.int64)}


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_validate_returns_the_free_axis(batch: int) -> None:
    assert SIGNATURE.validate(good(batch)) == batch


@pytest.mark.parametrize(
    ("change", "field", "expected", "received"),
    [
        ({"image": np.zeros((3, 8, 8), np.float32)}, "image", "(batch, 1, 8, 8)", "(3, 8, 8)"),
        ({"image": np.zeros((3, 1, 8, 9), np.float32)}, "image", "(batch=3, 1, 8, 8)", "(3, 1, 8, 9)"),
        ({"age": np.zeros(4, np.int64)}, "age", "(batch=3)", "(4,)"),
        ({"age": np.zeros(3, np.int32)}, "age", "int64", "int32"),
        ({"other": np.zeros(3)}, "other", "`image`, `age`", "`other`"),
    ],
)
def test_each_mistake_names_field_expected_and_received(
    change: dict[str, np.ndarray], field: str, expected: str, received: str
) -> None:
    with pytest.raises(SignatureError) as caught:
        SIGNATURE.validate(good() | change)
    assert (caught.value.facts["field"], caught.value.expected, caught.value.received) == (field, expected, received)


def test_a_missing_input_is_named() -> None:
    with pytest.raises(SignatureError, match="input `age` is missing"):
        SIGNATURE.validate({"image": good()["image"]})


def test_a_signature_survives_its_file(tmp_path: Path) -> None:
    SIGNATURE.save(tmp_path)
    assert Signature.load(tmp_path) == SIGNATURE


axes: st.SearchStrategy[Axis] = st.one_of(st.integers(1, 9), st.sampled_from(["batch", "seq"]))
specs = st.builds(
    TensorSpec,
    name=st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), min_size=1, max_size=8),
    dtype=st.sampled_from(["float32", "int64", "bool"]),
    shape=st.lists(axes, max_size=4).map(tuple),
)


@given(st.lists(specs, min_size=1, max_size=3, unique_by=lambda s: s.name))
def test_any_signature_survives_its_dictionary(tensors: list[TensorSpec]) -> None:
    signature = Signature(inputs=tuple(tensors), outputs=tuple(tensors))
    assert Signature.from_dict(signature.to_dict()) == signature


@pytest.mark.parametrize(
    "value", [None, 3, {}, {"inputs": [], "outputs": []}, {"inputs": [{}], "outputs": [{}]}, {"inputs": 3}]
)
def test_unreadable_signatures_are_refused(value: object) -> None:
    with pytest.raises(InvalidInputError):
        Signature.from_dict(value)


def test_a_corrupt_signature_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "signature.json").write_text("{")
    with pytest.raises(InvalidInputError, match=r"signature\.json"):
        Signature.load(tmp_path)


def test_unknown_dtypes_and_repeated_names_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="dtype"):
        TensorSpec(name="x", dtype="complex64", shape=())  # pyright: ignore[reportArgumentType]  # the point of the test
    spec = TensorSpec(name="x", dtype="float32", shape=())
    with pytest.raises(InvalidInputError, match="distinct"):
        Signature(inputs=(spec, spec), outputs=(spec,))


def test_a_pipe_in_the_place_of_a_signature_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "signature.json")
    with pytest.raises(InvalidInputError, match=r"`signature\.json` is a pipe"):
        Signature.load(tmp_path)


@pytest.mark.parametrize("name", ["x\ny", "x\x1b[31m", "x\x00", "x\u202ey", "x\u2028", "x\udc80"])
def test_names_that_a_terminal_would_obey_are_refused_by_field(name: str) -> None:
    with pytest.raises(InvalidInputError, match="name of a tensor") as caught:
        TensorSpec(name=name, dtype="float32", shape=("batch",))
    assert caught.value.facts["field"] == "name of a tensor"
    assert str(caught.value).isprintable()
    with pytest.raises(InvalidInputError, match="name of an axis of tensor `x`") as caught:
        TensorSpec(name="x", dtype="float32", shape=(name, 3))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["x", "../../x", "größe", "input:0", "a b", "入力"])
def test_other_names_are_kept(name: str) -> None:
    assert TensorSpec(name=name, dtype="float32", shape=(name,)).name == name
