"""What KServe's public client gets from a server, as JSON: `python kserve_calls.py URL GRPC_TARGET KEY`.

Runs in the client's own environment (scripts/set_up_kserve.py), which has nothing of noa.
"""

from __future__ import annotations

import asyncio
import json
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, InferResponse, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

Tensors = dict[str, tuple[str, np.ndarray]]

ROW: Tensors = {"x": ("FP32", np.array([[1, 2, 3, 4], [0.1, -0.5, 1e30, 3.5]], dtype=np.float32))}
MIXED: Tensors = {
    "pixels": ("UINT8", np.arange(8, dtype=np.uint8).reshape(2, 2, 2)),
    "index": ("INT64", np.array([0, 2], dtype=np.int64)),
    "flag": ("BOOL", np.array([True, False])),
}


def request(name: str, tensors: Tensors, *, is_binary: bool, outputs: list[str] | None = None) -> InferRequest:
    inputs: list[InferInput] = []
    for key, (datatype, array) in tensors.items():
        one = InferInput(key, list(array.shape), datatype)
        one.set_data_from_numpy(array, binary_data=is_binary)
        inputs.append(one)
    asked = None
    if outputs is not None:
        asked = [RequestedOutput(output, {"binary_data": True} if is_binary else None) for output in outputs]
    return InferRequest(model_name=name, infer_inputs=inputs, request_id="call-7", request_outputs=asked)


def shown(response: InferResponse) -> dict[str, object]:
    outputs = {one.name: [one.datatype, one.as_numpy().tolist()] for one in response.outputs}
    return {
        "model": response.model_name,
        "version": response.model_version,
        "id": response.id,
        "outputs": outputs,
    }


async def over_rest(url: str, headers: dict[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=30)) as client:
        found["live"] = await client.is_server_live(url)
        found["ready"] = await client.is_server_ready(url)
        found["model_ready"] = await client.is_model_ready(url, "digits", headers=headers)
        found["other_ready"] = await client.is_model_ready(url, "other", headers=headers)
        for way, is_binary in (("json", False), ("binary", True)):
            for name, tensors, outputs in (("digits", ROW, None), ("digits", ROW, ["total"]), ("mixed", MIXED, None)):
                asked = request(name, tensors, is_binary=is_binary, outputs=outputs)
                told: dict[str, str] = {}
                answer = await client.infer(
                    url, asked, model_name=name, headers=dict(headers), response_headers=told, timeout=30
                )
                found[f"{way} {name} {outputs}"] = shown(answer)
                found[f"{way} {name} {outputs} type"] = told["content-type"]
        rows = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
        answer = await client.infer(url, rows, model_name="digits", headers=headers)
        found["table"] = answer.get_output_by_name("total").as_numpy().tolist()
        for what, name, data, sent in (
            ("unknown", "other", request("other", ROW, is_binary=False), headers),
            ("no key", "digits", request("digits", ROW, is_binary=True), {}),
            ("wrong name", "digits", request("digits", {"z": ROW["x"]}, is_binary=True), headers),
        ):
            try:
                await client.infer(url, data, model_name=name, headers=dict(sent))
            except httpx.HTTPStatusError as exc:
                found[what] = [exc.response.status_code, str(exc)]
    return found


async def over_grpc(target: str, headers: tuple[tuple[str, str], ...]) -> dict[str, object]:
    found: dict[str, object] = {}
    async with InferenceGRPCClient(target, timeout=30) as client:
        found["live"] = await client.is_server_live()
        found["ready"] = await client.is_server_ready()
        found["model_ready"] = await client.is_model_ready("digits", headers=headers)
        for way, is_binary in (("typed", False), ("raw", True)):
            for name, tensors in (("digits", ROW), ("mixed", MIXED)):
                answer = await client.infer(request(name, tensors, is_binary=is_binary), headers=headers)
                found[f"{way} {name}"] = shown(answer)
        for what, data, sent in (
            ("unknown", request("other", ROW, is_binary=True), headers),
            ("no key", request("digits", ROW, is_binary=True), ()),
            ("wrong name", request("digits", {"z": ROW["x"]}, is_binary=True), headers),
        ):
            try:
                await client.infer(data, headers=sent)
            except grpc.RpcError as exc:
                found[what] = [exc.code().name, exc.details()]
    return found


async def main(url: str, target: str, key: str) -> None:
    rest = await over_rest(url, {"authorization": f"Bearer {key}"})
    found = {"rest": rest, "grpc": await over_grpc(target, (("authorization", f"Bearer {key}"),))}
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
