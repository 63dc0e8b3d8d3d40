"""A version travels as one file: the same bytes each time, the same digests elsewhere, and nothing tampered with."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from noa.errors import ConflictError, IntegrityError, InvalidInputError, NoaError, NotFoundError, StorageError
from noa.settings import RegistrySettings
from noa_registry import Attachment, Evidence, Registry
from noa_registry.archives.container import bytes_member, write_container
from noa_registry.artifacts import OWNER_MARK
from noa_registry.faults import REGISTRATION_STEPS
from noa_registry.outside import AllowedMark

if TYPE_CHECKING:
    from tests.registry.conftest import Formats

    from noa_registry import ModelVersion


@pytest.fixture(scope="module")
def origin(
    empty_sqlite_file: Path,
    format_writer: Callable[[Path, int], Formats],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Registry]:
    """Where archives are from: `digits/2` there has two units, evidence with an attachment, tags and moves."""
    folder = tmp_path_factory.mktemp("origin")
    formats = format_writer(folder / "formats", 0)
    shutil.copytree(formats.torch, formats.folder / "jax")
    with Registry.open(settings_in(folder, empty_sqlite_file)) as opened:
        opened.register(formats.draft(), actor="ada")
        version = opened.register(
            formats.draft(
                tags={"team": "vision"},
                description="A *small* model",
                evidence=(formats.equivalence(), formats.metrics(accuracy=0.9)),
            ),
            actor="ada",
        )
        later = (formats.equivalence(target="jax"),)
        opened.add_format("digits", 2, "jax", formats.folder / "jax", evidence=later, actor="eve")
        photo = Attachment(media_type="application/octet-stream", content=bytes(range(256)) * 40)
        values = {"attachment": photo.digest}
        fact = Evidence(kind="photo", subject="version", digest=version.digest, values=values, attachments=(photo,))
        opened.attach("digits", 2, fact)
        opened.promote("digits", 1, reason="first", actor="ada")
        opened.promote("digits", 2, alias="canary", reason="look", actor="bob")
        yield opened


@pytest.fixture(scope="module")
def archive(origin: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of the origin's `digits/2`."""
    path = tmp_path_factory.mktemp("archive") / "digits-2.noa"
    origin.archives.write("digits", 2, path)
    return path


@pytest.fixture(scope="module")
def refusing(empty_sqlite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that nothing may get into."""
    with Registry.open(settings_in(tmp_path_factory.mktemp("refusing"), empty_sqlite_file)) as opened:
        yield opened
        assert_nothing_there(opened)


@pytest.fixture
def small(empty_sqlite_file: Path, tmp_path: Path) -> Iterator[Registry]:
    """One more registry of the test alone."""
    with Registry.open(settings_in(tmp_path / "small", empty_sqlite_file)) as opened:
        yield opened


def settings_in(folder: Path, template: Path) -> RegistrySettings:
    folder.mkdir(exist_ok=True)
    shutil.copyfile(template, folder / "noa.db")
    return RegistrySettings(
        database_url=f"sqlite:///{folder / 'noa.db'}", artifact_dir=folder / "artifacts", lock_timeout_s=60.0
    )


def test_the_same_version_gives_the_same_bytes_however_often_it_is_exported(origin: Registry, tmp_path: Path) -> None:
    first = origin.archives.write("digits", 2, tmp_path / "a.noa")
    os.utime(origin.resolve("digits/2").folder / "MLmodel", (1, 1))
    second = origin.archives.write("digits", 2, tmp_path / "b.noa")
    assert (tmp_path / "a.noa").read_bytes() == (tmp_path / "b.noa").read_bytes()
    assert first.file_digest == second.file_digest
    assert first.file_digest == "sha256:" + hashlib.sha256((tmp_path / "a.noa").read_bytes()).hexdigest()
    assert first.size_bytes == (tmp_path / "a.noa").stat().st_size


def test_an_archive_is_a_plain_tar_file_in_one_form(archive: Path) -> None:
    with tarfile.open(archive, "r:") as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    assert names[0] == "INDEX.json"
    assert names[1:] == sorted(names[1:])
    assert {(m.mtime, m.mode, m.uid, m.gid, m.uname, m.gname, m.type) for m in members} == {
        (0, 0o644, 0, 0, "", "", tarfile.REGTYPE)
    }
    assert {name.split("/")[0] for name in names} == {"INDEX.json", "META", "attachments", "files"}


def test_import_elsewhere_gives_the_same_digests_evidence_and_files(
    origin: Registry, registry: Registry, archive: Path
) -> None:
    rich = origin.resolve("digits/2")
    imported = registry.archives.read(archive, actor="carol")
    assert imported.reference == "digits/1"
    assert imported.digest == rich.digest
    assert {n: f.digest for n, f in imported.formats.items()} == {n: f.digest for n, f in rich.formats.items()}
    assert imported.wrapper == rich.wrapper
    for field in ("native", "signature", "dataset_digest", "git_commit", "environment", "params", "description"):
        assert getattr(imported, field) == getattr(rich, field), field
    assert imported.created_by == "carol"
    before = origin.evidence("digits", 2)
    after = registry.evidence("digits", 1)
    assert after[: len(before)] == before
    photo = next(fact for fact in after if fact.kind == "photo")
    digest = str(photo.values["attachment"])
    assert origin.attachment(digest) == registry.attachment(digest)
    registry.verify("digits", 1)
    x = np.ones((3, 4), dtype=np.float32)
    there, here = origin.load("digits/2").run({"x": x}), registry.load("digits/1").run({"x": x})
    np.testing.assert_array_equal(there["logits"], here["logits"])


def test_where_a_version_is_from_is_kept_and_its_history_is_no_part_of_the_chain_here(
    registry: Registry, archive: Path
) -> None:
    imported = registry.archives.read(archive, actor="carol")
    origin, history = registry.evidence("digits", 1)[-2:]
    assert (origin.kind, history.kind) == ("origin", "history")
    assert origin.values["reference"] == "digits/2"
    assert origin.values["created_by"] == "ada"
    assert imported.tags["noa.origin"] == f"{origin.values['registry']}:digits/2"
    assert imported.tags["team"] == "vision"
    rows = history.values["rows"]
    assert isinstance(rows, list)
    assert [(row["alias"], row["actor"], row["to_number"]) for row in rows] == [("canary", "bob", 2)]
    assert registry.history("digits") == []
    registry.verify_ledger()
    assert registry.search("tag.team=vision metric.accuracy>0.8 format:jax").hits[0].reference == "digits/1"


def test_an_imported_version_can_be_promoted_and_exported_again(
    registry: Registry, small: Registry, archive: Path, tmp_path: Path
) -> None:
    imported = registry.archives.read(archive, actor="carol")
    registry.promote("digits", 1, reason="it came", actor="carol")
    registry.archives.write("digits", 1, tmp_path / "again.noa")
    assert small.archives.read(tmp_path / "again.noa", actor="dan").digest == imported.digest
    kinds = [fact.kind for fact in small.evidence("digits", 1)]
    assert (kinds.count("origin"), kinds.count("history")) == (2, 2)


def test_stock_mlflow_runs_an_imported_version(small: Registry, archive: Path, tmp_path: Path) -> None:
    small.archives.read(archive, actor="carol")
    expected = small.load("digits/1").run({"x": np.ones((2, 4), dtype=np.float32)})["logits"]
    code = (
        "import json, sys, mlflow, numpy as np\n"
        "mlflow.set_tracking_uri(sys.argv[1]); mlflow.set_registry_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/digits/1')\n"
        "out = model.predict(np.ones((2, 4), dtype=np.float32))\n"
        "print('RESULT', json.dumps(out['logits'].tolist()))\n"
    )
    url = f"sqlite:///{tmp_path / 'small' / 'noa.db'}"
    done = subprocess.run(
        [sys.executable, "-c", code, url],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    np.testing.assert_allclose(json.loads(line.removeprefix("RESULT ")), expected, rtol=1e-6)


def test_the_same_version_twice_is_a_conflict_that_names_it_unless_that_is_wanted(
    origin: Registry, registry: Registry, formats: Formats, archive: Path
) -> None:
    registry.register(formats.draft(), actor="carol")
    assert registry.archives.read(archive, actor="carol").number == 2
    with pytest.raises(ConflictError, match="digits/2") as caught:
        registry.archives.read(archive, actor="carol")
    assert caught.value.facts["reference"] == "digits/2"
    assert registry.archives.read(archive, actor="carol", exist_ok=True).reference == "digits/2"
    assert registry.numbers("digits") == [1, 2]
    with pytest.raises(ConflictError, match="digits/2"):
        origin.archives.read(archive, actor="carol")


@pytest.mark.local_files
def test_damaged_files_of_a_version_that_is_here_are_put_back_from_its_archive(
    registry: Registry, version: ModelVersion, tmp_path: Path
) -> None:
    archive = tmp_path / "digits-1.noa"
    registry.archives.write("digits", 1, archive)
    taken = registry.archives.take(archive, actor="carol", exist_ok=True)
    assert (taken.version.reference, taken.is_new, taken.repairs) == ("digits/1", False, ())

    damaged = version.folder / "formats" / "onnx" / "model.onnx"  # one inode with the wrapper's name and the blob
    damaged.chmod(0o644)
    with damaged.open("r+b") as file:
        file.write(b"\0\0\0\0")
    (lost, *_) = registry.repair_files("digits", 1)
    assert "noa models import FILE.noa --exist-ok" in lost.how
    with pytest.raises(ConflictError, match="--exist-ok"):
        registry.archives.read(archive, actor="carol")

    taken = registry.archives.take(archive, actor="carol", exist_ok=True)
    assert not taken.is_new
    assert {repair.path for repair in taken.repairs} >= {"formats/onnx/model.onnx"}
    assert all(repair.is_repaired for repair in taken.repairs)
    registry.verify("digits", 1)
    assert registry.numbers("digits") == [1]


@pytest.mark.local_files
def test_what_an_archive_does_not_hold_is_said_and_stays_damaged(
    registry: Registry, version: ModelVersion, formats: Formats, tmp_path: Path
) -> None:
    archive = tmp_path / "digits-1.noa"
    registry.archives.write("digits", 1, archive)
    shutil.copytree(formats.torch, formats.folder / "jax")
    (formats.folder / "jax" / "more.bin").write_bytes(b"of this format alone")
    registry.add_format("digits", 1, "jax", formats.folder / "jax", evidence=(), actor="eve")
    added = registry.resolve("digits/1").formats["jax"].folder / "more.bin"
    added.chmod(0o644)
    added.write_bytes(b"of this format altered")
    with pytest.raises(IntegrityError, match="does not mend it") as caught:
        registry.archives.take(archive, actor="carol", exist_ok=True)
    assert caught.value.facts["files"] == ("formats/jax/more.bin",)


def test_of_many_that_import_the_same_at_once_one_wins(registry: Registry, archive: Path) -> None:
    def read(_index: int) -> str:
        try:
            return registry.archives.read(archive, actor="carol").reference
        except ConflictError as exc:
            return str(exc.facts["reference"])

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(read, range(6))) == {"digits/1"}
    assert registry.numbers("digits") == [1]
    registry.verify("digits", 1)


def test_export_refuses_to_overwrite_and_leaves_nothing_half(origin: Registry, tmp_path: Path) -> None:
    target = tmp_path / "there.noa"
    target.write_text("mine")
    with pytest.raises(ConflictError, match="--force"):
        origin.archives.write("digits", 2, target)
    assert target.read_text() == "mine"
    origin.archives.write("digits", 2, target, force=True)
    assert target.stat().st_size > 5000
    with pytest.raises(NotFoundError, match="folder"):
        origin.archives.write("digits", 2, tmp_path / "no" / "where.noa")
    with pytest.raises(ConflictError, match="folder"):
        origin.archives.write("digits", 2, tmp_path)


def test_a_file_that_is_not_what_was_sealed_is_never_exported(
    small: Registry, formats: Formats, tmp_path: Path
) -> None:
    weights = small.register(formats.draft(), actor="ada").formats["torch"].folder / "weights.safetensors"
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"weights\.safetensors"):
        small.archives.write("digits", 1, tmp_path / "bad.noa")
    assert [path.name for path in tmp_path.iterdir() if "bad.noa" in path.name] == []


def test_what_a_killed_export_left_goes_with_the_next_one_and_that_of_a_living_one_stays(
    origin: Registry, tmp_path: Path
) -> None:
    killed, living = tmp_path / ".a.noa.abcdefgh.tmp", tmp_path / ".a.noa.ijklmnop.tmp"
    killed.write_bytes(b"half")
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"half")
        file.flush()
        origin.archives.write("digits", 1, tmp_path / "a.noa")
        assert sorted(path.name for path in tmp_path.iterdir()) == [living.name, "a.noa"]
    origin.archives.write("digits", 1, tmp_path / "a.noa", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.noa"]


def test_a_full_disk_leaves_no_archive(tmp_path: Path) -> None:
    (tmp_path / "ulimit").mkdir()
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from noa.errors import StorageError\n"
        "from noa_registry.archives.exporting import _appearing\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    with _appearing(Path(sys.argv[1]), force=False) as file:\n"
        "        file.write(bytes(100_000))\n"
        "except StorageError as exc:\n"
        "    print('REFUSED', exc.what)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "ulimit" / "x.noa")], capture_output=True, text=True, check=True
    )
    assert "REFUSED" in done.stdout
    assert list((tmp_path / "ulimit").iterdir()) == []


def test_a_flipped_byte_anywhere_is_refused_and_nothing_is_left(
    refusing: Registry, archive: Path, tmp_path: Path
) -> None:
    good = archive.read_bytes()
    bad = tmp_path / "bad.noa"
    places = sorted({*range(0, len(good), max(1, len(good) // 150)), 124, 156, 257, 512, len(good) - 1})
    for place in places:
        data = bytearray(good)
        data[place] ^= 0x41
        bad.write_bytes(data)
        with pytest.raises((IntegrityError, InvalidInputError)):
            refusing.archives.read(bad, actor="carol")
        with pytest.raises((IntegrityError, InvalidInputError)):
            refusing.archives.inspect(bad)
    assert_nothing_there(refusing)


def test_a_cut_off_or_lengthened_archive_is_refused_at_once(refusing: Registry, archive: Path, tmp_path: Path) -> None:
    good = archive.read_bytes()
    bad = tmp_path / "bad.noa"
    for length in (0, 1, 100, 512, 1000, len(good) // 2, len(good) - 1024, len(good) - 1):
        bad.write_bytes(good[:length])
        with pytest.raises((IntegrityError, InvalidInputError)):
            refusing.archives.read(bad, actor="carol")
    bad.write_bytes(good + bytes(512))
    with pytest.raises(IntegrityError, match="added at its end"):
        refusing.archives.read(bad, actor="carol")
    assert_nothing_there(refusing)


def assert_nothing_there(registry: Registry) -> None:
    assert registry.models() == []
    root = registry._artifacts.root
    left = [path for path in root.rglob("*") if path.is_file()] if root.exists() else []
    assert [path.name for path in left if path.name != OWNER_MARK] == []


Change = Callable[[dict[str, bytes]], None]


def repack(
    archive: Path, target: Path, change: Change, *, head: Callable[[dict[str, Any]], None] | None = None
) -> Path:
    """Write the archive anew with other members: a well-formed container with another content."""
    with tarfile.open(archive, "r:") as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
    about = json.loads(members.pop("INDEX.json"))["head"]
    if head is not None:
        head(about)
    change(members)
    with target.open("wb") as file:
        write_container(file, about, [bytes_member(k, v) for k, v in members.items()], lambda _count: None)
    return target


def edit(member: str, change: Callable[[Any], None]) -> Change:
    def apply(members: dict[str, bytes]) -> None:
        value = json.loads(members[member])
        change(value)
        members[member] = json.dumps(value).encode()

    return apply


def write_number(literal: bytes) -> Change:
    """Put a number as it is written into the first fact: `json.dumps` writes none that is too large."""

    def apply(members: dict[str, bytes]) -> None:
        edit("META/evidence.json", lambda facts: facts[0]["values"].update(more="HERE"))(members)
        members["META/evidence.json"] = members["META/evidence.json"].replace(b'"HERE"', literal)

    return apply


def metrics_in(facts: list[dict[str, Any]]) -> dict[str, Any]:
    return next(fact["values"] for fact in facts if fact["kind"] == "metrics")


def measure_another(facts: list[dict[str, Any]]) -> None:
    next(fact for fact in facts if fact["kind"] == "metrics")["digest"] = "sha256:" + "0" * 64


def rename_file(path: str) -> Change:
    return edit("META/version.json", lambda version: version["wrapper"][0].update(path=path))


def add_file(members: dict[str, bytes]) -> None:
    members["files/" + hashlib.sha256(b"extra").hexdigest()] = b"extra"


def drop_file(members: dict[str, bytes]) -> None:
    del members[next(name for name in members if name.startswith("files/"))]


def swap_file(members: dict[str, bytes]) -> None:
    members[next(name for name in members if name.startswith("files/"))] = b"something else"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (add_file, "belongs to nothing"),
        (drop_file, "lacks `files/"),
        (swap_file, "belongs to nothing"),
        (lambda members: members.update(evil=b"x"), "belongs to nothing"),
        (lambda members: members.update({"files/evil.sh": b"x"}), "belongs to nothing"),
        (lambda members: members.pop("META/evidence.json"), "no `META/evidence.json`"),
        (lambda members: members.update({"META/version.json": b"[1]"}), "not readable"),
        (lambda members: members.update({"META/version.json": b"[" * 100_000}), "not readable"),
        (rename_file("../../evil"), "not readable"),
        (rename_file("/etc/evil"), "not readable"),
        (rename_file("formats/torch/evil"), "cannot be a file"),
        (edit("META/version.json", lambda v: v.update(digest="sha256:" + "0" * 64)), "digest is another"),
        (edit("META/version.json", lambda v: v["formats"]["onnx"]["files"][0].update(size_bytes=1)), "not readable"),
        (edit("META/version.json", lambda v: v.update(name="../evil")), "not readable"),
        (edit("META/version.json", lambda v: v.update(number=-1)), "not readable"),
        (edit("META/version.json", lambda v: v["attachments"].clear()), "attachments are others"),
        (edit("META/evidence.json", lambda e: e[0].update(digest="nonsense")), "not readable"),
        (edit("META/evidence.json", lambda e: e[0].update(passed="yes")), "not readable"),
        (edit("META/evidence.json", lambda e: e[0].update(passed=1)), "`passed` of evidence cannot be stored so"),
        (edit("META/evidence.json", lambda e: e[0]["values"].update(more=10**400)), "not readable"),
        (write_number(b"1e400"), "1e400 is more than a float can hold"),
        (write_number(b"-Infinity"), "-Infinity is no JSON"),
        (edit("META/evidence.json", lambda e: metrics_in(e).update(rows=0)), "`rows` cannot be measured so"),
        (
            edit("META/evidence.json", lambda e: metrics_in(e).update(dataset_digest="zzz")),
            "`dataset_digest` cannot be",
        ),
        (edit("META/evidence.json", lambda e: metrics_in(e)["metrics"].update({"": 1})), "the name of a metric"),
        (edit("META/evidence.json", measure_another), "are none of"),
        (edit("META/evidence.json", lambda e: e[0].update(kind="x" * 100_000)), "not readable"),
        (edit("META/ledger.json", lambda rows: rows[0].update(actor="mallory")), "row 2 was changed"),
        (edit("META/signatures.json", lambda rows: rows.append({})), "not readable"),
    ],
)
def test_a_well_formed_archive_that_lies_is_refused_by_name(
    refusing: Registry, archive: Path, tmp_path: Path, change: Change, part: str
) -> None:
    bad = repack(archive, tmp_path / "bad.noa", change)
    with pytest.raises(NoaError, match=part) as caught:
        refusing.archives.read(bad, actor="carol")
    assert isinstance(caught.value, IntegrityError)
    assert_nothing_there(refusing)


def test_an_index_about_another_version_is_refused(refusing: Registry, archive: Path, tmp_path: Path) -> None:
    bad = repack(archive, tmp_path / "bad.noa", lambda _m: None, head=lambda about: about.update(number=7))
    with pytest.raises(IntegrityError, match="another version"):
        refusing.archives.read(bad, actor="carol")


def test_an_ordinary_tar_file_with_links_and_paths_is_no_archive(refusing: Registry, tmp_path: Path) -> None:
    for kind, link in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "/etc/passwd"), (tarfile.CHRTYPE, "")):
        bad = tmp_path / "bad.noa"
        with tarfile.open(bad, "w") as tar:
            info = tarfile.TarInfo("INDEX.json")
            info.type, info.linkname = kind, link
            tar.addfile(info)
            tar.addfile(tarfile.TarInfo("../../evil"), io.BytesIO())
        with pytest.raises(InvalidInputError, match="no archive of noa"):
            refusing.archives.read(bad, actor="carol")
    assert_nothing_there(refusing)


def test_a_claimed_size_of_gigabytes_takes_no_memory(refusing: Registry, tmp_path: Path) -> None:
    info = tarfile.TarInfo("INDEX.json")
    info.size, info.mode = 8 << 30, 0o644
    bad = tmp_path / "bad.noa"
    bad.write_bytes(info.tobuf(format=tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises((IntegrityError, InvalidInputError)):
        refusing.archives.read(bad, actor="carol")


def test_an_archive_of_a_newer_noa_is_refused_with_what_to_do(
    refusing: Registry, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from noa_registry.archives import container

    with monkeypatch.context() as patched:
        patched.setattr(container, "FORMAT_VERSION", 2)
        newer = repack(archive, tmp_path / "newer.noa", lambda _members: None)
    with pytest.raises(InvalidInputError, match="newer noa"):
        refusing.archives.read(newer, actor="carol")


def test_what_is_no_archive_is_refused(refusing: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such archive"):
        refusing.archives.read(tmp_path / "missing.noa", actor="carol")
    with pytest.raises(NotFoundError, match="a folder"):
        refusing.archives.read(tmp_path, actor="carol")
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a" * 600)
    with pytest.raises(InvalidInputError, match="no archive of noa"):
        refusing.archives.read(tmp_path / "model.onnx", actor="carol")


def reseal(members: dict[str, bytes], name: str, content: bytes) -> None:
    """Replace a file of the wrapper and make all digests fit again, as an attacker with noa at hand would."""
    from noa.digests import Manifest
    from noa.signatures import Signature
    from noa_registry.records import version_digest

    version = json.loads(members["META/version.json"])
    entry = next((file for file in version["wrapper"] if file["path"] == name), None)
    if entry is None:
        entry = {"path": name}
        version["wrapper"].append(entry)
        version["wrapper"].sort(key=lambda file: file["path"])
    else:
        del members["files/" + entry["digest"].removeprefix("sha256:")]
    digest = hashlib.sha256(content).hexdigest()
    entry.update(size_bytes=len(content), digest=f"sha256:{digest}")
    members[f"files/{digest}"] = content
    old = version["digest"]
    version["digest"] = version_digest(
        name=version["name"],
        native=version["native"],
        native_digest=version["formats"][version["native"]]["digest"],
        wrapper_digest=Manifest.from_json(json.dumps(version["wrapper"])).digest,
        signature=Signature.from_dict(version["signature"]),
        dataset_digest=version["dataset_digest"],
    )
    members["META/version.json"] = json.dumps(version).encode()
    members["OLD"] = json.dumps([old, version["digest"]]).encode()


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("code/evil.py", b"import os", "is foreign"),
        ("MLmodel", b"flavors: {python_function: {loader_module: evil, data: .}}", "code to run"),
        ("MLmodel", b"flavors: {python_function: {loader_module: mlflow.onnx, code: code}}", "code to run"),
        ("MLmodel", b"flavors: {sklearn: {pickled_model: model.pkl}}", "flavors"),
        ("MLmodel", b"!!python/object/apply:os.system ['true']", "is no YAML"),
        ("MLmodel", b"model_code_path: x\nflavors: {onnx: {data: model.onnx}}", "code to run"),
        ("requirements.txt", b"--index-url http://evil\nnumpy", "has the line"),
        ("requirements.txt", b"numpy @ file:///evil", "has the line"),
        ("python_env.yaml", b"{python: '3', build_dependencies: [evil], dependencies: []}", "python_env.yaml"),
    ],
)
def test_a_wrapper_that_would_run_code_in_stock_mlflow_is_refused(
    refusing: Registry, archive: Path, tmp_path: Path, name: str, content: bytes, part: str
) -> None:
    digests: list[str] = []

    def change(members: dict[str, bytes]) -> None:
        reseal(members, name, content)
        digests.extend(json.loads(members.pop("OLD")))

    probe = repack(archive, tmp_path / "probe.noa", change)
    bad = repack(archive, tmp_path / "bad.noa", change, head=lambda about: about.update(digest=digests[1]))
    probe.unlink()
    with pytest.raises(IntegrityError, match=part):
        refusing.archives.read(bad, actor="carol")
    assert_nothing_there(refusing)


def test_a_pickle_is_refused_unless_its_model_is_allowed_by_name(
    refusing: Registry, small: Registry, empty_sqlite_file: Path, formats: Formats, tmp_path: Path
) -> None:
    folder = shutil.copytree(formats.torch, tmp_path / "pickle")
    (folder / "model.pkl").write_bytes(b"\x80\x04N.")
    mark = AllowedMark(model="digits", allowed_by="ada", source_digest="sha256:" + "0" * 64, findings=())
    mark.save(folder)
    both = {"torch": formats.torch, "pickle": folder}
    small.register(formats.draft(evidence=(), formats=both), actor="ada")
    small.archives.write("digits", 1, tmp_path / "p.noa")
    for allowed in ([], ["ranker"]):
        with pytest.raises(InvalidInputError, match="--allow-pickle digits"):
            refusing.archives.read(tmp_path / "p.noa", actor="carol", allow_pickle=allowed)
    assert_nothing_there(refusing)
    with Registry.open(settings_in(tmp_path / "taking", empty_sqlite_file)) as taking:
        assert taking.archives.read(tmp_path / "p.noa", actor="carol", allow_pickle=["digits"]).number == 1


CHILD = """
import os, signal, sys
from pathlib import Path
from noa.settings import RegistrySettings
from noa_registry import Registry
url, folder, archive, wanted = sys.argv[1:]
def checkpoint(step):
    if step == wanted:
        os.kill(os.getpid(), signal.SIGKILL)
def progress(done, total):
    if wanted == "unpacking" and done * 2 >= total:
        os.kill(os.getpid(), signal.SIGKILL)
settings = RegistrySettings(database_url=url, artifact_dir=Path(folder), lock_timeout_s=60.0)
with Registry.open(settings, checkpoint=checkpoint) as registry:
    registry.archives.read(Path(archive), actor="carol", on_progress=progress)
"""


@pytest.mark.parametrize("step", ["unpacking", *REGISTRATION_STEPS])
def test_an_import_killed_at_any_step_leaves_a_whole_version_or_none(
    empty_sqlite_file: Path, archive: Path, tmp_path: Path, step: str
) -> None:
    there = settings_in(tmp_path / "there", empty_sqlite_file)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, there.database_url, str(there.artifact_dir), str(archive), step],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with Registry.open(there) as opened:
        if step == "committed":
            opened.verify("digits", 1)
        else:
            assert opened.models() == []
        assert opened.archives.read(archive, actor="carol", exist_ok=True).number == 1
        opened.verify("digits", 1)
        assert list((there.artifact_dir / "_imports").iterdir()) == []
        units = [path.name for path in (there.artifact_dir / "digits").iterdir()]
        assert units == [opened.resolve("digits/1").uid]


def test_progress_ends_at_the_whole(origin: Registry, small: Registry, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    origin.archives.write("digits", 2, tmp_path / "x.noa", on_progress=lambda *pair: told.append(pair))
    assert told[-1][0] == told[-1][1] > 0
    told.clear()
    small.archives.read(tmp_path / "x.noa", actor="carol", on_progress=lambda *pair: told.append(pair))
    assert 0 < told[-1][0] <= told[-1][1]
    _, archived = origin.archives.inspect(tmp_path / "x.noa")
    assert (archived.reference, archived.digest) == ("digits/2", origin.resolve("digits/2").digest)


def test_a_large_version_is_exported_and_imported_in_little_memory(
    small: Registry, empty_sqlite_file: Path, formats: Formats, tmp_path: Path
) -> None:
    with (formats.torch / "big.bin").open("wb") as file:
        for index in range(48):
            file.write(bytes([index]) * (1 << 20))
    small.register(formats.draft(evidence=()), actor="ada")
    with Registry.open(settings_in(tmp_path / "there", empty_sqlite_file)) as there:
        tracemalloc.start()
        try:
            small.archives.write("digits", 1, tmp_path / "big.noa")
            there.archives.read(tmp_path / "big.noa", actor="carol")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 24 << 20


def test_a_name_that_is_taken_by_a_file_is_a_clear_error(small: Registry, archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "small" / "artifacts"
    root.mkdir(parents=True, exist_ok=True)
    (root / "_imports").write_text("in the way")
    with pytest.raises(StorageError, match="a file is where a folder should be"):
        small.archives.read(archive, actor="carol")
