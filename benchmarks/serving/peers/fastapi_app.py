"""The bare peer: FastAPI on uvicorn (uvloop, httptools), orjson and onnxruntime; no validation, limits or metrics.

`uvicorn fastapi_app:app`. Bodies are read and written by hand, which is several times faster than with declared types.
`fastapi_app:echo` is the bound for large bodies: uvicorn alone, answering what it was sent.
"""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from peer_model import load_model

model = load_model()
app = FastAPI()


@app.post("/binary")
async def binary(request: Request) -> Response:
    return Response(model.run_bytes(await request.body()), media_type="application/octet-stream")


@app.post("/json")
async def json(request: Request) -> Response:
    outputs = {"outputs": {model.output: model.run_lists(orjson.loads(await request.body())["inputs"])}}
    return Response(orjson.dumps(outputs, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    chunks: list[bytes] = []
    more = True
    while more:
        message = await receive()
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(chunks)
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})
