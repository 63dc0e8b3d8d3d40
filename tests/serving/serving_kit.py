"""Real content for serving tests: tiny ONNX models in a real registry, and real server processes on free ports."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from uvicorn.config import Config
from uvicorn.server import ServerState

from noa.settings import EndpointSettings, Settings
from noa.signatures import Signature, TensorSpec
from noa_registry import Evidence, ModelVersion, Registry, VersionDraft
from noa_serving._application import Application
from noa_serving._asgi import AsgiApplication
from noa_serving._endpoint import Endpoint
from noa_serving._follower import Follower
from noa_serving._protocol import hot_protocol
from noa_serving._shared_memory import SharedRegions

DATASET = "sha256:" + "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A project folder with a registry; `publish` registers a version and moves the alias to it."""

    settings: Settings

    def registry(self) -> Registry:
        return Registry.open(self.settings.registry)

    def publish(
        self,
        name: str,
        build: Callable[[Path], Mapping[str, np.ndarray]],
        *,
        alias: str | None = "champion",
        evidence: Callable[[Path], Sequence[Evidence]] = lambda _folder: (),
    ) -> ModelVersion:
        folder = Path(self.settings.root) / "drafts" / f"{name}-{np.random.default_rng().integers(1 << 60)}"
        folder.mkdir(parents=True)
        example = build(folder)
        draft = VersionDraft(
            name=name,
            formats={"onnx": folder},
            native="onnx",
            input_example=example,
            dataset_digest=DATASET,
            evidence=tuple(evidence(folder)),
        )
        with self.registry() as registry:
            version = registry.register(draft, actor="tests")
            if alias is not None:
                registry.promote(name, version.number, alias=alias, reason="test", actor="tests")
        return version

    def promote(self, name: str, number: int, *, alias: str = "champion") -> None:
        with self.registry() as registry:
            registry.promote(name, number, alias=alias, reason="test", actor="tests")


def save_onnx(
    folder: Path, signature: Signature, nodes: list[onnx.NodeProto], constants: Mapping[str, np.ndarray]
) -> None:
    """Write `model.onnx` and `signature.json`; free axes stay free."""

    def value(spec: TensorSpec) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(
            spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), list(spec.shape)
        )

    graph = helper.make_graph(
        nodes,
        "tiny",
        [value(spec) for spec in signature.inputs],
        [value(spec) for spec in signature.outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    signature.save(folder)


def affine_model(scale: float, *, features: int = 4) -> Callable[[Path], Mapping[str, np.ndarray]]:
    """One float32 input `x`; outputs `y = scale * x` and `total = sum(y)`."""

    def build(folder: Path) -> Mapping[str, np.ndarray]:
        signature = Signature(
            inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", features)),),
            outputs=(
                TensorSpec(name="y", dtype="float32", shape=("batch", features)),
                TensorSpec(name="total", dtype="float32", shape=("batch",)),
            ),
        )
        nodes = [
            helper.make_node("Mul", ["x", "scale"], ["y"]),
            helper.make_node("ReduceSum", ["y", "axes"], ["total"], keepdims=0),
        ]
        constants = {"scale": np.array(scale, dtype=np.float32), "axes": np.array([1], dtype=np.int64)}
        save_onnx(folder, signature, nodes, constants)
        return {"x": np.arange(2 * features, dtype=np.float32).reshape(2, features)}

    return build


def mixed_model(folder: Path) -> Mapping[str, np.ndarray]:
    """Three inputs of other dtypes: `pixels` uint8(batch, 2, 2), `index` int64(batch), `flag` bool(batch)."""
    signature = Signature(
        inputs=(
            TensorSpec(name="pixels", dtype="uint8", shape=("batch", 2, 2)),
            TensorSpec(name="index", dtype="int64", shape=("batch",)),
            TensorSpec(name="flag", dtype="bool", shape=("batch",)),
        ),
        outputs=(
            TensorSpec(name="half", dtype="float16", shape=("batch", 2, 2)),
            TensorSpec(name="picked", dtype="float32", shape=("batch",)),
            TensorSpec(name="not_flag", dtype="bool", shape=("batch",)),
        ),
    )
    nodes = [
        helper.make_node("Cast", ["pixels"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Gather", ["table", "index"], ["picked"]),
        helper.make_node("Not", ["flag"], ["not_flag"]),
    ]
    save_onnx(folder, signature, nodes, {"table": np.array([10.0, 20.0, 30.0], dtype=np.float32)})
    return {
        "pixels": np.arange(8, dtype=np.uint8).reshape(2, 2, 2),
        "index": np.array([0, 2], dtype=np.int64),
        "flag": np.array([True, False]),
    }


def failing_model(folder: Path) -> Mapping[str, np.ndarray]:
    """A model that loads, and fails on its own example."""
    return {**mixed_model(folder), "index": np.array([0, 9], dtype=np.int64)}


def slow_model(folder: Path, *, steps: int = 1200, size: int = 384) -> Mapping[str, np.ndarray]:
    """A float32 input `x` (batch, size) multiplied by a matrix in a loop of `steps`; takes a good part of a second."""
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", size)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", size)),),
    )
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "matrix"], ["moved"]),
            helper.make_node("MatMul", ["moved", "matrix"], ["next"]),
            helper.make_node("Identity", ["condition"], ["go_on"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    nodes = [helper.make_node("Loop", ["steps", "", "x"], ["y"], body=body)]
    constants = {"steps": np.array(steps, dtype=np.int64), "matrix": np.eye(size, dtype=np.float32)}
    save_onnx(folder, signature, nodes, constants)
    return {"x": np.ones((2, size), dtype=np.float32)}


def make_project(root: Path, state: Path | None = None, **serving: object) -> Project:
    """Return an empty project below `root` whose server polls quickly; `state` is copied to be its state folder."""
    table = {"serving": {"port": 0, "poll_interval_s": 0.05, "threads": 1, **serving}}
    settings = Settings.model_validate(table).resolved(root)
    if state is not None:
        shutil.copytree(state, settings.state_dir)
    return Project(settings=settings)


def endpoint(model: str) -> EndpointSettings:
    return EndpointSettings(model=model)


def build_app(settings: Settings, *, regions: Path | None = None, **endpoints: str) -> AsgiApplication:
    """Build the application of one worker in this process, with every endpoint looked up once.

    `regions` is the folder of its shared-memory regions, which are off without one.
    """
    rows = [Endpoint(name, endpoint(model), threads=1) for name, model in endpoints.items()]
    follower = Follower(rows, lambda: Registry.open(settings.registry), poll_interval_s=0.05)
    follower.poll()
    return AsgiApplication(Application(settings.serving, rows, follower, regions=SharedRegions(regions)))


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


async def call(
    app: AsgiApplication,
    method: str,
    path: str,
    body: bytes | Sequence[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    *,
    stall: bool = False,
) -> Answer:
    """Send one request to the ASGI callable; `stall` leaves the body unfinished."""
    chunks = [body] if isinstance(body, bytes) else list(body)
    messages = [
        {"type": "http.request", "body": chunk, "more_body": stall or index < len(chunks) - 1}
        for index, chunk in enumerate(chunks)
    ]
    sent: list[MutableMapping[str, object]] = []

    async def receive() -> MutableMapping[str, object]:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def send(message: MutableMapping[str, object]) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "query_string": b""}
    await app(scope, receive, send)
    start, *rest = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], found, b"".join(message["body"] for message in rest))


def ask(
    app: AsgiApplication, method: str, path: str, body: object = b"", headers: Mapping[str, str] | None = None
) -> Answer:
    """Like `call`, from synchronous code; a body that is not bytes is sent as JSON."""
    if not isinstance(body, bytes):
        body, headers = json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})}
    return asyncio.run(call(app, method, path, body, headers))


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 20.0, what: str = "the condition") -> None:
    """Poll a condition with a deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true in {timeout_s:g} s")
        time.sleep(0.01)


class Pipe(asyncio.Transport):
    """A transport that keeps what is written, and whether it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False
        self.is_read = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        assert not self.is_closed
        self.is_read = True

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 1) if name in ("sockname", "peername") else default


def open_pipe(app: AsgiApplication) -> tuple[Any, Pipe]:
    """Connect a protocol to a pipe inside a running loop."""
    config = Config(app=app, http="httptools", log_config=None, timeout_keep_alive=5)
    protocol = hot_protocol(app._application)(config, ServerState(), {}, asyncio.get_running_loop())
    pipe = Pipe()
    protocol.connection_made(pipe)
    return protocol, pipe
