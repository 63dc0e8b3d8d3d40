"""Whose store it is: no registry removes what is another one's, nor what a database that was lost would know."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from noa.errors import ConflictError, IntegrityError, StorageError
from noa.settings import RegistrySettings
from noa_registry import ModelVersion, Registry
from noa_registry.artifacts import open_artifacts
from noa_registry.artifacts.marks import FolderMarks
from noa_registry.artifacts.s3_client import S3Client
from noa_registry.seals import DatabaseSeals
from noa_registry.store_head import LEDGER_MARK
from s3_server import StoredFiles

NOW = timedelta(0)


@pytest.fixture
def other_settings(settings: RegistrySettings, empty_sqlite_file: Path, tmp_path: Path) -> RegistrySettings:
    """Settings of another registry, still empty, which names the same place for its files."""
    file = tmp_path / "other.db"
    shutil.copyfile(empty_sqlite_file, file)
    return settings.model_copy(update={"database_url": f"sqlite:///{file}", "cache_dir": tmp_path / "other-cache"})


@pytest.fixture
def other(other_settings: RegistrySettings, version: ModelVersion) -> Iterator[Registry]:
    """That registry, opened after the first one has sealed a version."""
    with Registry.open(other_settings) as opened:
        yield opened


def make_old(folder: Path) -> None:
    old = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (old, old))


def whats(registry: Registry) -> list[str]:
    return [problem.what for problem in registry.find_store_problems()]


def test_a_second_registry_in_one_place_is_told_so_and_removes_nothing(
    registry: Registry, version: ModelVersion, other: Registry, formats: Any, stored: StoredFiles
) -> None:
    before = stored.all()
    with pytest.raises(ConflictError, match="belong to another registry") as caught:
        other.register(formats.draft(), actor="bob")
    owner = json.loads(stored.mark() or b"")["registry"]
    assert owner in str(caught.value.expected)
    assert "it is new" in str(caught.value.received)
    assert "artifact_dir" in str(caught.value.remedy) and "--adopt-store" in str(caught.value.remedy)
    with pytest.raises(ConflictError, match="belong to another registry"):
        other.retention.plan_gc(orphan_age=NOW, unknown=True)
    with pytest.raises(ConflictError, match="belong to another registry"):
        other._artifacts.remove_unit(next(iter(other._artifacts.units())))
    with pytest.raises(ConflictError, match="belong to another registry"):
        other._artifacts.remove_leftover("0" * 32)
    first, second = whats(other)
    assert "belong to another registry" in first
    assert "holds versions of `digits` that the database does not know" in second
    assert stored.all() == before
    registry.verify("digits", 1)
    assert registry.find_store_problems() == []


def test_a_plan_that_was_made_before_the_store_changed_hands_is_not_applied(
    registry: Registry, version: ModelVersion, other: Registry, stored: StoredFiles
) -> None:
    registry.retention.delete("digits", 1, reason="r", actor="ada", grace=NOW)
    plan = registry.retention.plan_gc()
    assert [item.kind for item in plan.items] == ["version"]
    before = stored.all()
    with pytest.raises(ConflictError, match="belong to another registry"):
        other.retention.apply(plan, actor="bob")
    assert stored.all() == before


def test_a_registry_that_has_an_id_is_named_with_it(
    other: Registry, other_settings: RegistrySettings, formats: Any
) -> None:
    mine = DatabaseSeals(other._database).make_registry_id()
    with pytest.raises(ConflictError) as caught:
        other.register(formats.draft(), actor="bob")
    assert mine in str(caught.value.received)


def test_a_store_of_another_registry_can_be_read(
    registry: Registry, settings: RegistrySettings, version: ModelVersion, stored: StoredFiles, formats: Any
) -> None:
    stored.set_mark(json.dumps({"registry": "a" * 32}).encode())
    with Registry.open(settings) as reader:
        assert reader.load("digits/1")
        reader.verify("digits", 1)
        with pytest.raises(ConflictError):
            reader.register(formats.draft(), actor="ada")


def test_who_only_reads_leaves_no_mark_and_looks_for_none(
    settings: RegistrySettings, version: ModelVersion, stored: StoredFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored.set_mark(None)
    with Registry.open(settings) as reader:
        with monkeypatch.context() as patch:
            for marks in (FolderMarks, type(reader._artifacts.ownership.marks)):
                patch.setattr(marks, "read", lambda *_: pytest.fail("a reader looked whose store it is"))
            reader.resolve("digits/1")
            assert reader.load("digits")
        reader.verify("digits", 1)
        reader.retention.plan_gc()
        assert reader.find_store_problems() == []
    assert stored.mark() is None


def test_a_move_of_an_alias_reads_the_mark_once_as_long_as_it_stays_the_same(
    registry: Registry, version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote("digits", 1, reason="good", actor="ada")
    marks, read = type(registry._artifacts.ownership.marks), list[str]()
    original = marks.read
    monkeypatch.setattr(marks, "read", lambda self, name: (read.append(name), original(self, name))[1])
    registry.promote("digits", 1, alias="shadow", reason="good", actor="ada")
    assert "_registry.json" not in read


def test_an_open_registry_looks_again_before_it_writes_into_the_store(
    registry: Registry, version: ModelVersion, other: Registry, formats: Any, stored: StoredFiles
) -> None:
    registry.promote("digits", 1, reason="good", actor="ada")
    other.adopt_store(actor="bob")
    before = stored.all()
    for write in (
        lambda: registry.register(formats.draft(), actor="ada"),
        lambda: registry.add_format("digits", 1, "other", formats.onnx, evidence=(), actor="ada"),
        lambda: registry._artifacts.remove_unit(next(iter(registry._artifacts.units()))),
    ):
        with pytest.raises(ConflictError, match="belong to another registry"):
            write()
    if isinstance(registry._artifacts.ownership.marks, FolderMarks):  # in S3 the mark has no stamp without a request
        with pytest.raises(ConflictError, match="belong to another registry"):
            registry.promote("digits", 1, alias="shadow", reason="good", actor="ada")
    assert stored.all() == before
    registry.adopt_store(actor="ada")
    assert registry.register(formats.draft(), actor="ada").number == 2


def test_a_store_from_before_there_were_marks_is_marked_by_the_first_writer_who_knows_its_units(
    settings: RegistrySettings, version: ModelVersion, other: Registry, stored: StoredFiles, formats: Any
) -> None:
    mark = stored.mark()
    stored.set_mark(None)
    with pytest.raises(ConflictError, match="seem to belong to another registry") as caught:
        other.register(formats.draft(), actor="bob")
    assert caught.value.received == "1 of 1 units that it does not name"
    assert stored.mark() is None
    with Registry.open(settings) as registry:
        registry.register(formats.draft(), actor="ada")
        assert stored.mark() == mark


def test_a_store_from_before_there_were_marks_loses_nothing_to_an_empty_database(
    version: ModelVersion, other: Registry, stored: StoredFiles
) -> None:
    stored.set_mark(None)
    before = stored.all()
    (what,) = whats(other)
    assert "holds versions of `digits` that the database does not know: was it emptied, replaced" in what
    plan = other.retention.plan_gc(orphan_age=NOW)
    assert (plan.items, [item.key for item in plan.unknown]) == ((), [f"digits/{version.uid}"])
    other.retention.apply(plan, actor="bob")
    with pytest.raises(ConflictError):
        other.retention.apply(other.retention.plan_gc(orphan_age=NOW, unknown=True), actor="bob")
    assert stored.all() == before


def test_a_store_changes_hands_when_somebody_says_so_and_keeps_what_is_in_it(
    settings: RegistrySettings, version: ModelVersion, other: Registry, stored: StoredFiles, formats: Any
) -> None:
    before = stored.all()
    lost = registry_of(stored)
    seen = other.adopt_store(actor="bob")
    assert (seen.owner, seen.is_ours, seen.head, len(seen.unknown)) == (lost, False, None, 1)
    other.register(formats.draft(), actor="bob")
    assert before <= stored.all()
    assert [problem.what[:10] for problem in other.find_store_problems()] == ["the store "]
    other.retention.apply(other.retention.plan_gc(orphan_age=NOW), actor="bob")
    assert before <= stored.all()
    with Registry.open(settings) as loser, pytest.raises(ConflictError):
        loser.register(formats.draft(), actor="ada")
    plan = other.retention.plan_gc(orphan_age=NOW, unknown=True, grace=NOW)
    other.retention.apply(plan, actor="bob")
    assert not before & stored.all()
    assert other.find_store_problems() == []
    other.verify("digits", 1)
    event = next(iter(other.events.read("test")))
    assert (event.kind, event.payload["before"], event.payload["unknown"]) == ("store.adopted", lost, 1)


def registry_of(stored: StoredFiles) -> str:
    return json.loads(stored.mark() or b"")["registry"]


def test_who_took_the_wrong_store_removes_nothing_of_it_before_the_grace_period_is_over_and_can_give_it_back(
    registry: Registry, settings: RegistrySettings, promoted: list[ModelVersion], other: Registry, stored: StoredFiles
) -> None:
    before, right = stored.all(), registry_of(stored)
    units = len(list(other._artifacts.units()))
    head = registry.ledger.entries(limit=1)[0]
    seen = other.look_at_store()
    assert seen.head is not None
    assert (seen.owner, seen.head.hash, len(seen.unknown)) == (right, head.hash, units)
    assert registry_of(stored) == right
    other.adopt_store(actor="bob")
    wrong = registry_of(stored)
    assert json.loads(stored.mark() or b"")["before"] == [right]
    with pytest.raises(ConflictError, match="took the store over lately") as caught:
        other.retention.plan_gc(orphan_age=NOW, unknown=True)
    assert right in str(caught.value.received)
    hasty = other.retention.plan_gc(orphan_age=NOW, unknown=True, grace=NOW)
    assert len(hasty.items) == units
    with pytest.raises(ConflictError, match="took the store over lately"):
        other.retention.apply(replace(hasty, grace=timedelta(days=7)), actor="bob")
    later = replace(other.retention, clock=lambda: datetime.now(UTC) + timedelta(days=8))
    assert len(later.plan_gc(unknown=True).items) == units
    assert stored.all() == before
    (event,) = [event for event in other.events.read("test") if event.kind == "store.adopted"]
    assert event.payload["ledger"]["hash"] == head.hash
    with Registry.open(settings) as owner:
        assert owner.adopt_store(actor="ada").owner == wrong
        assert owner.find_store_problems() == []
        assert owner.promote("digits", 1, reason="r", actor="ada")
    mark = json.loads(stored.mark() or b"")
    assert (mark["registry"], mark["before"]) == (right, [right, wrong])
    with pytest.raises(ConflictError, match="belong to another"):
        other.retention.apply(hasty, actor="bob")


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_models_that_are_newer_than_a_restored_backup_are_reported_and_kept(
    settings: RegistrySettings, formats: Any, artifact_dir: Path, tmp_path: Path
) -> None:
    file = Path(settings.database_url.removeprefix("sqlite:///"))
    with Registry.open(settings) as registry:
        registry.register(formats.draft(), actor="ada")
    shutil.copyfile(file, tmp_path / "backup.db")
    with Registry.open(settings) as registry:
        newer = registry.register(formats.draft(), actor="ada")
    shutil.copyfile(tmp_path / "backup.db", file)
    make_old(artifact_dir)
    with Registry.open(settings) as registry:
        (problem,) = registry.find_store_problems()
        assert problem.facts["units"] == (f"digits/{newer.uid}",)
        assert "Restore the newest backup" in str(problem.remedy)
        assert registry.retention.apply(registry.retention.plan_gc(), actor="ada").removed == ()
        assert newer.folder.is_dir()
        removed = registry.retention.apply(registry.retention.plan_gc(unknown=True), actor="ada").removed
        assert [item.key for item in removed] == [f"digits/{newer.uid}"]
        assert not newer.folder.exists()
        assert registry.find_store_problems() == []


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_moves_that_are_newer_than_a_restored_backup_are_reported_until_somebody_takes_it_as_it_is(
    settings: RegistrySettings, formats: Any, tmp_path: Path, stored: StoredFiles
) -> None:
    file = Path(settings.database_url.removeprefix("sqlite:///"))
    with Registry.open(settings) as registry:
        for number in (1, 2):
            registry.register(formats.draft(), actor="ada")
            registry.promote("digits", number, reason="r", actor="ada")
    shutil.copyfile(file, tmp_path / "backup.db")
    with Registry.open(settings) as registry:
        lost = registry.rollback("digits", reason="worse", actor="ada")
        assert registry.find_store_problems() == []
    shutil.copyfile(tmp_path / "backup.db", file)
    with Registry.open(settings) as registry:
        (problem,) = registry.find_store_problems()
        assert "was an older backup restored" in problem.what
        assert lost.hash in str(problem.expected)
        assert problem.received == "a ledger of 2 rows without it"
        with pytest.raises(ConflictError, match="older than the store") as refused:
            registry.promote("digits", 1, reason="r", actor="ada")
        assert "--adopt-store" in (refused.value.remedy or "")
        with pytest.raises(ConflictError, match="older than the store"):
            registry.rollback("digits", reason="r", actor="ada")
        assert len(registry.history("digits")) == 2
        registry.adopt_store(actor="ada")
        assert registry.find_store_problems() == []
        for number in (1, 2, 1):
            registry.promote("digits", number, reason="r", actor="ada")
        kept = json.loads(stored.mark(LEDGER_MARK) or b"")
        assert kept["sequence"] == 5


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_models_of_a_newer_database_are_not_removed_as_unknown_until_somebody_takes_the_older_one_as_it_is(
    settings: RegistrySettings, formats: Any, tmp_path: Path, stored: StoredFiles
) -> None:
    file = Path(settings.database_url.removeprefix("sqlite:///"))
    with Registry.open(settings) as registry:
        registry.register(formats.draft(), actor="ada")
        registry.promote("digits", 1, reason="r", actor="ada")
    shutil.copyfile(file, tmp_path / "backup.db")
    with Registry.open(settings) as registry:
        live = registry.register(formats.draft(), actor="ada")
    with Registry.open(settings) as registry:
        registry.promote("digits", 2, reason="r", actor="ada")
    shutil.copyfile(file, tmp_path / "newest.db")
    newest = stored.mark(LEDGER_MARK)
    shutil.copyfile(tmp_path / "backup.db", file)
    before = stored.all()
    with Registry.open(settings) as registry:
        with pytest.raises(ConflictError, match="the database is older than the store") as caught:
            registry.retention.plan_gc(orphan_age=NOW, unknown=True)
        assert "Restore the newest backup" in str(caught.value.remedy)
        assert [item.kind for item in registry.retention.plan_gc(orphan_age=NOW).unknown] == ["orphan"]
        stored.set_mark(None, LEDGER_MARK)
        plan = registry.retention.plan_gc(orphan_age=NOW, unknown=True)
        assert [item.key for item in plan.items] == [f"digits/{live.uid}"]
        stored.set_mark(b"nonsense", LEDGER_MARK)
        with pytest.raises(ConflictError, match="nobody can tell"):
            registry.retention.apply(plan, actor="ada")
        stored.set_mark(newest, LEDGER_MARK)
        with pytest.raises(ConflictError, match="the database is older than the store"):
            registry.retention.apply(plan, actor="ada")
    assert before == stored.all()
    shutil.copyfile(tmp_path / "newest.db", file)
    with Registry.open(settings) as registry:
        registry.verify("digits", 2)
        assert registry.find_store_problems() == []


def test_the_store_remembers_the_newest_move_and_hinders_none(
    registry: Registry, promoted: list[ModelVersion], stored: StoredFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def newest() -> tuple[int, str]:
        kept = json.loads(stored.mark(LEDGER_MARK) or b"")
        return kept["sequence"], kept["hash"]

    before = registry.ledger.entries(limit=1)[0]
    assert newest() == (before.sequence, before.hash)
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> None:
            raise StorageError("the store refused")

        patch.setattr(type(registry._artifacts.ownership.marks), "replace", refuse)
        registry.rollback("digits", reason="r", actor="ada")
    assert newest() == (before.sequence, before.hash)
    assert registry.find_store_problems() == []
    moved = registry.promote("digits", 1, alias="staging", reason="r", actor="ada")
    assert newest() == (moved.sequence, moved.hash)
    stored.set_mark(b"nonsense", LEDGER_MARK)
    assert registry.find_store_problems() == []
    moved = registry.promote("digits", 2, alias="staging", reason="r", actor="ada")
    assert newest() == (moved.sequence, moved.hash)


@pytest.mark.local_files
def test_what_a_dead_writer_of_another_registry_left_is_not_removed(
    version: ModelVersion, other_settings: RegistrySettings, artifact_dir: Path
) -> None:
    """It may have been killed between its commit and the end of its claim: then it is a version."""
    lock = artifact_dir / "_staging" / f"{version.uid}.lock"
    lock.write_text(json.dumps({"name": "digits"}))
    with Registry.open(other_settings):
        assert version.folder.is_dir()
        assert lock.exists()


def test_a_unit_that_is_being_sealed_is_no_problem(settings: RegistrySettings, formats: Any) -> None:
    seen: list[tuple[str, int]] = []

    def meanwhile(step: str) -> None:
        if step != "transaction begun" and step != "rows written":
            with Registry.open(settings) as beside:
                seen.append((step, len(beside.find_store_problems())))

    with Registry.open(settings, checkpoint=meanwhile) as registry:
        registry.register(formats.draft(), actor="ada")
    assert {count for _, count in seen} == {0}
    assert {"published", "committed"} <= {step for step, _ in seen}


def test_of_many_registries_that_start_in_one_place_at_once_exactly_one_has_it(
    settings: RegistrySettings, empty_sqlite_file: Path, tmp_path: Path, stored: StoredFiles
) -> None:
    gun = threading.Barrier(6)
    won: list[str] = []
    lost: list[ConflictError] = []

    def start(index: int) -> None:
        file = tmp_path / f"{index // 2}.db"  # two processes of each registry
        with Registry.open(settings.model_copy(update={"database_url": f"sqlite:///{file}"})) as opened:
            seals = DatabaseSeals(opened._database)
            store = open_artifacts(settings, seals=seals)
            gun.wait(60)
            try:
                store.ownership.claim()
                won.append(seals.make_registry_id())
            except ConflictError as exc:
                lost.append(exc)
            store.close()

    for index in range(3):
        shutil.copyfile(empty_sqlite_file, tmp_path / f"{index}.db")
    threads = [threading.Thread(target=start, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert (len(won), len(set(won)), len(lost)) == (2, 1, 4)
    assert json.loads(stored.mark() or b"") == {"registry": won[0]}


@pytest.mark.local_files
def test_a_mark_that_a_killed_process_left_empty_is_none(
    registry: Registry, formats: Any, stored: StoredFiles, artifact_dir: Path
) -> None:
    artifact_dir.mkdir(exist_ok=True)
    stored.set_mark(b"")
    assert registry.register(formats.draft(), actor="ada").number == 1
    assert stored.mark() not in (None, b"")


def test_a_mark_that_was_changed_is_reported_and_written_anew_on_demand(
    settings: RegistrySettings, version: ModelVersion, stored: StoredFiles, formats: Any
) -> None:
    owner = registry_of(stored)
    stored.set_mark(b"[1]\n")
    with Registry.open(settings) as registry:
        with pytest.raises(IntegrityError, match="whose store this is was changed"):
            registry.register(formats.draft(), actor="ada")
        assert len(registry.find_store_problems()) == 1
        registry.adopt_store(actor="ada")
        assert registry.find_store_problems() == []
        assert registry_of(stored) == owner
        assert registry.register(formats.draft(), actor="ada").number == 2


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("code", "expected"),
    [("NotImplemented", b"mine"), ("PreconditionFailed", None), ("ConditionalRequestConflict", None)],
)
def test_an_s3_without_conditional_writes_is_written_all_the_same(
    settings: RegistrySettings, monkeypatch: pytest.MonkeyPatch, code: str, expected: bytes | None
) -> None:
    from botocore.exceptions import ClientError

    bucket = settings.artifact_url.removeprefix("s3://").split("/")[0]
    client = S3Client(bucket, settings.s3)
    put: Callable[..., object] = client._client.put_object

    def refuse(**request: object) -> object:
        if "IfNoneMatch" in request:
            raise ClientError({"Error": {"Code": code}}, "PutObject")
        return put(**request)

    monkeypatch.setattr(client._client, "put_object", refuse)
    client.put_bytes_if_absent("mark", b"mine")
    if expected is None:
        with pytest.raises(StorageError, match="NoSuchKey"):
            client.read_bytes("mark")
    else:
        assert client.read_bytes("mark") == expected
    client.close()


def test_where_the_store_is_anothers_no_alias_moves_and_mlflows_rows_are_left_alone(
    registry: Registry, settings: RegistrySettings, version: ModelVersion, other: Registry
) -> None:
    registry.promote("digits", 1, reason="good", actor="ada")
    other.adopt_store(actor="bob")
    with Registry.open(settings) as again:
        for act in (
            lambda: again.promote("digits", 1, alias="shadow", reason="good", actor="ada"),
            lambda: again.rollback("digits", reason="bad", actor="ada"),
            again.repair_mirror,
        ):
            with pytest.raises(ConflictError, match="belong to another registry"):
                act()
        assert again.resolve("digits@champion").number == 1
        assert [entry.action for entry in again.history("digits")] == ["promote"]
