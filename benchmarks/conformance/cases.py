"""The cases of the backend test suite that the `onnx` package brings, without those that need a download.

Generating the node cases takes seconds, so all cases are written once to a zip below `.cache/` (one per version of
`onnx`): an index, one model and the tensors of each case. Opening it and reading a single case takes milliseconds.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
_LAYOUT = 2  # of the zip below `.cache/`: one more whenever what is written there changes
ROOT = Path(__file__).resolve().parents[2]

Value = Any
"""A numpy array, a list of values (a sequence) or None (an empty optional)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseInfo:
    """What is known of a case without reading it."""

    name: str
    kind: str
    domains: tuple[str, ...]
    opset: int
    """The version of the domain ai.onnx, or of the only other domain."""
    op: str
    """The operator it is a case of; for an expanded one, the operator that was expanded; empty if there are several."""
    ops: tuple[str, ...]
    """All operators in it, those of subgraphs included."""
    rtol: float
    atol: float
    data_sets: int

    @property
    def is_expanded(self) -> bool:
        """Whether it is the function body of an operator in place of the operator."""
        return "_expanded" in self.name

    @property
    def is_standard(self) -> bool:
        """Whether it uses the domain ai.onnx only, as the comparison with the peers counts."""
        return self.domains == ("ai.onnx",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model with inputs and the outputs that they must give."""

    info: CaseInfo
    model: bytes
    data: tuple[tuple[tuple[Value, ...], tuple[Value, ...]], ...]
    """One or more pairs of (inputs, outputs), in the order of the graph."""


class Suite:
    """All cases. `read` gives one of them; a suite may be read from any number of processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        with zipfile.ZipFile(path) as archive:
            self._index: dict[str, Any] = json.loads(archive.read("index.json"))
        self.infos: dict[str, CaseInfo] = {
            name: CaseInfo(**{**entry["info"], **{key: tuple(entry["info"][key]) for key in ("domains", "ops")}})
            for name, entry in self._index.items()
        }

    def read(self, name: str) -> Case:
        archive = self._archive()
        data = tuple(
            (
                tuple(_read_value(archive, value) for value in inputs),
                tuple(_read_value(archive, value) for value in outputs),
            )
            for inputs, outputs in self._index[name]["data"]
        )
        return Case(info=self.infos[name], model=archive.read(f"{name}/model.onnx"), data=data)

    def _archive(self) -> zipfile.ZipFile:
        """Open once in each process: a forked child would share its parent's position in the file."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), zipfile.ZipFile(self._path)
        return self._opened[1]


@functools.cache
def load_suite() -> Suite:
    """Open the suite of the installed `onnx`; the first time it is generated."""
    path = ROOT / ".cache" / f"onnx-conformance-{onnx.__version__}-{_LAYOUT}.zip"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        _write_suite(path)
    return Suite(path)


def _write_suite(path: Path) -> None:
    index: dict[str, Any] = {}
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".zip")
    os.close(handle)
    with zipfile.ZipFile(temporary, "w") as archive:
        for case, model, data in _generate():
            archive.writestr(f"{case.name}/model.onnx", model.SerializeToString())
            writer = _TensorWriter(archive, case.name)
            stored = [[writer.write_all(inputs), writer.write_all(outputs)] for inputs, outputs in data]
            index[case.name] = {"info": _info(case, model, len(stored)), "data": stored}
        for name, entry in index.items():
            if "_expanded" in name:
                entry["info"]["op"] = index[name.split("_expanded")[0]]["info"]["op"]
        archive.writestr("index.json", json.dumps(index))
    Path(temporary).replace(path)  # whole or not at all, whoever else generates it meanwhile


def _generate() -> Iterator[tuple[Any, onnx.ModelProto, Sequence[tuple[Sequence[Value], Sequence[Value]]]]]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite divides by zero on purpose
        for kind in KINDS:
            for case in sorted(load_model_tests(kind=kind), key=lambda case: case.name):
                if case.model is not None:
                    yield case, case.model, case.data_sets
                else:
                    model = onnx.load(Path(case.model_dir) / "model.onnx")
                    yield case, model, list(_read_data_sets(Path(case.model_dir), model))


def _read_data_sets(folder: Path, model: onnx.ModelProto) -> Iterator[tuple[list[Value], list[Value]]]:
    for data in sorted(folder.glob("test_data_set_*")):
        sides: list[list[Value]] = []
        for side, declared in (("input", model.graph.input), ("output", model.graph.output)):
            count = len(list(data.glob(f"{side}_*.pb")))
            sides.append([_read_proto(data / f"{side}_{at}.pb", declared[at].type) for at in range(count)])
        yield sides[0], sides[1]


def _read_proto(path: Path, declared: onnx.TypeProto) -> Value:
    content = path.read_bytes()
    if declared.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if declared.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return onnx.TensorProto.FromString(content)


def _info(case: Any, model: onnx.ModelProto, data_sets: int) -> dict[str, Any]:
    versions = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    top = sorted({node.op_type for node in model.graph.node} - {"Constant"}) or ["Constant"]
    used = {domain or "ai.onnx" for domain, _ in _used_ops(model.graph.node)}
    return {
        "name": case.name,
        "kind": case.kind,
        "domains": sorted(versions),
        "opset": versions.get("ai.onnx") or versions[min(used)],
        "op": top[0] if len(top) == 1 else "",
        "ops": sorted({kind for _, kind in _used_ops(model.graph.node)}),
        "rtol": case.rtol,
        "atol": case.atol,
        "data_sets": data_sets,
    }


def _used_ops(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, str]]:
    for node in nodes:
        yield node.domain, node.op_type
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _used_ops(graph.node)


class _TensorWriter:
    """Stores values as one entry per tensor; the structure around them goes into the index."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._archive, self._name, self._count = archive, name, 0

    def write_all(self, values: Iterable[Value]) -> list[Any]:
        return [self._write(value) for value in values]

    def _write(self, value: Value) -> Any:
        if value is None:
            return None
        if isinstance(value, (list, tuple)):
            return self.write_all(value)
        tensor = value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value))
        entry = f"{self._name}/{self._count}.pb"
        self._count += 1
        self._archive.writestr(entry, tensor.SerializeToString())
        return entry


def _read_value(archive: zipfile.ZipFile, stored: Any) -> Value:
    if stored is None:
        return None
    if isinstance(stored, list):
        return [_read_value(archive, item) for item in stored]
    array = numpy_helper.to_array(onnx.TensorProto.FromString(archive.read(stored)))
    if array.dtype.kind in "US":  # strings are objects in ONNX's own tests
        array = array.astype(object)
    return array
