"""What cannot be read is named by `noa models verify`, and hinders nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from noa.settings import load_settings
from noa_registry import Registry

if TYPE_CHECKING:
    from tests.cli.conftest import RunBound


@pytest.fixture
def project(registered: Path, tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "project"
    shutil.copytree(registered, root)
    yield root
    for path in [root, *root.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o700)


def unit(project: Path, number: int) -> Path:
    with Registry.open(load_settings(project).settings.registry) as registry:
        return registry.resolve(f"digits/{number}").formats["onnx"].folder.parent.parent


@pytest.mark.parametrize(
    ("closed", "named"),
    [
        ("", "`formats/onnx` cannot be read (permission denied)"),
        ("formats/torch", "`formats/torch` cannot be read (permission denied)"),
        ("formats/onnx/model.onnx", "`formats/onnx/model.onnx` cannot be read (permission denied)"),
    ],
)
def test_what_cannot_be_read_is_named_and_the_rest_is_verified(
    project: Path, run_bound: RunBound, closed: str, named: str
) -> None:
    (unit(project, 1) / closed).chmod(0)
    weights = unit(project, 3) / "formats" / "torch" / "weights.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    done = run_bound("models", "verify", "--json", project=project)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    found = json.loads(done.stdout)
    assert found["checked"] == 3
    said = {one["subject"]: one for one in found["problems"] if one["subject"].startswith("digits/")}
    assert sorted(said) == ["digits/1", "digits/3"]
    assert named in said["digits/1"]["what"]
    assert "permission to read" in said["digits/1"]["remedy"]
    assert "weights.safetensors` was changed" in said["digits/3"]["what"]


def test_a_closed_folder_of_a_model_is_a_problem_of_each_of_its_versions_and_repair_says_what_it_cannot(
    project: Path, run_bound: RunBound
) -> None:
    unit(project, 1).parent.chmod(0)
    for words in (("models", "verify", "--json"), ("models", "verify", "--repair", "--json")):
        done = run_bound(*words, project=project)
        assert done.returncode == 1, done.stderr
        said = {one["subject"] for one in json.loads(done.stdout)["problems"]}
        assert {"digits/1", "digits/2", "digits/3"} <= said
