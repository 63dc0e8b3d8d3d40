"""The scan: walk, recognise, look inside. Runs nothing, follows no link, opens no pipe, unpacks nothing to a name."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, cast

from noa_registry.scanning.arrays import check_numpy, check_safetensors
from noa_registry.scanning.blobs import Blob, FileBlob, MalformedError, Slice
from noa_registry.scanning.limits import ScanLimits
from noa_registry.scanning.mlmodels import inspect_mlmodel
from noa_registry.scanning.onnx_files import inspect_onnx, looks_like_onnx
from noa_registry.scanning.pickles import inspect_pickle
from noa_registry.scanning.recognise import recognise
from noa_registry.scanning.report import TENSOR_DATA, ScanReport, Severity
from noa_registry.scanning.state import OverLimitError, ScanState, check_part, readable, same_name
from noa_registry.scanning.streams import unpack
from noa_registry.scanning.tars import read_tar
from noa_registry.scanning.zips import STORED, ZipEntry, read_zip

_HARMLESS = {"text", "json", "empty", "image", "parquet", "arrow", "stablehlo", "jax program"}
_TORCH_RAW = re.compile(r"data/\d+|\.data/serialization_id|\.format_version|\.storage_alignment|byteorder|version")
_PT2_RAW = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|\.data/(serialization_id|version)|archive_\w+|byteorder|version"
)
_PT2_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_KERAS_SEARCH = re.compile(rb'"class_name"\s*:\s*"(\w*Lambda\w*)"')
_STEP_BYTES = 1 << 20


def scan_path(path: Path, limits: ScanLimits | None = None) -> ScanReport:
    """Look through a file or folder and say what it holds. Never raises for what the files hold: it reports it.

    Raises:
        DependencyMissingError: there are pickles, and picklescan is not installed.
        OSError: the disk refused to read.
    """
    scan = ScanState(limits or ScanLimits())
    root = path.name or "."
    try:
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            _scan_folder(scan, path)
        elif stat.S_ISREG(mode):
            _scan_file(scan, path, root)
        else:
            scan.hostile(root, f"is {_special(mode)}")
    except OverLimitError as exc:
        scan.hostile(root, str(exc))
    order = {Severity.HOSTILE: 0, Severity.CODE: 1, Severity.NOTE: 2}
    findings = sorted(scan.findings, key=lambda finding: order[finding.severity])
    return ScanReport(source=readable(root), files=tuple(scan.files), findings=tuple(findings))


def _scan_folder(scan: ScanState, root: Path) -> None:
    files = [(path, name) for path, name in _walk(scan, root, "", 0)]
    # Graphs first: they tell which other files hold their weights, raw numbers that nothing else could recognise.
    ordered = sorted(files, key=lambda pair: not _begins_like_onnx(pair[0]))
    for path, name in ordered:
        if path in scan.tensor_data:
            scan.add_file(name, TENSOR_DATA, path.lstat().st_size)
        else:
            _scan_file(scan, path, name)


def _walk(scan: ScanState, folder: Path, prefix: str, deep: int) -> list[tuple[Path, str]]:
    if deep > scan.limits.folders_deep:
        raise OverLimitError(f"has folders more than {scan.limits.folders_deep} deep")
    found: list[tuple[Path, str]] = []
    names: dict[str, str] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if len(names) >= scan.limits.files:
                raise OverLimitError(f"holds more than {scan.limits.files} files")
            if (other := names.setdefault(same_name(entry.name), entry.name)) != entry.name:
                scan.hostile(name, f"has a name that some systems take for that of {other!a}")
            try:
                check_part(entry.name)
            except MalformedError as exc:
                scan.hostile(name, str(exc))
                continue
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                found += _walk(scan, Path(entry.path), f"{name}/", deep + 1)
            elif stat.S_ISREG(mode):
                found.append((Path(entry.path), name))
            else:
                scan.hostile(name, f"is {_special(mode)}")
    return sorted(found)


def _scan_file(scan: ScanState, path: Path, name: str) -> None:
    try:
        blob = FileBlob(path)
    except MalformedError as exc:
        scan.hostile(name, str(exc))
        return
    try:
        _inspect(scan, blob, name, 0, path.parent)
    finally:
        blob.close()


def _begins_like_onnx(path: Path) -> bool:
    try:
        blob = FileBlob(path)
    except (MalformedError, OSError):
        return False
    try:
        return looks_like_onnx(blob.read(0, 16))
    finally:
        blob.close()


def _inspect(scan: ScanState, blob: Blob, name: str, deep: int, folder: Path | None) -> None:
    """Recognise one file and look into it. Whatever is wrong with it becomes a finding."""
    kind = recognise(blob, name)
    scan.add_file(name, kind, blob.size)
    try:
        _look_inside(scan, blob, name, kind, deep, folder)
    except MalformedError as exc:
        scan.hostile(name, str(exc))


def _look_inside(scan: ScanState, blob: Blob, name: str, kind: str, deep: int, folder: Path | None) -> None:
    if kind == "onnx":
        inspect_onnx(scan, blob, name, folder)
    elif kind == "safetensors":
        check_safetensors(blob, scan.limits)
    elif kind == "numpy":
        start = check_numpy(blob)
        if start is not None:
            scan.code(name, "is a NumPy file of Python objects, which is a pickle behind its header")
            inspect_pickle(scan, Slice(blob, start, blob.size - start), name)
    elif kind == "pickle":
        inspect_pickle(scan, blob, name)
    elif kind == "mlmodel":
        inspect_mlmodel(scan, blob, name)
    elif kind in ("zip", "tar"):
        _inspect_archive(scan, blob, name, kind, deep)
    elif kind in ("gzip", "bz2", "xz", "zlib"):
        _check_deep(scan, deep)
        with unpack(scan, blob, kind) as unpacked:
            _inspect(scan, unpacked, f"{name}!", deep + 1, None)
    elif kind == "hdf5":
        _inspect_keras(scan, blob, name)
    elif kind not in _HARMLESS:
        _report_other(scan, name, kind)


def _report_other(scan: ScanState, name: str, kind: str) -> None:
    if kind == "script":
        scan.code(name, "is a script")
    elif kind == "program":
        scan.code(name, "is compiled code")
    elif kind == "hidden zip":
        scan.hostile(name, "begins as one thing and ends as a zip file, so that two readers see two files")
    elif kind == "packed":
        scan.code(name, "is compressed in a way that is not looked into")
    else:
        scan.code(name, "is of a kind that is not recognised, so nobody can say what reading it does")


def _check_deep(scan: ScanState, deep: int) -> None:
    if deep >= scan.limits.archives_deep:
        raise MalformedError(f"is an archive in archives, more than {scan.limits.archives_deep} deep")


def _inspect_archive(scan: ScanState, blob: Blob, name: str, kind: str, deep: int) -> None:
    _check_deep(scan, deep)
    if kind == "tar":
        for inner, data in read_tar(blob, scan.limits):
            _inspect(scan, data, f"{name}!{inner}", deep + 1, None)
        return
    entries = read_zip(blob, scan.limits)
    unpacked = sum(entry.size for entry in entries if entry.method != STORED)
    packed = sum(entry.data.size for entry in entries if entry.method != STORED)
    limits = scan.limits
    if unpacked > limits.unpacked_bytes or (
        unpacked > limits.ratio_from_bytes and unpacked > limits.ratio * max(packed, 1)
    ):
        raise MalformedError(f"is a bomb: {packed} bytes claim to unpack to {unpacked}")
    _inspect_entries(scan, entries, name, deep)


def _inspect_entries(scan: ScanState, entries: list[ZipEntry], name: str, deep: int) -> None:
    root, layout = _layout(entries)
    if layout == "pt2":
        _inspect_pt2(scan, entries, name, root)
    elif layout == "torch":
        scan.note(name, "is a PyTorch archive around a pickle")
    elif layout == "keras":
        scan.code(name, "is a Keras model, whose layers may hold Python code")
    for entry in entries:
        inner, shown = entry.name.removeprefix(root), f"{name}!{entry.name}"
        is_raw = (layout == "torch" and _TORCH_RAW.fullmatch(inner)) or (layout == "pt2" and _PT2_RAW.fullmatch(inner))
        if is_raw and entry.method == STORED:
            scan.add_file(shown, TENSOR_DATA, entry.size)
        elif entry.method == STORED:
            _inspect_member(scan, entry.data, shown, deep + 1, is_sample=layout == "pt2" and "sample_inputs/" in inner)
        else:
            try:
                with unpack(scan, entry.data, "deflate", claimed=entry.size, checksum=entry.checksum) as data:
                    _inspect_member(scan, data, shown, deep + 1, is_sample=False)
            except MalformedError as exc:
                scan.hostile(shown, str(exc))


def _inspect_member(scan: ScanState, blob: Blob, name: str, deep: int, *, is_sample: bool) -> None:
    if is_sample and blob.size and blob.read(0, 2) == b"PK":
        _inspect_sample(scan, blob, name)
    else:
        _inspect(scan, blob, name, deep, None)


def _inspect_sample(scan: ScanState, blob: Blob, name: str) -> None:
    """Look through the example inputs of an exported program: noa leaves them out, so plain ones are only noted."""
    scan.add_file(name, "zip", blob.size)
    try:
        for entry in read_zip(blob, scan.limits):
            if entry.name.endswith(".pkl"):
                if entry.method != STORED:
                    raise MalformedError("is a PyTorch archive that is compressed, which PyTorch never writes")
                inspect_pickle(scan, entry.data, f"{name}!{entry.name}", plain=Severity.NOTE)
    except MalformedError as exc:
        scan.hostile(name, str(exc))


def _layout(entries: list[ZipEntry]) -> tuple[str, str]:
    """Return the folder that all entries lie in (or ""), and what the archive is, as far as that is known."""
    names = {entry.name for entry in entries}
    first = next(iter(names), "").partition("/")[0] + "/"
    root = first if all(name.startswith(first) for name in names) else ""
    if f"{root}archive_format" in names or f"{root}models/model.json" in names:
        return root, "pt2"
    if f"{root}data.pkl" in names:
        return root, "torch"
    if {"config.json", "metadata.json"} <= names and any(name.endswith(".h5") for name in names):
        return "", "keras"
    return root, "zip"


def _inspect_pt2(scan: ScanState, entries: list[ZipEntry], name: str, root: str) -> None:
    """Look for the parts of an exported program that PyTorch would unpickle."""
    by_name = {entry.name.removeprefix(root): entry for entry in entries}
    for path in _PT2_CONFIGS:
        entry = by_name.get(path)
        if entry is None or entry.method != STORED or entry.size > 16 * scan.limits.text_bytes:
            continue
        try:
            table: Any = json.loads(entry.data.read(0, entry.size))
            rows = cast("dict[str, dict[str, object]]", table["config"])
            pickled = [row for row in rows.values() if row.get("use_pickle") is not False]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise MalformedError(f"is an exported program with an unreadable `{path}`") from exc
        for row in pickled:
            inner = f"{path.rpartition('/')[0]}/{row.get('path_name')}"
            scan.code(name, f"is an exported program that would unpickle `{readable(inner)}`")
            if (target := by_name.get(inner)) is not None and target.method == STORED:
                _inspect(scan, target.data, f"{name}!{target.name}", 2, None)
    for inner in by_name:
        if re.match(r"data/constants/(custom|opaque)_obj_|data/aotinductor/", inner):
            scan.code(name, f"is an exported program with code of its own: `{readable(inner)}`")
        elif inner in ("data/weights/model.pt", "data/constants/model.pt") or inner.startswith("serialized_"):
            scan.code(name, f"is an exported program in an old layout, which PyTorch unpickles: `{inner}`")


def _inspect_keras(scan: ScanState, blob: Blob, name: str) -> None:
    """Report an HDF5 file; the text of its model, where it is not compressed, tells of layers that hold code."""
    scan.code(name, "is an HDF5 file, from which Keras may build layers that hold Python code")
    at, found = 0, set[bytes]()
    while at < blob.size:
        piece = blob.read(at, _STEP_BYTES + 256)
        found |= set(_KERAS_SEARCH.findall(piece))
        at += _STEP_BYTES
        scan.check_time()
    for layer in sorted(found):
        scan.code(name, f"holds a Keras layer `{layer.decode()}`, which is Python code")


def _special(mode: int) -> str:
    names = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return names.get(stat.S_IFMT(mode), "no file")
