"""The payload log: what monitoring reads, whole files or none, and never in the way of a request."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from observe_kit import RECORD, post, total
from serving_kit import Project, affine_model, endpoint, mixed_model, wait_until
from small_disk_kit import server_on_small_disk

from noa.settings import PayloadLogSettings, Settings
from noa_serving import Client, start_server
from noa_serving._observer import PayloadRow
from noa_serving._off_loop import RecordsLostError
from noa_serving._payload_log import PayloadLog, load_key, make_room
from noa_serving._payload_table import nested_lists

PIXELS = [[[1, 2], [3, 4]], [[250, 251], [252, 253]]]
DTYPES = ("float32", "float64", "float16", "int64", "uint8", "bool")


def settings_of(project: Project, folder: Path, **payload_log: object) -> Settings:
    table = {"folder": folder, "sample": 1.0, "max_file_s": 0.3, **payload_log}
    log = PayloadLogSettings.model_validate(table)
    return project.settings.model_copy(
        update={"serving": project.settings.serving.model_copy(update={"payload_log": log})}
    )


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"), key=lambda path: path.name)


def read(folder: Path) -> list[dict[str, Any]]:
    """Return all rows; every file that can be seen must be whole."""
    rows = [row for path in files_in(folder) for row in pq.read_table(path).to_pylist()]
    return sorted(rows, key=lambda row: row["time"])


def row_of(**inputs: np.ndarray) -> PayloadRow:
    return PayloadRow(RECORD, inputs, {"y": next(iter(inputs.values())) * 2})


@pytest.mark.bentoml
def test_requests_are_kept_as_they_were_computed(project: Project, tmp_path: Path) -> None:
    project.publish("digits", affine_model(2.0))
    project.publish("mixed", mixed_model)
    folder = tmp_path / "payloads"
    endpoints = {"digits": endpoint("digits@champion"), "mixed": endpoint("mixed@champion")}
    with start_server(settings_of(project, folder), endpoints=endpoints) as process:
        url = process.wait_ready().url
        one = json.dumps({"inputs": {"x": [1.5, 2.5, 3.5, 4.5]}})  # an item without the axis of items
        assert post(url, "/predict/digits", one, {"x-request-id": "order-7"}) == 200
        assert post(url, "/predict/digits", json.dumps({"inputs": [[1, 2, 3, 4], [5, 6, 7, 8]]})) == 200
        assert post(url, "/predict/digits", json.dumps({"inputs": "no tensor"})) == 400
        with Client(url) as client:
            inputs = {"pixels": np.array(PIXELS, np.uint8), "index": np.array([0, 2]), "flag": np.array([True, False])}
            client.predict("mixed", inputs, outputs=["picked"])
            wait_until(lambda: len(read(folder)) == 3, what="three rows, while the server runs")
            assert total(client.metrics(), "noa_records_total", log="payload_log") == 3
            assert total(client.metrics(), "noa_records_lost_total", log="payload_log") == 0
    first, second, mixed = read(folder)
    assert first["request_id"] == "order-7"
    assert len(second["request_id"]) == 32, "one that has no id gets one"
    assert (first["endpoint"], first["model"], first["version"], first["items"]) == ("digits", "digits", 1, 1)
    assert first["digest"].startswith("sha256:")
    assert 0 < first["seconds"] < 10
    assert abs(first["time"].timestamp() - time.time()) < 60
    assert first["inputs"] == {"x": [[1.5, 2.5, 3.5, 4.5]]}
    assert first["outputs"] == {"y": [[3.0, 5.0, 7.0, 9.0]], "total": [24.0]}
    assert second["inputs"] == {"x": [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]}
    assert second["outputs"]["total"] == [20.0, 52.0]
    assert mixed["inputs"] == {"pixels": PIXELS, "index": [0, 2], "flag": [True, False]}
    assert mixed["outputs"]["half"] == [[[1.0, 2.0], [3.0, 4.0]], [[250.0, 251.0], [252.0, 253.0]]]
    assert mixed["outputs"]["not_flag"] == [False, True]
    schema = pq.read_schema(next((folder / "mixed").glob("*.parquet")))
    assert (schema.metadata[b"noa.model"], schema.metadata[b"noa.version"]) == (b"mixed", b"1")
    fields = {field.name: field for field in schema.field("inputs").type}
    assert fields["pixels"].metadata == {b"dtype": b"uint8", b"axes": b"3"}
    assert fields["index"].type == pa.list_(pa.int64())
    assert all(path.stat().st_mode & 0o077 == 0 for path in files_in(folder))


@pytest.mark.bentoml
def test_what_is_redacted_is_nowhere_and_equal_items_have_equal_hashes(project: Project, tmp_path: Path) -> None:
    project.publish("mixed", mixed_model)
    folder = tmp_path / "payloads"
    redact = {"pixels": "drop", "half": "drop", "index": "hash"}
    settings = settings_of(project, folder, redact=redact)
    served = {"mixed": endpoint("mixed@champion")}
    for _ in range(2):  # the key stays, so hashes of two starts can be compared
        with start_server(settings, endpoints=served) as process, Client(process.wait_ready().url) as client:
            pixels, flags = np.array(PIXELS, np.uint8), np.array([True, False])
            client.predict("mixed", {"pixels": pixels, "index": np.array([2, 2]), "flag": flags})
            client.predict("mixed", {"pixels": pixels, "index": np.array([2, 0]), "flag": flags})
    rows = read(folder)  # the last ones were written when the server ended
    assert len(rows) == 4
    assert all(set(row["inputs"]) == {"index", "flag"} for row in rows)
    assert all(set(row["outputs"]) == {"picked", "not_flag"} for row in rows)
    hashes = [row["inputs"]["index"] for row in rows]
    two = hashes[0][0]
    assert hashes[0] == [two, two]
    assert hashes[1][0] == two != hashes[1][1]
    assert hashes[2:] == hashes[:2]
    assert all(len(one) == 32 for one in hashes[1])
    key = settings.state_dir / "payload-log.key"
    assert key.stat().st_mode & 0o077 == 0


@pytest.mark.bentoml
def test_a_full_disk_loses_rows_that_are_counted_and_no_request(project: Project, tmp_path: Path) -> None:
    project.publish("digits", affine_model(2.0, features=512))
    folder = tmp_path / "disk"
    settings = settings_of(project, folder, max_file_bytes=16_384)
    numbers = np.random.default_rng(0)
    endpoints = {"digits": endpoint("digits@champion")}
    with server_on_small_disk(settings, endpoints, folder, tmp_path / "server.log") as (process, seen):
        address = process.command.read_address()
        assert address is not None
        with Client(address.url) as client:
            deadline = time.monotonic() + 60
            while not total(client.metrics(), "noa_records_lost_total", log="payload_log"):
                assert time.monotonic() < deadline, "the disk was never full"
                for _ in range(20):
                    client.predict("digits", {"x": numbers.random((1, 512), np.float32)})
            client.predict("digits", {"x": numbers.random((1, 512), np.float32)})
            assert read(seen), "files are written until the disk is full"
            kept = {path.name for path in files_in(seen)}
            assert {path.name for path in seen.rglob("*") if path.is_file()} == kept, "no half file is left"
            assert sum(pq.read_metadata(path).num_rows for path in files_in(seen)) == len(read(seen))
    assert "payload_log: what requests leave there is lost: StorageError" in (tmp_path / "server.log").read_text()


def test_files_are_written_when_they_are_large_or_old_and_the_oldest_go(tmp_path: Path) -> None:
    now = [0.0]
    settings = PayloadLogSettings(folder=tmp_path, max_file_bytes=4096, max_total_bytes=40_000, max_file_s=60.0)
    log = PayloadLog(settings, tmp_path, b"", clock=lambda: now[0])
    big = row_of(x=np.arange(300, dtype=np.float32).reshape(1, 300))
    assert log.write([big]) == 0
    assert not files_in(tmp_path), "neither large nor old"
    now[0] = 61.0
    log.write([])
    assert len(files_in(tmp_path)) == 1
    log.write([big] * 4)
    assert len(files_in(tmp_path)) == 4, "one row of 2.4 kB a file of 4 kB"
    (tmp_path / "digits" / "mine.parquet").write_bytes(b"of somebody else")
    first = files_in(tmp_path)[0]
    for _ in range(40):
        log.write([big, big])
    log.finish()
    ours = [path for path in files_in(tmp_path) if path.name != "mine.parquet"]
    assert not first.exists()
    assert 20_000 < sum(path.stat().st_size for path in ours) <= 40_000
    assert (tmp_path / "digits" / "mine.parquet").read_bytes() == b"of somebody else"


def test_requests_that_differ_in_axes_or_version_are_in_files_of_their_own(tmp_path: Path) -> None:
    log = PayloadLog(PayloadLogSettings(folder=tmp_path), tmp_path, b"")
    flat, square = np.ones((2, 3), np.float32), np.ones((2, 3, 3), np.float32)
    other = RECORD._replace(version=RECORD.version._replace(number=4) if RECORD.version else None)
    log.write([row_of(x=flat), row_of(x=square), row_of(x=flat[:1]), row_of(x=flat)._replace(record=other)])
    log.finish()
    assert sorted(pq.read_metadata(path).num_rows for path in files_in(tmp_path)) == [1, 1, 2]
    assert {len(row["inputs"]["x"]) for row in read(tmp_path)} == {1, 2}


def test_a_file_that_cannot_be_written_is_told_with_its_rows_and_the_others_are_written(tmp_path: Path) -> None:
    (tmp_path / "digits").write_text("a file in the place of a folder")
    log = PayloadLog(PayloadLogSettings(folder=tmp_path), tmp_path, b"")
    rows = [row_of(x=np.ones((1, 2), np.float32))] * 3
    elsewhere = [row._replace(record=RECORD._replace(target="other")) for row in rows]
    log.write([*rows, *elsewhere])
    with pytest.raises(RecordsLostError) as caught:
        log.finish()
    assert caught.value.count == 3
    assert len(read(tmp_path / "other")) == 3


def test_room_is_made_although_another_worker_does_the_same(tmp_path: Path) -> None:
    make_room(tmp_path / "absent", 0)
    (tmp_path / "digits").mkdir()
    for second in range(3):
        path = tmp_path / "digits" / f"20260101T00000{second}000000Z-v1-7-0123abcd.parquet"
        path.write_bytes(b"x" * 100)
    make_room(tmp_path, 200)
    assert [path.name[14] for path in files_in(tmp_path)] == ["1", "2"]


def test_the_key_is_made_once(tmp_path: Path) -> None:
    key = load_key(tmp_path / "key")
    assert load_key(tmp_path / "key") == key
    assert len(key) == 32
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@given(
    st.sampled_from(DTYPES),
    st.integers(0, 3).flatmap(lambda axes: st.lists(st.tuples(*[st.integers(0, 3)] * axes), min_size=1, max_size=4)),
)
def test_nested_lists_are_the_arrays(dtype: str, shapes: list[tuple[int, ...]]) -> None:
    arrays = [np.random.default_rng(0).integers(0, 2, size=shape).astype(dtype) for shape in shapes]
    column = nested_lists([np.asarray(array) for array in arrays])
    column.validate(full=True)
    assert column.to_pylist() == [array.tolist() for array in arrays]


@pytest.mark.parametrize("table", [{"redact": {"x": "blur"}}, {"sample": 2}, {"max_total_bytes": 2048}])
def test_settings_that_make_no_sense_are_refused(table: Mapping[str, object]) -> None:
    with pytest.raises(ValueError, match="payload_log"):
        Settings.model_validate({"serving": {"payload_log": table}})
