"""Models that are called step by step, applications that stream them, and plain loops to compare with."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from onnx import helper
from serving_kit import Project, save_onnx

from noa.settings import EndpointSettings
from noa.signatures import Signature, TensorSpec
from noa_registry import Registry
from noa_serving._application import Application
from noa_serving._asgi import AsgiApplication
from noa_serving._follower import Follower
from noa_serving._observer import Observer
from noa_serving._traffic import make_endpoints, with_arms

WORDS = 17
WIDTH = 6
END = 0
"""The token that ends a sentence."""

CHAIN: dict[str, Any] = {
    "feeds": {"tokens": "append(next, 1)"},
    "stop": {"output": "next", "equals": END},
    "max_steps": 40,
}
CACHED: dict[str, Any] = {
    "feeds": {"token": "next", "past": "present"},
    "initial_zeros": ["past"],
    "stop": {"output": "next", "equals": END},
    "max_steps": 40,
}
COUNTER: dict[str, Any] = {"feeds": {"x": "y"}, "emits": ["y"], "stop": {"output": "done"}, "max_steps": 500}
WIDE: dict[str, Any] = {"feeds": {"x": "y"}, "emits": ["y", "wide"], "max_steps": 100_000}
SLOW: dict[str, Any] = {"feeds": {"x": "y"}, "emits": ["y"], "max_steps": 10_000}


def spec(name: str, dtype: Any, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def chain_model(seed: int = 3) -> Callable[[Path], Mapping[str, np.ndarray]]:
    """A language model without a cache: `tokens` int64 (batch, seq) gives `next` (batch, 1) and `score` (batch, 1)."""

    def build(folder: Path) -> Mapping[str, np.ndarray]:
        random = np.random.default_rng(seed)
        signature = Signature(
            inputs=(spec("tokens", "int64", "batch", "seq"),),
            outputs=(spec("next", "int64", "batch", 1), spec("score", "float32", "batch", 1)),
        )
        nodes = [
            helper.make_node("Gather", ["tokens", "last_place"], ["last"], axis=1),
            helper.make_node("Gather", ["matrix", "last"], ["by_last"]),
            helper.make_node("Gather", ["embedding", "tokens"], ["embedded"]),
            helper.make_node("ReduceMean", ["embedded", "axis_one"], ["by_all"], keepdims=1),
            helper.make_node("Add", ["by_last", "by_all"], ["logits"]),
            helper.make_node("ArgMax", ["logits"], ["next"], axis=2, keepdims=0),
            helper.make_node("ReduceMax", ["logits", "axis_two"], ["score"], keepdims=0),
        ]
        constants = {
            "last_place": np.array([-1], dtype=np.int64),
            "axis_one": np.array([1], dtype=np.int64),
            "axis_two": np.array([2], dtype=np.int64),
            "matrix": random.normal(size=(WORDS, WORDS)).astype(np.float32),
            "embedding": random.normal(size=(WORDS, WORDS)).astype(np.float32),
        }
        save_onnx(folder, signature, nodes, constants)
        return {"tokens": np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int64)}

    return build


def cached_model(folder: Path) -> Mapping[str, np.ndarray]:
    """A language model with a cache: `token` int64 (batch, 1) and `past` float32 (batch, past, width) give `next` int64
    (batch, 1), `score` float32 (batch, 1) and `present`, which is `past` and one more."""
    random = np.random.default_rng(5)
    signature = Signature(
        inputs=(spec("token", "int64", "batch", 1), spec("past", "float32", "batch", "past", WIDTH)),
        outputs=(
            spec("next", "int64", "batch", 1),
            spec("score", "float32", "batch", 1),
            spec("present", "float32", "batch", "total", WIDTH),
        ),
    )
    nodes = [
        helper.make_node("Gather", ["embedding", "token"], ["embedded"]),
        helper.make_node("Concat", ["past", "embedded"], ["present"], axis=1),
        helper.make_node("ReduceMean", ["present", "axis_one"], ["mean"], keepdims=1),
        helper.make_node("Add", ["mean", "embedded"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "head"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["next"], axis=2, keepdims=0),
        helper.make_node("ReduceMax", ["logits", "axis_two"], ["score"], keepdims=0),
    ]
    constants = {
        "axis_one": np.array([1], dtype=np.int64),
        "axis_two": np.array([2], dtype=np.int64),
        "embedding": random.normal(size=(WORDS, WIDTH)).astype(np.float32),
        "head": random.normal(size=(WIDTH, WORDS)).astype(np.float32),
    }
    save_onnx(folder, signature, nodes, constants)
    return {
        "token": np.array([[1], [2]], dtype=np.int64),
        "past": random.normal(size=(2, 3, WIDTH)).astype(np.float32),
    }


def counter_model(limit: float = 5.0) -> Callable[[Path], Mapping[str, np.ndarray]]:
    """`x` float32 (batch) gives `y` = x + 1, and whether it has reached the limit in `done`; 100 is out of a range."""

    def build(folder: Path) -> Mapping[str, np.ndarray]:
        signature = Signature(
            inputs=(spec("x", "float32", "batch"),),
            outputs=(spec("y", "float32", "batch"), spec("done", "bool", "batch"), spec("row", "float32", "batch")),
        )
        nodes = [
            helper.make_node("Add", ["x", "one"], ["y"]),
            helper.make_node("GreaterOrEqual", ["y", "limit"], ["done"]),
            helper.make_node("Cast", ["x"], ["place"], to=7),
            helper.make_node("Gather", ["table", "place"], ["row"]),
        ]
        constants = {
            "one": np.array(1.0, dtype=np.float32),
            "limit": np.array(limit, dtype=np.float32),
            "table": np.arange(100, dtype=np.float32),
        }
        save_onnx(folder, signature, nodes, constants)
        return {"x": np.array([0.0, 1.0], dtype=np.float32)}

    return build


def wide_model(folder: Path) -> Mapping[str, np.ndarray]:
    """A counter without an end whose second output `wide` float32 (batch, 16384) fills sockets."""
    signature = Signature(
        inputs=(spec("x", "float32", "batch"),),
        outputs=(spec("y", "float32", "batch"), spec("wide", "float32", "batch", 1 << 14)),
    )
    nodes = [
        helper.make_node("Add", ["x", "one"], ["y"]),
        helper.make_node("Unsqueeze", ["x", "axis"], ["column"]),
        helper.make_node("Add", ["column", "zeros"], ["wide"]),
    ]
    constants = {
        "one": np.array(1.0, dtype=np.float32),
        "axis": np.array([1], dtype=np.int64),
        "zeros": np.zeros(1 << 14, dtype=np.float32),
    }
    save_onnx(folder, signature, nodes, constants)
    return {"x": np.array([0.0, 1.0], dtype=np.float32)}


class Reference(NamedTuple):
    """What a plain loop over onnxruntime gives: the outputs of each step."""

    steps: list[dict[str, np.ndarray]]


def session_of(build: Callable[[Path], Mapping[str, np.ndarray]], folder: Path) -> onnxruntime.InferenceSession:
    folder.mkdir(parents=True, exist_ok=True)
    build(folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])


def run_chain(session: onnxruntime.InferenceSession, tokens: np.ndarray, steps: int) -> list[dict[str, np.ndarray]]:
    found: list[dict[str, np.ndarray]] = []
    for _ in range(steps):
        given = dict(zip(("next", "score"), session.run(["next", "score"], {"tokens": tokens}), strict=True))
        found.append(given)
        if (given["next"] == END).all():
            break
        tokens = np.concatenate((tokens, given["next"]), axis=1)
    return found


def run_cached(session: onnxruntime.InferenceSession, token: np.ndarray, steps: int) -> list[dict[str, np.ndarray]]:
    past = np.zeros((len(token), 0, WIDTH), np.float32)
    found: list[dict[str, np.ndarray]] = []
    for _ in range(steps):
        token, score, past = session.run(["next", "score", "present"], {"token": token, "past": past})
        found.append({"next": token, "score": score})
        if (token == END).all():
            break
    return found


def streaming(model: str, stream: Mapping[str, Any], **more: object) -> EndpointSettings:
    return EndpointSettings.model_validate({"model": model, "stream": stream, **more})


def build_streams(
    project: Project, observer: Observer | None = None, **endpoints: EndpointSettings
) -> tuple[AsgiApplication, Follower]:
    """Build the application of one worker in this process; every endpoint was looked up once."""
    made = make_endpoints(endpoints, threads=1)
    follower = Follower(with_arms(made), lambda: Registry.open(project.settings.registry), poll_interval_s=0.05)
    follower.poll()
    return AsgiApplication(Application(project.settings.serving, made, follower, observer=observer)), follower


class Event(NamedTuple):
    name: str
    id: str
    data: dict[str, Any]


def parse(text: str) -> list[Event]:
    """Return all events of an answer; each must be whole."""
    assert text.endswith("\n\n") or not text
    found: list[Event] = []
    for block in text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append(Event(fields.get("event", ""), fields.get("id", ""), json.loads(fields["data"])))
    return found


@contextmanager
def posted(
    url: str, path: str, body: object, headers: Mapping[str, str] | None = None, *, timeout_s: float = 20.0
) -> Iterator[http.client.HTTPResponse]:
    """Send a request over a connection of its own, and give the answer as it begins."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=timeout_s)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request("POST", path, raw, {"content-type": "application/json", **(headers or {})})
        yield connection.getresponse()
    finally:
        connection.close()


def stream_over(url: str, path: str, body: object, headers: Mapping[str, str] | None = None) -> list[Event]:
    """Return all events of a stream that is answered well."""
    with posted(url, path, body, headers) as response:
        text = response.read().decode()
        assert response.status == 200, text
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        return parse(text)


def next_event(response: http.client.HTTPResponse) -> Event:
    """Read one event."""
    lines: list[bytes] = []
    while (line := response.readline()) != b"\n":
        assert line, "the answer ended"
        lines.append(line)
    return parse(b"".join((*lines, b"\n")).decode())[0]
