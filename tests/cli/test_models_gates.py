"""`noa models check`, `promote` and `compare` on versions that were measured row by row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gate_kit import logits_that_are_right
from noa.settings import load_settings
from noa_cli.__main__ import run
from noa_registry import (
    MetricsEvidence,
    Predictions,
    Registry,
    SliceMetrics,
    metrics_evidence,
    predictions_evidence,
)
from noa_training.metrics import compute_metrics

GATES = """
[gates.digits]
max_regression = { accuracy = 0.02 }
confidence = 0.95
resamples = 200
"""
ROWS = "sha256:" + "e" * 64
TARGETS = np.arange(200) % 2
HOLDER, WORSE, BETTER = "digits/2", "digits/1", "digits/3"


def measure(registry: Registry, reference: str, wrong: int, *, rows: str = ROWS) -> None:
    version = registry.resolve(reference)
    logits = logits_that_are_right(TARGETS, np.arange(200) >= wrong, classes=2)
    digest = version.formats["onnx"].digest
    metrics = compute_metrics(("accuracy", "loss"), logits, TARGETS, objective="cross_entropy")
    facts = MetricsEvidence(
        subject="onnx",
        digest=digest,
        dataset_digest=rows,
        split="test",
        metrics=metrics,
        rows=200,
        slices={"all": SliceMetrics(rows=200, metrics=metrics)},
    ).to_evidence()
    predictions = predictions_evidence(
        Predictions(outputs=logits, targets=TARGETS, slices={"all": np.ones(200, bool)}),
        subject="onnx",
        digest=digest,
        dataset_digest=rows,
        split="test",
        objective="cross_entropy",
        output="logits",
    )
    assert predictions is not None
    registry.attach(version.name, version.number, [facts, predictions])


@pytest.fixture(scope="module")
def measured(registered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gates") / "project"
    shutil.copytree(registered, folder)
    with (folder / "noa.toml").open("a") as file:
        file.write(GATES)
    settings = load_settings(folder).settings
    with Registry.open(settings.registry) as registry:
        for reference, wrong in ((HOLDER, 2), (WORSE, 40), (BETTER, 1)):
            measure(registry, reference, wrong)
    return folder


@pytest.fixture(autouse=True)
def _inside(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(measured, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")


def out_of(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert run([*arguments]) == code
    return capfd.readouterr().out


def holder(capfd: pytest.CaptureFixture[str]) -> object:
    capfd.readouterr()
    return json.loads(out_of(capfd, "models", "list", "--json"))[0]["aliases"]["champion"]


def test_a_refusal_by_many_rules_is_a_line_per_reason_with_short_digests(
    registered: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "many"
    shutil.copytree(registered, root)
    with (root / "noa.toml").open("a") as file:
        file.write(f'[gates.digits]\ndatasets = ["{ROWS}"]\nrequire = ["calibration", "metrics"]\n')
        file.write("min_metrics = { accuracy = 0.5, auroc = 0.5 }\nmax_metrics = { loss = 0.5 }\napprovals = 1\n")
    monkeypatch.chdir(root)
    assert run(["models", "promote", "digits/3"]) == 1
    first, *lines = capfd.readouterr().err.splitlines()
    assert first.startswith("error: the gate refuses `digits/3` as `champion`: 7 of 9 rules")
    assert all(line.startswith("  ") and ": expected " in line for line in lines[:-1])
    assert lines[-1] == "See all verdicts with `noa models check digits/3`"
    assert "sha256:eeeeeeeeeeee" in lines[0]
    assert "e" * 13 not in "".join(lines)
    assert lines[1].startswith("  min_metrics.accuracy, min_metrics.auroc: expected at least 0.5 ")
    assert lines[2].startswith("  max_metrics.loss: expected at most 0.5 ")
    assert lines[2].endswith(", received the same as for min_metrics.accuracy")
    assert run(["models", "promote", "digits/3", "--json"]) == 1
    told = json.loads(capfd.readouterr().err)
    assert "max_metrics.loss: expected at most 0.5 on the test split, received no test metrics" in told["what"]
    assert ROWS in told["what"]


def test_check_shows_rule_value_and_verdict_and_stores_it(capfd: pytest.CaptureFixture[str]) -> None:
    table = out_of(capfd, "models", "check", WORSE, code=1)
    assert "REFUSED" in table
    assert "0.8 against 0.99, a difference of -0.19" in table
    assert "max_regression.accuracy: Train a better model" in table
    report = json.loads(out_of(capfd, "models", "check", WORSE, "--json", code=1))
    (refused,) = (row for row in report["verdicts"] if not row["passed"])
    assert refused["measured"]["difference"] == -0.19
    evidence = json.loads(out_of(capfd, "models", "show", WORSE, "--json"))["evidence"]
    kept = [row for row in evidence if row["kind"] == "gate"]
    assert [(row["passed"], row["values"]) for row in kept] == [(False, report)]


def test_a_worse_challenger_cannot_take_the_alias(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--expect", "2"], ["--dry-run"]):
        assert run(["models", "promote", WORSE, "--reason", "r", *arguments]) == 1
    assert holder(capfd) == 2
    out_of(capfd, "models", "promote", BETTER, "--reason", "r")
    assert holder(capfd) == 3


def test_a_dry_run_stores_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    out_of(capfd, "models", "promote", BETTER, "--reason", "r", "--dry-run")
    evidence = json.loads(out_of(capfd, "models", "show", BETTER, "--json"))["evidence"]
    assert "gate" not in {row["kind"] for row in evidence}


def test_compare_shows_both_with_intervals(capfd: pytest.CaptureFixture[str]) -> None:
    table = out_of(capfd, "models", "compare", "digits@champion", WORSE)
    for text in ("on the same test rows, eeeeeeeeeeee", "0.9900", "0.8000", "-0.1900", "worse", "95% interval", "all"):
        assert text in table
    found = json.loads(out_of(capfd, "models", "compare", HOLDER, WORSE, "--json", "--confidence", "0.9"))
    assert found["bootstrap"]["confidence"] == 0.9
    assert (found["a"]["reference"], found["b"]["reference"]) == (HOLDER, WORSE)
    accuracy = next(row for row in found["metrics"] if row["metric"] == "accuracy")
    assert accuracy["lower"] < accuracy["difference"] == -0.19 < accuracy["upper"]


@pytest.mark.parametrize(("width", "sets"), [(80, 5), (120, 2)])
def test_compare_shows_every_set_of_rows_that_both_share_the_gates_first(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, sets: int
) -> None:
    others = ["sha256:" + letter * 64 for letter in "abcd"[: sets - 1]]
    with Registry.open(load_settings(Path.cwd()).settings.registry) as registry:
        for place, rows in enumerate(others):
            measure(registry, HOLDER, 2, rows=rows)
            measure(registry, WORSE, 40 - 10 * place, rows=rows)
        measure(registry, WORSE, 10, rows="sha256:" + "f" * 64)  # that of one alone
    monkeypatch.setenv("COLUMNS", str(width))
    table = out_of(capfd, "models", "compare", HOLDER, WORSE)
    found = json.loads(out_of(capfd, "models", "compare", HOLDER, WORSE, "--json"))
    assert [part["dataset_digest"] for part in found["row_sets"]] == [*others[::-1], ROWS]
    assert all(part["is_judged"] and part["rows"] == 200 for part in found["row_sets"])
    first = found["row_sets"][0]
    assert (found["metrics"], found["slices"]) == (first["metrics"], first["slices"])
    flat = " ".join(table.split())
    places = [flat.index(f"same test rows, {rows[7:19]}, 200 rows") for rows in (*others[::-1], ROWS)]
    assert places == sorted(places)
    assert "ffffffffffff" not in flat
    assert all(f"{value:+.4f}" in table for value in (-0.19, -0.19 + 0.05 * (len(others) - 1)))
    assert max(map(len, table.splitlines())) <= width
    with Path("noa.toml").open("a") as file:
        file.write(f'datasets = ["{ROWS}"]\n')
    named = json.loads(out_of(capfd, "models", "compare", HOLDER, WORSE, "--json"))["row_sets"]
    assert [part["dataset_digest"] for part in named] == [ROWS, *others[::-1]]
    assert [part["is_judged"] for part in named] == [True] + [False] * len(others)
    table = " ".join(out_of(capfd, "models", "compare", HOLDER, WORSE, "--plot", "a.svg").split())
    assert f"{ROWS[7:19]}, 200 rows," not in table
    assert table.count("which the gate does not name") == len(others)
    drawn = Path("a.svg").read_text()
    assert f"{sets} sets of test rows" in drawn
    assert all(f"<!-- {rows[7:19]} -->" in drawn for rows in (ROWS, *others))


def test_compare_draws_intervals_as_the_gate_judges_unless_told_otherwise(capfd: pytest.CaptureFixture[str]) -> None:
    text = Path("noa.toml").read_text().replace("confidence = 0.95", "confidence = 0.6\nseed = 7")
    Path("noa.toml").write_text(text)
    table = out_of(capfd, "models", "compare", HOLDER, WORSE)
    assert "intervals of 60 % from 200 draws with seed 7, as the gate judges" in table
    assert "60% interval" in table
    judged = json.loads(out_of(capfd, "models", "check", WORSE, "--json", code=1))["verdicts"]
    (rule,) = (row["measured"] for row in judged if row["rule"] == "max_regression.accuracy")
    found = json.loads(out_of(capfd, "models", "compare", HOLDER, WORSE, "--json"))
    accuracy = next(row for row in found["metrics"] if row["metric"] == "accuracy")
    assert (accuracy["lower"], accuracy["upper"]) == (rule["lower"], rule["upper"])
    assert found["bootstrap"]["is_gates_plan"] is True
    asked = json.loads(out_of(capfd, "models", "compare", HOLDER, WORSE, "--json", "--resamples", "300"))["bootstrap"]
    assert (asked["confidence"], asked["resamples"], asked["seed"], asked["is_gates_plan"]) == (0.6, 300, 7, False)
    Path("noa.toml").write_text(text.replace("confidence = 0.6", ""))
    table = out_of(capfd, "models", "compare", HOLDER, WORSE)
    assert "intervals of 95 % from 200 draws with seed 7, by which no gate judges" in table


def test_a_version_that_is_registered_is_measured_by_one_command(capfd: pytest.CaptureFixture[str]) -> None:
    Path("noa.toml").write_text(Path("noa.toml").read_text() + 'max_latency_ms = { p50 = 60000, "p99@3" = 60000 }\n')
    refused = json.loads(out_of(capfd, "models", "check", BETTER, "--json", code=1))["verdicts"]
    (remedy,) = {row["remedy"] for row in refused if not row["passed"]}
    assert remedy == f"Measure it: noa models measure {BETTER}"
    told = json.loads(out_of(capfd, "models", "measure", BETTER, "--json"))
    assert [row["batch"] for row in told["batches"]] == [1, 3, 32]
    assert out_of(capfd, "models", "check", BETTER).count("REFUSED") == 0
    assert "processor time" in out_of(capfd, "models", "measure", BETTER, "--batch", "2", "--seconds", "0.1")
    kinds = [row["kind"] for row in json.loads(out_of(capfd, "models", "show", BETTER, "--json"))["evidence"]]
    assert (kinds.count("latency"), kinds.count("size")) == (2, 1)


def test_compare_draws_a_picture(capfd: pytest.CaptureFixture[str]) -> None:
    out_of(capfd, "models", "compare", HOLDER, WORSE, "--plot", "a.png")
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    assert run(["models", "compare", HOLDER, WORSE, "--plot", "a.pdf", "--json"]) == 1
    error = json.loads(capfd.readouterr().err)
    assert error["expected"] == "a name ending in .png or .svg"


def test_a_gate_of_a_model_that_nobody_knows_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert json.loads(out_of(capfd, "config", "validate", "--json"))["warnings"] == []
    with Path("noa.toml").open("a") as file:
        file.write("\n[gates.digts]\nmin_metrics = { accuracy = 0.9 }\n[gates.noisy]\n")  # `noisy` is a recipe
    (warning,) = json.loads(out_of(capfd, "config", "validate", "--json"))["warnings"]
    assert "[gates.digts]" in warning
    assert "`digits`, `noisy`" in warning
    assert "Did you mean `digits`?" in warning
    assert warning in out_of(capfd, "config", "validate")
    run(["doctor", "--json"])
    (found,) = (one for one in json.loads(capfd.readouterr().out) if one["name"] == "gates")
    assert found["state"] == "warning"
    assert "[gates.digts]" in found["detail"]
    assert found["remedy"] == "Did you mean `digits`?"


def test_validating_makes_no_registry_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "noa.toml").write_text("[gates.digits]\n")
    monkeypatch.chdir(tmp_path / "new")
    assert run(["config", "validate"]) == 0
    assert [path.name for path in Path().iterdir()] == ["noa.toml"]


def test_metrics_on_rows_that_nobody_knows_are_told_by_check_and_doctor(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    invented = "sha256:" + "f" * 64
    with Registry.open(load_settings(tmp_path / "project").settings.registry) as registry:
        digest = registry.resolve(HOLDER).formats["onnx"].digest
        fact = metrics_evidence(
            format="onnx", digest=digest, dataset_digest=invented, split="test", values={"accuracy": 1.0}
        )
        registry.attach("digits", 2, fact)
    printed = out_of(capfd, "models", "check", HOLDER)
    assert "warning: the metrics are believed on rows that nobody here knows" in printed
    run(["doctor", "--json"])
    (found,) = (one for one in json.loads(capfd.readouterr().out) if one["name"] == "gates")
    assert found["state"] == "warning"
    assert invented in found["detail"]
