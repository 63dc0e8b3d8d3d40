"""What somebody changes behind noa's back, in MLflow, the database or the files: found, never served, repaired."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noa.errors import GateRefusedError, IntegrityError, NotFoundError
from noa.settings import RegistrySettings
from noa_registry import Attachment, Discrepancy, Evidence, ModelVersion, Registry
from noa_registry.mlflow_schema import import_mlflow


@pytest.fixture
def client(settings: RegistrySettings, registry: Registry) -> Any:
    import_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(settings.database_url, settings.database_url)


def facts(found: list[Discrepancy]) -> list[tuple[str, str, str]]:
    return [(one.name, one.subject, one.field) for one in found]


def assert_repaired(registry: Registry) -> None:
    repaired = registry.repair_mirror()
    assert repaired
    assert registry.mirror_discrepancies() == []
    assert registry.repair_mirror() == []


# Through stock MLflow clients.


@pytest.mark.local_files
def test_a_changed_description_or_tag_is_reported_and_repaired(registry: Registry, client: Any, formats: Any) -> None:
    registry.register(formats.draft(description="ours", tags={"team": "vision"}), actor="ada")
    client.set_model_version_tag("digits", "1", "my.note", "that is the user's own")
    assert registry.mirror_discrepancies() == []
    client.update_model_version("digits", "1", description="theirs")
    client.set_model_version_tag("digits", "1", "noa.digest", "sha256:" + "0" * 64)
    client.set_model_version_tag("digits", "1", "team", "pirates")
    client.delete_model_version_tag("digits", "1", "noa.formats")
    found = registry.mirror_discrepancies()
    assert sorted(facts(found)) == [
        ("digits", "version 1", "description"),
        ("digits", "version 1", "tag"),
        ("digits", "version 1", "tag"),
        ("digits", "version 1", "tag"),
    ]
    told = {(one.key, one.expected, one.received) for one in found}
    assert ("team", "vision", "pirates") in told
    assert ("noa.formats", "onnx,torch", "nothing") in told
    assert ("", "ours", "theirs") in told
    assert_repaired(registry)
    version = client.get_model_version("digits", "1")
    assert (version.description, version.tags["team"], version.tags["my.note"]) == (
        "ours",
        "vision",
        "that is the user's own",
    )


@pytest.mark.local_files
def test_a_deleted_model_is_one_finding_and_comes_back_with_all_its_versions(
    registry: Registry, client: Any, formats: Any
) -> None:
    made = [registry.register(formats.draft(), actor="ada") for _ in range(3)]
    registry.retention.delete("digits", 2, reason="r", actor="ada")
    client.delete_registered_model("digits")
    assert facts(registry.mirror_discrepancies()) == [("digits", "model", "model")]
    assert registry.resolve("digits/1").digest == made[0].digest
    assert_repaired(registry)
    assert sorted(int(v.version) for v in client.search_model_versions("name='digits'")) == [1, 3]
    assert client.get_model_version("digits", "3").tags["noa.digest"] == made[2].digest


def test_a_model_that_was_renamed_is_found_under_both_names_and_repaired(
    registry: Registry, version: ModelVersion, client: Any, tamper: Callable[..., Any]
) -> None:
    tamper("SELECT 1")  # lifts the triggers on SQLite
    tamper(
        "INSERT INTO registered_models (workspace, name) VALUES ('default', 'other')",
        "UPDATE model_versions SET name = 'other'",
        "UPDATE model_version_tags SET name = 'other'",
        "DELETE FROM registered_models WHERE name = 'digits'",
    )
    found = [one for one in registry.mirror_discrepancies() if one.field != "guard"]
    assert facts(found) == [("digits", "model", "model"), ("other", "version 1", "model")]
    assert registry.resolve("digits").digest == version.digest
    with pytest.raises(NotFoundError):
        registry.resolve("other")
    assert_repaired(registry)
    assert [m.name for m in client.search_registered_models()] == ["digits"]


def test_a_version_that_is_in_the_trash_and_visible_in_mlflow_is_reported(
    registry: Registry, version: object, tamper: Callable[..., Any], client: Any
) -> None:
    registry.retention.delete("digits", 1, reason="r", actor="ada")
    tamper("UPDATE model_versions SET current_stage = 'Production'")
    (found,) = [one for one in registry.mirror_discrepancies() if one.field != "guard"]
    assert (found.field, found.received) == ("stage", "stage Production")
    assert "in noa's trash" in found.expected
    assert_repaired(registry)
    assert list(client.search_model_versions("name='digits'")) == []


def test_a_changed_run_or_source_is_reported_and_repaired(
    registry: Registry, formats: Any, tamper: Callable[..., Any]
) -> None:
    registry.register(formats.draft(run_id="a" * 32), actor="ada")
    registry.register(formats.draft(run_id="b" * 64), actor="ada")  # too long for MLflow's column
    assert registry.mirror_discrepancies() == []
    tamper("UPDATE model_versions SET run_id = 'evil', source = 'file:///evil' WHERE version = 1")
    found = [one for one in registry.mirror_discrepancies() if one.field != "guard"]
    assert [(one.field, one.received) for one in found] == [("source", "file:///evil"), ("run_id", "evil")]
    assert_repaired(registry)


@pytest.mark.local_files
def test_what_noa_refuses_in_mlflow_is_told_in_plain_words(
    registry: Registry, promoted: list[ModelVersion], client: Any
) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(
        MlflowException, match=r"noa refused this and nothing was changed: an alias holds this model ve"
    ):
        client.delete_model_version("digits", "3")
    with pytest.raises(MlflowException, match=r"keeps its name.*this is not about another model of that name"):
        client.rename_registered_model("digits", "other")
    assert registry.mirror_discrepancies() == []


# By somebody who may write into the database.


@pytest.mark.local_files
@pytest.mark.parametrize(
    ("change", "table"),
    [
        ("UPDATE noa_versions SET params = '{\"epochs\":99}'", "noa_versions"),
        ("UPDATE noa_versions SET git_commit = 'evil'", "noa_versions"),
        ("UPDATE noa_versions SET uid = 'elsewhere'", "noa_versions"),
        ("UPDATE noa_versions SET dataset_digest = 'sha256:0'", "noa_versions"),
        ("UPDATE noa_formats SET uid = 'elsewhere' WHERE format = 'onnx'", "noa_formats"),
    ],
)
def test_a_record_that_was_changed_is_never_served(
    registry: Registry, promoted: list[ModelVersion], tamper: Callable[..., Any], change: str, table: str
) -> None:
    tamper(f"{change}{' AND' if 'WHERE' in change else ' WHERE'} number = 3")
    for attempt in (
        lambda: registry.resolve("digits@champion"),
        lambda: registry.load("digits/3"),
        lambda: registry.verify("digits", 3),
        lambda: registry.promote("digits", 3, reason="r", actor="a"),
        lambda: registry.check("digits", 3),
    ):
        with pytest.raises(IntegrityError, match="was changed") as refused:
            attempt()
        assert refused.value.facts["file"] == table
    registry.verify("digits", 2)


@pytest.mark.local_files
def test_evidence_that_was_changed_convinces_nobody(
    registry: Registry, formats: Any, tamper: Callable[..., Any]
) -> None:
    registry.register(formats.draft(evidence=[formats.equivalence(passed=False)]), actor="ada")
    tamper("UPDATE noa_evidence SET passed = true")
    for attempt in (
        lambda: registry.evidence("digits", 1),
        lambda: registry.promote("digits", 1, reason="r", actor="a"),
    ):
        with pytest.raises(IntegrityError, match=r"evidence 1 \(`equivalence` of `onnx`\) of `digits/1` was changed"):
            attempt()
    assert registry.resolve_digest("digits", "champion") is None


@pytest.mark.local_files
def test_a_row_without_the_digest_of_its_record_counts_as_changed(
    registry: Registry, version: ModelVersion, tamper: Callable[..., Any]
) -> None:
    tamper(
        "INSERT INTO noa_evidence (name, number, kind, subject, digest, passed, content, created_at) VALUES "
        f"('digits', 1, 'metrics', 'onnx', '{version.digest}', true, '{{}}', '2026-01-01T00:00:00+00:00')"
    )
    with pytest.raises(IntegrityError, match=r"evidence 2 .* was changed"):
        registry.evidence("digits", 1)
    tamper("UPDATE noa_formats SET record = NULL WHERE format = 'onnx'")
    with pytest.raises(IntegrityError, match="in format `onnx` was changed"):
        registry.resolve("digits/1")
    tamper(
        "UPDATE noa_formats SET record = 'x' WHERE record IS NULL",
        "UPDATE noa_versions SET record = NULL, git_commit = 'deadbeef'",
    )
    with pytest.raises(IntegrityError, match="was changed"):
        registry.resolve("digits/1")


@pytest.mark.local_files
def test_every_changed_fact_and_attachment_of_a_version_is_named(
    registry: Registry, formats: Any, tamper: Callable[..., Any]
) -> None:
    attached = [Attachment(media_type="text/plain", content=word.encode()) for word in ("one", "two", "three")]
    facts = [
        Evidence(
            kind="audit",
            subject="version",
            digest="sha256:" + "0" * 64,
            values={"attachment": one.digest},
            attachments=(one,),
        )
        for one in attached
    ]
    registry.register(formats.draft(evidence=[formats.equivalence(), *facts]), actor="ada")
    assert registry.find_record_problems("digits", 1) == []
    tamper(
        "UPDATE noa_evidence SET passed = false WHERE id = 1",
        f"DELETE FROM noa_attachments WHERE digest = '{attached[0].digest}'",
        "UPDATE noa_attachments SET content = (SELECT content FROM noa_attachments "
        f"WHERE digest = '{attached[2].digest}') WHERE digest = '{attached[1].digest}'",
    )
    found = [problem.what for problem in registry.find_record_problems("digits", 1)]
    assert found == [
        "the record of evidence 1 (`equivalence` of `onnx`) of `digits/1` was changed",
        "the attachment of evidence 2 (`audit` of `version`) of `digits/1` is missing",
        "the attachment of evidence 3 (`audit` of `version`) of `digits/1` was changed",
    ]


@pytest.mark.local_files
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)  # the other has no texts in columns of bytes
@pytest.mark.parametrize(
    ("cell", "is_whole"), [("CAST(x'fffe' AS TEXT)", False), ("7", False), ("'one'", True), ("'two'", False)]
)
def test_an_attachment_that_is_kept_as_something_else_is_judged_by_its_bytes(
    registry: Registry, formats: Any, tamper: Callable[..., Any], cell: str, is_whole: bool
) -> None:
    one = Attachment(media_type="text/plain", content=b"one")
    fact = Evidence(
        kind="audit",
        subject="version",
        digest="sha256:" + "0" * 64,
        values={"attachment": one.digest},
        attachments=(one,),
    )
    registry.register(formats.draft(evidence=[fact]), actor="ada")
    tamper(f"UPDATE noa_attachments SET content = {cell}")
    problems = registry.find_record_problems("digits", 1)
    if is_whole:
        assert problems == []
        assert registry.attachment(one.digest) == one
    else:
        assert ["was changed" in problem.what for problem in problems] == [True]
        with pytest.raises(IntegrityError, match="an attachment was changed"):
            registry.attachment(one.digest)


@pytest.mark.local_files
def test_an_alias_row_that_the_ledger_does_not_know_is_never_followed(
    registry: Registry, promoted: list[ModelVersion], tamper: Callable[..., Any]
) -> None:
    tamper(f"UPDATE noa_aliases SET number = 1, digest = '{promoted[0].digest}'")
    for attempt in (
        lambda: registry.resolve("digits@champion"),
        lambda: registry.resolve_digest("digits", "champion"),
        lambda: registry.load("digits@champion"),
        registry.verify_ledger,
    ):
        with pytest.raises(IntegrityError):
            attempt()


def test_dropped_triggers_are_found_and_put_back(
    registry: Registry, version: object, settings: RegistrySettings, execute: Any
) -> None:
    from sqlalchemy.exc import IntegrityError as Refused

    on_table = " ON noa_versions" if settings.database_url.startswith("postgresql") else ""
    execute(f"DROP TRIGGER noa_versions_no_update{on_table}")
    (found,) = registry.mirror_discrepancies()
    assert (found.field, found.key) == ("guard", "noa_versions_no_update on noa_versions")
    assert_repaired(registry)
    with pytest.raises(Refused, match="never changed"):
        execute("UPDATE noa_versions SET description = 'x'")


@pytest.mark.local_files
def test_repairs_are_told_as_events(
    registry: Registry, promoted: list[ModelVersion], client: Any, execute: Callable[..., list[Any]]
) -> None:
    client.set_registered_model_alias("digits", "champion", "1")
    registry.repair_mirror()
    ((name, payload),) = execute("SELECT name, payload FROM noa_outbox WHERE kind = 'mirror.repaired'")
    assert (name, json.loads(payload)["repaired"][0]["received"]) == ("digits", "version 1")


# In the files.


def damage(stored: Any, version: ModelVersion, path: str) -> None:
    """Put another file in the place of one: its second names keep the old bytes."""
    data = bytearray(stored.read("digits", version.uid, path))
    data[-1] ^= 1
    stored.remove("digits", version.uid, path)
    stored.write("digits", version.uid, path, bytes(data))


WEIGHTS = "formats/torch/weights.safetensors"


def test_a_damaged_file_is_put_back_from_another_version(registry: Registry, formats: Any, stored: Any) -> None:
    first, _ = (registry.register(formats.draft(), actor="ada") for _ in range(2))
    damage(stored, first, WEIGHTS)
    stored.write("digits", first.uid, "MLmodel.extra", b"x")
    stored.remove("digits", first.uid, "formats/onnx/signature.json")
    with pytest.raises(IntegrityError, match="was changed"):
        registry.verify("digits", 1)
    done = registry.repair_files("digits", 1)
    assert [(one.path, one.change, one.is_repaired) for one in done] == [
        ("MLmodel.extra", "added", True),
        ("formats/onnx/signature.json", "missing", True),
        (WEIGHTS, "changed", True),
    ]
    registry.verify("digits", 1)
    moved = done[0].how.split("moved to ")[1]
    assert any(moved.endswith(path) for path in stored.all()), "nothing is deleted"
    registry.promote("digits", 1, reason="whole again", actor="ada")
    assert registry.repair_files("digits", 1) == []


def test_a_damaged_file_is_put_back_from_its_second_name(
    registry: Registry, version: ModelVersion, stored: Any
) -> None:
    damage(stored, version, "formats/onnx/model.onnx")
    (done,) = registry.repair_files("digits", 1)
    assert done.is_repaired
    registry.verify("digits", 1)


@pytest.mark.local_files
def test_what_was_put_back_can_be_written_by_nobody(registry: Registry, formats: Any, stored: Any) -> None:
    first, _ = (registry.register(formats.draft(), actor="ada") for _ in range(2))
    damage(stored, first, WEIGHTS)
    registry.repair_files("digits", 1)
    assert (first.folder / WEIGHTS).stat().st_mode & 0o222 == 0
    assert not list((first.folder / "formats" / "torch").glob(".*")), "no temporary file is left"


def test_a_file_that_exists_nowhere_else_is_said_so_and_stays_refused(
    settings: RegistrySettings, version: ModelVersion, stored: Any, tmp_path: Path
) -> None:
    damage(stored, version, "MLmodel")
    elsewhere = settings.model_copy(update={"cache_dir": tmp_path / "another machine"})
    with Registry.open(elsewhere) as registry:
        (done,) = registry.repair_files("digits", 1)
        assert not done.is_repaired
        assert "exist nowhere else here" in done.how
        assert "noa models import" in done.how
        with pytest.raises(GateRefusedError, match="MLmodel"):
            registry.promote("digits", 1, reason="r", actor="ada")


def test_a_format_that_is_gone_is_put_back_from_an_equal_version(registry: Registry, formats: Any, stored: Any) -> None:
    first, _ = (registry.register(formats.draft(), actor="ada") for _ in range(2))
    for path in stored.paths("digits", first.uid):
        if path.startswith("formats/torch/"):
            stored.remove("digits", first.uid, path)
    done = registry.repair_files("digits", 1)
    assert len(done) == 2
    assert all(one.is_repaired for one in done)
    registry.verify("digits", 1)


def test_repaired_files_are_told_as_events(
    registry: Registry, formats: Any, stored: Any, execute: Callable[..., list[Any]]
) -> None:
    first, _ = (registry.register(formats.draft(), actor="ada") for _ in range(2))
    damage(stored, first, WEIGHTS)
    registry.repair_files("digits", 1)
    ((payload,),) = execute("SELECT payload FROM noa_outbox WHERE kind = 'files.repaired'")
    assert json.loads(payload)["files"][0]["path"] == WEIGHTS


@pytest.mark.filterwarnings("ignore:.*transition_model_version_stage.*:FutureWarning")
def test_a_stage_that_was_set_in_mlflow_is_reported_and_repaired(registry: Registry, client: Any, formats: Any) -> None:
    registry.register(formats.draft(), actor="ada")
    client.transition_model_version_stage("digits", "1", "Production")

    (found,) = registry.mirror_discrepancies()

    assert str(found) == "digits version 1, stage: expected None; received Production"
    assert_repaired(registry)
    assert client.get_model_version("digits", "1").current_stage == "None"
