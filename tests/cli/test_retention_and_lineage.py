"""`noa models delete|restore|lineage|verify --repair` and `noa gc` as a person at a terminal uses them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from noa.settings import load_settings
from noa_cli.__main__ import run
from noa_registry import Registry
from noa_registry.artifacts import OWNER_MARK

Capture = pytest.CaptureFixture[str]
MOVED_BY_MLFLOW = """
import sys, mlflow
client = mlflow.MlflowClient(sys.argv[1], sys.argv[1])
client.set_registered_model_alias("digits", "champion", "3")
client.update_model_version("digits", "1", description="theirs")
client.delete_model_version("digits", "3")
"""


def noa(capfd: Capture, *arguments: str, code: int = 0) -> str:
    assert run(list(arguments)) == code, capfd.readouterr().err
    captured = capfd.readouterr()
    return captured.out if code == 0 else captured.out + captured.err


def as_json(capfd: Capture, *arguments: str, code: int = 0) -> Any:
    assert run([*arguments, "--json"]) == code, capfd.readouterr().err
    return json.loads(capfd.readouterr().out)


@pytest.fixture
def project(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the registered project: `digits/1` is served by its number, the champion was 1 and is 2."""
    folder = tmp_path / "project"
    shutil.copytree(registered, folder)
    monkeypatch.chdir(folder)
    with opened(folder) as registry:
        registry.repair_mirror()  # the copy lies elsewhere than MLflow's rows say
    return folder


def opened(folder: Path) -> Registry:
    return Registry.open(load_settings(folder).settings.registry)


def test_a_version_goes_into_the_trash_and_out_of_it(project: Path, capfd: Capture) -> None:
    assert "nothing needs it; restorable for 7 days" in noa(
        capfd, "models", "delete", "digits/3", "-m", "r", "--dry-run"
    )
    assert "digits/3" in noa(capfd, "models", "list", "digits")
    deleted = as_json(capfd, "models", "delete", "digits/3", "-m", "wrong labels", "--grace", "12h")
    assert (deleted["reference"], deleted["reason"], deleted["state"]) == ("digits/3", "wrong labels", "trashed")
    assert "digits/3" not in noa(capfd, "models", "list", "digits")
    assert "wrong labels" in noa(capfd, "models", "list", "digits", "--trash")
    assert [row["reference"] for row in as_json(capfd, "models", "list", "--trash")] == ["digits/3"]
    for command in ("show", "check", "verify"):
        assert "noa models restore digits/3" in noa(capfd, "models", command, "digits/3", code=1)
    assert "digits/3" in noa(capfd, "models", "restore", "digits/3")
    assert "digits/3" in noa(capfd, "models", "list", "digits")
    assert as_json(capfd, "models", "list", "--trash") == []


def test_what_is_in_use_is_refused_with_all_that_needs_it(project: Path, capfd: Capture) -> None:
    trial = as_json(capfd, "models", "delete", "digits/1", "-m", "r", "--dry-run", code=1)
    assert [hold["kind"] for hold in trial["holds"]] == ["rollback target", "endpoint"]
    refused = noa(capfd, "models", "delete", "digits/1", "-m", "r", code=1)
    assert "rollback target of `digits@champion`" in refused
    assert "endpoint `numbers` of the settings" in refused
    assert "[endpoints.numbers] of noa.toml" in refused
    assert "in use" in noa(capfd, "models", "delete", "digits/2", "-m", "r", "--dry-run", code=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("models", "delete", "digits", "-m", "r"), "does not name one version by its number"),
        (("models", "delete", "digits@champion", "-m", "r"), "does not name one version by its number"),
        (("models", "delete", "digits/3", "-m", "r", "--grace", "soon"), "no span of time (--grace)"),
        (("models", "delete", "digits/3", "-m", " "), "no reason is given"),
        (("models", "delete", "digits/9", "-m", "r"), "no version 9"),
        (("models", "restore", "digits/3"), "not in the trash"),
        (("gc", "--apply", "--dry-run"), "exclude each other"),
        (("gc", "--policy", "--unknown"), "exclude each other"),
        (("models", "lineage", "nothing"), "nothing is known of `nothing`"),
    ],
)
def test_what_cannot_be_done_is_said(project: Path, capfd: Capture, arguments: tuple[str, ...], message: str) -> None:
    assert message in noa(capfd, *arguments, code=1)


def test_a_collection_shows_first_and_removes_only_when_told(project: Path, capfd: Capture) -> None:
    assert "Nothing to remove" in noa(capfd, "gc")
    noa(capfd, "models", "delete", "digits/3", "-m", "old", "--grace", "0d")
    shown = noa(capfd, "gc")
    assert "digits/3" in shown
    assert "noa gc --apply" in shown
    plan = as_json(capfd, "gc", "--dry-run")
    assert (plan["dry_run"], plan["items"][0]["key"], plan["bytes"] > 0) == (True, "digits/3", True)
    noa(capfd, "models", "restore", "digits/3")
    noa(capfd, "models", "delete", "digits/3", "-m", "old", "--grace", "0d")
    done = as_json(capfd, "gc", "--apply")
    assert [item["key"] for item in done["removed"]] == ["digits/3"]
    assert done["freed_bytes"] == plan["bytes"]
    assert "gone for good" in noa(capfd, "models", "restore", "digits/3", code=1)
    assert "Nothing to remove" in noa(capfd, "gc", "--apply")
    noa(capfd, "models", "verify")


def test_an_empty_project_is_told_how_to_begin_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    (tmp_path / "noa.toml").write_text('[project]\nname = "new"\n')
    monkeypatch.chdir(tmp_path)
    assert run(["models", "list"]) == 0
    told = capfd.readouterr().err
    assert "No model is registered yet" in told
    assert "store" not in told


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_lost_database_is_told_everywhere_and_costs_no_model(project: Path, capfd: Capture, is_marked: bool) -> None:
    artifacts = project / ".noa" / "artifacts"
    if not is_marked:  # by an older noa
        (artifacts / OWNER_MARK).unlink()
    for file in (project / ".noa").glob("noa.db*"):
        file.write_bytes(b"")
    for path in (artifacts / "digits", *(artifacts / "digits").iterdir()):
        os.utime(path, (0, 0))
    before = {path for path in artifacts.rglob("*") if path.is_file()}
    for command in (("models", "verify"), ("ledger", "verify")):
        told = noa(capfd, *command, code=1)
        assert "versions of `digits` that the database does not know" in told
        assert ("belong to another registry" in told) == is_marked
    for arguments in ((), ("--json",)):
        assert run(["models", "list", *arguments]) == 0
        told = capfd.readouterr().err
        assert ("belong to another registry" if is_marked else "versions of `digits` that the database") in told
        assert "backup" in told
        assert "No model is registered yet" not in told
    (found,) = (one for one in as_json(capfd, "doctor", code=1 if is_marked else 0) if one["name"] == "registry")
    assert (found["state"], "backup" in found["remedy"]) == ("problem" if is_marked else "warning", True)
    if is_marked:
        assert "restore a backup of it" in noa(capfd, "gc", "--apply", code=1)
    else:
        assert "3 units" in noa(capfd, "gc", "--apply")
        assert len(as_json(capfd, "gc", "--apply")["unknown"]) == 3
    assert "seem to belong to another" in noa(capfd, "gc", "--unknown", "--apply", code=1) or is_marked
    assert before <= {path for path in artifacts.rglob("*") if path.is_file()}
    mark = (artifacts / OWNER_MARK).read_bytes() if is_marked else b""
    told = noa(capfd, "models", "verify", "--adopt-store", code=1)
    assert "does not know 3 units of it: digits/" in told
    assert "ends with row " in told
    assert "nobody said yes" in told
    if is_marked:
        assert json.loads(mark)["registry"] in told
        assert (artifacts / OWNER_MARK).read_bytes() == mark
    noa(capfd, "models", "verify", "--adopt-store", "--yes", code=1)
    assert "took the store over lately" in noa(capfd, "gc", "--unknown", "--apply", code=1)
    assert before <= {path for path in artifacts.rglob("*") if path.is_file()}
    at_once = ("-o", "retention.grace_days=0")
    for path in (artifacts / "digits").iterdir():
        os.utime(path)  # as if they had been changed just now
    until = re.search(r"remove them, from (.*) on: noa gc --unknown", noa(capfd, "models", "verify", *at_once, code=1))
    young = noa(capfd, "gc", "--unknown", *at_once)
    assert until is not None
    assert "too young to be removed" in young and f"stays until {until[1]}" in young
    for path in (artifacts / "digits").iterdir():
        os.utime(path, (0, 0))
    assert "remove them: noa gc --unknown" in noa(capfd, "models", "verify", *at_once, code=1)
    assert "noa gc --unknown --apply" in noa(capfd, "gc", "--unknown", *at_once)
    assert len(as_json(capfd, "gc", "--unknown", "--apply", *at_once)["removed"]) == 3
    noa(capfd, "models", "verify")
    noa(capfd, "ledger", "verify")


def test_a_collection_says_what_waits_in_the_trash_and_until_when(project: Path, capfd: Capture) -> None:
    assert as_json(capfd, "gc")["waiting"] == []
    until = as_json(capfd, "models", "delete", "digits/3", "-m", "old")["purge_after"]
    shown = noa(capfd, "gc")
    assert "Nothing to remove." in shown
    assert f"1 version in the trash can still be restored, and then may go: digits/3 until {until[:10]}" in shown
    assert as_json(capfd, "gc")["waiting"] == [{"reference": "digits/3", "purge_after": until}]
    done = as_json(capfd, "gc", "--apply")
    assert (done["removed"], [one["reference"] for one in done["waiting"]]) == ([], ["digits/3"])
    with opened(project) as registry:
        later = replace(registry.retention, clock=lambda: datetime.now(UTC) + timedelta(days=8))
        plan = later.plan_gc()
    assert ([item.key for item in plan.items], plan.waiting) == (["digits/3"], ())


def test_the_policy_proposes_and_moves_to_the_trash_only_when_told(project: Path, capfd: Capture) -> None:
    policy = ("-o", "retention.keep_newest=1", "-o", "retention.keep_days=0")
    with opened(project) as registry:
        version = registry.resolve("digits/3")
        folder = project / "more"
        shutil.copytree(version.folder / "formats", folder)
        registry.register(_like(version, folder), actor="ada")
    assert "proposes nothing" in noa(capfd, "gc", "--policy")
    assert "noa gc --policy --apply" in noa(capfd, "gc", "--policy", *policy)
    assert as_json(capfd, "models", "list", "--trash") == []
    moved = as_json(capfd, "gc", "--policy", "--apply", *policy)
    assert moved["moved"] == ["digits/3"]
    (trashed,) = as_json(capfd, "models", "list", "--trash")
    assert "retention policy: never promoted" in trashed["reason"]


def _like(version: Any, folder: Path) -> Any:
    import numpy as np

    from noa_registry import VersionDraft

    return VersionDraft(
        name=version.name,
        formats={"torch": folder / "torch"},
        native="torch",
        input_example={"x": np.ones((2, 4), np.float32)},
        dataset_digest=version.dataset_digest,
    )


def test_what_is_piped_is_neither_cut_nor_folded(project: Path, capfd: Capture) -> None:
    reason = "why: " + " ".join(f"word{number}" for number in range(60))
    noa(capfd, "models", "promote", "digits/3", "--reason", reason)
    for command in (("models", "lineage", "digits/3"), ("models", "history", "digits"), ("ledger", "show")):
        lines = noa(capfd, *command).splitlines()
        assert [line for line in lines if reason in line], command


def test_lineage_is_a_tree_a_picture_a_chart_and_data(project: Path, capfd: Capture) -> None:
    tree = noa(capfd, "models", "lineage", "digits/2")
    assert re.search(r"version digits/2.*\n.*made from\n.*dataset d{12}", tree)
    assert "held by alias digits@champion" in tree
    assert "converted to format onnx  equivalence passed" in tree
    data = as_json(capfd, "models", "lineage", "digits", "--limit", "1")
    assert data["hidden_versions"] == 2
    assert "and 2 more versions" in noa(capfd, "models", "lineage", "digits", "--limit", "1")
    assert noa(capfd, "models", "lineage", "digits/2", "--mermaid").startswith("flowchart LR\n")
    noa(capfd, "models", "lineage", "digits/2", "--svg", "lineage.svg")
    assert ElementTree.parse(project / "lineage.svg").getroot().tag.endswith("svg")
    up = {node["kind"] for node in as_json(capfd, "models", "lineage", "digits/2", "--upstream")["nodes"]}
    down = {node["kind"] for node in as_json(capfd, "models", "lineage", "digits/2", "--downstream")["nodes"]}
    assert (up, down) == ({"version", "dataset"}, {"version", "format", "alias"})


def test_what_was_changed_behind_noas_back_is_found_and_repaired(project: Path, capfd: Capture) -> None:
    url = load_settings(project).settings.registry.database_url
    subprocess.run([sys.executable, "-W", "ignore", "-c", MOVED_BY_MLFLOW, url], check=True, capture_output=True)
    with opened(project) as registry:
        weights = registry.resolve("digits/3").folder / "formats" / "torch" / "weights.safetensors"
    weights.unlink()
    weights.write_bytes(b"other weights")
    found = as_json(capfd, "models", "verify", code=1)
    told = {(row["subject"], row["expected"], row["received"]) for row in found["problems"]}
    assert ("MLflow's row of digits, alias champion", "version 2", "nothing") in told
    assert ("MLflow's row of digits, version 1", "nothing", "theirs") in told
    assert {row["subject"] for row in found["problems"]} >= {"digits/3", "MLflow's row of digits, version 3"}
    assert as_json(capfd, "models", "show", "digits@champion")["number"] == 2
    assert "weights.safetensors" in noa(capfd, "models", "check", "digits/3", code=1)
    repaired = as_json(capfd, "models", "verify", "--repair")
    assert repaired["problems"] == []
    assert any("weights.safetensors" in text and "put back from" in text for text in repaired["repaired"])
    assert any("alias champion" in text for text in repaired["repaired"])
    assert as_json(capfd, "models", "verify")["problems"] == []


def test_what_cannot_be_repaired_stays_a_problem(project: Path, capfd: Capture) -> None:
    with opened(project) as registry:
        model = registry.resolve("digits/3").folder / "MLmodel"
    model.unlink()
    assert "exist nowhere else here" in noa(capfd, "models", "verify", "--repair", code=1)
    assert "`MLmodel` is missing" in noa(capfd, "models", "verify", "digits/3", code=1)


def test_a_changed_record_is_a_finding_and_not_the_end(project: Path, capfd: Capture) -> None:
    import sqlite3

    connection = sqlite3.connect(project / ".noa" / "noa.db", isolation_level=None)
    connection.execute("DROP TRIGGER noa_versions_no_update")
    connection.execute("UPDATE noa_versions SET params = '{\"epochs\":1}' WHERE number = 3")
    connection.close()
    problems = as_json(capfd, "models", "verify", code=1)["problems"]
    assert {row["subject"] for row in problems} == {"digits/3", "database"}
    assert "the record of `digits/3` was changed" in noa(capfd, "models", "verify", "digits/3", code=1)
    left = as_json(capfd, "models", "verify", "--repair", code=1)
    assert [row["subject"] for row in left["problems"]] == ["digits/3"]
    assert any("noa_versions_no_update" in text for text in left["repaired"])


def test_waiting_ends_at_once_where_no_server_follows(project: Path, capfd: Capture) -> None:
    moved = as_json(capfd, "models", "promote", "digits/3", "--wait", "-m", "r")
    assert (moved["to"], moved["replicas"]) == (3, [])
    assert as_json(capfd, "models", "rollback", "digits", "--wait", "-m", "r")["to"] == 2


def test_waiting_for_a_server_that_does_not_follow_fails_clearly(project: Path, capfd: Capture) -> None:
    with opened(project) as registry:
        generation = registry.endpoints.announce("live", "digits", 2, alias="champion", format="onnx")
        registry.endpoints.acknowledge("live", "slow", generation, lease_s=60)
    told = noa(capfd, "models", "promote", "digits/3", "--wait", "--timeout", "0", "-m", "r", code=1)
    assert "not every server follows" in told
    assert "`slow` of endpoint `live` serves digits/2" in told
    assert as_json(capfd, "models", "show", "digits@champion")["number"] == 3
