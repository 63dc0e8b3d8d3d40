"""Files that try to run code, reach out of their folder, or exhaust memory. Made here, at test time, and never kept.

Every builder writes into an empty folder and returns the path to import. What would run writes the canary.
`HOSTILE` is refused whatever is allowed, `CODE` unless it is allowed by the model's name.
"""

from __future__ import annotations

import bz2
import copyreg
import functools
import gzip
import io
import lzma
import os
import pickle
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

GIB = 1 << 30
Build = Callable[[Path, Path], Path]
HOSTILE: dict[str, Build] = {}
CODE: dict[str, Build] = {}


class Boom:
    """Writes the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (os.system, (f"touch {self.canary}",))


def hostile(name: str) -> Callable[[Build], Build]:
    def keep(build: Build) -> Build:
        assert name not in HOSTILE, name
        HOSTILE[name] = build
        return build

    return keep


def code(name: str) -> Callable[[Build], Build]:
    def keep(build: Build) -> Build:
        assert name not in CODE, name
        CODE[name] = build
        return build

    return keep


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def bomb(canary: Path, protocol: int = 4) -> bytes:
    return pickle.dumps({"weights": [1, 2], "x": Boom(canary)}, protocol=protocol)


# --- pickles ---------------------------------------------------------------------------------------------------------

for _protocol in range(6):
    hostile(f"pickle protocol {_protocol}")(
        lambda folder, canary, protocol=_protocol: write(folder, "m.pkl", bomb(canary, protocol))
    )

for _name in ("model.onnx", "model.safetensors", "MLmodel", "weights.bin", "readme.txt", "noname"):
    hostile(f"pickle named {_name}")(lambda folder, canary, name=_name: write(folder, name, bomb(canary)))

_WRAPPERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zlib": zlib.compress,
    "gzip in gzip": lambda data: gzip.compress(gzip.compress(data)),
}
for _name, _wrap in _WRAPPERS.items():
    hostile(f"pickle in {_name}")(lambda folder, canary, wrap=_wrap: write(folder, "m.joblib", wrap(bomb(canary))))


def by_hand(canary: Path, text: bytes) -> bytes:
    return text.replace(b"CANARY", str(canary).encode())


_BY_HAND = {
    "eval": b"cbuiltins\neval\n(V__import__('os').system('touch CANARY')\ntR.",
    "an old call": b"(S'touch CANARY'\nios\nsystem\n.",
    "an old object": b"(cos\nsystem\nS'touch CANARY'\no.",
    "a dotted name": b"\x80\x04Vio\nVopen.__self__.open\n\x93VCANARY\nVw\n\x86R.",
    "attributes of data": b"\x80\x04Vcollections\nVOrderedDict.__reduce__.__globals__\n\x93.",
    "getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\nV__call__\ntR.",
    "a module that runs": b"crunpy\n_run_code\n.",
    "a name in the memo": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93Vtouch CANARY\n\x85R.",
    "a name put at the number that counting gives": (
        b"\x80\x04\x8c\x06system\x940\x8c\x04nice\x94q\x020\x8c\x02os\x940h\x03h\x00\x93Vtouch CANARY\n\x85R."
    ),
    "a name that is put together": b"\x80\x04\x8c\x02os]\x93.",
    "a name by number": b"\x80\x02\x82\x01.",
    "no end": b"\x80\x04\x8c\x02os\x8c\x06system\x93",
    "no end after the call": b"cos\nsystem\n(S'touch CANARY'\ntR",
    "an unknown instruction": b"\x80\x04\xffN.",
    "an empty stack": b"\x80\x04R.",
    "no mark": b"\x80\x04tN.",
    "a second pickle": pickle.dumps([1]) + b"\x80\x04\x8c\x02os\x8c\x06system\x93Vtouch CANARY\n\x85R.",
    "bytes behind its end": pickle.dumps([1]) + b"cos\nsystem\n.",
    "4 GiB of bytes claimed": b"\x80\x04\x8e" + struct.pack("<Q", 4 * GIB) + b"x.",
    "4 GiB of text claimed": b"\x80\x04\x8d" + struct.pack("<Q", 4 * GIB) + b"x.",
    "a negative length": b"\x80\x02\x8b" + struct.pack("<i", -1) + b".",
    "a place of the memo far away": b"\x80\x02Nr" + struct.pack("<I", 0xFFFFFFFF) + b".",
    "a frame of 4 GiB": b"\x80\x04\x95" + struct.pack("<Q", 4 * GIB) + b"\x8c\x02os\x8c\x06system\x93.",
    "a long line": b"\x80\x02S'" + b"x" * (3 << 20),
    "a stack without end": b"\x80\x02" + b"N" * (3 << 20) + b".",
    "marks without end": b"\x80\x02" + b"(" * (3 << 20) + b".",
    "functools": b"cfunctools\npartial\n(cos\nsystem\nV touch CANARY\ntR.",
    "torch.load": b"ctorch\nload\n(VCANARY\ntR.",
    "a PyTorch hub": b"ctorch.hub\nload\n(Vevil/repo\nVmodel\ntR.",
    "numpy's evaluator": b"cnumpy.testing._private.utils\nrunstring\n(Vopen('CANARY','w')\n}tR.",
    "a module loaded by name": b"cimportlib\nimport_module\n(Vantigravity\ntR.",
}
for _name, _text in _BY_HAND.items():
    hostile(f"pickle with {_name}")(lambda folder, canary, text=_text: write(folder, "m.pkl", by_hand(canary, text)))


@hostile("pickle of a partial")
def _partial(folder: Path, canary: Path) -> Path:
    return write(folder, "m.pkl", pickle.dumps(functools.partial(os.system, f"touch {canary}")))


@hostile("pickle with an extension code")
def _extension(folder: Path, canary: Path) -> Path:
    copyreg.add_extension("posix", "system", 0x1234)
    try:
        return write(folder, "m.pkl", pickle.dumps(Boom(canary), protocol=2))
    finally:
        copyreg.remove_extension("posix", "system", 0x1234)


@hostile("joblib with objects in an array")
def _joblib(folder: Path, canary: Path) -> Path:
    import joblib

    joblib.dump(np.array([Boom(canary)], dtype=object), folder / "m.joblib")
    return folder / "m.joblib"


@hostile("a sparse pickle of 4 GiB")
def _sparse_pickle(folder: Path, canary: Path) -> Path:
    return sparse(write(folder, "m.pkl", b"\x80\x04N"), 4 * GIB)


def sparse(path: Path, size: int) -> Path:
    os.truncate(path, size)
    return path


@hostile("numpy objects")
def _numpy(folder: Path, canary: Path) -> Path:
    np.save(folder / "m.npy", np.array([Boom(canary)], dtype=object), allow_pickle=True)
    return folder / "m.npy"


@hostile("numpy objects in npz")
def _npz(folder: Path, canary: Path) -> Path:
    np.savez_compressed(folder / "m.npz", a=np.ones(3), b=np.array([Boom(canary)], dtype=object))
    return folder / "m.npz"


def npy(header: bytes, tail: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + tail


for _name, _header in {
    "claims 4 GiB": b"{'descr': '<f4', 'fortran_order': False, 'shape': (1073741824,)}",
    "claims a negative size": b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
    "calls something": b"{'descr': __import__('os'), 'fortran_order': False, 'shape': (1,)}",
    "nests": b"{'descr': " + b"(" * 5000 + b"}",
    "has objects in a record": b"{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}",
}.items():
    hostile(f"a numpy header that {_name}")(
        lambda folder, canary, header=_header: write(folder, "m.npy", npy(header, bomb(canary)))
    )


@hostile("a numpy header of 4 GiB")
def _numpy_header(folder: Path, canary: Path) -> Path:
    return sparse(write(folder, "m.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFF0)), 4 * GIB)


# --- archives --------------------------------------------------------------------------------------------------------


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return buffer.getvalue()


def torch_archive(canary: Path) -> bytes:
    entries = {"m/data.pkl": bomb(canary, 2), "m/byteorder": b"little", "m/data/0": bytes(16), "m/version": b"3\n"}
    return zipped(entries)


@hostile("a PyTorch archive")
def _torch(folder: Path, canary: Path) -> Path:
    return write(folder, "m.pt", torch_archive(canary))


@hostile("a PyTorch archive, compressed")
def _torch_packed(folder: Path, canary: Path) -> Path:
    return write(folder, "m.pt", zipped({"m/data.pkl": bomb(canary, 2), "m/data/0": b"x"}, zipfile.ZIP_DEFLATED))


@hostile("a PyTorch file of the old form")
def _torch_old(folder: Path, canary: Path) -> Path:
    parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return write(folder, "m.pt", b"".join([*parts, bomb(canary, 2), pickle.dumps([], 2), bytes(64)]))


@hostile("a pickle in a zip in a zip")
def _zip_in_zip(folder: Path, canary: Path) -> Path:
    inner = zipped({"deep.bin": bomb(canary)}, zipfile.ZIP_DEFLATED)
    return write(folder, "m.zip", zipped({"inner.zip": inner}, zipfile.ZIP_DEFLATED))


@hostile("a pickle in a tar")
def _tar(folder: Path, canary: Path) -> Path:
    return write(folder, "m.tar", tarred({"a/m.bin": bomb(canary)}))


def tarred(entries: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] = lambda info: None) -> bytes:
    buffer = io.BytesIO()
    for name, data in entries.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        change(info)
        buffer.write(info.tobuf() + data + bytes(-len(data) % 512))
    return buffer.getvalue() + bytes(1024)


def link_to(kind: bytes, target: str) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = kind, target, 0

    return change


for _name, _data in {
    "a link": tarred({"a": b""}, link_to(tarfile.SYMTYPE, "/etc/passwd")),
    "a hard link": tarred({"a": b""}, link_to(tarfile.LNKTYPE, "../x")),
    "a device": tarred({"a": b""}, link_to(tarfile.CHRTYPE, "")),
    "a pipe": tarred({"a": b""}, link_to(tarfile.FIFOTYPE, "")),
    "a way out": tarred({"../../evil.txt": b"x"}),
    "an absolute name": tarred({"/tmp/evil.txt": b"x"}),
    "two of one name": tarred({"a": b"1"})[:1024] + tarred({"a": b"2"}),
    "a claim of 8 GiB": tarred({"a": b"x"}, lambda info: setattr(info, "size", 8 * GIB - 1))[:1024],
    "a cut end": tarred({"a": b"x" * 4000})[:2000],
}.items():
    hostile(f"tar with {_name}")(lambda folder, canary, data=_data: write(folder, "m.tar", data))


def pt2(changes: dict[str, bytes]) -> bytes:
    config = b'{"config": {}}'
    entries = {
        "p/archive_format": b"pt2",
        "p/archive_version": b"0",
        "p/models/model.json": b"{}",
        "p/data/weights/model_weights_config.json": config,
        "p/data/constants/model_constants_config.json": config,
    }
    return zipped({**entries, **changes})


def pickled_config(path: str) -> bytes:
    return b'{"config": {"w": {"path_name": "' + path.encode() + b'", "use_pickle": true, "tensor_meta": null}}}'


@hostile("an exported program with a pickled sample input")
def _pt2_sample(folder: Path, canary: Path) -> Path:
    return write(folder, "m.pt2", pt2({"p/data/sample_inputs/model.pt": torch_archive(canary)}))


@hostile("an exported program with a bare pickle as sample input")
def _pt2_bare(folder: Path, canary: Path) -> Path:
    return write(folder, "m.pt2", pt2({"p/data/sample_inputs/model.pt": bomb(canary)}))


@hostile("an exported program with a pickled weight")
def _pt2_weight(folder: Path, canary: Path) -> Path:
    changes = {
        "p/data/weights/model_weights_config.json": pickled_config("weight_0"),
        "p/data/weights/weight_0": torch_archive(canary),
    }
    return write(folder, "m.pt2", pt2(changes))


@hostile("an exported program with an opaque object")
def _pt2_opaque(folder: Path, canary: Path) -> Path:
    return write(folder, "m.pt2", pt2({"p/data/constants/opaque_obj_0": bomb(canary)}))


@hostile("an exported program with weights of the old form")
def _pt2_old(folder: Path, canary: Path) -> Path:
    return write(folder, "m.pt2", pt2({"p/data/weights/model.pt": torch_archive(canary)}))


@hostile("an exported program with an unreadable configuration")
def _pt2_config(folder: Path, canary: Path) -> Path:
    return write(folder, "m.pt2", pt2({"p/data/weights/model_weights_config.json": b'{"config": [1]}'}))


@code("an exported program with compiled code")
def _pt2_compiled(folder: Path, canary: Path) -> Path:
    return write(folder, "m.pt2", pt2({"p/data/aotinductor/model/m.so": b"\x7fELF" + bytes(64)}))


@code("an exported program with a custom object")
def _pt2_custom(folder: Path, canary: Path) -> Path:
    return write(folder, "m.pt2", pt2({"p/data/constants/custom_obj_0": b"anything"}))


@hostile("a zip bomb")
def _bomb(folder: Path, canary: Path) -> Path:
    return write(folder, "m.zip", zipped({"zeros.bin": bytes(192 << 20)}, zipfile.ZIP_DEFLATED))


@hostile("a zip bomb in a zip bomb")
def _nested_bomb(folder: Path, canary: Path) -> Path:
    data = zipped({f"{index}.bin": bytes(8 << 20) for index in range(4)}, zipfile.ZIP_DEFLATED)
    for _ in range(6):
        data = zipped({f"{index}.zip": data for index in range(6)}, zipfile.ZIP_DEFLATED)
    return write(folder, "m.zip", data)


@hostile("a zip bomb that lies about its size")
def _lying_bomb(folder: Path, canary: Path) -> Path:
    data = bytearray(zipped({"zeros.bin": bytes(64 << 20)}, zipfile.ZIP_DEFLATED))
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<L", 1000)
    return write(folder, "m.zip", bytes(data))


for _name, _wrap in (("gzip", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zlib", zlib.compress)):
    hostile(f"a {_name} bomb")(lambda folder, canary, wrap=_wrap: write(folder, "m.gz", wrap(bytes(64 << 20))))
    hostile(f"{_name} that is cut off")(
        lambda folder, canary, wrap=_wrap: write(folder, "m.gz", wrap(os.urandom(100_000))[:-5000])
    )

for _name in ("../evil.txt", "/etc/evil.txt", "a/../../evil", "a\\..\\evil", "C:/evil", "a//b", "a/./b", "new\nline",
              "turned\u202egnp", "\u0065\u0301", "trailing ", "nul\x01"):  # fmt: skip
    hostile(f"zip with the name {_name!a}")(
        lambda folder, canary, name=_name: write(folder, "m.zip", zipped({name: b"x"}))
    )


def edited_zip(offset: int, form: str, *values: int, record: bytes = b"PK\x01\x02") -> bytes:
    """Return a zip of two entries with a field of its first central (or other) record changed."""
    data = bytearray(zipped({"a.txt": b"hello", "b.txt": b"world"}))
    struct.pack_into(form, data, data.index(record) + offset, *values)
    return bytes(data)


for _name, _data in {
    "a link": edited_zip(38, "<L", (0o120777 << 16)),
    "an encrypted entry": edited_zip(8, "<H", 1),
    "an unknown method": edited_zip(10, "<H", 99),
    "a claim of 4 GiB": edited_zip(20, "<LL", 0xFFFFFFF0, 0xFFFFFFF0),
    "64-bit sizes that are not there": edited_zip(20, "<LL", 0xFFFFFFFF, 0xFFFFFFFF),
    "entries over each other": edited_zip(42, "<L", 40),
    "a list that counts wrongly": edited_zip(10, "<H", 9, record=b"PK\x05\x06"),
    "a list of 4 GiB": edited_zip(12, "<L", 0xFFFFFFF0, record=b"PK\x05\x06"),
    "a second disk": edited_zip(4, "<H", 1, record=b"PK\x05\x06"),
    "another name in its header": edited_zip(30, "<B", ord("z"), record=b"PK\x03\x04"),
    "two of one name": zipped({"a.txt": b"1"})[:36] + zipped({"A.txt": b"2"}),
    "a cut end": zipped({"a.txt": b"x" * 100})[:-10],
    "something before it": b"\x89PNG\r\n\x1a\n" + bytes(100) + zipped({"a.txt": b"x"}),
    "something hidden before it": b"PK\x03\x04" + bytes(60) + zipped({"a.txt": b"x"}),
    "a hole": zipped({"a.txt": b"x"}).replace(b"PK\x01\x02", b"hidden" * 9 + b"PK\x01\x02"),
}.items():
    hostile(f"zip with {_name}")(lambda folder, canary, data=_data: write(folder, "m.zip", data))


@hostile("two entries of one name")
def _zip_twins(folder: Path, canary: Path) -> Path:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("a.txt", "A.TXT"):
            archive.writestr(name, b"x")
    return write(folder, "m.zip", buffer.getvalue())


@hostile("a sparse zip of 4 GiB")
def _sparse_zip(folder: Path, canary: Path) -> Path:
    path = sparse(write(folder, "m.zip", b"PK\x03\x04"), 4 * GIB)
    with path.open("r+b") as file:
        file.seek(4 * GIB - 22)
        file.write(b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 65535, 65535, 0xFFFFFF00, 0, 0))
    return path


@hostile("a zip of a million entries")
def _many_entries(folder: Path, canary: Path) -> Path:
    row = b"PK\x01\x02" + bytes(42)
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 65535, 65535, len(row) * 200_000, 4, 0)
    return write(folder, "m.zip", b"PK\x03\x04" + row * 200_000 + end)


# --- safetensors and ONNX --------------------------------------------------------------------------------------------


def tensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


for _name, _data in {
    "a header of 4 GiB": struct.pack("<Q", 4 * GIB) + b'{"a": 1}',
    "a header of 2^63 bytes": struct.pack("<Q", 1 << 62) + b'{"a": 1}',
    "a tensor of 4 GiB": tensors(b'{"a":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4294967296]}}'),
    "tensors over each other": tensors(
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}',
        bytes(6),
    ),
    "a hole": tensors(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[5,6]}}',
        bytes(6),
    ),
    "bytes behind the last": tensors(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x" * 100),
    "one name twice": tensors(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
    ),
    "a negative shape": tensors(b'{"a":{"dtype":"U8","shape":[-1,-1],"data_offsets":[0,1]}}', b"x"),
    "a shape that overflows": tensors(b'{"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
    "an unknown type": tensors(b'{"a":{"dtype":"OBJ","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "a type as its shape": tensors(b'{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', b"x"),
    "a broken header": tensors(b'{"a":{"dtype":"U8",'),
    "a deep header": tensors(b'{"a":' + b"[" * 100_000),
    "metadata that is no text": tensors(b'{"__metadata__":{"a":[1]}}'),
    "a cut end": save({"a": np.ones(100, np.float32)})[:-50],
}.items():
    hostile(f"safetensors with {_name}")(lambda folder, canary, data=_data: write(folder, "m.safetensors", data))


@hostile("safetensors with a zip behind it")
def _safetensors_zip(folder: Path, canary: Path) -> Path:
    return write(folder, "m.safetensors", save({"a": np.ones(2, np.float32)}) + torch_archive(canary))


@hostile("a sparse safetensors of 4 GiB")
def _sparse_safetensors(folder: Path, canary: Path) -> Path:
    return sparse(write(folder, "m.safetensors", struct.pack("<Q", 4 * GIB - 8) + b'{"'), 4 * GIB)


def linear(weights: np.ndarray | None = None) -> onnx.ModelProto:
    array = np.ones((4, 3), np.float32) if weights is None else weights
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(array, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def external(location: str, **more: int) -> onnx.ModelProto:
    model = linear()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": 0, "length": 48, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    return write(folder, "model.onnx", model.SerializeToString())


_LOCATIONS = [
    *("../secret.bin", "/etc/passwd", "a/../../secret.bin", "..\\secret.bin", "C:\\secret.bin", "C:secret", "", "."),
    *("missing.bin", "file:///etc/passwd", "weights.bin\0", "weights.bin/x", "\u202eweights.bin"),
]
for _location in _LOCATIONS:

    def _outside(folder: Path, canary: Path, location: str = _location) -> Path:
        write(folder.parent, "secret.bin", bytes(48))
        write(folder, "weights.bin", bytes(48))
        return saved(folder, external(location))

    hostile(f"ONNX with data in {_location!a}")(_outside)


@hostile("ONNX with data behind a link")
def _onnx_link(folder: Path, canary: Path) -> Path:
    (folder / "weights.bin").symlink_to(write(folder.parent, "secret.bin", bytes(48)))
    return saved(folder, external("weights.bin"))


@hostile("ONNX with data behind a linked folder")
def _onnx_linked_folder(folder: Path, canary: Path) -> Path:
    write(folder.parent, "secrets/weights.bin", bytes(48))
    (folder / "data").symlink_to(folder.parent / "secrets")
    return saved(folder, external("data/weights.bin"))


@hostile("ONNX with data in a pipe")
def _onnx_pipe(folder: Path, canary: Path) -> Path:
    os.mkfifo(folder / "weights.bin")
    return saved(folder, external("weights.bin"))


for _name, _more in {
    "beyond the end": {"offset": 10},
    "before the start": {"offset": -8},
    "of another length": {"length": 4 * GIB},
}.items():

    def _misplaced(folder: Path, canary: Path, more: dict[str, int] = _more) -> Path:
        write(folder, "weights.bin", bytes(48))
        return saved(folder, external("weights.bin", **more))

    hostile(f"ONNX with data {_name}")(_misplaced)


@hostile("ONNX with a tensor of 4 GiB")
def _onnx_claim(folder: Path, canary: Path) -> Path:
    model = linear()
    model.graph.initializer[0].dims[:] = [GIB]
    return saved(folder, model)


@hostile("ONNX with a negative size")
def _onnx_negative(folder: Path, canary: Path) -> Path:
    model = linear()
    model.graph.initializer[0].dims[:] = [-1, 12]
    return saved(folder, model)


@hostile("ONNX with a foreign operator")
def _onnx_foreign(folder: Path, canary: Path) -> Path:
    model = linear()
    model.opset_import.append(helper.make_opsetid("evil.ops", 1))
    model.graph.node[0].domain = "evil.ops"
    return saved(folder, model)


@hostile("ONNX with an operator of an unlisted domain")
def _onnx_unlisted(folder: Path, canary: Path) -> Path:
    model = linear()
    model.graph.node[0].domain = "ai.onnx.contrib"
    return saved(folder, model)


@hostile("ONNX with graphs in graphs")
def _onnx_deep(folder: Path, canary: Path) -> Path:
    model = linear()
    graph = onnx.GraphProto()
    for _ in range(28):
        node = helper.make_node("If", ["c"], ["y"])
        node.attribute.append(helper.make_attribute("then_branch", graph))
        graph = onnx.GraphProto(node=[node])
    model.graph.node.append(graph.node[0])
    return saved(folder, model)


@hostile("ONNX that is cut off")
def _onnx_cut(folder: Path, canary: Path) -> Path:
    return write(folder, "model.onnx", linear(np.ones((4, 3000), np.float32)).SerializeToString()[:-9000])


@hostile("a sparse ONNX of 4 GiB")
def _onnx_sparse(folder: Path, canary: Path) -> Path:
    return sparse(saved(folder, linear()), 4 * GIB)


@hostile("ONNX in a zip with data outside")
def _onnx_zip(folder: Path, canary: Path) -> Path:
    return write(folder, "m.zip", zipped({"model.onnx": external("w.bin").SerializeToString(), "w.bin": bytes(48)}))


@hostile("ONNX without a graph")
def _onnx_empty(folder: Path, canary: Path) -> Path:
    return write(folder, "model.onnx", b"\x08\x0a\x12\x03noa")


# --- folders ---------------------------------------------------------------------------------------------------------

MLMODEL = """\
flavors:
  onnx:
    data: model.onnx
    code: null
  python_function:
    data: model.onnx
    loader_module: mlflow.onnx
mlflow_version: 3.17.2
"""
SCRIPT = MLMODEL.replace("loader_module: mlflow.onnx", "loader_module: mlflow.onnx\n    model_code_path: SCRIPT")


def mlflow_folder(folder: Path, text: str = MLMODEL) -> Path:
    root = folder / "outside"
    write(root, "MLmodel", text.encode())
    saved(root, linear())
    return root


def folder_with(change: Callable[[Path], object]) -> Build:
    def build(folder: Path, canary: Path) -> Path:
        root = mlflow_folder(folder)
        change(root)
        return root

    return build


def _socket(root: Path) -> None:
    here = Path.cwd()
    os.chdir(root)  # the path of a socket may be 108 bytes long
    try:
        socket.socket(socket.AF_UNIX).bind("s")
    finally:
        os.chdir(here)


def _deep(root: Path) -> None:
    path = root
    for _ in range(60):
        path = path / "d"
    path.mkdir(parents=True)


for _name, _change in {
    "a link to a file": lambda root: (root / "x.txt").symlink_to("/etc/passwd"),
    "a link to a folder": lambda root: (root / "x").symlink_to("/etc"),
    "a link in a circle": lambda root: (root / "x").symlink_to(root),
    "a pipe": lambda root: os.mkfifo(root / "pipe"),
    "a socket": _socket,
    "a name with a new line": lambda root: write(root, "evil\nname.txt", b"x"),
    "a name that turns around": lambda root: write(root, "evil\u202etxt.onnx", b"x"),
    "a name of no text": lambda root: write(root, os.fsdecode(b"evil\xff.txt"), b"x"),
    "a backslash in a name": lambda root: write(root, "..\\evil.txt", b"x"),
    "two names that look the same": lambda root: (
        write(root, "\u212a.txt", b"x"),
        write(root, "K.txt", b"x"),
    ),
    "two names of other case": lambda root: (write(root, "readme.md", b"x"), write(root, "README.md", b"x")),
    "a folder without a bottom": _deep,
    "a name that ends with a space": lambda root: write(root, "evil.txt ", b"x"),
}.items():
    hostile(f"a folder with {_name}")(folder_with(_change))


@hostile("a link to a model")
def _link(folder: Path, canary: Path) -> Path:
    path = folder / "model.onnx"
    path.symlink_to(saved(folder.parent, linear()))
    return path


@hostile("a device")
def _device(folder: Path, canary: Path) -> Path:
    return Path("/dev/zero")


@hostile("a pipe instead of a model")
def _fifo(folder: Path, canary: Path) -> Path:
    os.mkfifo(folder / "model.onnx")
    return folder / "model.onnx"


_LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
for _name, _text in {
    "a billion laughs": MLMODEL + _LAUGHS,
    "2 MiB": MLMODEL + "x: " + "y" * (2 << 20),
    "lists without end": MLMODEL + "x: " + "[" * 5000,
    "a Python object": MLMODEL + "x: !!python/object/apply:os.system ['touch CANARY']\n",
    "no YAML": "flavors:\n  - {",
    "flavors that are a list": "flavors: [onnx]\n",
    "a loader that runs programs": MLMODEL.replace("mlflow.onnx", "os"),
    "a loader in subprocess": MLMODEL.replace("mlflow.onnx", "subprocess"),
    "a loader that is a path": MLMODEL.replace("mlflow.onnx", "../evil"),
    "a loader with a call": MLMODEL.replace("mlflow.onnx", "os.system('x')"),
    "data outside": MLMODEL.replace("data: model.onnx", "data: ../../etc/passwd"),
    "absolute data": MLMODEL.replace("data: model.onnx", "data: /etc/passwd"),
    "a script above the folder": SCRIPT.replace("SCRIPT", "/elsewhere/.."),
    "data on a server": MLMODEL.replace("data: model.onnx", "data: s3://evil/model"),
}.items():

    def _mlmodel(folder: Path, canary: Path, text: str = _text) -> Path:
        return mlflow_folder(folder, text.replace("CANARY", str(canary)))

    hostile(f"MLmodel with {_name}")(_mlmodel)

for _name, _text in {
    "code paths": MLMODEL.replace("code: null", "code: code"),
    "a foreign loader": MLMODEL.replace("mlflow.onnx", "acme.loader"),
    "a flavor that unpickles": MLMODEL.replace("mlflow.onnx", "mlflow.sklearn"),
    "a model that is a script": MLMODEL + "model_code_path: model.py\n",
    "a script and where it lay": SCRIPT.replace("SCRIPT", "/elsewhere/model.py"),
    "a module to unpickle with": MLMODEL.replace("code: null", "pickle_module_name: evil"),
    "a pickled Python object": MLMODEL.replace("code: null", "python_model: python_model.pkl"),
}.items():
    code(f"MLmodel with {_name}")(lambda folder, canary, text=_text: mlflow_folder(folder, text))

for _name, _file, _data in (
    ("a script", "code/helper.py", b"import os\nos.system('touch x')\n"),
    ("a script without a suffix", "run", b"#!/bin/sh\ntouch x\n"),
    ("a script called weights", "weights.bin", b"import os\n\ndef load(path):\n    return os.listdir(path)\n"),
    ("a library", "ops.so", b"\x7fELF" + bytes(60)),
    ("a library called text", "readme.txt", b"\x7fELF" + bytes(60)),
    ("compiled Python", "x.bin", b"\xa7\x0d\r\n" + bytes(12) + b"\xe3" + bytes(40)),
    ("an unknown file", "x.bin", b"\x13\x37\x00\xfe" + bytes(range(256)) * 4),
    ("a plain pickle", "x.bin", pickle.dumps({"a": 1})),
):
    code(f"a folder with {_name}")(folder_with(lambda root, file=_file, data=_data: write(root, file, data)))

_LAMBDA = b'{"class_name": "Sequential", "config": {"layers": [{"class_name": "Lambda", "config": {}}]}}'


@code("HDF5 with a Lambda layer")
def _hdf5(folder: Path, canary: Path) -> Path:
    return write(folder, "m.h5", b"\x89HDF\r\n\x1a\n" + bytes(2000) + _LAMBDA + bytes(500))


@code("HDF5 behind a block of the user's")
def _hdf5_block(folder: Path, canary: Path) -> Path:
    return write(folder, "m.bin", bytes(512) + b"\x89HDF\r\n\x1a\n" + bytes(2000))


@code("a Keras archive")
def _keras(folder: Path, canary: Path) -> Path:
    entries = {
        "config.json": _LAMBDA,
        "metadata.json": b'{"keras_version": "3.0"}',
        "model.weights.h5": b"\x89HDF\r\n\x1a\n",
    }
    return write(folder, "m.keras", zipped(entries))


@code("a pickle of plain data")
def _plain(folder: Path, canary: Path) -> Path:
    return write(folder, "m.pkl", pickle.dumps({"weights": np.ones(3), "when": 1.5}))


@code("a pickle of a foreign class")
def _foreign(folder: Path, canary: Path) -> Path:
    return write(folder, "m.pkl", b"\x80\x04\x8c\x0bsklearn.svm\x8c\x03SVC\x93)\x81.")
