"""Deleting, restoring and collecting: what is live cannot go, what is gone is said so, nothing is removed by half."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noa.errors import ConflictError, InvalidInputError, NotFoundError
from noa.settings import RegistrySettings
from noa_registry import GcPlan, ModelVersion, Registry, RetentionPolicy
from noa_registry.faults import GC_STEPS
from noa_registry.mlflow_schema import import_mlflow
from samples import on_one_dialect

CHILD = Path(__file__).with_name("retention_child.py")
NOW = timedelta(0)


@pytest.fixture
def retention(registry: Registry) -> Any:
    return registry.retention


def command(name: str, settings: RegistrySettings, **request: object) -> list[str]:
    full = {"settings": settings.model_dump(mode="json"), **request}
    return [sys.executable, str(CHILD), name, json.dumps(full)]


def run_child(name: str, settings: RegistrySettings, **request: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(name, settings, **request), capture_output=True, text=True, timeout=120, check=False)


def kinds(plan: GcPlan) -> list[str]:
    return [item.kind for item in plan.items]


def make_old(folder: Path) -> None:
    old = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
    os.utime(folder, (old, old))


# Deleting and restoring.


def test_a_deleted_version_is_found_by_nobody_and_the_error_says_how_it_comes_back(
    registry: Registry, retention: Any, version: ModelVersion, formats: Any
) -> None:
    registry.register(formats.draft(), actor="ada")
    trashed = retention.delete("digits", 2, reason="wrong labels", actor="bob")
    assert (trashed.reference, trashed.state, trashed.reason, trashed.deleted_by) == (
        "digits/2",
        "trashed",
        "wrong labels",
        "bob",
    )
    assert trashed.purge_after - trashed.deleted_at == timedelta(days=7)
    with pytest.raises(NotFoundError, match=r"in the trash: deleted by bob at .*wrong labels.*noa models restore dig"):
        registry.resolve("digits/2")
    assert registry.resolve("digits").number == 1
    assert [v.number for v in registry.versions("digits")] == [1]
    assert registry.numbers("digits") == [1]
    assert (registry.models()[0].versions, registry.models()[0].newest) == (1, 1)
    assert [one.reference for one in retention.trashed("digits")] == ["digits/2"]
    retention.restore("digits", 2, actor="ada")
    assert registry.resolve("digits").number == 2
    assert retention.trashed() == []
    registry.verify("digits", 2)
    assert registry.mirror_discrepancies() == []


def test_a_model_whose_versions_are_all_deleted_says_so(registry: Registry, retention: Any, version: object) -> None:
    retention.delete("digits", 1, reason="r", actor="ada")
    assert registry.models() == []
    for attempt in (lambda: registry.resolve("digits"), lambda: registry.versions("digits")):
        with pytest.raises(NotFoundError, match=r"every version of model `digits` is in the trash.*--trash"):
            attempt()
    assert retention.trashed("digits")[0].number == 1


def test_a_deleted_version_takes_no_promotion_format_or_evidence(
    registry: Registry, retention: Any, version: ModelVersion, formats: Any, tmp_path: Path
) -> None:
    plain = registry.register(formats.draft(formats={"torch": formats.torch}, evidence=()), actor="ada")
    for number in (1, 2):
        retention.delete("digits", number, reason="r", actor="ada")
    for attempt in (
        lambda: registry.promote("digits", 1, reason="r", actor="a"),
        lambda: registry.check("digits", 1),
        lambda: registry.attach("digits", 1, formats.metrics(accuracy=0.9)),
        lambda: registry.add_format("digits", 2, "onnx", formats.onnx, evidence=[formats.equivalence()], actor="a"),
        lambda: registry.evidence("digits", 1),
        lambda: registry.load("digits/1"),
        lambda: retention.delete("digits", 1, reason="again", actor="a"),
        lambda: registry.endpoints.announce("digits", "digits", 1, alias=None, format="onnx"),
        lambda: registry.approvals.grant("digits", 1, alias="champion", principal="p", reason="r"),
    ):
        with pytest.raises(NotFoundError, match="in the trash"):
            attempt()
    assert plain.number == 2


def test_the_number_of_a_deleted_version_is_never_used_again(
    registry: Registry, retention: Any, version: object, formats: Any
) -> None:
    retention.delete("digits", 1, reason="r", actor="ada", grace=NOW)
    retention.apply(retention.plan_gc(), actor="ada")
    assert registry.register(formats.draft(), actor="ada").number == 2


def test_stock_mlflow_sees_a_deleted_version_go_and_a_restored_one_come_back(
    registry: Registry, retention: Any, promoted: list[ModelVersion], settings: RegistrySettings
) -> None:
    import_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(settings.database_url, settings.database_url)
    source = client.get_model_version("digits", "1").source
    retention.delete("digits", 1, reason="r", actor="ada")
    assert registry.mirror_discrepancies() == []
    assert sorted(int(v.version) for v in client.search_model_versions("name='digits'")) == [2, 3]
    with pytest.raises(MlflowException, match="not found"):
        client.get_model_version("digits", "1")
    retention.restore("digits", 1, actor="ada")
    back = client.get_model_version("digits", "1")
    assert (back.source, back.tags["noa.digest"]) == (source, promoted[0].digest)
    # Deleted in MLflow as well, which wipes its row: restoring writes it anew.
    retention.delete("digits", 1, reason="r", actor="ada")
    registry.mirror_discrepancies()
    retention.restore("digits", 1, actor="ada")
    client.delete_model_version("digits", "1")
    retention.delete("digits", 1, reason="r", actor="ada")
    retention.restore("digits", 1, actor="ada")
    assert client.get_model_version("digits", "1").source == source
    assert registry.mirror_discrepancies() == []


def test_restore_says_what_can_be_restored_and_others_what_is_in_the_trash(
    registry: Registry, retention: Any, formats: Any
) -> None:
    for _ in range(3):
        registry.register(formats.draft(), actor="ada")
    for number in (2, 3):
        retention.delete("digits", number, reason="r", actor="ada")
    for impossible in (9, 0, 1 << 70):
        with pytest.raises(
            NotFoundError, match=r"is in the trash; expected `digits/3`, `digits/2`;.*list digits --trash"
        ):
            retention.restore("digits", impossible, actor="ada")
    with pytest.raises(
        NotFoundError, match=r"a version up to 1; .*in the trash \(2 more\): noa models list digits --trash"
    ):
        registry.resolve("digits/9")
    assert registry.search("number:3").hint == "In the trash `digits/3` does: add `is:trashed` to see what is there"
    assert registry.search("number:4").hint is None
    retention.delete("digits", 1, reason="r", actor="ada")
    with pytest.raises(NotFoundError, match=r"expected `digits/3`, `digits/2`, `digits/1`;"):
        retention.restore("digits", 9, actor="ada")
    retention.restore("digits", 2, actor="ada")
    retention.restore("digits", 1, actor="ada")
    with pytest.raises(NotFoundError, match=r"up to 2; .*in the trash \(3\)"):
        registry.resolve("digits/9")


def test_what_cannot_be_restored_is_refused(registry: Registry, retention: Any, version: ModelVersion) -> None:
    with pytest.raises(ConflictError, match="not in the trash"):
        retention.restore("digits", 1, actor="ada")
    with pytest.raises(
        NotFoundError, match=r"no version 9 .*is in the trash; .*none of this model .*noa models list digits"
    ):
        retention.restore("digits", 9, actor="ada")
    with pytest.raises(NotFoundError, match="no model"):
        retention.restore("nobody", 1, actor="ada")
    retention.delete("digits", 1, reason="r", actor="ada", grace=NOW)
    retention.apply(retention.plan_gc(), actor="ada")
    with pytest.raises(NotFoundError, match=r"gone for good.*files were removed"):
        retention.restore("digits", 1, actor="ada")
    with pytest.raises(NotFoundError, match=r"gone for good.*noa models import"):
        registry.resolve("digits/1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reason": " "}, "no reason"),
        ({"actor": ""}, "nobody is named"),
        ({"grace": timedelta(days=-1)}, "grace period is negative"),
    ],
)
def test_a_deletion_names_who_and_why(retention: Any, version: object, change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        retention.delete("digits", 1, **{"reason": "r", "actor": "a", **change})


# What is live cannot be deleted.


def test_what_an_alias_or_a_rollback_needs_cannot_be_deleted(
    registry: Registry, retention: Any, promoted: list[ModelVersion]
) -> None:
    for number, message in ((3, "alias `digits@champion`"), (2, "rollback target of `digits@champion`")):
        with pytest.raises(ConflictError, match=message) as refused:
            retention.delete("digits", number, reason="r", actor="ada")
        assert [hold.kind for hold in refused.value.facts["holds"]]  # type: ignore[attr-defined]
    registry.rollback("digits", reason="r", actor="ada")
    assert [hold.kind for hold in retention.holds("digits", 1)] == ["rollback target"]
    assert retention.holds("digits", 3) == []
    retention.delete("digits", 3, reason="r", actor="ada")


def test_a_version_with_an_open_approval_cannot_be_deleted(
    registry: Registry, retention: Any, version: ModelVersion, tamper: Callable[..., Any]
) -> None:
    tamper(
        "INSERT INTO noa_approvals (name, number, alias, digest, principal, reason, created_at, expires_at) VALUES "
        f"('digits', 1, 'champion', '{version.digest}', 'eve', 'r', '2020-01-01T00:00:00+00:00', "
        "'2999-01-01T00:00:00+00:00')"
    )
    with pytest.raises(ConflictError, match="approval of `eve` for `digits@champion`"):
        retention.delete("digits", 1, reason="r", actor="ada")
    tamper("UPDATE noa_approvals SET expires_at = '2021-01-01T00:00:00'")
    retention.delete("digits", 1, reason="r", actor="ada")


def test_a_version_that_a_replica_serves_cannot_be_deleted_until_its_lease_ends(
    registry: Registry, retention: Any, version: object
) -> None:
    endpoints = registry.endpoints
    generation = endpoints.announce("first", "digits", 1, alias=None, format="onnx")
    endpoints.acknowledge("first", "host:1", generation, lease_s=60)
    with pytest.raises(ConflictError, match="replica `host:1` of endpoint `first`"):
        retention.delete("digits", 1, reason="r", actor="ada")
    endpoints.release("first", "host:1")
    retention.delete("digits", 1, reason="r", actor="ada")


def test_a_version_that_an_endpoint_of_the_settings_names_cannot_be_deleted(retention: Any, version: object) -> None:
    pinned = {"first": "digits/1", "other": "digits@champion", "third": "digits/2"}
    with pytest.raises(ConflictError, match=r"endpoint `first` of the settings.*\[endpoints\.first\]"):
        retention.delete("digits", 1, reason="r", actor="ada", endpoints=pinned)
    retention.delete("digits", 1, reason="r", actor="ada", endpoints={"other": "digits@champion"})


def test_of_a_deletion_and_a_promotion_at_once_exactly_one_wins(
    registry: Registry, settings: RegistrySettings, formats: Any
) -> None:
    for number in (1, 2, 3):
        registry.register(formats.draft(), actor="ada")
        children = [
            subprocess.Popen(
                command(name, settings, number=number, race=True),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in ("delete", "promote")
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        codes = [child.wait(60) for child in children]
        for child in children:
            child.communicate()
        assert sorted(codes) == [0, 3]
        holder = registry.resolve_digest("digits", "champion")
        is_trashed = number in [one.number for one in registry.retention.trashed("digits")]
        assert is_trashed is (codes[0] == 0)
        assert (holder is not None and holder[0] == number) is (codes[1] == 0)


def test_deleting_restoring_and_purging_are_told_as_events(
    registry: Registry, retention: Any, version: object, execute: Callable[..., list[Any]]
) -> None:
    retention.delete("digits", 1, reason="why", actor="bob")
    retention.restore("digits", 1, actor="ada")
    retention.delete("digits", 1, reason="again", actor="bob", grace=NOW)
    retention.apply(retention.plan_gc(), actor="carl")
    rows = execute("SELECT kind, payload FROM noa_outbox WHERE name = 'digits' ORDER BY id")
    told = [(kind, json.loads(payload)) for kind, payload in rows if kind in TOLD]
    assert [kind for kind, _ in told] == [
        "version.trashed",
        "version.restored",
        "version.trashed",
        "version.purged",
    ]
    assert (told[0][1]["reason"], told[3][1]["number"]) == ("why", 1)
    assert [payload["actor"] for _, payload in told] == ["bob", "ada", "bob", "carl"]


TOLD = ("version.trashed", "version.restored", "version.purged")

# Collecting.


def test_a_plan_changes_nothing_and_says_what_why_and_how_much(
    registry: Registry, retention: Any, version: ModelVersion, formats: Any, stored: Any
) -> None:
    registry.register(formats.draft(), actor="ada")
    retention.delete("digits", 1, reason="too old", actor="bob", grace=NOW)
    retention.delete("digits", 2, reason="still in grace", actor="bob")
    plan = retention.plan_gc()
    (item,) = plan.items
    assert (item.kind, item.key) == ("version", "digits/1")
    assert "deleted by bob (too old)" in item.reason
    assert 0 < item.size_bytes == plan.size_bytes
    assert stored.paths("digits", version.uid)
    assert [one.state for one in retention.trashed()] == ["trashed", "trashed"]


def test_a_purge_removes_files_and_keeps_the_record(
    registry: Registry,
    retention: Any,
    version: ModelVersion,
    formats: Any,
    stored: Any,
    execute: Callable[..., list[Any]],
) -> None:
    kept = registry.register(formats.draft(), actor="ada")
    retention.delete("digits", 1, reason="r", actor="bob", grace=NOW)
    report = retention.apply(retention.plan_gc(), actor="ada")
    assert [item.key for item in report.removed] == ["digits/1"]
    assert stored.paths("digits", version.uid) == set()
    assert retention.trashed() == []
    (gone,) = retention.trashed(with_purged=True)
    assert (gone.state, gone.purged_at is not None, gone.digest) == ("purged", True, version.digest)
    assert execute("SELECT digest FROM noa_versions WHERE number = 1") == [(version.digest,)]
    assert retention.plan_gc().items == ()
    registry.verify("digits", kept.number)
    registry.verify_ledger()
    assert registry.mirror_discrepancies() == []


@pytest.mark.local_files
def test_a_file_that_a_live_version_shares_stays_readable(
    registry: Registry, retention: Any, make_formats: Callable[[int], Any], tmp_path: Path
) -> None:
    formats = make_formats(5)
    big = np.random.default_rng(0).bytes(1 << 16)
    (formats.torch / "extra.bin").write_bytes(big)
    first = registry.register(formats.draft(evidence=[formats.equivalence()]), actor="ada")
    second = registry.register(formats.draft(evidence=[formats.equivalence()]), actor="ada")
    one, two = (registry.resolve(f"digits/{n}").formats["torch"].folder / "extra.bin" for n in (1, 2))
    shared = one.stat().st_ino == two.stat().st_ino
    retention.delete("digits", first.number, reason="r", actor="ada", grace=NOW)
    plan = retention.plan_gc()
    if shared:
        assert plan.size_bytes < 1 << 16, "bytes that stay are no bytes that are given back"
    retention.apply(plan, actor="ada")
    assert not one.exists()
    assert two.read_bytes() == big
    registry.verify("digits", second.number)
    registry.promote("digits", second.number, reason="whole", actor="ada")


def test_a_version_that_became_needed_in_the_trash_is_kept_and_said_so(
    registry: Registry, retention: Any, version: ModelVersion, stored: Any
) -> None:
    endpoints = registry.endpoints
    generation = endpoints.announce("first", "digits", 1, alias=None, format="onnx")
    retention.delete("digits", 1, reason="r", actor="ada", grace=NOW)
    stale = retention.plan_gc()
    endpoints.acknowledge("first", "host:1", generation, lease_s=60)  # a server that has had it in memory all along
    plan = retention.plan_gc()
    assert plan.items == ()
    assert [(kept.reference, kept.holds[0].kind) for kept in plan.kept] == [("digits/1", "replica")]
    report = retention.apply(stale, actor="ada")
    assert report.removed == ()
    assert "something needs it: replica `host:1`" in report.skipped[0].reason
    assert stored.paths("digits", version.uid)


def test_a_version_that_was_restored_after_the_plan_is_kept(
    registry: Registry, retention: Any, version: ModelVersion, stored: Any
) -> None:
    retention.delete("digits", 1, reason="r", actor="ada", grace=NOW)
    plan = retention.plan_gc()
    retention.restore("digits", 1, actor="ada")
    assert retention.apply(plan, actor="ada").skipped[0].reason == "it was restored meanwhile"
    retention.delete("digits", 1, reason="r", actor="ada")
    assert "grace period lasts until" in retention.apply(plan, actor="ada").skipped[0].reason
    assert stored.paths("digits", version.uid)


def test_orphans_and_leftovers_go_only_when_old_and_unclaimed(
    registry: Registry, retention: Any, version: ModelVersion, artifact_dir: Path
) -> None:
    orphan = artifact_dir / "digits" / ("0" * 32)
    claimed = artifact_dir / "digits" / ("1" * 32)
    for folder in (orphan, claimed, artifact_dir / "_staging" / "stray"):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x" * 100)
    (artifact_dir / "_staging" / f"{claimed.name}.lock").touch()
    assert kinds(retention.plan_gc()) == ["leftover", "leftover"], "an orphan must be a day old"
    for folder in (orphan, claimed):
        make_old(folder)
    plan = retention.plan_gc()
    assert kinds(plan) == ["leftover", "leftover"], "it may be of a newer database than this one"
    assert [(item.kind, item.key, item.size_bytes) for item in plan.unknown] == [
        ("orphan", f"digits/{orphan.name}", 100)
    ]
    plan = retention.plan_gc(unknown=True)
    assert kinds(plan) == ["leftover", "leftover", "orphan"]
    assert plan.unknown == ()
    report = retention.apply(plan, actor="ada")
    assert report.skipped == ()
    assert not orphan.exists()
    assert list((artifact_dir / "_staging").iterdir()) == []
    registry.verify("digits", 1)


@pytest.mark.local_files
@pytest.mark.parametrize("level", ["unit", "model"])
def test_a_collection_never_follows_a_link_and_goes_on_with_the_rest(
    registry: Registry, retention: Any, version: ModelVersion, formats: Any, tmp_path: Path, level: str
) -> None:
    other = registry.register(formats.draft(name="other"), actor="ada")
    for name in ("digits", "other"):
        retention.delete(name, 1, reason="r", actor="ada", grace=NOW)
    folder = version.folder if level == "unit" else version.folder.parent
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    kept = sorted((tmp_path / "moved").rglob("*"))
    report = retention.apply(retention.plan_gc(), actor="ada")
    assert sorted((tmp_path / "moved").rglob("*")) == kept
    assert not other.folder.exists()
    if level == "unit":
        assert not folder.is_symlink()
        assert report.skipped == ()
        assert kinds(retention.plan_gc()) == []
    else:
        assert "symbolic link" in report.skipped[0].reason
        folder.unlink()
        assert retention.apply(retention.plan_gc(), actor="ada").skipped == ()


def test_a_live_writers_files_are_never_touched(settings: RegistrySettings, formats: Any) -> None:
    """At every step of a registration another process collects with no safety age at all."""
    seen: list[str] = []

    def meanwhile(step: str) -> None:
        if step in ("claimed", "published"):  # nothing is there yet; everything is, and no row names it
            seen.append(step)
            done = run_child("gc", settings)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["removed"] == []

    with Registry.open(settings, checkpoint=meanwhile) as registry:
        registry.register(formats.draft(), actor="ada")
        registry.verify("digits", 1)
    assert seen == ["claimed", "published"]


def loose_attachment(settings: RegistrySettings, digest: str) -> str:
    """Return the SQL of an attachment of five bytes that no version refers to."""
    content = "x'3132333435'" if settings.database_url.startswith("sqlite") else "'12345'"
    return (
        "INSERT INTO noa_attachments (digest, media_type, content, created_at) "
        f"VALUES ('{digest}', 'text/plain', {content}, '2020-01-01T00:00:00.000000+00:00')"
    )


def test_attachments_go_with_the_last_version_that_refers_to_them(
    registry: Registry,
    settings: RegistrySettings,
    retention: Any,
    version: ModelVersion,
    formats: Any,
    tamper: Callable[..., Any],
) -> None:
    used, unused = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    for digest in (used, unused):
        tamper(loose_attachment(settings, digest))
    tamper(
        "INSERT INTO noa_evidence (name, number, kind, subject, digest, content, created_at) VALUES "
        f"('digits', 1, 'predictions', 'onnx', '{version.digest}', '{{\"attachment\":\"{used}\"}}', '2020-01-01')"
    )
    plan = retention.plan_gc()
    assert [(item.kind, item.key, item.size_bytes) for item in plan.items] == [("attachment", unused, 5)]
    assert [item.key for item in retention.apply(plan, actor="ada").removed] == [unused]
    retention.delete("digits", 1, reason="r", actor="ada", grace=NOW)
    retention.apply(retention.plan_gc(), actor="ada")
    assert [item.key for item in retention.apply(retention.plan_gc(), actor="ada").removed] == [used]


def test_attachments_can_still_not_be_deleted_by_others_after_a_collection(
    registry: Registry,
    settings: RegistrySettings,
    retention: Any,
    version: ModelVersion,
    execute: Callable[..., Any],
) -> None:
    from sqlalchemy.exc import IntegrityError

    execute(loose_attachment(settings, "sha256:" + "b" * 64))
    assert len(retention.apply(retention.plan_gc(), actor="ada").removed) == 1
    execute(loose_attachment(settings, "sha256:" + "c" * 64))
    with pytest.raises(IntegrityError, match="never changed or deleted"):
        execute("DELETE FROM noa_attachments")
    assert registry.mirror_discrepancies() == []


def test_leases_of_dead_servers_are_forgotten(registry: Registry, retention: Any, version: object) -> None:
    endpoints = registry.endpoints
    generation = endpoints.announce("first", "digits", 1, alias=None, format="onnx")
    endpoints.acknowledge("first", "alive", generation, lease_s=60)
    long_ago = type(endpoints)(database=endpoints.database, clock=lambda: datetime(2020, 1, 1, tzinfo=UTC))
    long_ago.acknowledge("first", "dead", generation, lease_s=60)
    report = retention.apply(retention.plan_gc(), actor="ada")
    assert [item.kind for item in report.removed] == ["lease"]
    assert [one.replica for one in endpoints.live_replicas()] == ["alive"]


@pytest.mark.parametrize(("dialect", "step"), on_one_dialect(GC_STEPS))
def test_a_collection_killed_at_any_step_is_continued_by_the_next(
    settings: RegistrySettings, formats: Any, artifact_dir: Path, execute: Callable[..., Any], step: str
) -> None:
    with Registry.open(settings) as registry:
        for _ in range(2):
            registry.register(formats.draft(), actor="ada")
        registry.retention.delete("digits", 1, reason="r", actor="ada", grace=NOW)
        orphan = artifact_dir / "digits" / ("0" * 32)
        orphan.mkdir()
        stray = artifact_dir / "_staging" / "stray"
        stray.mkdir(parents=True)
    execute(loose_attachment(settings, "sha256:" + "b" * 64))
    killed = run_child("gc", settings, kill_at=step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr + killed.stdout
    finish_and_check(settings, orphan, stray, execute)


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)  # beside which the files are in S3
@pytest.mark.parametrize("step", ["purge begun", "unit removed"])
def test_a_collection_killed_in_whatever_store_is_continued_by_the_next(
    settings: RegistrySettings, formats: Any, stored: Any, step: str
) -> None:
    with Registry.open(settings) as registry:
        first, second = (registry.register(formats.draft(), actor="ada") for _ in range(2))
        registry.retention.delete("digits", 1, reason="r", actor="ada", grace=NOW)
    assert run_child("gc", settings, kill_at=step).returncode == -signal.SIGKILL
    with Registry.open(settings) as registry:
        registry.retention.apply(registry.retention.plan_gc(), actor="ada")
        assert [one.state for one in registry.retention.trashed(with_purged=True)] == ["purged"]
        assert stored.paths("digits", first.uid) == set()
        registry.verify("digits", second.number)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)  # it is about files; the steps above are about rows
@pytest.mark.parametrize("removal", [1, 2, 7])
def test_a_collection_killed_among_its_removals_is_continued_by_the_next(
    settings: RegistrySettings, formats: Any, artifact_dir: Path, execute: Callable[..., Any], removal: int
) -> None:
    with Registry.open(settings) as registry:
        for _ in range(2):
            registry.register(formats.draft(), actor="ada")
        registry.retention.delete("digits", 1, reason="r", actor="ada", grace=NOW)
        folder = registry.retention.trashed()[0]
    killed = run_child("gc", settings, kill_at_removal=removal)
    assert killed.returncode == -signal.SIGKILL, killed.stderr + killed.stdout
    with Registry.open(settings) as registry:
        with pytest.raises(NotFoundError):
            registry.resolve("digits/1")
        with pytest.raises(NotFoundError, match="gone for good"):
            registry.retention.restore("digits", 1, actor="ada")
        (item,) = registry.retention.plan_gc().items
        assert item.reason == "its purge was interrupted"
    assert folder.state == "trashed"
    finish_and_check(settings, artifact_dir / "digits" / "none", artifact_dir / "_staging" / "none", execute)


def finish_and_check(settings: RegistrySettings, orphan: Path, stray: Path, execute: Callable[..., Any]) -> None:
    with Registry.open(settings) as registry:
        retention = registry.retention
        assert retention.apply(retention.plan_gc(orphan_age=NOW, unknown=True), actor="ada").skipped == ()
        assert retention.plan_gc(orphan_age=NOW).items == ()
        assert [one.state for one in retention.trashed(with_purged=True)] == ["purged"]
        assert execute("SELECT kind FROM noa_outbox WHERE kind = 'version.purged'") == [("version.purged",)]
        assert not orphan.exists()
        assert not stray.exists()
        assert [path.name for path in (settings.artifact_dir / "digits").iterdir()] == [
            registry.resolve("digits/2").folder.name
        ]
        registry.verify("digits", 2)
        assert registry.mirror_discrepancies() == []


def test_two_collections_at_once_end_well(
    settings: RegistrySettings, formats: Any, execute: Callable[..., list[Any]]
) -> None:
    with Registry.open(settings) as registry:
        for number in range(1, 9):
            registry.register(formats.draft(), actor="ada")
            registry.retention.delete("digits", number, reason="r", actor="ada", grace=NOW)
    children = [
        subprocess.Popen(command("gc", settings, race=True), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    reports = [json.loads(child.communicate(timeout=60)[0].splitlines()[-1]) for child in children]
    assert {key for report in reports for key in report["removed"]} == {f"digits/{n}" for n in range(1, 9)}
    with Registry.open(settings) as registry:
        assert [one.state for one in registry.retention.trashed(with_purged=True)] == ["purged"] * 8
    told = execute("SELECT payload FROM noa_outbox WHERE kind = 'version.purged'")
    assert sorted(json.loads(payload)["number"] for (payload,) in told) == list(range(1, 9))


# The policy.


def test_the_policy_proposes_old_versions_that_were_never_promoted(
    registry: Registry, retention: Any, promoted: list[ModelVersion], formats: Any
) -> None:
    for _ in range(4):
        registry.register(formats.draft(), actor="ada")  # 4 to 7
    later = type(retention)(
        database=retention.database,
        store=retention.store,
        approvals=registry.approvals,
        clock=lambda: datetime.now(UTC) + timedelta(days=100),
    )
    policy = RetentionPolicy(keep_newest=2, keep_age=timedelta(days=90))
    proposals = later.propose(policy)
    assert [one.reference for one in proposals] == ["digits/4", "digits/5"]
    assert "older than 90 days, not among the newest 2" in proposals[0].reason
    assert [one.reference for one in later.propose(policy, endpoints={"pinned": "digits/5"})] == ["digits/4"]
    assert retention.propose(policy) == [], "today they are too young"
    assert retention.trashed() == [], "a proposal moves nothing"
    with pytest.raises(InvalidInputError, match="keeps nothing"):
        retention.propose(RetentionPolicy(keep_newest=0, keep_age=NOW))
