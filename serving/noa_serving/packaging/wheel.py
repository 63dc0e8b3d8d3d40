"""noa itself for a package: one wheel of the rooms that serve, made from what is installed here.

It is no build of the distribution: it holds neither the registry nor the command line, and requires only the lean set.
The same sources give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import sys
import zipfile
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

from noa import __version__
from noa.errors import NotFoundError
from noa.formats import ENTRY_POINT_GROUP

ROOMS: Final = ("noa", "noa_conversion", "noa_serving")
VERSION: Final = f"{__version__}+packaged"
WHEEL_NAME: Final = f"noa-{VERSION}-py3-none-any.whl"
_TIME = (1980, 1, 1, 0, 0, 0)
_KINDS = {".py", ".typed", ".json", ".toml", ".html"}


def build_wheel(requires: Iterable[str]) -> bytes:
    """Return the wheel; `requires` are the names of the distributions that noa imports.

    Raises:
        NotFoundError: noa runs from something else than files.
    """
    info = f"noa-{VERSION}.dist-info"
    members = [(f"{room}/{name}", data) for room in ROOMS for name, data in _sources(room)]
    members += [
        (f"{info}/METADATA", _metadata(requires).encode()),
        (f"{info}/WHEEL", b"Wheel-Version: 1.0\nGenerator: noa\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        (f"{info}/entry_points.txt", _entry_points().encode()),
        (f"{info}/licenses/LICENSE", _licence()),
    ]
    record = [f"{name},sha256={_hash(data)},{len(data)}" for name, data in members]
    members.append((f"{info}/RECORD", "".join(f"{line}\n" for line in (*record, f"{info}/RECORD,,")).encode()))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return buffer.getvalue()


def _sources(room: str) -> Iterator[tuple[str, bytes]]:
    file = import_module(room).__file__
    folder = None if file is None else Path(file).parent
    if folder is None or not folder.is_dir():
        raise NotFoundError(f"the sources of `{room}` are not files here", remedy="Install noa with pip")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in _KINDS and "__pycache__" not in path.parts:
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def _metadata(requires: Iterable[str]) -> str:
    python = f">={sys.version_info.major}.{sys.version_info.minor}"
    lines = ["Metadata-Version: 2.4", "Name: noa", f"Version: {VERSION}", f"Requires-Python: {python}"]
    lines += ["License-Expression: Apache-2.0", "License-File: LICENSE"]
    lines += [f"Requires-Dist: {name}" for name in requires]
    return "\n".join([*lines, "Summary: What of noa serves a packaged endpoint.", ""])


def _entry_points() -> str:
    points = sorted(
        (point.name, point.value) for point in distribution("noa").entry_points if point.group == ENTRY_POINT_GROUP
    )
    return "\n".join([f"[{ENTRY_POINT_GROUP}]", *(f"{name} = {value}" for name, value in points), ""])


def _licence() -> bytes:
    """Return the text of the licence: beside the metadata, or in an installation from sources above the rooms."""
    for file in distribution("noa").files or ():
        if file.name == "LICENSE":
            return file.read_binary()
    source = Path(str(import_module("noa").__file__)).parents[2] / "LICENSE"
    return source.read_bytes() if source.is_file() else b"Apache-2.0\n"


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
