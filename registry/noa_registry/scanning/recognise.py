"""What a file is, told from its bytes. Names lie; a pickle called `model.onnx` is a pickle."""

from __future__ import annotations

import json
import re
from typing import Final

from noa_registry.scanning.arrays import is_safetensors
from noa_registry.scanning.blobs import Blob
from noa_registry.scanning.jax_programs import is_jax_program
from noa_registry.scanning.mlmodels import is_mlmodel
from noa_registry.scanning.onnx_files import looks_like_onnx
from noa_registry.scanning.pickles import looks_like_pickle
from noa_registry.scanning.tars import is_tar
from noa_registry.scanning.zips import find_zip_end

HEAD_BYTES: Final = 4096
_PICKLE_PROTOCOLS = range(6)
_MAGIC: Final = (
    (b"PK\x03\x04", "zip"), (b"PK\x05\x06", "zip"), (b"PK\x07\x08", "zip"),
    (b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"\xfd7zXZ\x00", "xz"),
    (b"\x04\"M\x18", "packed"), (b"(\xb5/\xfd", "packed"), (b"7z\xbc\xaf\x27\x1c", "packed"), (b"Rar!", "packed"),
    (b"\x93NUMPY", "numpy"),
    (b"\x7fELF", "program"), (b"MZ", "program"), (b"\xca\xfe\xba\xbe", "program"), (b"\xfe\xed\xfa", "program"),
    (b"\xce\xfa\xed\xfe", "program"), (b"\xcf\xfa\xed\xfe", "program"), (b"\0asm", "program"), (b"!<arch>", "program"),
    (b"dex\n", "program"), (b"BC\xc0\xde", "program"),
    (b"\x89PNG\r\n\x1a\n", "image"), (b"\xff\xd8\xff", "image"), (b"GIF8", "image"),
    (b"PAR1", "parquet"), (b"ARROW1\0\0", "arrow"), (b"ML\xefR", "stablehlo"),
)  # fmt: skip
_TRAILING = {"image", "parquet", "arrow", "stablehlo"}
"""Kinds that nothing else looks into: what is behind their beginning could be anything."""
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZLIB = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_SCRIPT_NAME = re.compile(
    r"\.(py[cdwo]?|sh|bash|zsh|ps1|bat|cmd|js|mjs|rb|pl|lua|r|jl|ipynb|pth|so|dll|dylib|jar)$", re.IGNORECASE
)
_SCRIPT = re.compile(
    r"(?m)^(?:#!|\s*(?:import [\w., ]+|from [\w.]+ import |def \w+\(|class \w+[(:]|@\w+|exec\(|eval\(|__import__\())"
)
_PROSE_NAME = re.compile(
    r"\.(md|rst|txt|csv|tsv|json|ya?ml|toml|cfg|ini|html?|xml|log)$|(^|/)(license|readme)[^/]*$", re.IGNORECASE
)


def recognise(blob: Blob, name: str) -> str:
    """Return the kind of a file. `name` only decides whether a text is a script or prose."""
    head = blob.read(0, HEAD_BYTES)
    if not head:
        return "empty"
    return _by_mark(blob, head) or _by_structure(blob, head) or _by_text(blob, head, name)


def _by_mark(blob: Blob, head: bytes) -> str | None:
    if len(head) > 1 and head[0] == 0x80 and head[1] in _PICKLE_PROTOCOLS:
        return "pickle"
    for magic, kind in _MAGIC:
        if head.startswith(magic) and not (magic.isalnum() and len(magic) < 5 and _is_text(blob, head)):
            return "hidden zip" if kind in _TRAILING and find_zip_end(blob) is not None else kind
    return None


def _by_structure(blob: Blob, head: bytes) -> str | None:
    """Recognise what has no mark at its start, or not only there."""
    checks = (
        ("hdf5", lambda: _is_hdf5(blob)),
        ("tar", lambda: is_tar(head)),
        ("safetensors", lambda: is_safetensors(head)),
        ("hidden zip", lambda: find_zip_end(blob) is not None),
        ("pickle", lambda: looks_like_pickle(blob)),
        ("jax program", lambda: is_jax_program(blob)),
        ("onnx", lambda: looks_like_onnx(head)),
    )
    return next((kind for kind, is_it in checks if is_it()), None)


def _by_text(blob: Blob, head: bytes, name: str) -> str:
    if _is_text(blob, head):
        return _text_kind(blob, head, name)
    if head[2:4] == b"\r\n" and len(head) > 16:
        return "program"  # compiled Python
    return "zlib" if head.startswith(_ZLIB) else "unknown"


def _is_hdf5(blob: Blob) -> bool:
    """Tell whether the mark stands where HDF5 allows it: at the start, or at 512 and its doubles."""
    at = 0
    while at < min(blob.size, 1 << 24):
        if blob.read(at, len(_HDF5)) == _HDF5:
            return True
        at = max(512, at * 2)
    return False


def _is_text(blob: Blob, head: bytes) -> bool:
    for piece in (head, blob.read(max(0, blob.size - HEAD_BYTES), HEAD_BYTES)):
        if _CONTROL.search(piece):
            return False
        for cut in range(4):  # the piece may begin or end inside a character
            try:
                piece[cut : len(piece) - 4 if len(piece) == HEAD_BYTES else None].decode("utf-8", "strict")
                break
            except UnicodeDecodeError as exc:
                if exc.start >= len(piece) - 8 and len(piece) == HEAD_BYTES:
                    break
        else:
            return False
    return True


def _text_kind(blob: Blob, head: bytes, name: str) -> str:
    if is_mlmodel(head):
        return "mlmodel"
    text = head.decode("utf-8", "replace")
    if text.startswith("#!") or _SCRIPT_NAME.search(name):
        return "script"
    if text.lstrip()[:1] in ("{", "[") and (_PROSE_NAME.search(name) or _is_json(blob)):
        return "json"
    if not _PROSE_NAME.search(name) and _SCRIPT.search(text):
        return "script"
    return "text"


def _is_json(blob: Blob) -> bool:
    if blob.size > 1 << 20:
        return False
    try:
        json.loads(blob.read(0, blob.size))
    except (ValueError, RecursionError):
        return False
    return True
