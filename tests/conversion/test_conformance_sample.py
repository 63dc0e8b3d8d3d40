"""A tenth of the ONNX backend suite, at least one case per operator: each case comes out as `expected.csv` records it.

The whole suite is `make conformance`; a verdict that changes for good is recorded there with `--record`.
"""

from __future__ import annotations

import pytest
from benchmarks.conformance.cases import load_suite
from benchmarks.conformance.records import count, read_expected
from benchmarks.conformance.sample import sample
from benchmarks.conformance.support_page import PAGE, render_page
from benchmarks.conformance.verdicts import TARGETS, Target, judge, run_case

from noa.errors import ConversionError

MORE_THAN: dict[Target, int] = {"torch": 1706, "jax": 1600}
WRONG_AT_MOST = 12

pytestmark = pytest.mark.filterwarnings("default")  # the suite divides by zero and rounds out of range on purpose


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", sample(load_suite()))
def test_a_case_comes_out_as_recorded(name: str, target: Target) -> None:
    case = load_suite().read(name)
    recorded = read_expected()[name][target]
    if recorded.category == "refused":
        with pytest.raises(ConversionError) as refusal:
            run_case(case, target)
        named = {*case.info.ops, *(value for value in ("input", "output"))}
        assert any(word in str(refusal.value) for word in named), f"neither operator nor tensor: {refusal.value}"
    else:
        verdict = judge(case, target)
        assert verdict.category == recorded.category, verdict.reason


@pytest.mark.parametrize("target", TARGETS)
def test_the_record_keeps_the_promise(target: Target) -> None:
    infos = load_suite().infos
    recorded = read_expected()
    assert set(recorded) == set(infos), "every case is recorded; renew with `python -m benchmarks.conformance --record`"
    counts = count(recorded[name][target] for name, info in infos.items() if info.is_standard)
    assert counts["pass"] > MORE_THAN[target]
    assert counts["wrong"] <= WRONG_AT_MOST
    assert counts["error"] == 0


def test_the_sample_touches_every_operator_of_the_suite() -> None:
    suite = load_suite()
    chosen = sample(suite)
    assert {suite.infos[name].op for name in chosen} >= {
        info.op for info in suite.infos.values() if info.kind == "node"
    }
    assert len(suite.infos) / 10 <= len(chosen) <= len(suite.infos) / 7


def test_the_support_page_says_what_the_record_says() -> None:
    assert PAGE.read_text() == render_page(read_expected()), (
        "renew it with `python -m benchmarks.conformance --write-docs`"
    )
