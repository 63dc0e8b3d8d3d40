"""Media types of plain prediction: which one a body is in, and in which one its answer goes back.

JSON, NumPy (`.npy`, `.npz`) and Arrow IPC streams. The answer comes in the type of the request unless `accept` names
another; nothing else is ever read, least of all a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from noa.errors import InvalidInputError
from noa_serving._http import Headers, RequestRefusedError, Response
from noa_serving._json_body import check_content_type
from noa_serving._npy_body import NPY_TYPE, NPZ_TYPE, read_npy, read_npz, write_arrays

if TYPE_CHECKING:
    import numpy as np

    from noa_serving._generation import Generation

Media = Literal["json", "npy", "npz", "arrow"]

ARROW_TYPE = b"application/vnd.apache.arrow.stream"
OUTPUTS_HEADER = b"noa-outputs"

_MEDIA: dict[bytes, Media] = {NPY_TYPE: "npy", NPZ_TYPE: "npz", ARROW_TYPE: "arrow"}
_SAME = (b"*/*", b"application/*")
_JSON = b"application/json"


def media_of_body(headers: Headers) -> Media:
    """Return the media type of a request's body.

    Raises:
        RequestRefusedError: 415, it is one that is not read here, or needs a package that is not installed.
    """
    kind = headers.get(b"content-type")
    if kind is None or kind == _JSON:
        check_content_type(headers)
        return "json"
    media = _MEDIA.get(kind.partition(b";")[0].strip().lower(), "json")
    check_content_type(headers, also=media != "json")
    if media == "arrow":
        _require_arrow(415)
    return media


def media_of_answer(headers: Headers, asked: Media) -> Media:
    """Return the media type of the answer: that of the body, or the first in `accept` that is written here.

    Raises:
        RequestRefusedError: 406, `accept` names none of them.
    """
    accept = headers.get(b"accept")
    if accept is None or accept in _SAME:
        return asked
    for part in accept.lower().split(b","):
        kind, _, rest = part.partition(b";")
        kind = kind.strip()
        if rest.replace(b" ", b"") in (b"q=0", b"q=0.0"):
            continue
        if kind in _SAME:
            return asked
        if kind == _JSON:
            return "json"
        if kind in _MEDIA:
            if kind == ARROW_TYPE:
                _require_arrow(406)
            return _MEDIA[kind]
    known = b", ".join((_JSON, *_MEDIA)).decode()
    raise RequestRefusedError(
        "the answer cannot be written as `accept` asks",
        status=406,
        expected=known,
        received=accept[:80].decode("latin-1"),
    )


def read_inputs(generation: Generation, media: Media, body: bytes, *, max_batch_items: int) -> dict[str, np.ndarray]:
    """Return the inputs in a body that is not JSON.

    Raises:
        InvalidInputError, SignatureError: it is malformed or does not fit the model.
        RequestRefusedError: too large a batch.
    """
    if not body:
        raise InvalidInputError("the request has no body", expected="arrays")
    if media == "arrow":
        from noa_serving._arrow_body import read_arrow

        return read_arrow(generation, body, max_batch_items=max_batch_items)
    read = read_npy if media == "npy" else read_npz
    return read(generation, body, max_batch_items=max_batch_items)


def output_names(headers: Headers) -> list[str]:
    """Return the outputs that the header `noa-outputs` asks for, none for all."""
    text = headers.get(OUTPUTS_HEADER, b"").decode("latin-1")
    return [name.strip() for name in text.split(",") if name.strip()]


def write_answer(media: Media, generation: Generation, arrays: Mapping[str, np.ndarray]) -> Response:
    """Return arrays as an answer that is not JSON.

    Raises:
        RequestRefusedError: 406, they do not go into this media type.
    """
    if media == "arrow":
        from noa_serving._arrow_body import write_arrow

        kind, body = ARROW_TYPE, write_arrow(arrays)
    else:
        kind, body = write_arrays(arrays)
    return Response(200, body, ((b"content-type", kind), *generation.headers))


def _require_arrow(status: int) -> None:
    if find_spec("pyarrow") is None:
        raise RequestRefusedError(
            "Arrow needs the package `pyarrow`, which this server lacks",
            status=status,
            expected=f"{_JSON.decode()} or {NPY_TYPE.decode()}",
        )
