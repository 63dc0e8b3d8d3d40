"""Which of several backends goes live: the validation split says so, and the test split only measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flows_helpers import make_project

from noa.errors import InvalidInputError
from noa.settings import GateSettings, Settings
from noa_cli.__main__ import run
from noa_cli.commands.train import show_result
from noa_flows import PipelineResult, pipeline, plan_pipeline, run_pipeline
from noa_flows._run_log import render_summary
from noa_flows.pipeline import promotion_reason
from noa_flows.pipeline_values import Candidate, Deployment, Promotion
from noa_flows.selection import choose_best, explain_tie
from noa_registry import Registry

if TYPE_CHECKING:
    from noa_training import JobRequest

pytestmark = [pytest.mark.torch, pytest.mark.jax]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, add_empty_registry: Callable[[Path], None]) -> Settings:
    root = tmp_path_factory.mktemp("selection") / "project"
    add_empty_registry(root)
    return make_project(root)


@pytest.fixture(scope="module")
def trained(project: Settings) -> PipelineResult:
    """Two real candidates, `tiny/1` and `tiny/2`, one per backend."""
    return run_pipeline(project, "tiny", backends=("torch", "jax"))


def measured(candidate: Candidate, *, validation: Mapping[str, float], test: Mapping[str, float]) -> Candidate:
    return replace(candidate, metrics=test, job=replace(candidate.job, metrics=validation))


@pytest.fixture
def disagreeing(trained: PipelineResult) -> tuple[Candidate, Candidate]:
    """The first is better on the validation split, the second on the test split."""
    first, second = trained.candidates
    return (
        measured(first, validation={"accuracy": 0.9, "loss": 0.3}, test={"accuracy": 0.7, "loss": 0.6}),
        measured(second, validation={"accuracy": 0.8, "loss": 0.5}, test={"accuracy": 0.95, "loss": 0.1}),
    )


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_where_validation_and_test_disagree_the_validation_split_chooses(
    disagreeing: tuple[Candidate, Candidate], metric: str
) -> None:
    assert choose_best(disagreeing, metric) is disagreeing[0]
    assert choose_best(disagreeing[::-1], metric) is disagreeing[0]


def sized(candidate: Candidate, size_bytes: int) -> Candidate:
    """The same candidate, its served format of another size."""
    onnx = candidate.version.formats["onnx"]
    file = replace(onnx.manifest.files[0], size_bytes=size_bytes)
    sealed = replace(onnx, manifest=replace(onnx.manifest, files=(file,)))
    return replace(candidate, version=replace(candidate.version, formats={**candidate.version.formats, "onnx": sealed}))


@pytest.mark.parametrize(
    ("better", "worse", "why"),
    [
        ((0.9, 0.2, 500), (0.9, 0.3, 400), "that with the better validation loss, 0.2"),
        ((0.9, 0.2, 400), (0.9, 0.2, 500), "that with the smaller `onnx`, 400 bytes"),
        ((0.9, 0.3, 500), (0.8, 0.2, 400), ""),
        ((0.9, 0.3, 500), (math.nan, 0.2, 400), ""),
    ],
)
def test_equals_are_told_apart_by_what_means_something_whichever_comes_first(
    trained: PipelineResult, better: tuple[float, float, int], worse: tuple[float, float, int], why: str
) -> None:
    best, other = (
        sized(measured(candidate, validation={"accuracy": accuracy, "loss": loss}, test={}), size)
        for candidate, (accuracy, loss, size) in zip(trained.candidates, (better, worse), strict=True)
    )
    for candidates in ((best, other), (other, best)):
        assert choose_best(candidates, "accuracy") is best
        assert explain_tie(candidates, "accuracy") == why


def test_of_equals_in_all_the_first_is_chosen_and_a_metric_that_is_missing_is_named(
    disagreeing: tuple[Candidate, Candidate],
) -> None:
    equal = [sized(measured(each, validation={"loss": 0.5}, test={}), 400) for each in disagreeing]
    assert choose_best(equal, "loss") is equal[0]
    assert explain_tie(equal, "loss") == f"that of the first backend, `{equal[0].backend}`"
    assert explain_tie(equal[:1], "loss") == ""
    with pytest.raises(InvalidInputError, match=r"`accuracy` was not measured.*expected `loss`"):
        choose_best(equal, "accuracy")


def test_a_tie_is_told_in_the_ledger_the_summary_and_the_result(
    project: Settings,
    disagreeing: tuple[Candidate, Candidate],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tied = [
        measured(each, validation={"accuracy": 0.9, "loss": loss}, test=each.metrics)
        for each, loss in zip(disagreeing, (0.5, 0.3), strict=True)
    ]
    lanes = {candidate.backend: candidate for candidate in tied}
    why = "of equals that with the better validation loss, 0.3"

    def said(request: JobRequest, *_: object, **__: object) -> Candidate:
        return lanes[request.backend]

    monkeypatch.setattr(pipeline, "run_lane", said)
    result = run_pipeline(project, "tiny", backends=("torch", "jax"), promote=True)
    assert f"of equals {result.to_dict()['tie_break']}" == why
    show_result(result, as_json=False)
    assert f"best on the validation split: {tied[1].version.reference} (jax); {why}" in capsys.readouterr().out
    with Registry.open(project.registry) as registry:
        assert registry.history("tiny")[0].reason.endswith(f"by 0.9 on the validation split; {why})")
    assert result.gate is not None
    assert result.promotion is not None
    assert result.deployment is not None
    summary = render_summary(tied, tied[1], result.gate, result.promotion, result.deployment, metric="accuracy")
    assert "Of equals in accuracy: that with the better validation loss, 0.3." in summary.splitlines()


def test_the_ledger_and_the_summary_tell_what_chose_and_what_was_measured(
    project: Settings, disagreeing: tuple[Candidate, Candidate]
) -> None:
    plan = plan_pipeline(project, "tiny", backends=("torch", "jax"), promote=True)
    reason = promotion_reason(plan, disagreeing[0], disagreeing)
    assert reason == "accuracy 0.7 on the test split (torch, best of 2 backends by 0.9 on the validation split)"
    version = disagreeing[0].version
    promotion = Promotion(
        alias="champion", reference=version.reference, digest=version.digest, previous=None, sequence=1
    )
    with Registry.open(project.registry) as registry:
        report = registry.check(version.name, version.number)
    nobody = Deployment(reference=version.reference, endpoints=(), address=None, seconds=0.0)
    summary = render_summary(disagreeing, disagreeing[0], report, promotion, nobody, metric="accuracy").splitlines()
    assert "| backend | version | accuracy (validation) | accuracy (test) | loss (test) | steps | seconds |" in summary
    assert any(line.startswith(f"| torch **(chosen)** | {version.reference} | 0.9 | 0.7 | 0.6 |") for line in summary)
    assert any(line.startswith(f"| jax | {disagreeing[1].version.reference} | 0.8 | 0.95 | 0.1 |") for line in summary)


def test_a_pipeline_promotes_what_the_validation_split_prefers(
    project: Settings, disagreeing: tuple[Candidate, Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The versions are real, and so are gate, promotion and ledger; only the numbers that choose are said."""
    lanes = {candidate.backend: candidate for candidate in disagreeing}

    def said(request: JobRequest, *_: object, **__: object) -> Candidate:
        return lanes[request.backend]

    monkeypatch.setattr(pipeline, "run_lane", said)
    result = run_pipeline(project, "tiny", backends=("jax", "torch"), promote=True)
    chosen = disagreeing[0].version
    assert result.best.version == chosen
    assert result.promotion is not None
    assert result.promotion.reference == chosen.reference
    rows: Any = result.to_dict()["candidates"]
    assert [row["validation"]["accuracy"] for row in rows] == [0.8, 0.9]
    with Registry.open(project.registry) as registry:
        assert registry.history("tiny")[0].reason.endswith("best of 2 backends by 0.9 on the validation split)")


def test_training_ends_with_what_the_gate_says(
    trained: PipelineResult, project: Settings, capsys: pytest.CaptureFixture[str], tiny_project: Settings
) -> None:
    best = trained.best.version
    for limit, told in (
        (1 << 30, f"the gate lets it pass as champion. Next: noa models promote {best.reference} --reason ..."),
        (1, f"the gate refuses it as champion: max_size_bytes. See: noa models check {best.reference}"),
    ):
        with Registry.open(project, gates={"tiny": GateSettings(max_size_bytes=limit)}) as registry:
            verdict = registry.check("tiny", best.number, record=False)
        show_result(trained, as_json=False, verdict=verdict)
        assert capsys.readouterr().out.splitlines()[-1] == told
    settings = tiny_project
    with (settings.root / "noa.toml").open("a") as file:
        file.write('\n[gates.tiny]\nmax_size_bytes = 1\nrequire = ["audit"]\n')
    assert run(["train", "tiny", "--set", "epochs=1", "--directory", str(settings.root)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "the gate refuses it as champion: max_size_bytes and 1 more. See: noa models check tiny/1"
    with Registry.open(settings) as registry:
        assert "gate" not in {fact.kind for fact in registry.evidence("tiny", 1)}
