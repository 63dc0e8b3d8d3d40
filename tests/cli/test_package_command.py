"""`noa package`, as somebody types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from noa.digests import build_manifest
from noa.settings import load_settings
from noa_cli.__main__ import run
from noa_cli.commands.serve import choose_endpoints


def test_a_dry_run_tells_and_writes_nothing(
    registered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["package", "numbers", "-o", str(out), "--dry-run", "--directory", str(registered)]
    assert run([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["endpoint"], told["reference"], told["written"]) == ("numbers", "digits/1", False)
    assert not out.exists()
    assert run(command) == 0
    text = capsys.readouterr().out
    assert "would hold digits/1 as onnx" in text
    assert all(name in text for name in told["files"])


def test_what_is_written_is_what_was_told(registered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ["--directory", str(registered), "--json"]
    image = "registry.example/team/digits:2"
    options = ["--image", image, "--autoscaler", "keda", "--replicas", "3", "--with", "arrow"]
    assert run(["package", "digits@champion", "-o", str(tmp_path / "out"), *options, *here]) == 0
    told = json.loads(capsys.readouterr().out)
    found = build_manifest(tmp_path / "out")
    assert told["folder_digest"] == found.digest
    assert told["files"] == {file.path: file.size_bytes for file in found.files}
    assert (told["reference"], told["image"]) == ("digits/2", image)
    assert "pyarrow" in told["packages"]
    assert image in (tmp_path / "out" / "kubernetes" / "deployment.yaml").read_text()
    assert "minReplicaCount: 3" in (tmp_path / "out" / "kubernetes" / "keda-scaled-object.yaml").read_text()
    assert run(["package", "digits@champion", "-o", str(tmp_path / "out"), *here]) == 1
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["nobody", "digits@nobody", "digits/9"])
def test_what_is_not_there_is_one_line(registered: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["package", what, "--directory", str(registered)]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_pipeline_is_served_by_its_name_and_refused_by_name_as_a_package(
    registered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "project"
    copy.mkdir()
    text = (registered / "noa.toml").read_text()
    steps = '[[pipelines.reader.steps]]\nname = "one"\nendpoint = "numbers"\n'
    (copy / "noa.toml").write_text(f'{text}\n[pipelines.reader]\noutputs = {{ all = "one.logits" }}\n{steps}')
    assert run(["package", "reader", "--directory", str(copy)]) == 1
    told = capsys.readouterr().err
    assert "`reader` is a pipeline, and a package holds one endpoint" in told
    assert "Package its endpoints (`numbers`)" in told
    settings = load_settings(copy, outside=()).settings
    assert choose_endpoints(settings, ["reader"]) == {"numbers": settings.endpoints["numbers"]}
