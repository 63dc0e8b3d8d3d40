"""What only S3 has: requests that fail, leases instead of locks, local copies. The rest is in the common tests."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noa.digests import sha256_file
from noa.errors import IntegrityError, StorageError
from noa.settings import RegistrySettings
from noa_registry import ModelVersion, Registry, open_tracker
from noa_registry.artifacts import Part, UnitKey, open_artifacts, s3_environment
from noa_registry.faults import REGISTRATION_STEPS
from noa_registry.seals import DatabaseSeals
from s3_proxy import Kind, S3Proxy
from s3_server import S3Server, StoredFiles, s3_settings
from samples import mostly

CHILD = Path(__file__).with_name("registry_child.py")
BIG = 40_000


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[S3Proxy]:
    proxy = S3Proxy(s3_server.url)
    yield proxy
    proxy.close()


@pytest.fixture
def at_s3(
    sqlite_settings: RegistrySettings, s3_server: S3Server, proxy: S3Proxy, tmp_path: Path
) -> Callable[..., RegistrySettings]:
    """Settings of an empty registry with its files in a bucket of its own, reached through the proxy."""
    bucket = s3_server.create_bucket()

    def make(*, cache: str = "cache", cache_max_bytes: int = 1 << 30, **s3: Any) -> RegistrySettings:
        return RegistrySettings(
            database_url=sqlite_settings.database_url,
            artifact_url=f"s3://{bucket}/some/prefix",
            s3=s3_settings(proxy.url, **s3),
            cache_dir=tmp_path / cache,
            cache_max_bytes=cache_max_bytes,
        )

    return make


@pytest.fixture
def settings(at_s3: Callable[..., RegistrySettings]) -> RegistrySettings:
    return at_s3()


@pytest.fixture
def stored(settings: RegistrySettings, s3_server: S3Server) -> StoredFiles:
    """The bucket, past the proxy."""
    straight = settings.s3.model_copy(update={"endpoint_url": s3_server.url})
    return StoredFiles(settings.model_copy(update={"s3": straight}))


@pytest.fixture
def big_formats(formats: Any) -> Any:
    """Formats with a file that is large enough to be cut, to crawl, and to be shared."""
    (formats.torch / "more.bin").write_bytes(np.random.default_rng(1).bytes(BIG))
    return formats


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- uploads ---------------------------------------------------------------------------------------------------------

UPLOAD_FAULTS: list[tuple[Kind, str, str]] = [
    ("error 500", "PUT", r"_leases"),
    ("error 500", "PUT", r"model\.onnx"),
    ("reset", "PUT", r"more\.bin"),
    ("reset after", "PUT", r"more\.bin"),
    ("flip up", "PUT", r"more\.bin"),
    ("error 500", "HEAD", r"more\.bin"),
    ("error 403", "PUT", r"MLmodel"),
    ("error 500", "GET", r"list-type=2.*digits"),
    ("error 500", "HEAD", r"MLmodel"),
]


@pytest.mark.parametrize(
    ("kind", "method", "path"), mostly("chaos", UPLOAD_FAULTS, sample=[UPLOAD_FAULTS[at] for at in (1, 2, 3, 4, 6, 7)])
)
def test_an_upload_that_fails_for_good_leaves_nothing_and_a_retry_works(
    settings: RegistrySettings,
    stored: StoredFiles,
    proxy: S3Proxy,
    big_formats: Any,
    kind: Kind,
    method: str,
    path: str,
) -> None:
    with Registry.open(settings) as registry:
        fault = proxy.plan(kind, method, path, times=100)
        with pytest.raises(StorageError):
            registry.register(big_formats.draft(evidence=()), actor="ada")
        assert fault.hits > 0
        assert registry.models() == []
        proxy.heal()
        if path != "_leases" and kind != "error 403":
            assert fault.hits <= settings.s3.max_attempts * 4, "attempts are bounded"
        leftover = stored.all()
        assert not leftover or "GET" in method, (
            leftover
        )  # without a listing nothing can be removed; the lease remembers
        version = registry.register(big_formats.draft(evidence=()), actor="ada")
        registry.verify("digits", 1)
        assert stored.paths("digits", version.uid) >= {"MLmodel", "formats/torch/more.bin"}


# What S3 says on purpose (forbidden, or that the bytes changed) is an answer, and the caller's to decide about.
@pytest.mark.parametrize(
    ("kind", "method", "path"),
    mostly(
        "chaos",
        [fault for fault in UPLOAD_FAULTS if fault[0] not in ("error 403", "flip up")],
        sample=[UPLOAD_FAULTS[at] for at in (0, 3, 5)],
    ),
)
def test_an_upload_that_fails_once_is_tried_again(
    settings: RegistrySettings,
    stored: StoredFiles,
    proxy: S3Proxy,
    big_formats: Any,
    kind: Kind,
    method: str,
    path: str,
) -> None:
    with Registry.open(settings) as registry:
        fault = proxy.plan(kind, method, path, times=1)
        version = registry.register(big_formats.draft(evidence=()), actor="ada")
        assert fault.hits == 1
        registry.verify("digits", 1)
        assert not [path for path in stored.all() if "_leases" in path]
        assert version.number == 1


def test_a_large_file_goes_in_parts_and_arrives_whole(
    at_s3: Callable[..., RegistrySettings], stored: StoredFiles, proxy: S3Proxy, formats: Any
) -> None:
    settings = at_s3(part_bytes=5 << 20, parallel=2)
    path = formats.torch / "large.bin"
    path.write_bytes(np.random.default_rng(2).bytes((11 << 20) + 17))
    with Registry.open(settings) as registry:
        broken = proxy.plan("reset", "PUT", r"partNumber=2", times=100)
        with pytest.raises(StorageError):
            registry.register(formats.draft(evidence=()), actor="ada")
        assert broken.hits > 0
        proxy.heal()
        assert stored.all() == set(), "an upload in parts was not given up"
        proxy.plan("error 500", "PUT", r"partNumber=2")
        version = registry.register(formats.draft(evidence=()), actor="ada")
        sealed = {file.path: file.digest for file in version.formats["torch"].manifest.files}
        assert sealed["large.bin"] == sha256_file(path)
        assert sum("partNumber=" in request for request in proxy.requests) >= 3
        assert sha256_file(registry.open_format(version, "torch") / "large.bin") == sealed["large.bin"]
        registry.verify("digits", 1)


# --- downloads -------------------------------------------------------------------------------------------------------

DOWNLOAD_FAULTS: list[Kind] = ["error 500", "reset", "cut", "short", "hang", "crawl"]


@pytest.fixture
def sealed(settings: RegistrySettings, big_formats: Any) -> ModelVersion:
    """`digits/1` in S3, with nothing in the cache yet."""
    with Registry.open(settings) as registry:
        return registry.register(big_formats.draft(evidence=()), actor="ada")


@pytest.mark.parametrize("kind", mostly("chaos", DOWNLOAD_FAULTS, sample=["error 500", "cut", "crawl"]))
def test_a_download_that_fails_once_is_taken_up_again(
    at_s3: Callable[..., RegistrySettings], sealed: ModelVersion, proxy: S3Proxy, kind: Kind, big_formats: Any
) -> None:
    # A hundred bytes in a second are an idle line; only the faults are that slow.
    settings = at_s3(read_timeout_s=0.5, min_bytes_per_s=2000)
    with Registry.open(settings) as registry:
        fault = proxy.plan(kind, "GET", r"more\.bin")
        folder = registry.open_format(sealed, "torch")
        assert fault.hits == 1
        assert (folder / "more.bin").read_bytes() == (big_formats.torch / "more.bin").read_bytes()
        assert files_below(settings.cache_dir / "partial") == set()


@pytest.mark.parametrize("kind", mostly("chaos", DOWNLOAD_FAULTS, sample=["reset", "short", "hang"]))
def test_a_download_that_fails_for_good_leaves_no_half_file(
    at_s3: Callable[..., RegistrySettings], sealed: ModelVersion, proxy: S3Proxy, kind: Kind
) -> None:
    settings = at_s3(read_timeout_s=0.3, min_bytes_per_s=2000, max_attempts=2)
    with Registry.open(settings) as registry:
        fault = proxy.plan(kind, "GET", r"more\.bin", times=100)
        # Who says again and again that the object is shorter says that it was changed.
        with pytest.raises(IntegrityError if kind == "short" else StorageError):
            registry.open_format(sealed, "torch")
        assert 2 <= fault.hits <= 4
        assert not any("more.bin" in path for path in files_below(settings.cache_dir / "units"))
        assert files_below(settings.cache_dir / "partial") == set()
        proxy.heal()
        assert (registry.open_format(sealed, "torch") / "more.bin").stat().st_size == BIG


def test_a_download_that_was_cut_goes_on_where_it_stopped(
    settings: RegistrySettings, sealed: ModelVersion, proxy: S3Proxy
) -> None:
    ranges: list[str] = []
    with Registry.open(settings) as registry:
        proxy.on_headers = lambda method, path, headers: ranges.extend(
            [headers["Range"]] if "more.bin" in path and "Range" in headers else []
        )
        proxy.plan("cut", "GET", r"more\.bin")
        registry.open_format(sealed, "torch")
    assert ranges == [f"bytes={BIG // 2}-"]


def test_bytes_that_change_on_their_way_are_fetched_again(
    settings: RegistrySettings, sealed: ModelVersion, proxy: S3Proxy
) -> None:
    with Registry.open(settings) as registry:
        proxy.plan("flip down", "GET", r"more\.bin")
        assert (registry.open_format(sealed, "torch") / "more.bin").is_file()
        proxy.plan("flip down", "GET", r"more\.bin", times=2)
        with pytest.raises(IntegrityError, match=r"`formats/torch/more\.bin` was changed"):
            registry.verify("digits", 1)
        registry.verify("digits", 1)


def test_what_s3_refuses_is_said_with_the_remedy(
    settings: RegistrySettings, at_s3: Callable[..., RegistrySettings], sealed: ModelVersion, proxy: S3Proxy
) -> None:
    with Registry.open(settings) as registry:
        proxy.plan("error 403", "GET", r"more\.bin")
        with pytest.raises(StorageError, match=r"AccessDenied.*Allow these credentials"):
            registry.open_format(sealed, "torch")
    gone = at_s3(cache="other").model_copy(update={"artifact_url": "s3://no-such-bucket-here/x"})
    with Registry.open(gone) as registry, pytest.raises(StorageError, match=r"NoSuchBucket.*Create the bucket"):
        registry.open_format(sealed, "torch")
    closed = s3_settings("http://127.0.0.1:1", max_attempts=2, connect_timeout_s=1)
    nobody = at_s3(cache="another").model_copy(update={"s3": closed})
    with Registry.open(nobody) as registry, pytest.raises(StorageError, match=r"S3 cannot be used: .*127\.0\.0\.1:1"):
        registry.open_format(sealed, "torch")


def test_every_exception_of_the_client_has_a_translation() -> None:
    import botocore.exceptions
    import urllib3.exceptions

    from noa_registry.artifacts.s3_errors import translate_s3_errors

    def kinds(base: type[Exception]) -> set[type[Exception]]:
        return {base}.union(*(kinds(kind) for kind in base.__subclasses__()))

    found = kinds(botocore.exceptions.BotoCoreError) | kinds(urllib3.exceptions.HTTPError) | kinds(ConnectionError)
    assert len(found) > 60
    for kind in found:
        error = type(kind.__name__, (kind,), {"__init__": lambda self: None, "__str__": lambda self: "text"})()
        with pytest.raises(StorageError, match="s3://here"), translate_s3_errors("s3://here"):
            raise error
    answer = {"Error": {"Code": "AnythingNew", "Message": "so it is"}}
    with pytest.raises(StorageError, match="AnythingNew, so it is"), translate_s3_errors("s3://here"):
        raise botocore.exceptions.ClientError(answer, "PutObject")


# --- tampering -------------------------------------------------------------------------------------------------------


def test_a_tampered_bucket_is_refused_and_every_file_named(
    settings: RegistrySettings, stored: StoredFiles, sealed: ModelVersion
) -> None:
    stored.flip("digits", sealed.uid, "formats/torch/more.bin")
    stored.remove("digits", sealed.uid, "formats/torch/weights.safetensors")
    stored.write("digits", sealed.uid, "formats/onnx/code.py", b"print(1)")
    stored.flip("digits", sealed.uid, "MLmodel")
    with Registry.open(settings) as registry:
        with pytest.raises(IntegrityError) as caught:
            registry.verify("digits", 1)
        assert caught.value.facts["files"] == (
            "MLmodel",
            "formats/onnx/code.py",
            "formats/torch/more.bin",
            "formats/torch/weights.safetensors",
        )
        for words in ("`formats/torch/weights.safetensors` is missing", "`formats/onnx/code.py` was added"):
            assert words in str(caught.value)
        with pytest.raises(IntegrityError, match=r"more\.bin` was changed, .*weights\.safetensors` is missing"):
            registry.open_format(sealed, "torch")
        assert not any("more.bin" in path for path in files_below(settings.cache_dir))
        assert not (registry.open_format(sealed, "onnx") / "code.py").exists()
        assert [verdict.passed for verdict in registry.check("digits", 1).verdicts if verdict.rule == "bytes"] == [
            False
        ]


# --- the cache -------------------------------------------------------------------------------------------------------


def test_what_is_cached_is_opened_without_s3(settings: RegistrySettings, sealed: ModelVersion, proxy: S3Proxy) -> None:
    with Registry.open(settings) as registry:
        first = registry.open_format(sealed, "torch")
    proxy.requests.clear()
    proxy.plan("error 500", "GET", r".", times=1000)
    with Registry.open(settings) as registry:
        assert registry.open_format(registry.resolve("digits/1"), "torch") == first
        registry.input_example  # noqa: B018
    assert not [request for request in proxy.requests if "digits" in request]


def test_a_check_of_all_formats_lists_each_unit_once(
    settings: RegistrySettings, sealed: ModelVersion, proxy: S3Proxy, formats: Any
) -> None:
    with Registry.open(settings) as registry:
        grown = registry.add_format("digits", 1, "more", formats.onnx, evidence=(), actor="ada")
        assert len({one.uid for one in grown.formats.values()} | {sealed.uid}) == 2
        for version, units in ((sealed, 1), (grown, 2)):
            proxy.requests.clear()
            assert registry.find_problems(version) == []
            assert sum("list-type=2" in request for request in proxy.requests) == units


def test_a_damaged_copy_is_fetched_anew_and_an_extra_file_removed(
    settings: RegistrySettings, sealed: ModelVersion, big_formats: Any
) -> None:
    with Registry.open(settings) as registry:
        folder = registry.open_format(sealed, "torch")
        (folder / "more.bin").chmod(0o644)
        with (folder / "more.bin").open("r+b") as file:
            file.write(b"\x00\x01")
        (folder / "code.py").write_text("print(1)")
        again = registry.open_format(sealed, "torch")
        assert (again / "more.bin").read_bytes() == (big_formats.torch / "more.bin").read_bytes()
        assert not (again / "code.py").exists()


def test_equal_bytes_are_fetched_and_kept_once(
    settings: RegistrySettings, sealed: ModelVersion, proxy: S3Proxy, big_formats: Any
) -> None:
    with Registry.open(settings) as registry:
        second = registry.register(big_formats.draft(evidence=()), actor="ada")
        one = registry.open_format(sealed, "torch") / "more.bin"
        proxy.requests.clear()
        two = registry.open_format(second, "torch") / "more.bin"
    assert one.samefile(two)
    assert not [request for request in proxy.requests if "more.bin" in request]


def test_many_processes_fetch_a_version_once(settings: RegistrySettings, sealed: ModelVersion, proxy: S3Proxy) -> None:
    code = (
        "import sys; from noa.settings import RegistrySettings; from noa_registry import Registry\n"
        "with Registry.open(RegistrySettings.model_validate_json(sys.argv[1])) as registry:\n"
        "    print((registry.open_format(registry.resolve('digits/1'), 'torch') / 'more.bin').stat().st_size)"
    )
    text = json.dumps(settings.model_dump(mode="json"))
    proxy.requests.clear()
    children = [
        subprocess.Popen([sys.executable, "-c", code, text], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert [child.communicate(timeout=120)[0].strip() for child in children] == [str(BIG)] * 4
    assert sum("more.bin" in request for request in proxy.requests) == 1


def test_the_cache_is_bounded_and_keeps_what_is_in_use(
    at_s3: Callable[..., RegistrySettings], big_formats: Any, tmp_path: Path
) -> None:
    size = 600_000
    versions: list[ModelVersion] = []
    with Registry.open(at_s3()) as writer:
        for seed in range(4):
            (big_formats.torch / "more.bin").write_bytes(np.random.default_rng(seed).bytes(size))
            versions.append(writer.register(big_formats.draft(evidence=()), actor="ada"))
    settings = at_s3(cache="small", cache_max_bytes=2 << 20)

    def cached() -> list[int]:
        folder = settings.cache_dir / "units" / "digits"
        return [version.number for version in versions if (folder / version.uid).exists()]

    with Registry.open(settings) as user:
        used = user.open_format(versions[0], "torch")
        for version in versions[1:]:
            with Registry.open(settings) as other:
                other.open_format(version, "torch")
        assert cached() == [1, 3, 4], "the longest unused goes, what is in use stays"
        assert (used / "more.bin").stat().st_size == size
    total = sum(path.stat().st_size for path in (settings.cache_dir / "blobs").rglob("*") if path.is_file())
    assert total <= settings.cache_max_bytes
    with Registry.open(settings) as other:
        other.open_format(versions[1], "torch")
    assert 1 not in cached()
    tiny = at_s3(cache="tiny", cache_max_bytes=1 << 20)
    (big_formats.torch / "more.bin").write_bytes(bytes(3 << 20))
    with Registry.open(tiny) as registry:
        large = registry.register(big_formats.draft(evidence=()), actor="ada")
        with pytest.raises(StorageError, match=r"larger than the local cache.*cache_max_bytes"):
            registry.open_format(large, "torch")


def test_a_full_disk_while_fetching_leaves_no_half_file_and_a_retry_works(
    settings: RegistrySettings, sealed: ModelVersion
) -> None:
    code = (
        "import resource, sys; from noa.settings import RegistrySettings; from noa_registry import Registry\n"
        "from noa.errors import StorageError\n"
        "with Registry.open(RegistrySettings.model_validate_json(sys.argv[1])) as registry:\n"
        "    version = registry.resolve('digits/1')\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "    try: registry.open_format(version, 'torch')\n"
        "    except StorageError as exc: print(exc)"
    )
    text = json.dumps(settings.model_dump(mode="json"))
    done = subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, timeout=120, check=True)
    assert "cannot write" in done.stdout
    found = files_below(settings.cache_dir / "units") | files_below(settings.cache_dir / "partial")
    assert not any("more.bin" in path for path in found)
    assert files_below(settings.cache_dir / "partial") == set()
    with Registry.open(settings) as registry:
        assert (registry.open_format(sealed, "torch") / "more.bin").stat().st_size == BIG


def test_what_a_killed_process_was_fetching_is_removed(settings: RegistrySettings, sealed: ModelVersion) -> None:
    partial = settings.cache_dir / "partial" / "of-the-dead"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"half")
    with Registry.open(settings) as registry:
        registry.open_format(sealed, "torch")
    assert files_below(partial.parent) == set()


# --- writers that die, sleep or live ---------------------------------------------------------------------------------


def sweep(settings: RegistrySettings) -> None:
    """Remove leftovers now, as a start of noa does at most once per lease."""
    (settings.cache_dir / "swept").unlink(missing_ok=True)
    Registry.open(settings).close()


def sweep_until_removed(settings: RegistrySettings, stored: StoredFiles) -> None:
    deadline = time.monotonic() + 60
    while any("_leases/" in path for path in stored.all()):
        assert time.monotonic() < deadline, "the leftover is still there"
        sweep(settings)


@pytest.mark.parametrize("step", mostly("chaos", REGISTRATION_STEPS, sample=["published"]))
def test_what_a_killed_writer_left_in_s3_is_removed_after_its_lease(
    at_s3: Callable[..., RegistrySettings], stored: StoredFiles, formats: Any, step: str
) -> None:
    settings = at_s3(lease_s=1)
    request = {"settings": settings.model_dump(mode="json"), "formats": str(formats.folder), "kill_at": step}
    killed = subprocess.run(
        [sys.executable, str(CHILD), "register", json.dumps(request)], capture_output=True, timeout=120, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert any("_leases/" in path for path in stored.all())
    with Registry.open(settings) as registry:
        expected = 1 if step == "committed" else 0
        assert sum(model.versions for model in registry.models()) == expected
    sweep_until_removed(settings, stored)
    assert {path.split("/")[0] for path in stored.all()} == ({"digits"} if expected else set())
    with Registry.open(settings) as registry:
        assert registry.register(formats.draft(), actor="ada").number == expected + 1
        for number in range(1, expected + 2):
            registry.verify("digits", number)


def test_a_living_writer_keeps_its_unit_however_long_it_takes(
    at_s3: Callable[..., RegistrySettings], proxy: S3Proxy, formats: Any
) -> None:
    settings = at_s3(lease_s=4)  # renewed every second; a busy machine must not make the living look dead
    renewals = 0
    renewed = threading.Event()

    def count(method: str, path: str) -> None:
        nonlocal renewals
        renewals += method == "PUT" and "_leases" in path
        if renewals >= 9:  # more than two leases
            renewed.set()

    proxy.on_request = count

    def wait(step: str) -> None:
        if step == "published":
            while not renewed.wait(0.2):
                sweep(settings)

    with Registry.open(settings, checkpoint=wait) as registry:
        registry.register(formats.draft(), actor="ada")
        registry.verify("digits", 1)


def test_a_renewal_that_is_on_its_way_does_not_bring_a_finished_writers_lease_back(
    at_s3: Callable[..., RegistrySettings], stored: StoredFiles, proxy: S3Proxy, formats: Any
) -> None:
    renewing = threading.Event()
    is_published = threading.Event()

    def be_slow(method: str, path: str) -> None:
        if method == "PUT" and "_leases" in path and is_published.is_set() and not renewing.is_set():
            renewing.set()
            time.sleep(1.5)

    def wait(step: str) -> None:
        if step == "published":
            is_published.set()
            assert renewing.wait(60)

    proxy.on_request = be_slow
    with Registry.open(at_s3(lease_s=1), checkpoint=wait) as registry:
        registry.register(formats.draft(), actor="ada")
    time.sleep(2.0)  # as long as the renewal takes at most
    assert not [path for path in stored.all() if "_leases" in path]


def test_a_writer_that_slept_through_its_lease_gives_up_and_a_retry_works(
    at_s3: Callable[..., RegistrySettings], stored: StoredFiles, proxy: S3Proxy, formats: Any
) -> None:
    settings = at_s3(lease_s=1)

    def sleep(step: str) -> None:
        if step == "published":
            proxy.plan("error 403", "PUT", r"_leases", times=1000)  # as good as asleep: nobody hears of it
            sweep_until_removed(settings, stored)

    with Registry.open(settings, checkpoint=sleep) as registry:
        with pytest.raises(StorageError, match="not heard of for too long"):
            registry.register(formats.draft(), actor="ada")
        assert registry.models() == []
        proxy.heal()
    with Registry.open(settings) as registry:
        assert registry.register(formats.draft(), actor="ada").number == 1
        registry.verify("digits", 1)


# --- MLflow ----------------------------------------------------------------------------------------------------------


def test_stock_mlflow_loads_the_champion_from_s3(settings: RegistrySettings, formats: Any, tmp_path: Path) -> None:
    with Registry.open(settings) as registry:
        registry.register(formats.draft(), actor="ada")
        registry.promote("digits", 1, reason="go", actor="ada")
    code = (
        "import sys, mlflow, numpy as np\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/digits@champion')\n"
        "np.save(sys.argv[2], model.predict(np.load(sys.argv[3]))['logits'])\n"
        "assert not [name for name in sys.modules if name.startswith('noa')]"
    )
    x = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    # MLflow leaves what it was told in the environment: another test's registry must not be followed.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment = {
        **inherited,
        "MLFLOW_S3_ENDPOINT_URL": settings.s3.endpoint_url,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, settings.database_url, str(tmp_path / "y.npy"), str(tmp_path / "x.npy")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with Registry.open(settings) as registry:
        ours = registry.load("digits@champion").run({"x": x})["logits"]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), ours)


def test_artifacts_of_runs_go_to_the_bucket(
    settings: RegistrySettings, stored: StoredFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_environment(settings).items():
        monkeypatch.setenv(name, value)  # and put back after the test
    (tmp_path / "plot.txt").write_text("hello")
    tracker = open_tracker(settings, "project")
    run_id = tracker.start_run("files", {}, {})
    tracker.log_artifact(run_id, tmp_path / "plot.txt", folder="plots")
    assert f"_runs/project/{run_id}/artifacts/plots/plot.txt" in stored.all()


def test_the_collector_sees_units_and_local_copies(settings: RegistrySettings, sealed: ModelVersion) -> None:
    with Registry.open(settings) as registry:
        store = open_artifacts(settings, seals=DatabaseSeals(registry._database))
        key = UnitKey(name="digits", uid=sealed.uid)
        assert list(store.units()) == [key]
        facts = store.unit_facts(key)
        assert facts is not None and not facts.is_claimed
        assert facts.size_bytes == sum(
            manifest.size_bytes for manifest in (sealed.wrapper, *(one.manifest for one in sealed.formats.values()))
        )
        folder = store.open_part(Part(unit=key, prefix="formats/torch", manifest=sealed.formats["torch"].manifest))
        assert [cached.key for cached in store.cached()] == [key]
        with_open = store.remove_cached(key)
        assert (with_open, folder.exists()) == (False, True), "it is in use"
        store.close()
        assert store.remove_cached(key) and not folder.exists()
        store.remove_unit(key)
        assert store.unit_facts(key) is None and list(store.units()) == []
        store.close()


def test_digests_of_uploads_are_those_of_the_files(sealed: ModelVersion, big_formats: Any) -> None:
    found = {file.path: file.digest for file in sealed.formats["torch"].manifest.files}
    expected = hashlib.sha256((big_formats.torch / "more.bin").read_bytes()).hexdigest()
    assert found["more.bin"] == f"sha256:{expected}"


def test_what_boto_knows_of_s3_is_read_once_per_process(
    settings: RegistrySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is megabytes of JSON: to parse them takes longer than all requests of a registration."""
    from botocore.loaders import JSONFileLoader

    read: list[str] = []
    real = JSONFileLoader.load_file

    def load_file(self: Any, file_path: str) -> Any:
        read.append(file_path)
        return real(self, file_path)

    with Registry.open(settings) as registry:
        registry.find_store_problems()
    monkeypatch.setattr(JSONFileLoader, "load_file", load_file)
    with Registry.open(settings) as registry:
        registry.find_store_problems()
    assert read == []
