"""Plain prediction with NumPy and Arrow bodies: equal to JSON, and hostile files are refused."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_kit import Answer, ask

from noa_serving._asgi import AsgiApplication

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32)
MIXED = {
    "pixels": np.arange(8, dtype=np.uint8).reshape(2, 2, 2),
    "index": np.array([0, 2]),
    "flag": np.array([True, False]),
}
NPY, NPZ, ARROW = "application/x-npy", "application/x-npz", "application/vnd.apache.arrow.stream"


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def npz(arrays: Mapping[str, np.ndarray], save: Callable[..., None] = np.savez) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def column(array: np.ndarray) -> pa.Array:
    made = pa.array(array.reshape(-1))
    for size in reversed(array.shape[1:]):
        made = pa.FixedSizeListArray.from_arrays(made, size)
    return made


def arrow(columns: Mapping[str, pa.Array], *, compression: str | None = None, batches: int = 1) -> bytes:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch(columns)
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        for _ in range(batches):
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def send(app: AsgiApplication, body: bytes, kind: str, *, name: str = "digits", **headers: str) -> Answer:
    named = {header.replace("_", "-"): value for header, value in headers.items()}
    return ask(app, "POST", f"/predict/{name}", body, {"content-type": kind, **named})


def arrays(answer: Answer) -> dict[str, np.ndarray]:
    assert answer.status == 200, answer.body
    found = np.load(io.BytesIO(answer.body))
    return dict(found) if isinstance(found, np.lib.npyio.NpzFile) else {"": found}


@pytest.mark.parametrize(
    "array",
    [X, X.astype(">f4"), np.asfortranarray(X), X[::-1]],
    ids=["plain", "big-endian", "fortran", "reversed"],
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_npy_bodies_are_answered_as_npy(app: AsgiApplication, array: np.ndarray, version: tuple[int, int]) -> None:
    found = arrays(send(app, npy(array, version), NPY))
    assert np.array_equal(found["y"], array * 3)
    assert np.array_equal(found["total"], (array * 3).sum(axis=1))
    answer = send(app, npy(array, version), NPY, noa_outputs="y")
    assert answer.headers["content-type"] == NPY
    assert answer.headers["noa-version"] == "2"
    assert np.array_equal(arrays(answer)[""], array * 3)


def test_npz_bodies_name_the_inputs(app: AsgiApplication) -> None:
    found = arrays(send(app, npz(MIXED), NPZ, name="mixed"))
    assert found["half"].dtype == np.float16
    assert np.array_equal(found["half"], MIXED["pixels"].astype(np.float16))


def test_arrow_bodies_of_any_number_of_batches_are_answered_as_arrow(app: AsgiApplication) -> None:
    body = arrow({name: column(array) for name, array in MIXED.items()}, batches=2)
    answer = send(app, body, ARROW, name="mixed")
    table = pa.ipc.open_stream(answer.body).read_all()
    assert table.num_rows == 4
    assert table.column("picked").to_pylist() == [10.0, 30.0, 10.0, 30.0]
    assert table.column("half").to_pylist()[0] == [[0.0, 1.0], [2.0, 3.0]]


def test_arrow_columns_may_be_the_features_of_one_input(app: AsgiApplication) -> None:
    body = arrow({name: pa.array(X[:, index]) for index, name in enumerate("abcd")})
    assert arrays(send(app, body, ARROW, accept=NPY, noa_outputs="total"))[""].tolist() == [30.0, 78.0]


@pytest.mark.parametrize("kind", ["application/json", NPY, ARROW])
def test_accept_chooses_the_type_of_the_answer(app: AsgiApplication, kind: str) -> None:
    for accept in (kind, f"text/html;q=0, {kind};q=0.9, */*;q=0.1"):
        answer = send(app, npy(X), NPY, accept=accept, noa_outputs="total")
        assert (answer.status, answer.headers["content-type"]) == (200, kind)
    plain = ask(app, "POST", "/predict/digits", {"inputs": X.tolist(), "outputs": ["total"]}, {"accept": kind})
    assert plain.headers["content-type"] == kind
    refused = send(app, npy(X), NPY, accept="text/html")
    assert (refused.status, "application/json" in refused.error) == (406, True)


PICKLE = b"\x93NUMPY\x01\x00\x46\x00" + (
    b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 4), }".ljust(69) + b"\n" + b"c" * 32
)


def header(text: str) -> bytes:
    line = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + X.tobytes()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "no body"),
        (b"\x93NUMPY", "not readable"),
        (npy(X)[:-1], "wrong number of bytes"),
        (npy(X) + b"!", "wrong number of bytes"),
        (npy(X.astype(np.float64)), "expected float32; received float64"),
        (npy(X[:, :3]), "wrong shape"),
        (PICKLE, "is a pickle"),
        (header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62}, 4)}}"), "too many items"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -4)}"), "malformed `shape`"),
        (header("{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 4)}"), "not readable"),
        (header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 4)}"), "not readable"),
        (header("{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (2, 4)}"), "wrong dtype"),
        (header("__import__('os').getcwd()"), "not readable"),
        (header("(" * 100), "not readable"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"(" * 100_000, "not readable"),
        (b"\x93NUMPY\x03\x00" + npy(X)[8:], "not readable"),
    ],
)
def test_a_bad_npy_is_refused_with_the_reason(app: AsgiApplication, body: bytes, text: str) -> None:
    answer = send(app, body, NPY)
    assert answer.status in (400, 413), answer.body
    assert text in answer.error


def twins() -> bytes:
    file = io.BytesIO()
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", npy(X))
        archive.writestr("x.npy", npy(X))
    return file.getvalue()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: b"PK", "not readable"),
        (lambda: npz({"x": X}, np.savez_compressed), "compressed"),
        (lambda: npz({"z": X}), "`z` is not known"),
        (lambda: npz({"x": X})[:-30], "not readable"),
        (lambda: npz({"x": X}).replace(X.tobytes(), X.tobytes()[::-1]), "not readable"),
        (lambda: npz({}), "`x` is missing"),
        (twins, "twice"),
    ],
)
def test_a_bad_npz_is_refused_with_the_reason(app: AsgiApplication, make: Callable[[], bytes], text: str) -> None:
    answer = send(app, make(), NPZ)
    assert answer.status == 400, answer.body
    assert text in answer.error


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: b"ARROW1", "not readable"),
        (lambda: arrow({"x": column(X)})[:-60], "not readable"),
        (lambda: arrow({"x": column(X)}, compression="zstd"), "neither compressed"),
        (lambda: arrow({"x": column(X)}, batches=1025), "at most 1024 record batches"),
        (lambda: arrow({"x": column(X), "z": column(X)}), "`z` is not an input"),
        (lambda: arrow({"x": column(X[:, :3])}), "wrong dtype or shape"),
        (lambda: arrow({"x": column(X.astype(np.float64))}), "wrong dtype or shape"),
        (lambda: arrow({"x": pa.array([[1.0], [2.0]])}), "holds no tensors"),
        (lambda: arrow({"x": pa.array(["a"])}), "expected float32(batch, 4); received string(1,)"),
        (lambda: arrow({"x": pa.array([b"a"])}), "holds no tensors"),
        (lambda: arrow({"x": pa.array([X[0], None], pa.list_(pa.float32(), 4))}), "nulls"),
        (lambda: arrow({"x": pa.array(["a"]).dictionary_encode()}), "holds no tensors"),
        (lambda: arrow({"x": column(np.ones((5000, 4), np.float32))}), "at most 4096 items"),
    ],
)
def test_a_bad_arrow_stream_is_refused_with_the_reason(
    app: AsgiApplication, make: Callable[[], bytes], text: str
) -> None:
    answer = send(app, make(), ARROW)
    assert answer.status in (400, 413), answer.body
    assert text in answer.error


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from([NPY, NPZ, ARROW]),
    place=st.floats(0, 1),
    noise=st.binary(min_size=1, max_size=8),
    cut=st.floats(0.5, 1),
)
def test_any_change_of_a_body_is_answered(
    app: AsgiApplication, kind: str, place: float, noise: bytes, cut: float
) -> None:
    whole = {NPY: npy(X), NPZ: npz({"x": X}), ARROW: arrow({"x": column(X)})}[kind]
    start = int(place * len(whole))
    body = (whole[:start] + noise + whole[start + len(noise) :])[: max(1, int(cut * len(whole)))]
    answer = send(app, body, kind)
    assert answer.status < 500, answer.body
    assert app._application.admission.in_flight == 0
