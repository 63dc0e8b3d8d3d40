from __future__ import annotations

import json
import math
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noa.errors import InvalidInputError
from noa_registry import Attachment, Evidence, Registry
from noa_registry.evidence import MAX_VALUES_BYTES, plain_json

pytestmark = pytest.mark.local_files  # rows only; where files are kept does not matter

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


DIGEST = "sha256:" + "a" * 64


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


@given(json_values)
def test_every_value_becomes_strict_json_and_stays_as_it_is_the_second_time(value: object) -> None:
    plain = plain_json(value)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain_json(plain) == plain


def test_numpy_values_and_numbers_without_json_form_are_kept_readable() -> None:
    value = {"a": np.float32(0.5), "b": np.arange(3), "c": math.nan, "d": (np.int64(3), -math.inf)}
    assert plain_json(value) == {"a": 0.5, "b": [0, 1, 2], "c": "nan", "d": [3, "-inf"]}


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="cannot be stored"):
        plain_json({"model": object()})


@pytest.mark.parametrize(
    "fact",
    [
        Evidence(kind="", subject="onnx", digest=DIGEST),
        Evidence(kind="metrics", subject="", digest=DIGEST),
        Evidence(kind="metrics", subject="onnx", digest="a"),
        Evidence(kind="x" * 65, subject="onnx", digest=DIGEST),
        Evidence(kind="a kind", subject="onnx", digest=DIGEST),
        Evidence(kind="audit", subject="\x00", digest=DIGEST),
        Evidence(kind="audit", subject="onnx\n", digest=DIGEST),
        Evidence(kind="audit", subject="onnx", digest="sha256:zz"),
        Evidence(kind="audit", subject="onnx", digest=DIGEST, values={"x": "y" * MAX_VALUES_BYTES}),
        Evidence(kind="audit", subject="onnx", digest=DIGEST, values={"x": "\ud800"}),
        Evidence(kind="audit", subject="onnx", digest=DIGEST, values={"x": nested(100_000)}),
        Evidence(kind="audit", subject="onnx", digest=DIGEST, values={"x": 10**400}),
        Evidence(kind="audit", subject="onnx", digest=DIGEST, values={"x": 10**5000}),
        Evidence(
            kind="audit",
            subject="onnx",
            digest=DIGEST,
            values={"attachment": Attachment(media_type="", content=b"x").digest},
            attachments=(Attachment(media_type="t" * 129, content=b"x"),),
        ),
        *(
            Evidence(
                kind="metrics",
                subject="onnx",
                digest=DIGEST,
                values={"dataset_digest": DIGEST, "split": "test", "metrics": {"accuracy": sign * 10**400}},
            )
            for sign in (1, -1)
        ),
        Evidence(kind="metrics", subject="onnx", digest=DIGEST, created_at=datetime(2026, 1, 1)),  # noqa: DTZ001
        Evidence(kind="metrics", subject="onnx", digest=DIGEST, values={"x": object()}),
    ],
)
def test_incomplete_evidence_is_refused(registry: Registry, version: object, fact: Evidence) -> None:
    with pytest.raises(InvalidInputError):
        registry.attach("digits", 1, [fact])
    assert len(registry.evidence("digits", 1)) == 1


def test_the_time_of_evidence_is_kept_to_the_microsecond(registry: Registry, version: object) -> None:
    moment = datetime(2026, 3, 1, 12, 0, 0, 7, tzinfo=UTC)
    registry.attach("digits", 1, Evidence(kind="audit", subject="version", digest=DIGEST, created_at=moment))
    assert registry.evidence("digits", 1)[-1].created_at == moment
