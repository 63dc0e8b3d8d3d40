"""Tensors in system shared memory, with Triton's own client and helpers, and everything that must be refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing import shared_memory as objects
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
import tritonclient.utils.shared_memory as triton_shared_memory
from grpc_kit import serving_grpc
from http_kit import serving_http
from serving_kit import Project, ask, build_app
from tritonclient.utils import InferenceServerException

from noa_serving._asgi import AsgiApplication
from noa_serving._shared_memory import MOST_REGIONS

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32)


@pytest.fixture
def sharing(content: Project, tmp_path: Path) -> AsgiApplication:
    return build_app(content.settings, regions=tmp_path, digits="digits@champion", mixed="mixed@champion")


@pytest.fixture
def key() -> Iterator[str]:
    """An object in /dev/shm that holds `X` and has as much place after it."""
    name = f"noa_test_{uuid4().hex}"
    shared = objects.SharedMemory(name, create=True, size=128)
    shared.buf[:32] = X.tobytes()
    yield name
    shared.close()
    shared.unlink()


def register(app: AsgiApplication, key: str, *, name: str = "one", **changes: object) -> int:
    body = {"key": key, "offset": 0, "byte_size": 128, **changes}
    return ask(app, "POST", f"/v2/systemsharedmemory/region/{name}/register", body).status


def tensor(region: str = "one", **changes: object) -> dict[str, object]:
    parameters = {"shared_memory_region": region, "shared_memory_byte_size": 32, **changes}
    return {"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": parameters}


def use_both_ways(client: triton.InferenceServerClient | triton_grpc.InferenceServerClient, made: object) -> None:
    key = f"/noa_test_{uuid4().hex}"
    handle = triton_shared_memory.create_shared_memory_region("both", key, 128)
    try:
        triton_shared_memory.set_shared_memory_region(handle, [X])
        client.register_system_shared_memory("both", key, 128)
        row = made.InferInput("x", [2, 4], "FP32")
        row.set_shared_memory("both", 32)
        y = made.InferRequestedOutput("y")
        y.set_shared_memory("both", 64, offset=64)
        result = client.infer("digits", [row], outputs=[y, made.InferRequestedOutput("total")])
        assert result.as_numpy("total").tolist() == [30.0, 78.0]
        assert np.array_equal(triton_shared_memory.get_contents_as_numpy(handle, np.float32, [2, 4], offset=64), X * 3)
        assert "both" in str(client.get_system_shared_memory_status())
        client.unregister_system_shared_memory("both")
        with pytest.raises(InferenceServerException, match="`both` is registered"):
            client.infer("digits", [row])
    finally:
        triton_shared_memory.destroy_shared_memory_region(handle)


def test_tritons_own_http_client_passes_tensors_both_ways(sharing: AsgiApplication) -> None:
    with serving_http(sharing) as url:
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        assert "system_shared_memory" in client.get_server_metadata()["extensions"]
        use_both_ways(client, triton)
        client.close()


def test_tritons_own_grpc_client_passes_tensors_both_ways(sharing: AsgiApplication) -> None:
    with serving_grpc(sharing) as address, triton_grpc.InferenceServerClient(address) as client:
        use_both_ways(client, triton_grpc)


def test_all_workers_know_what_one_was_told(
    sharing: AsgiApplication, content: Project, tmp_path: Path, key: str
) -> None:
    other = build_app(content.settings, regions=tmp_path, digits="digits@champion")
    assert register(sharing, key) == 200
    body = {"inputs": [tensor()]}
    assert ask(other, "POST", "/v2/models/digits/infer", body).status == 200
    assert ask(other, "GET", "/v2/systemsharedmemory/status", b"").body == ask(
        sharing, "GET", "/v2/systemsharedmemory/region/one/status", b""
    ).body  # fmt: skip
    assert ask(other, "POST", "/v2/systemsharedmemory/unregister", b"").status == 200
    assert ask(sharing, "POST", "/v2/models/digits/infer", body).status == 404


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"key": "../../etc/passwd"}, "key is not allowed"),
        ({"key": "a/b"}, "key is not allowed"),
        ({"key": ".."}, "key is not allowed"),
        ({"key": ""}, "key is not allowed"),
        ({"key": "sem.lock"}, "key is not allowed"),
        ({"key": None}, "`key` is not text"),
        ({"key": "noa_test_nobody"}, "no shared memory `noa_test_nobody`"),
        ({"byte_size": 0}, "empty"),
        ({"byte_size": 1 << 40}, "not what was said"),
        ({"byte_size": 1 << 70}, "`byte_size` is wrong"),
        ({"byte_size": True}, "`byte_size` is wrong"),
        ({"offset": -1}, "`offset` is wrong"),
        ({"offset": 4096}, "not what was said"),
    ],
)
def test_what_may_not_be_registered_is_refused(
    sharing: AsgiApplication, key: str, changes: dict[str, object], text: str
) -> None:
    body = {"key": key, "offset": 0, "byte_size": 128, **changes}
    answer = ask(sharing, "POST", "/v2/systemsharedmemory/region/one/register", body)
    assert answer.status == 400
    assert text in answer.error
    assert ask(sharing, "GET", "/v2/systemsharedmemory/status", b"").body == b"[]"


def test_links_and_other_kinds_of_files_are_refused(sharing: AsgiApplication, key: str) -> None:
    for make in (lambda path: path.symlink_to("/etc/passwd"), lambda path: path.mkdir(), os.mkfifo):
        path = Path("/dev/shm") / f"noa_test_{uuid4().hex}"
        make(path)
        try:
            assert register(sharing, path.name) == 400
        finally:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    assert register(sharing, key, name="..%2fone") == 400
    assert register(sharing, key) == 200
    assert register(sharing, key) == 409


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (tensor("nobody"), "no shared-memory region"),
        (tensor("../one"), "not allowed"),
        (tensor(shared_memory_region=7), "not text"),
        (tensor(shared_memory_byte_size=None), "`shared_memory_byte_size` is wrong"),
        (tensor(shared_memory_byte_size=31), "expected 32 bytes"),
        (tensor(shared_memory_byte_size=2**61), "expected 32 bytes"),
        (tensor(shared_memory_offset=-1), "`shared_memory_offset` is wrong"),
        (tensor(shared_memory_offset=100), "outside of region"),
        (tensor(binary_data_size=32), "both"),
        ({**tensor(), "data": [1]}, "both"),
    ],
)
def test_tensors_outside_of_a_region_are_refused(
    sharing: AsgiApplication, key: str, row: dict[str, object], text: str
) -> None:
    register(sharing, key)
    answer = ask(sharing, "POST", "/v2/models/digits/infer", {"inputs": [row]})
    assert answer.status in (400, 404)
    assert text in answer.error


def test_an_object_that_is_cut_short_is_refused_and_harms_nobody(sharing: AsgiApplication, key: str) -> None:
    register(sharing, key)
    assert ask(sharing, "POST", "/v2/models/digits/infer", {"inputs": [tensor()]}).status == 200
    os.truncate(f"/dev/shm/{key}", 16)
    wanted = {"name": "y", "parameters": {"shared_memory_region": "one", "shared_memory_byte_size": 64}}
    plain = {"name": "x", "datatype": "FP32", "shape": [2, 4], "data": X.tolist()}
    for body in ({"inputs": [tensor()]}, {"inputs": [plain], "outputs": [wanted]}):
        answer = ask(sharing, "POST", "/v2/models/digits/infer", body)
        assert (answer.status, "cut short" in answer.error) == (400, True)
    os.truncate(f"/dev/shm/{key}", 128)


def test_an_output_that_does_not_fit_is_refused(sharing: AsgiApplication, key: str) -> None:
    register(sharing, key)
    wanted = {"name": "y", "parameters": {"shared_memory_region": "one", "shared_memory_byte_size": 8}}
    answer = ask(sharing, "POST", "/v2/models/digits/infer", {"inputs": [tensor()], "outputs": [wanted]})
    assert answer.status == 400
    assert "expected at least 32 bytes; received 8 bytes" in answer.error


def test_it_is_off_unless_allowed_and_the_number_of_regions_is_bounded(
    app: AsgiApplication, sharing: AsgiApplication, key: str
) -> None:
    assert register(app, key) == 403
    assert ask(app, "POST", "/v2/models/digits/infer", {"inputs": [tensor()]}).status == 403
    assert "system_shared_memory" not in ask(app, "GET", "/v2").json["extensions"]
    for index in range(MOST_REGIONS):
        assert register(sharing, key, name=f"r{index}") == 200
    assert register(sharing, key) == 429
