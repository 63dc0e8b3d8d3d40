"""Gates through the registry: what is measured, attached, judged, stored, and who cannot pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gate_kit import logits_that_are_right
from noa.errors import GateRefusedError, IntegrityError, InvalidInputError, NotFoundError
from noa.settings import GateSettings, RegistrySettings
from noa_registry import (
    BatchLatency,
    BootstrapPlan,
    CalibrationEvidence,
    Evidence,
    GateReport,
    Hardware,
    LatencyEvidence,
    MetricsEvidence,
    Predictions,
    Registry,
    ReliabilityBin,
    SliceMetrics,
    predictions_evidence,
)
from noa_registry.comparison import MetricComparison
from noa_training.metrics import compute_metrics

pytestmark = pytest.mark.local_files  # rows only; where files are kept does not matter

TARGETS = np.arange(300) % 3
CONFIDENT = GateSettings(max_regression={"accuracy": 0.02}, confidence=0.95, resamples=200)
MACHINE = Hardware(cpu="Imaginary 9000", cores=2, threads=1, runtime="onnxruntime 1", load=0.0)
Open = Callable[..., Registry]
Execute = Callable[..., list[tuple[Any, ...]]]
Formats = Any  # of `conftest.py`
DATASET = "sha256:" + "d" * 64


def measured(formats: Formats, right: np.ndarray, *, dataset: str = DATASET) -> tuple[Evidence, ...]:
    logits, digest = logits_that_are_right(TARGETS, right), formats.digest("onnx")
    names = ("accuracy", "loss")
    facts = MetricsEvidence(
        subject="onnx",
        digest=digest,
        dataset_digest=dataset,
        split="test",
        rows=len(TARGETS),
        metrics=compute_metrics(names, logits, TARGETS, objective="cross_entropy"),
        slices={
            f"class={label}": SliceMetrics(
                rows=100,
                metrics=compute_metrics(
                    names, logits[label == TARGETS], TARGETS[label == TARGETS], objective="cross_entropy"
                ),
            )
            for label in range(3)
        },
    ).to_evidence()
    predictions = predictions_evidence(
        Predictions(outputs=logits, targets=TARGETS),
        subject="onnx",
        digest=digest,
        dataset_digest=dataset,
        split="test",
        objective="cross_entropy",
        output="logits",
    )
    assert predictions is not None
    return formats.equivalence(), facts, predictions


def wrong_in(count: int) -> np.ndarray:
    return np.arange(300) >= count


@pytest.fixture
def reopen(settings: RegistrySettings) -> Iterator[Open]:
    opened: list[Registry] = []

    def open_with(policy: GateSettings) -> Registry:
        opened.append(Registry.open(settings, gates={"digits": policy}))
        return opened[-1]

    yield open_with
    for entry in opened:
        entry.close()


@pytest.fixture
def rivals(registry: Registry, formats: Formats) -> Registry:
    """`digits/1` is champion with 3 wrong of 300; `digits/2` has 30 wrong, `digits/3` has 1."""
    for count in (3, 30, 1):
        registry.register(formats.draft(evidence=measured(formats, wrong_in(count))), actor="ada")
    registry.promote("digits", 1, reason="first", actor="ada")
    return registry


def test_a_worse_challenger_cannot_take_the_alias_and_a_better_one_can(rivals: Registry, reopen: Open) -> None:
    gated = reopen(CONFIDENT)
    with pytest.raises(GateRefusedError) as caught:
        gated.promote("digits", 2, reason="hurry", actor="ada")
    report = caught.value.facts["report"]
    assert isinstance(report, GateReport)
    (refused,) = report.refusals
    assert refused.rule == "max_regression.accuracy"
    assert refused.measured["difference"] == -0.09
    assert gated.resolve("digits@champion").number == 1
    assert len(gated.history("digits")) == 1
    entry = gated.promote("digits", 3, reason="better", actor="ada")
    verdicts = GateReport.from_dict(entry.verdict).verdicts
    (kept,) = (verdict for verdict in verdicts if verdict.rule == "max_regression.accuracy")
    assert (kept.measured["seed"], kept.measured["resamples"], kept.measured["rows"]) == (0, 200, 300)
    gated.verify_ledger()
    gated.rollback("digits", reason="an emergency", actor="ada")  # is not held up by metrics
    assert gated.resolve("digits@champion").number == 1


@pytest.mark.parametrize(
    "policy", [GateSettings(min_metrics={"accuracy": 0.95}), GateSettings(max_regression={"accuracy": 0.02})]
)
def test_a_better_number_that_is_attached_by_hand_convinces_nobody(
    rivals: Registry, reopen: Open, policy: GateSettings
) -> None:
    gated = reopen(policy)
    fact = next(fact for fact in gated.evidence("digits", 2) if fact.kind == "metrics")
    gated.attach("digits", 2, replace(fact, values={**fact.values, "metrics": {"accuracy": 0.9999}}))
    with pytest.raises(GateRefusedError, match=r"0\.9 from its predictions"):
        gated.promote("digits", 2, reason="boast", actor="ada")
    assert gated.resolve("digits@champion").number == 1
    gated.promote("digits", 3, reason="better", actor="ada")


def test_evidence_that_arrives_later_counts_and_cannot_be_lent_by_another_version(
    rivals: Registry, reopen: Open, make_formats: Callable[[int], Formats]
) -> None:
    other = make_formats(1)
    borrowed = rivals.evidence("digits", 3)[1:]
    version = rivals.register(other.draft(evidence=[other.equivalence(), *borrowed]), actor="ada")
    gated = reopen(CONFIDENT)
    with pytest.raises(InvalidInputError, match="the bytes that were measured are none of"):
        gated.attach("digits", version.number, borrowed)
    with pytest.raises(GateRefusedError, match="no test metrics of these bytes"):
        gated.promote("digits", version.number, reason="r", actor="ada")
    gated.attach("digits", version.number, measured(other, wrong_in(0)))
    gated.promote("digits", version.number, reason="r", actor="ada")


def test_every_check_is_kept_once_as_long_as_it_says_the_same(rivals: Registry, reopen: Open) -> None:
    gated = reopen(CONFIDENT)

    def kept(number: int) -> list[Evidence]:
        return [fact for fact in gated.evidence("digits", number) if fact.kind == "gate"]

    report = gated.check("digits", 2)
    assert not report.passed
    gated.check("digits", 2)
    (fact,) = kept(2)
    version = gated.resolve("digits/2")
    assert (fact.passed, fact.subject, fact.digest) == (False, "version", version.digest)
    assert GateReport.from_dict(fact.values) == report
    gated.check("digits", 2, alias="shadow")
    assert [entry.values["alias"] for entry in kept(2)] == ["champion", "shadow"]
    gated.check("digits", 3, record=False)
    assert kept(3) == []
    gated.promote("digits", 3, reason="better", actor="ada")
    gated.check("digits", 2)
    assert len(kept(2)) == 3  # the holder is another, so the verdict is too


def test_attachments_are_kept_once_and_verified_when_read(rivals: Registry, formats: Formats, tamper: Execute) -> None:
    fact = measured(formats, wrong_in(3))[2]
    digest = str(fact.values["attachment"])
    assert rivals.attachment(digest) == fact.attachments[0]
    rivals.attach("digits", 2, fact)
    assert tamper(f"SELECT count(*) FROM noa_attachments WHERE digest = '{digest}'") == [(1,)]
    with pytest.raises(NotFoundError):
        rivals.attachment("sha256:nothing")
    other = str(measured(formats, wrong_in(30))[2].values["attachment"])
    tamper(
        f"UPDATE noa_attachments SET content = (SELECT content FROM noa_attachments WHERE digest = '{other}') "
        f"WHERE digest = '{digest}'"
    )
    with pytest.raises(IntegrityError, match="an attachment was changed"):
        rivals.attachment(digest)


def test_changed_predictions_are_a_refusal_by_name(
    rivals: Registry, formats: Formats, reopen: Open, tamper: Execute
) -> None:
    mine, better = (str(measured(formats, wrong_in(count))[2].values["attachment"]) for count in (30, 1))
    tamper(
        f"UPDATE noa_attachments SET content = (SELECT content FROM noa_attachments WHERE digest = '{better}') "
        f"WHERE digest = '{mine}'"
    )
    refusals = reopen(CONFIDENT).check("digits", 2).refusals
    assert [refused.rule for refused in refusals] == ["dataset", "max_regression.accuracy"]
    assert {(refused.expected, refused.received) for refused in refusals} == {(mine, better)}


def test_evidence_without_its_attachment_is_refused_and_nothing_is_written(
    registry: Registry, formats: Formats
) -> None:
    facts = measured(formats, wrong_in(3))
    bare = replace(facts[2], attachments=())
    with pytest.raises(InvalidInputError, match="without its attachment"):
        registry.register(formats.draft(evidence=(*facts[:2], bare)), actor="ada")
    assert registry.models() == []
    registry.register(formats.draft(evidence=facts), actor="ada")
    registry.attach("digits", 1, bare)  # now its bytes are there
    with pytest.raises(InvalidInputError):
        registry.attach("digits", 1, replace(bare, values={**bare.values, "attachment": "sha256:none"}))
    assert len(registry.evidence("digits", 1)) == 4


def test_a_breaking_signature_is_judged_from_what_is_sealed(registry: Registry, reopen: Open, formats: Formats) -> None:
    registry.register(formats.draft(), actor="ada")
    registry.promote("digits", 1, reason="r", actor="ada")
    registry.register(formats.draft(), actor="ada")
    gated = reopen(GateSettings(compatible=True, max_size_bytes=10_000_000))
    assert gated.check("digits", 2).passed
    size = gated.resolve("digits/2").formats["onnx"].manifest.size_bytes
    assert reopen(GateSettings(max_size_bytes=size)).check("digits", 2).passed
    assert not reopen(GateSettings(max_size_bytes=size - 1)).check("digits", 2).passed


def test_the_projects_function_is_asked_before_the_database_is_locked(
    rivals: Registry, settings: RegistrySettings, reopen: Open, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.py"
    policy.write_text(
        "from pathlib import Path\n"
        "from noa.settings import RegistrySettings\n"
        "from noa_registry import Registry, RuleVerdict\n"
        f"SETTINGS = RegistrySettings.model_validate_json({settings.model_dump_json()!r})\n"
        "def check(view):\n"
        f"    with Path({str(tmp_path / 'calls')!r}).open('a') as file:\n"
        "        file.write('x')\n"
        "    with Registry.open(SETTINGS) as registry:\n"
        "        seen = registry.resolve('digits@champion').number\n"
        "    return RuleVerdict(rule='seen', passed=seen == 1, expected='1', received=str(seen))\n"
    )
    gated = reopen(GateSettings(check=f"{policy}:check"))
    gated.promote("digits", 3, reason="r", actor="ada")
    assert (tmp_path / "calls").read_text() == "x"  # once: inside the transaction its verdict was known
    policy.write_text("def check(view): raise RuntimeError('closed for the holidays')")
    with pytest.raises(GateRefusedError, match="closed for the holidays"):
        gated.promote("digits", 2, reason="r", actor="ada")
    assert gated.resolve("digits@champion").number == 3


def side_facts(formats: Formats, ece: float) -> tuple[Evidence, ...]:
    digest = formats.digest("onnx")
    calibration = CalibrationEvidence(
        subject="onnx",
        digest=digest,
        dataset_digest=DATASET,
        split="test",
        rows=300,
        binning="15 bins",
        ece=ece,
        brier=0.1,
        bins=(
            ReliabilityBin(lower=0.4, upper=0.6, rows=100, confidence=0.5, accuracy=0.4),
            ReliabilityBin(lower=0.8, upper=1.0, rows=200, confidence=0.9, accuracy=1.0),
        ),
    )
    latency = LatencyEvidence(
        subject="onnx",
        digest=digest,
        hardware=MACHINE,
        batches=(BatchLatency(batch=1, runs=9, p50_ms=1, p99_ms=2),),
    )
    return calibration.to_evidence(), latency.to_evidence()


def test_two_versions_side_by_side(rivals: Registry, formats: Formats) -> None:
    rivals.attach("digits", 1, side_facts(formats, 0.1))
    rivals.attach("digits", 2, side_facts(formats, 0.2))
    found = rivals.compare("digits@champion", "digits/2", plan=BootstrapPlan(resamples=200))
    assert (found.a.reference, found.b.reference, found.same_rows) == ("digits/1", "digits/2", True)
    accuracy, loss = found.metrics
    assert (accuracy.metric, accuracy.a, accuracy.b, accuracy.difference) == ("accuracy", 0.99, 0.9, -0.09)
    assert accuracy.lower is not None
    assert accuracy.upper is not None
    assert accuracy.lower < -0.09 < accuracy.upper < 0
    assert (accuracy.verdict, loss.verdict, loss.larger_is_better) == ("worse", "worse", False)
    assert [entry.slice for entry in found.slices if entry.metric == "accuracy"] == [
        "class=0",
        "class=1",
        "class=2",
    ]
    assert found.a.calibration is not None
    assert (found.a.calibration.ece, found.a.latency is not None) == (0.1, True)
    assert (found.params, found.environment, found.signature.level, found.notes) == ((), (), "compatible", ())
    same = rivals.compare("digits/1", "digits/1")
    assert [entry.verdict for entry in same.metrics] == ["same", "same"]
    assert {entry.why_no_width for entry in same.metrics} == {"no row differs, nothing to resample"}
    assert (accuracy.why_no_width, accuracy.drawn_rows, accuracy.differing_rows) == (None, 300, 27)
    rows = same.to_dict()["metrics"]
    assert isinstance(rows, list)
    assert rows[0]["why_no_width"] == "no row differs, nothing to resample"


@pytest.mark.parametrize(
    ("drawn", "differing", "at", "why", "verdict"),
    [
        (100, 0, 0.0, "no row differs, nothing to resample", "same"),
        (1, 0, 0.0, "a single row, nothing to resample", "same"),
        (1, 1, 1.0, "a single row, nothing to resample", "unclear"),
        (50, 50, 1.0, "the same in every draw", "better"),
    ],
)
def test_an_interval_without_width_says_why(drawn: int, differing: int, at: float, why: str, verdict: str) -> None:
    entry = compared(a=0.0, b=at, lower=at, upper=at, drawn_rows=drawn, differing_rows=differing)
    assert (entry.why_no_width, entry.verdict) == (why, verdict)
    assert replace(entry, upper=at + 0.1).why_no_width is None
    assert replace(entry, lower=None, upper=None).why_no_width is None


def compared(*, a: float, b: float, lower: float | None, upper: float | None, **more: Any) -> MetricComparison:
    values: dict[str, Any] = {"metric": "accuracy", "slice": "s", "rows": 100, "larger_is_better": True, **more}
    return MetricComparison(a=a, b=b, difference=b - a, lower=lower, upper=upper, **values)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_slices_are_dots_with_intervals_and_no_bars_from_somewhere(rivals: Registry) -> None:
    from matplotlib.figure import Figure

    from noa_registry.comparison_plot import _draw_slices

    comparison = rivals.compare("digits/1", "digits/2")
    slices = [
        compared(a=0.643, b=0.7, lower=-0.02, upper=0.12, drawn_rows=90, differing_rows=9),
        compared(a=1.0, b=1.0, lower=0.0, upper=0.0, drawn_rows=90, differing_rows=0),
        compared(a=0.0, b=1.0, lower=1.0, upper=1.0, drawn_rows=1, differing_rows=1),
        compared(a=0.5, b=0.6, lower=None, upper=None),
    ]
    axes: Any = Figure().subplots()
    _draw_slices(axes, comparison, slices)
    assert list(axes.patches) == []
    left, right = axes.get_xlim()
    assert left < -0.02
    assert right > 1.0
    assert f"axis from {left:.3g} to {right:.3g}" in axes.get_xlabel()
    lines = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "|"]
    assert lines == [[-0.02, 0.12]]  # only where there is an interval with a width
    assert [text.get_text() for text in axes.texts] == [
        "0.643 → 0.700",
        "1.000 → 1.000\nno row differs, nothing to resample",
        "0.000 → 1.000\na single row, nothing to resample",
        "0.500 → 0.600\nno predictions, no interval",
    ]
    dots = [line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "o"]
    assert [colour == "white" for colour in dots] == [False, True, True, True]
    apart: Any = Figure().subplots()
    _draw_slices(apart, comparison, [replace(entry, difference=None, lower=None, upper=None) for entry in slices])
    assert list(apart.patches) == []
    assert "values, which cannot be subtracted" in apart.get_title()


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_bin_of_one_row_does_not_look_like_one_of_many(rivals: Registry, formats: Formats) -> None:
    from matplotlib.figure import Figure

    from noa_registry.comparison_plot import _draw_reliability

    rivals.attach("digits", 1, side_facts(formats, 0.1))
    comparison = rivals.compare("digits/1", "digits/2")
    found = comparison.a.calibration
    assert found is not None
    single = ReliabilityBin(lower=0.6, upper=0.7, rows=1, confidence=0.65, accuracy=0.0)
    bins = (found.bins[0], single, found.bins[1])
    calibration = replace(found, rows=301, bins=bins)
    comparison = replace(comparison, a=replace(comparison.a, calibration=calibration))
    axes: Any = Figure().subplots()
    _draw_reliability(axes, comparison)
    points = [spot for spot in axes.collections if len(spot.get_offsets())]
    assert [text.get_text() for text in axes.texts] == ["100", "1", "200"]
    few, many = points[1], points[2]
    assert few.get_sizes()[0] < 0.2 * many.get_sizes()[0]
    assert (few.get_alpha() or 1.0) < 0.5 * (many.get_alpha() or 0.0)
    assert len(few.get_facecolor()) == 0  # hollow
    curve = next(line for line in axes.lines if line.get_linewidth() == 1 and line.get_linestyle() == "-")
    assert list(curve.get_xdata()) == [0.5, 0.9]  # the line leaves the single row out


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_the_numbers_of_crowded_bins_do_not_cover_each_other(rivals: Registry, formats: Formats) -> None:
    from matplotlib.figure import Figure

    from noa_registry.comparison_labels import labels_of, spread_labels
    from noa_registry.comparison_plot import _draw_reliability

    for number in (1, 2):
        rivals.attach("digits", number, side_facts(formats, 0.1))
    comparison = rivals.compare("digits/1", "digits/2")
    sides = [
        replace(side, calibration=replace(found, rows=5200, bins=crowded_bins(shift)))
        for side, shift in ((comparison.a, 0.0), (comparison.b, 0.004))
        if (found := side.calibration) is not None
    ]
    figure = Figure(figsize=(5.0, 5.2), layout="constrained")
    _draw_reliability(figure.subplots(), replace(comparison, a=sides[0], b=sides[1]))
    figure.draw_without_rendering()
    assert overlaps(figure) > 3
    spread_labels(figure)
    figure.draw_without_rendering()
    assert overlaps(figure) == 0
    assert sorted(label.get_text() for label in labels_of(figure)) == sorted(
        f"{entry.rows:,}" for side in sides for entry in (side.calibration.bins if side.calibration else ())
    )


def crowded_bins(shift: float) -> tuple[ReliabilityBin, ...]:
    """Bins of a model that is nearly always sure and right: most lie in the upper right corner."""
    sure = (0.4, 0.62, 0.81, 0.9, 0.93, 0.95, 0.965, 0.98, 0.99, 0.996)
    return tuple(
        ReliabilityBin(
            lower=0.0,
            upper=1.0,
            rows=7 * 3**index % 4001 + 1,
            confidence=sure_of - shift,
            accuracy=min(1.0, sure_of + shift),
        )
        for index, sure_of in enumerate(sure)
    )


def overlaps(figure: Any) -> int:
    from noa_registry.comparison_labels import labels_of

    boxes = [label.get_window_extent() for label in labels_of(figure)]
    return sum(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index])


def test_the_interval_of_a_share_is_wilsons() -> None:
    from noa_registry.comparison_plot import share_interval

    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    assert share_interval(81 / 263, 263, confidence=0.95) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert share_interval(0.0, 20, confidence=0.95) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert share_interval(1.0, 1, confidence=0.95)[0] < 0.21


def test_what_cannot_be_compared_is_said(registry: Registry, formats: Formats) -> None:
    facts = measured(formats, wrong_in(3))
    registry.register(formats.draft(evidence=facts[:2], params={"epochs": 1}), actor="ada")
    registry.register(formats.draft(evidence=measured(formats, wrong_in(9), dataset="sha256:" + "e" * 64)), actor="ada")
    registry.register(formats.draft(evidence=facts[:1], environment={"python": "3.12"}), actor="ada")
    other_rows = registry.compare("digits/1", "digits/2")
    assert not other_rows.same_rows
    assert {entry.difference for entry in other_rows.metrics} == {None}
    assert [entry.a for entry in other_rows.metrics] == [
        facts[1].values["metrics"][name] for name in ("accuracy", "loss")
    ]  # type: ignore[index]
    assert "different test rows" in other_rows.notes[0]
    assert [(row.key, row.a, row.b) for row in other_rows.params] == [("epochs", 1, 3)]
    unmeasured = registry.compare("digits/1", "digits/3")
    assert "`digits/3` has no metrics on the test split" in unmeasured.notes
    assert [(row.key, row.a, row.b) for row in unmeasured.environment] == [("python", "3.11.7", "3.12")]
    registry.attach("digits", 3, facts[1])
    without = registry.compare("digits/1", "digits/3")
    assert [(entry.difference, entry.lower, entry.verdict) for entry in without.metrics] == [(0.0, None, "unclear")] * 2
    assert len(without.notes) == 1
    assert "no predictions to compare" in without.notes[0]
    with pytest.raises(NotFoundError):
        registry.compare("digits/1", "digits/9")


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("ending", ["png", "SVG"])
def test_a_comparison_is_drawn_and_drawn_the_same_again(
    rivals: Registry, formats: Formats, tmp_path: Path, ending: str
) -> None:
    from noa_registry.comparison_plot import save_plot

    for number in (1, 2):
        rivals.attach("digits", number, side_facts(formats, 0.1))
    comparison = rivals.compare("digits/1", "digits/2")
    odd = replace(comparison.slices[0], slice="$\\frac{price}$ <b>")
    comparison = replace(comparison, slices=(odd, *comparison.slices[1:]))
    paths = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for path in paths:
        save_plot(comparison, path)
    first = paths[0].read_bytes()
    assert first == paths[1].read_bytes()
    assert first.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    assert len(first) > 10_000


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_what_was_not_measured_takes_no_place_in_the_picture(
    rivals: Registry, formats: Formats, tmp_path: Path
) -> None:
    from noa_registry.comparison_plot import save_plot

    for number in (1, 2):
        rivals.attach("digits", number, side_facts(formats, 0.1))
    whole = rivals.compare("digits/1", "digits/2")
    as_of_a_regression = replace(
        whole, slices=(), a=replace(whole.a, calibration=None), b=replace(whole.b, calibration=None)
    )
    pictures: list[str] = []
    for comparison in (whole, as_of_a_regression):
        save_plot(comparison, tmp_path / "a.svg")
        pictures.append((tmp_path / "a.svg").read_text())
    assert [("Reliability" in text, "per slice" in text, "Latency" in text) for text in pictures] == [
        (True, True, False),
        (False, False, True),
    ]
    wide, narrow = (float(text.partition('width="')[2].partition("pt")[0]) for text in pictures)
    assert narrow < 0.75 * wide


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_comparison_of_nothing_is_drawn_too(version: object, registry: Registry, tmp_path: Path) -> None:
    from noa_registry.comparison_plot import save_plot

    save_plot(registry.compare("digits/1", "digits/1"), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    with pytest.raises(InvalidInputError, match=r"\.png or \.svg"):
        save_plot(registry.compare("digits/1", "digits/1"), tmp_path / "a.pdf")
    assert not (tmp_path / "a.pdf").exists()


def test_a_verdict_says_who_recorded_the_facts_that_it_used_and_which_were_attached_by_hand(
    reopen: Open, registry: Registry, formats: Formats
) -> None:
    registry.register(formats.draft(evidence=(formats.equivalence(),)), actor="ada")
    registry.attach("digits", 1, formats.metrics(accuracy=0.9), actor="bob")
    registry.attach("digits", 1, side_facts(formats, 0.1)[1], actor="flow night by ada", by_pipeline=True)
    policy = GateSettings(min_metrics={"accuracy": 0.5}, max_latency_ms={"p50": 5.0}, require=("metrics",))
    with reopen(policy) as gated:
        report = gated.check("digits", 1, actor="carl")
        kept = gated.evidence("digits", 1)
        entry = gated.promote("digits", 1, reason="r", actor="ada")
    said = {verdict.rule: verdict.recorded for verdict in report.verdicts}
    (equal,), (limit,), (latency,) = (
        said[key] for key in ("equivalence.onnx", "min_metrics.accuracy", "max_latency_ms.p50")
    )
    assert equal.startswith("recorded with the registration by ada, 2")
    assert limit.startswith("attached by hand by bob, 2")
    assert said["require.metrics"] == (limit,)
    assert latency.startswith("measured by the pipeline, run by flow night by ada, 2")
    assert GateReport.from_dict(kept[-1].values).verdicts == report.verdicts
    assert kept[-1].describe_recording().startswith("written by a check of carl, ")
    assert all("noa.recorded" not in fact.values for fact in kept)
    assert limit in str(entry.verdict)


def test_no_fact_says_itself_who_recorded_it(registry: Registry, formats: Formats) -> None:
    registry.register(formats.draft(), actor="ada")
    forged = Evidence(
        kind="audit", subject="onnx", digest=formats.digest("onnx"), values={"noa.recorded": {"by": "the board"}}
    )
    with pytest.raises(InvalidInputError, match="says itself who recorded it"):
        registry.attach("digits", 1, forged)


def test_in_a_regression_both_sides_are_named(rivals: Registry, reopen: Open) -> None:
    with reopen(GateSettings(max_regression={"accuracy": 0.5})) as gated:
        report = gated.check("digits", 2)
    (found,) = [verdict for verdict in report.verdicts if verdict.rule == "max_regression.accuracy"]
    assert [text.split(" by ")[0] for text in found.recorded] == [
        "recorded with the registration",
        "digits/1: recorded with the registration",
    ]
