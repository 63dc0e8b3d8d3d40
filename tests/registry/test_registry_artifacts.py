"""Files in a local folder: sealed in one pass, stored once, hashed once per machine, and named when they changed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import numpy as np
import pytest

from noa.digests import FileDigest, Manifest, sha256_file
from noa.errors import IntegrityError, InvalidInputError
from noa.settings import RegistrySettings
from noa_registry import ModelVersion, Registry
from noa_registry.artifacts import OWNER_MARK, Part, UnitKey, change_times, copying, open_artifacts, verified_files
from noa_registry.artifacts.blobs import SHARED_FROM_BYTES
from noa_registry.artifacts.change_times import ChangeTimes
from noa_registry.artifacts.unit_cache import UnitCache
from noa_registry.artifacts.verified_files import VerifiedFiles
from noa_registry.seals import DatabaseSeals

LARGE = 3 * SHARED_FROM_BYTES


@pytest.fixture
def settings(sqlite_settings: RegistrySettings) -> RegistrySettings:
    return sqlite_settings


@pytest.fixture
def large_formats(formats: Any) -> Any:
    (formats.torch / "more.bin").write_bytes(np.random.default_rng(5).bytes(LARGE))
    return formats


@pytest.fixture
def two(registry: Registry, large_formats: Any) -> tuple[ModelVersion, ModelVersion]:
    """Two versions with equal bytes."""
    first, second = (registry.register(large_formats.draft(evidence=()), actor="ada") for _ in range(2))
    return first, second


def stored(version: ModelVersion) -> Path:
    return version.formats["torch"].folder / "more.bin"


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


# --- sealing in one pass ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (8 << 20) - 1, (8 << 20) + 12_345])
def test_a_copy_has_the_bytes_and_the_digest_that_it_says(tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "down" / "target"
    data = np.random.default_rng(size).bytes(size)
    source.write_bytes(data)
    file = copying.copy_and_hash(source, target, name="a/b")
    assert file == FileDigest(path="a/b", size_bytes=size, digest="sha256:" + hashlib.sha256(data).hexdigest())
    assert target.read_bytes() == data
    assert target.stat().st_mode & 0o777 == 0o444


def test_a_source_is_read_once(
    registry: Registry, large_formats: Any, settings: RegistrySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = large_formats.torch / "large.bin"
    path.write_bytes(bytes(9 << 20))
    reads: list[int] = []
    real = os.readv

    def counted(handle: int, buffers: Any) -> int:
        count = real(handle, buffers)
        if Path(f"/proc/self/fd/{handle}").readlink() == path:
            reads.append(count)
        return count

    monkeypatch.setattr(os, "readv", counted)
    registry.register(large_formats.draft(evidence=()), actor="ada")
    assert sum(reads) == 9 << 20


def test_a_file_system_that_clones_is_asked_first_and_the_clone_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100_000)
    real = fcntl.ioctl

    def clone(writer: int, request: int, reader: int) -> int:
        if request != 0x40049409:
            return real(writer, request, reader)
        while block := os.read(reader, 1 << 20):  # what such a file system does inside
            os.pwrite(writer, block, os.fstat(writer).st_size)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", clone)
    monkeypatch.setattr(copying, "_copy_plain", None)
    file = copying.copy_and_hash(source, tmp_path / "target", name="target")
    assert file.digest == sha256_file(source) == sha256_file(tmp_path / "target")


# --- equal bytes are stored once -------------------------------------------------------------------------------------


def test_equal_bytes_are_stored_once_and_stay_read_only(two: tuple[ModelVersion, ModelVersion]) -> None:
    first, second = (stored(version) for version in two)
    assert first.samefile(second)
    assert first.stat().st_nlink == 3  # and the name among the blobs
    assert first.stat().st_mode & 0o222 == 0
    small = [version.formats["torch"].folder / "signature.json" for version in two]
    assert not small[0].samefile(small[1]), "small files stay apart"


def test_removing_one_version_does_not_hurt_the_other_and_the_last_takes_the_bytes_along(
    registry: Registry, settings: RegistrySettings, two: tuple[ModelVersion, ModelVersion]
) -> None:
    store = open_artifacts(settings, seals=DatabaseSeals(registry._database))
    first, second = two
    keys = [UnitKey(name="digits", uid=version.uid) for version in two]
    alone = store.unit_facts(keys[0])
    assert alone is not None and alone.size_bytes < LARGE, "what is shared is not given back"
    store.remove_unit(keys[0])
    assert not first.folder.exists()
    registry.verify("digits", 2)
    assert stored(second).stat().st_mode & 0o777 == 0o444
    last = store.unit_facts(keys[1])
    assert last is not None and last.size_bytes >= LARGE
    store.remove_unit(keys[1])
    store.remove_unit(keys[1])  # gone is gone
    left = [path for path in settings.artifact_dir.rglob("*") if path.is_file() and "_cache" not in path.parts]
    assert left == [settings.artifact_dir / OWNER_MARK]


def test_a_damaged_file_is_never_linked_to(registry: Registry, large_formats: Any) -> None:
    first = registry.register(large_formats.draft(evidence=()), actor="ada")
    data = stored(first).read_bytes()
    overwrite(stored(first), b"\x00" + data[1:])
    second = registry.register(large_formats.draft(evidence=()), actor="ada")
    third = registry.register(large_formats.draft(evidence=()), actor="ada")
    assert stored(second).read_bytes() == data
    assert stored(third).samefile(stored(second)), "the whole one took the place of the damaged one"
    registry.verify("digits", 2)
    with pytest.raises(IntegrityError, match=r"`formats/torch/more\.bin` was changed"):
        registry.verify("digits", 1)


def test_where_there_are_no_hard_links_everything_is_copied(
    registry: Registry, large_formats: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    first, second = (registry.register(large_formats.draft(evidence=()), actor="ada") for _ in range(2))
    assert not stored(first).samefile(stored(second))
    assert stored(first).stat().st_nlink == 1
    registry.verify("digits", 1)
    registry.verify("digits", 2)


def test_many_threads_register_equal_bytes_at_once(registry: Registry, large_formats: Any) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(4):
                registry.register(large_formats.draft(evidence=()), actor="ada")
        except BaseException as exc:  # noqa: BLE001  # shown by the assertion below
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    for number in registry.numbers("digits"):
        registry.verify("digits", number)


def test_what_a_killed_writer_shared_is_not_left_behind(settings: RegistrySettings, large_formats: Any) -> None:
    import json

    child = Path(__file__).with_name("registry_child.py")
    request = {
        "settings": settings.model_dump(mode="json"),
        "formats": str(large_formats.folder),
        "kill_at": "published",
    }
    subprocess.run([sys.executable, str(child), "register", json.dumps(request)], timeout=120, check=False)
    assert len(list((settings.artifact_dir / "_blobs").glob("??/*"))) == 1
    with Registry.open(settings):
        left = [path for path in settings.artifact_dir.rglob("*") if path.is_file()]
    assert left == [settings.artifact_dir / OWNER_MARK]


# --- hashed once per machine -----------------------------------------------------------------------------------------


@pytest.fixture
def times_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are remembered wherever the tests run, also in memory; nothing writes through a mapping here."""
    monkeypatch.setattr(ChangeTimes, "are_kept", lambda _self, _handle, _device: True)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, times_are_kept: None) -> list[int]:
    """How many bytes were hashed to verify a file, one entry per file."""
    sizes: list[int] = []
    real = verified_files.sha256_handle

    def counted(handle: int) -> str:
        sizes.append(os.fstat(handle).st_size)
        return real(handle)

    monkeypatch.setattr(verified_files, "sha256_handle", counted)
    return sizes


def settle(folder: Path) -> None:
    """Make the files look as old as files are that were not written in the last tick of the clock."""
    newest = max(path.stat().st_ctime_ns for path in folder.rglob("*"))
    import time

    while time.time_ns() - newest < 40_000_000:
        os.sched_yield()


def test_a_file_is_hashed_once_per_machine(
    registry: Registry, version: ModelVersion, settings: RegistrySettings, hashed: list[int]
) -> None:
    settle(version.folder)
    registry.open_format(version, "onnx")
    files = len(version.formats["onnx"].manifest.files)
    assert len(hashed) == files
    registry.open_format(version, "onnx")
    with Registry.open(settings) as another:
        another.open_format(version, "onnx")
    assert len(hashed) == files
    registry.verify("digits", 1)
    registry.open_wrapper(version)
    registry.open_wrapper(version)
    names = len(version.formats["onnx"].manifest.files) + len(version.wrapper.files)
    assert len(hashed) == names - 1, "model.onnx beside MLmodel is the same file"


def test_a_file_that_was_written_to_is_hashed_again_whatever_its_times_say(
    registry: Registry, version: ModelVersion, hashed: list[int]
) -> None:
    path = version.formats["torch"].folder / "weights.safetensors"
    settle(version.folder)
    registry.open_format(version, "torch")
    before, data = path.stat(), path.read_bytes()
    overwrite(path, data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    count = len(hashed)
    registry.open_format(version, "torch")
    assert len(hashed) == count + 1
    overwrite(path, b"\x00" * len(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(IntegrityError, match=r"`formats/torch/weights\.safetensors` was changed"):
        registry.open_format(version, "torch")


def test_a_file_of_the_present_tick_is_not_remembered(tmp_path: Path, hashed: list[int]) -> None:
    memory = VerifiedFiles(tmp_path / "cache")
    path = tmp_path / "file"
    for turn in range(50):
        data = f"content {turn}".encode()
        path.write_bytes(data)
        file = FileDigest(path="file", size_bytes=len(data), digest="sha256:" + hashlib.sha256(data).hexdigest())
        assert memory.has_digest(path, file)
        path.write_bytes(b"CONTENT" + data[7:])  # at once, so that the times may well be the same
        assert not memory.has_digest(path, file)


@pytest.fixture(params=["/var/tmp", "/dev/shm"], ids=["disk", "memory"])
def mapped_folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder whose files are written through mappings."""
    with TemporaryDirectory(prefix="noa-mapped-", dir=request.param) as folder:
        yield Path(folder)


def digest_of(data: bytes) -> FileDigest:
    return FileDigest(path="file", size_bytes=len(data), digest="sha256:" + hashlib.sha256(data).hexdigest())


def test_bytes_that_are_written_through_an_old_mapping_are_seen(mapped_folder: Path) -> None:
    memory = VerifiedFiles(mapped_folder / "cache")
    path, data = mapped_folder / "file", bytes(range(256)) * 64
    path.write_bytes(data)
    file = digest_of(data)
    with path.open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as mapping:
        mapping[7] = data[7]  # the page is dirty now: what is written to it later need not change the file's times
        time.sleep(0.05)
        assert memory.has_digest(path, file) and memory.has_digest(path, file)
        time.sleep(0.05)
        mapping[1000] = data[1000] ^ 1
        assert not memory.has_digest(path, file)


def test_a_weight_that_is_changed_in_memory_is_refused(mapped_folder: Path, formats: Any) -> None:
    found = RegistrySettings(
        artifact_dir=mapped_folder / "artifacts", database_url=f"sqlite:///{mapped_folder / 'models.db'}"
    )
    with Registry.open(found) as registry:
        version = registry.register(formats.draft(evidence=()), actor="ada")
        path = version.formats["torch"].folder / "weights.safetensors"
        path.chmod(0o644)
        with path.open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as mapping:
            settle(version.folder)
            mapping[1] = mapping[1]
            registry.open_format(version, "torch")
            mapping[1] ^= 1
            with pytest.raises(IntegrityError, match=r"`formats/torch/weights\.safetensors` was changed"):
                registry.open_format(version, "torch")


def test_memory_and_unknown_file_systems_keep_no_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, disk = (os.open(path, os.O_RDONLY) for path in ("/dev/shm", tmp_path))
    try:
        assert change_times.file_system_of(memory) == "tmpfs"
        assert not ChangeTimes(tmp_path).are_kept(memory, os.fstat(memory).st_dev)
        assert not change_times.shows_mapped_writes(Path("/dev/shm"), os.fstat(memory).st_dev)
        device = os.fstat(disk).st_dev
        for kind, kept in {"ext4": True, "nfs4": False, "fuse.sshfs": False, "ramfs": False, None: False}.items():
            monkeypatch.setattr(change_times, "file_system_of", lambda _handle, kind=kind: kind)
            assert ChangeTimes(tmp_path).are_kept(disk, device) is kept
        monkeypatch.setattr(change_times, "file_system_of", lambda _handle: "overlay")
        assert ChangeTimes(tmp_path).are_kept(disk, device) is change_times.shows_mapped_writes(tmp_path, device)
        assert not ChangeTimes(tmp_path).are_kept(disk, device + 1), "nothing is known of another device"
        assert not list(tmp_path.iterdir())
    finally:
        os.close(memory)
        os.close(disk)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_a_file_that_cannot_be_synced_is_remembered_only_where_nothing_can_be_written(
    tmp_path: Path, hashed: list[int], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_handle: int) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    path.write_bytes(b"x")
    settle(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse)
    memory = VerifiedFiles(tmp_path / "cache")
    assert memory.has_digest(path, digest_of(b"x")) and memory.has_digest(path, digest_of(b"x"))
    assert len(hashed) == (1 if number == errno.EROFS else 2)


def test_a_local_copy_that_another_version_had_is_hashed_before_it_is_remembered(mapped_folder: Path) -> None:
    """Its page may be dirty through a mapping: what is written to it then is not told by its times."""
    data = bytes(range(256)) * 64
    manifest = Manifest.of([digest_of(data)])
    verified = VerifiedFiles(mapped_folder / "cache")
    cache = UnitCache(mapped_folder / "cache", max_bytes=1 << 30, verified=verified)

    def download(_inner: str, _file: FileDigest, sink: BinaryIO) -> None:
        sink.write(data)

    def part(uid: str) -> Part:
        return Part(unit=UnitKey(name="digits", uid=uid), prefix="", manifest=manifest)

    path = cache.open_part(part("first"), download) / "file"
    path.chmod(0o644)
    with path.open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as mapping:
        mapping[7] = data[7]
        time.sleep(0.05)
        second = cache.open_part(part("second"), download) / "file"
        assert second.samefile(path)
        time.sleep(0.05)
        mapping[1000] = data[1000] ^ 1
        assert not verified.has_digest(second, digest_of(data))
    cache.close()


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"1 2 3 4 5", None])
def test_a_damaged_memory_is_as_good_as_none(
    registry: Registry, version: ModelVersion, settings: RegistrySettings, hashed: list[int], damage: bytes | None
) -> None:
    settle(version.folder)
    registry.open_format(version, "torch")
    count = len(hashed)
    entries = list((settings.artifact_dir / "_cache" / "verified").glob("??/*"))
    assert len(entries) == count
    for entry in entries:
        text = bytearray(entry.read_bytes())
        text[len(text) // 2] ^= 1
        entry.write_bytes(bytes(text) if damage is None else damage)
    registry.open_format(version, "torch")
    assert len(hashed) == 2 * count
    registry.open_format(version, "torch")
    assert len(hashed) == 2 * count


def test_a_memory_that_others_may_write_is_not_used(
    registry: Registry, version: ModelVersion, settings: RegistrySettings, hashed: list[int]
) -> None:
    settle(version.folder)
    registry.open_format(version, "torch")
    count = len(hashed)
    (settings.artifact_dir / "_cache" / "verified").chmod(0o777)
    registry.open_format(version, "torch")
    assert len(hashed) == 2 * count


def test_a_memory_that_cannot_be_written_costs_time_and_nothing_else(tmp_path: Path, hashed: list[int]) -> None:
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    path = tmp_path / "file"
    path.write_bytes(b"x")
    settle(tmp_path)
    memory = VerifiedFiles(tmp_path / "cache")
    file = FileDigest(path="file", size_bytes=1, digest="sha256:" + hashlib.sha256(b"x").hexdigest())
    assert memory.has_digest(path, file) and memory.has_digest(path, file)
    assert len(hashed) == 2
    assert not memory.has_digest(tmp_path / "gone", file)


def test_the_memory_is_bounded(tmp_path: Path, times_are_kept: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified_files, "_MAX_ENTRIES_PER_SHARD", 10)
    memory = VerifiedFiles(tmp_path / "cache")
    digest = "sha256:" + hashlib.sha256(b"x").hexdigest()
    paths = [tmp_path / f"file-{index}" for index in range(40)]
    for path in paths:
        path.write_bytes(b"x")
    for path in paths:
        memory.remember({path: FileDigest(path=path.name, size_bytes=1, digest=digest)})
    assert 5 <= len(list((tmp_path / "cache" / "verified").glob("??/*"))) <= 11


def test_processes_that_share_a_memory_do_not_disturb_each_other(
    settings: RegistrySettings, version: ModelVersion
) -> None:
    code = (
        "import sys; from noa.settings import RegistrySettings; from noa_registry import Registry\n"
        "with Registry.open(RegistrySettings.model_validate_json(sys.argv[1])) as registry:\n"
        "    for _ in range(100): registry.open_format(registry.resolve('digits/1'), 'onnx')"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, settings.model_dump_json()]) for _ in range(3)]
    assert [child.wait(120) for child in children] == [0, 0, 0]
    found = list((settings.artifact_dir / "_cache" / "verified").rglob("*"))
    assert not [path for path in found if path.name.startswith(".")], "no temporary file is left"


# --- naming every file -----------------------------------------------------------------------------------------------


def test_verify_names_every_file_with_its_place_in_the_version(registry: Registry, version: ModelVersion) -> None:
    onnx, torch = (version.formats[name].folder for name in ("onnx", "torch"))
    overwrite(torch / "weights.safetensors", b"other")
    (torch / "signature.json").unlink()
    (onnx / "extra.bin").write_bytes(b"")
    overwrite(version.folder / "MLmodel", b"flavors: {}")
    expected = (
        ("MLmodel", "changed"),
        ("formats/onnx/extra.bin", "added"),
        ("formats/torch/signature.json", "missing"),
        ("formats/torch/weights.safetensors", "changed"),
    )
    assert tuple((problem.path, problem.change) for problem in registry.find_problems(version)) == expected
    with pytest.raises(IntegrityError) as caught:
        registry.verify("digits", 1)
    assert caught.value.facts["files"] == tuple(path for path, _ in expected)
    assert all(f"`{path}`" in str(caught.value) for path, _ in expected)
    verdict = next(verdict for verdict in registry.check("digits", 1).verdicts if verdict.rule == "bytes")
    assert all(f"`{path}`" in verdict.received for path, _ in expected)
    with pytest.raises(IntegrityError, match="MLmodel"):
        registry.open_wrapper(version)


def test_a_link_in_the_place_of_a_sealed_file_is_a_change(
    registry: Registry, version: ModelVersion, tmp_path: Path
) -> None:
    path = version.formats["torch"].folder / "weights.safetensors"
    (tmp_path / "same").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "same")
    for attempt in (lambda: registry.open_format(version, "torch"), lambda: registry.verify("digits", 1)):
        with pytest.raises(IntegrityError, match=r"weights\.safetensors` was changed"):
            attempt()


def test_what_lies_beside_the_formats_is_found_and_moved_aside(
    registry: Registry, version: ModelVersion, formats: Any, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    shutil.copytree(formats.onnx, tmp_path / "more" / "onnx")
    only_native = registry.register(formats.draft(evidence=(), formats={"torch": formats.torch}), actor="ada")
    added = registry.add_format(
        "digits", only_native.number, "onnx", tmp_path / "more" / "onnx", evidence=(), actor="a"
    )
    later = added.formats["onnx"].folder.parent
    for place in (version.folder / "formats", later):
        (place / "evil.py").write_text("print()")
        (place / "keras").mkdir()
        (place / "keras" / "weights.h5").write_bytes(b"x")
        (place / "onnx" / "hollow" / "inner").mkdir(parents=True)
        (place / "jax").mkdir()
        (place / "away").symlink_to(tmp_path)
        os.mkfifo(place / "pipe")
    (later.parent / "loose").write_text("x")
    names = ["formats/away", "formats/evil.py", "formats/jax", "formats/keras/weights.h5"]
    names += ["formats/onnx/hollow/inner", "formats/pipe"]
    assert [problem.path for problem in registry.find_problems(version)] == names
    assert [problem.path for problem in registry.find_problems(added)] == [*names, "loose"]
    with pytest.raises(IntegrityError, match=r"`formats/evil\.py` was added"):
        registry.verify("digits", 1)
    for number in (1, 2):
        assert all(one.is_repaired for one in registry.repair_files("digits", number))
        registry.verify("digits", number)
    assert (tmp_path / "more").is_dir()


@pytest.mark.parametrize("place", ["formats/onnx", "formats", "", ".."])
def test_a_folder_that_was_replaced_by_a_link_is_refused_by_name(
    registry: Registry, version: ModelVersion, formats: Any, tmp_path: Path, place: str
) -> None:
    folder = (version.folder / place).resolve()
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    for attempt in (
        lambda: registry.verify("digits", 1),
        lambda: registry.open_format(version, "onnx"),
        lambda: registry.load("digits/1", format="onnx"),
    ):
        with pytest.raises(IntegrityError, match=f"`{folder.name}`") as refused:
            attempt()
        assert refused.value.facts["file"] in (str(folder), place)
    if place == "..":
        with pytest.raises(IntegrityError, match="symbolic link"):
            registry.register(formats.draft(), actor="ada")
    before = sorted(path for path in (tmp_path / "moved").rglob("*"))
    registry.repair_files("digits", 1)
    assert sorted(path for path in (tmp_path / "moved").rglob("*")) == before


def test_the_root_of_the_store_may_be_a_link(
    registry: Registry, version: ModelVersion, settings: RegistrySettings, tmp_path: Path
) -> None:
    settings.artifact_dir.rename(tmp_path / "elsewhere")
    settings.artifact_dir.symlink_to(tmp_path / "elsewhere")
    registry.verify("digits", 1)
    registry.load("digits/1")


def test_a_name_that_mlflow_uses_is_refused_before_anything_is_sealed(registry: Registry, formats: Any) -> None:
    (formats.onnx / "MLmodel").write_text("mine")
    with pytest.raises(InvalidInputError, match="has a name that MLflow uses"):
        registry.register(formats.draft(evidence=()), actor="ada")
    assert registry.models() == []


def test_a_store_opens_only_what_it_was_asked_for(
    registry: Registry, version: ModelVersion, settings: RegistrySettings
) -> None:
    store = open_artifacts(settings, seals=DatabaseSeals(registry._database))
    part = Part(
        unit=UnitKey(name="digits", uid="0" * 32), prefix="formats/onnx", manifest=version.formats["onnx"].manifest
    )
    with pytest.raises(IntegrityError, match="missing"):
        store.open_part(part)
    with pytest.raises(InvalidInputError):
        store.unit_uri(UnitKey(name="../up", uid="x"))


def test_settings_of_a_store_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, object], str]] = [
        ({"artifact_url": "s3://bucket/x", "artifact_dir": tmp_path}, "both set"),
        ({"artifact_url": "gs://bucket/x"}, "not a place in S3"),
        ({"artifact_url": "s3://bucket/../x"}, "not a place in S3"),
        ({"artifact_url": "s3://UPPER/x"}, "not a place in S3"),
        ({"s3": {"region": "eu-central-1"}}, "no effect"),
        ({"artifact_url": "s3://bucket", "s3": {"access_key": "only"}}, "belong together"),
        ({"artifact_url": "s3://bucket", "s3": {"endpoint_url": "localhost:9000"}}, "not a URL"),
    ]
    for values, message in wrong:
        with pytest.raises(ValueError, match=message):
            RegistrySettings.model_validate(values)
    relative = RegistrySettings(database_url=f"sqlite:///{tmp_path}/noa.db", artifact_url="s3://bucket/x")
    with pytest.raises(InvalidInputError, match=r"registry\.cache_dir` is not absolute"):
        Registry.open(relative)


def test_secrets_stay_out_of_the_json_of_settings() -> None:
    settings = RegistrySettings.model_validate(
        {"artifact_url": "s3://bucket/x", "s3": {"access_key": "AKIA", "secret_key": "hush"}}
    )
    text = settings.model_dump_json()
    assert "hush" not in text and "AKIA" not in text and "***" not in text
    assert RegistrySettings.model_validate_json(text).artifact_url == "s3://bucket/x"


def test_a_folder_of_a_local_store_is_not_made_before_it_is_needed(settings: RegistrySettings) -> None:
    with Registry.open(settings):
        assert not settings.artifact_dir.exists()
