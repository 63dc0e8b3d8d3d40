"""Golden requests: kept with the evidence of equivalence, bounded, and read back as they were."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from noa.errors import IntegrityError, InvalidInputError
from noa_registry import Evidence, Registry, equivalence_evidence
from noa_registry.evidence import (
    AllowedDifference,
    GoldenRequest,
    GoldenRequests,
    check_evidence,
    decode_golden,
    find_golden,
    with_golden,
)
from noa_registry.evidence.golden import MAX_GOLDEN_BYTES, MAX_GOLDEN_REQUESTS

LIMIT = AllowedDifference(absolute=1e-4, relative=1e-3, of_largest=0.0, disagreement=0.0, reason="float32: sums")
DTYPES = st.sampled_from(["float16", "float32", "float64", "int8", "int64", "uint8", "bool", ">f4", ">i8"])
NEGATIVE = {"absolute": -1, "relative": 0, "of_largest": 0, "disagreement": 0, "reason": "r"}
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12)


def fact(passed: bool = True) -> Evidence:
    return equivalence_evidence(
        source="torch",
        source_digest="sha256:" + "1" * 64,
        target="onnx",
        target_digest="sha256:" + "2" * 64,
        passed=passed,
        values={"problem": None},
    )


def arrays() -> st.SearchStrategy[dict[str, np.ndarray]]:
    array = DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))
    return st.dictionaries(NAMES, array, min_size=1, max_size=3)


@given(st.lists(arrays(), min_size=1, max_size=3), arrays())
@settings(max_examples=60, deadline=None)
def test_what_is_kept_is_read_back_to_the_bit(
    inputs: list[dict[str, np.ndarray]], outputs: dict[str, np.ndarray]
) -> None:
    golden = GoldenRequests(
        source="torch",
        requests=tuple(GoldenRequest(inputs=one, outputs=outputs) for one in inputs),
        allowed=dict.fromkeys(outputs, LIMIT),
    )
    kept = check_evidence(with_golden(fact(), golden))
    (attachment,) = kept.attachments
    assert len(attachment.content) <= MAX_GOLDEN_BYTES
    found = decode_golden(attachment.content, kept)
    assert (found.source, found.allowed) == ("torch", golden.allowed)
    for one, other in zip(found.requests, golden.requests, strict=True):
        for part in ("inputs", "outputs"):
            left, right = getattr(one, part), getattr(other, part)
            assert left.keys() == right.keys()
            for name, array in left.items():
                assert (array.shape, array.dtype.newbyteorder("=")) == (
                    right[name].shape,
                    right[name].dtype.newbyteorder("="),
                )
                np.testing.assert_array_equal(array, right[name])


def large(size_bytes: int) -> GoldenRequest:
    return GoldenRequest(inputs={"x": np.zeros(size_bytes, np.uint8)}, outputs={"y": np.zeros(1, np.float32)})


def test_what_does_not_fit_into_a_megabyte_is_left_out() -> None:
    requests = (large(600_000), large(600_000), large(300_000), large(2_000_000))
    kept = with_golden(fact(), GoldenRequests(source="torch", requests=requests, allowed={"y": LIMIT}))
    (attachment,) = kept.attachments
    sizes = [one.inputs["x"].size for one in decode_golden(attachment.content, kept).requests]
    assert sizes == [600_000, 300_000]
    none = with_golden(fact(), GoldenRequests(source="torch", requests=requests[3:], allowed={"y": LIMIT}))
    assert (none.values, none.attachments) == (fact().values, ())
    texts = GoldenRequest(inputs={"x": np.array(["a"])}, outputs={"y": np.zeros(1)})
    assert (
        with_golden(fact(), GoldenRequests(source="torch", requests=(texts,), allowed={"y": LIMIT})).attachments == ()
    )


@pytest.mark.parametrize(
    "golden",
    [
        {"requests": 0, "outputs": {}},
        {"requests": 1, "outputs": {}},
        {"requests": MAX_GOLDEN_REQUESTS + 1, "outputs": {"y": {}}},
        {"requests": 1, "outputs": {"y": NEGATIVE}},
        "many",
    ],
)
def test_evidence_with_impossible_golden_requests_is_refused(golden: object) -> None:
    bad = replace(fact(), values={**fact().values, "golden": golden, "attachment": "sha256:" + "3" * 64})
    with pytest.raises(InvalidInputError):
        check_evidence(bad)


def test_an_attachment_that_is_not_what_the_fact_says_is_refused() -> None:
    golden = GoldenRequests(source="torch", requests=(large(8),), allowed={"y": LIMIT})
    kept = with_golden(fact(), golden)
    (attachment,) = kept.attachments
    for content in (b"", b"\xff" * 64, attachment.content[:-1], b"\0" * (MAX_GOLDEN_BYTES + 1)):
        with pytest.raises(IntegrityError):
            decode_golden(content, kept)
    golden_row: Any = kept.values["golden"]
    more = {**kept.values, "golden": {**golden_row, "requests": 2}}
    with pytest.raises(IntegrityError, match="others than their evidence says"):
        decode_golden(attachment.content, replace(kept, values=more))


def test_they_are_found_for_both_formats_of_a_comparison_that_passed() -> None:
    kept = with_golden(fact(), GoldenRequests(source="torch", requests=(large(8),), allowed={"y": LIMIT}))
    failed = replace(kept, passed=False)
    facts = [fact(), kept, fact(), failed]
    assert find_golden(facts, format="onnx", digest="sha256:" + "2" * 64) is kept
    assert find_golden(facts, format="torch", digest="sha256:" + "1" * 64) is kept
    assert find_golden(facts, format="onnx", digest="sha256:" + "1" * 64) is None
    assert find_golden([fact(), failed], format="onnx", digest="sha256:" + "2" * 64) is None


def test_a_registry_gives_back_what_was_registered_and_nothing_for_older_versions(
    registry: Registry, formats: Any
) -> None:
    plain = registry.register(formats.draft(), actor="ada")
    assert registry.golden_requests(plain, "onnx") is None
    request = GoldenRequest(inputs={"x": np.ones((2, 3), np.float32)}, outputs={"y": np.full((2, 1), 0.5, np.float32)})
    golden = GoldenRequests(source=plain.native, requests=(request,), allowed={"y": LIMIT})
    version = registry.register(formats.draft(evidence=[with_golden(formats.equivalence(), golden)]), actor="ada")
    for format in ("onnx", plain.native):
        found = registry.golden_requests(version, format)
        assert found is not None
        np.testing.assert_array_equal(found.requests[0].inputs["x"], request.inputs["x"])
        np.testing.assert_array_equal(found.requests[0].outputs["y"], request.outputs["y"])
        assert found.allowed == {"y": LIMIT}
    assert registry.find_record_problems("digits", version.number) == []
