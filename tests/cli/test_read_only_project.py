"""A project that this user cannot write: what reads works and leaves nothing, what writes is one clear refusal."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from noa.settings import load_settings
from noa_registry import Registry
from without_rights import closed_for_writing

if TYPE_CHECKING:
    from tests.cli.conftest import RunBound

READING = (
    "models list",
    "models list digits",
    "models list --trash",
    "models show digits@champion",
    "models history digits",
    "models check digits/3",
    "models verify",
    "models search digits sort:metric.accuracy",
    "models compare digits/1 digits/2",
    "models card digits/2",
    "models lineage digits",
    "runs list",
    "ledger verify",
    "ledger show",
    "events list",
    "gc --dry-run",
    "status",
    "endpoints list",
)
WRITING = (
    "models promote digits/3",
    "models rollback digits",
    "models delete digits/3 --reason old",
    "models verify --repair",
    "models import {archive}",
)


@pytest.fixture
def project(registered: Path, tmp_path: Path) -> Path:
    root = tmp_path / "project"
    shutil.copytree(registered, root)
    with Registry.open(load_settings(root).settings.registry) as registry:
        registry.repair_mirror()  # else `verify` tells that the project was copied
    return root


def everything(project: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in project.rglob("*")}


def test_what_reads_works_in_a_project_that_cannot_be_written_and_leaves_nothing(
    project: Path, run_bound: RunBound
) -> None:
    before = everything(project)
    with closed_for_writing(project):
        for words in READING:
            done = run_bound(*words.split(), project=project)
            assert done.returncode == 0, (words, done.stdout, done.stderr)
        said = run_bound("models", "check", "digits/3", project=project).stderr
        predicted = run_bound("predict", "digits@champion", "--input", str(project / "in.json"), project=project)
        assert predicted.returncode == 0, predicted.stderr
    assert "The verdict was not kept: the database cannot be written by this user." in said
    assert everything(project) == before


def test_what_writes_is_refused_by_one_clear_error_also_where_the_store_can_be_written(
    project: Path, run_bound: RunBound, tmp_path: Path
) -> None:
    archive = tmp_path / "digits.noa"
    database = project / ".noa" / "noa.db"
    with closed_for_writing(project):
        done = run_bound("models", "export", "digits/3", "--output", str(archive), project=project)
        assert done.returncode == 0, done.stderr
    before = everything(project)
    database.chmod(0o444)
    try:
        for words in WRITING:
            done = run_bound(*words.format(archive=archive).split(), project=project)
            *_, last = done.stderr.splitlines()
            assert done.returncode == 1, words
            assert last.startswith("error: this registry can only be read: its database cannot be written"), last
            assert f"({database}). Do this as a user who may write to the file and to its folder" in last
    finally:
        database.chmod(0o644)
    assert everything(project) == before
