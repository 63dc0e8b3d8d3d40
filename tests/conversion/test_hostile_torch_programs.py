"""Programs that try to run code, reach files or exhaust memory when they are loaded. None of it may happen."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from noa.errors import ConversionError, InvalidInputError
from noa.signatures import Signature, TensorSpec
from noa_conversion import TorchModel, load_format, save_native
from noa_conversion.formats.torch_archive import canonical_archive

MODEL = "program/models/model.json"
CONSTANTS = "program/data/constants/model_constants_config.json"
Entries = dict[str, bytes]


class Boom:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (os.system, (f"touch {self.marker}",))


def _entries(folder: Path) -> Entries:
    with zipfile.ZipFile(folder / "program.pt2") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write(folder: Path, entries: Entries) -> None:
    with zipfile.ZipFile(folder / "program.pt2", "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def _edit_program(change: Callable[[dict[str, Any]], None]) -> Callable[[Entries, Path], None]:
    def edit(entries: Entries, marker: Path) -> None:
        program = json.loads(entries[MODEL])
        change(program)
        entries[MODEL] = json.dumps(program).replace("MARKER", str(marker)).encode()

    return edit


def _pickled(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": Boom(marker)}, buffer)
    return buffer.getvalue()


def _pickled_samples(entries: Entries, marker: Path) -> None:
    entries["program/data/sample_inputs/model.pt"] = _pickled(marker)


def _legacy_weights(entries: Entries, marker: Path) -> None:
    entries["program/data/weights/model.pt"] = _pickled(marker)


def _legacy_constants(entries: Entries, marker: Path) -> None:
    entries["program/data/constants/model.pt"] = _pickled(marker)


def _opaque_object(entries: Entries, marker: Path) -> None:
    entries["program/data/constants/opaque_obj_0"] = pickle.dumps(Boom(marker))


def _pickled_constant(entries: Entries, marker: Path) -> None:
    entries["program/data/constants/tensor_0"] = _pickled(marker)
    entries[CONSTANTS] = json.dumps(
        {"config": {"evil": {"path_name": "tensor_0", "is_param": False, "use_pickle": True, "tensor_meta": None}}}
    ).encode()


def _pickled_weight(entries: Entries, marker: Path) -> None:
    entries["program/data/weights/model_weights_config.json"] = json.dumps(
        {"config": {"evil": {"path_name": "weight_0", "is_param": True, "use_pickle": True, "tensor_meta": None}}}
    ).encode()


def _second_model(entries: Entries, marker: Path) -> None:
    entries["program/models/other.json"] = entries[MODEL]


def _compiled_code(entries: Entries, marker: Path) -> None:
    entries["program/data/aotinductor/model/model.so"] = b"\x7fELF"


def _huge_constant(entries: Entries, marker: Path) -> None:
    meta = {
        "dtype": 7,
        "sizes": [{"as_int": 10**6}, {"as_int": 10**6}],
        "strides": [{"as_int": 10**6}, {"as_int": 1}],
        "storage_offset": {"as_int": 0},
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "layout": 7,
    }
    entries["program/data/constants/tensor_0"] = b""
    entries[CONSTANTS] = json.dumps(
        {"config": {"big": {"path_name": "tensor_0", "is_param": False, "use_pickle": False, "tensor_meta": meta}}}
    ).encode()


def _first_node(program: dict[str, Any]) -> dict[str, Any]:
    return program["graph_module"]["graph"]["nodes"][0]


def _call_system(program: dict[str, Any]) -> None:
    node = _first_node(program)
    node["target"] = "torch.os.system"
    node["inputs"] = [{"name": "command", "arg": {"as_string": "touch MARKER"}, "kind": 1}]


def _read_a_file(program: dict[str, Any]) -> None:
    _first_node(program)["target"] = "torch.ops.aten.from_file.default"


def _write_in_place(program: dict[str, Any]) -> None:
    _first_node(program)["target"] = "torch.ops.aten.relu_.default"


def _foreign_operator(program: dict[str, Any]) -> None:
    _first_node(program)["target"] = "torch.ops.mylib.run.default"


def _expression(program: dict[str, Any]) -> None:
    values = program["graph_module"]["graph"]["sym_int_values"]
    values["evil"] = {"as_expr": {"expr_str": "__import__('os').system('touch MARKER')", "hint": None}}


def _expression_by_attribute(program: dict[str, Any]) -> None:
    values = program["graph_module"]["graph"]["tensor_values"]
    first = next(iter(values.values()))
    first["sizes"] = [{"as_expr": {"expr_str": "Symbol('s0').__class__.__base__", "hint": None}}]


def _name_as_code(program: dict[str, Any]) -> None:
    graph = program["graph_module"]["graph"]
    old = graph["inputs"][-1]["as_tensor"]["name"]
    evil = "x=__import__('os').system('touch MARKER')"
    graph["inputs"][-1]["as_tensor"]["name"] = evil
    graph["tensor_values"][evil] = graph["tensor_values"].pop(old)


def _imported_type(program: dict[str, Any]) -> None:
    call = program["graph_module"]["module_call_graph"][0]["signature"]
    tree = {
        "type": "collections.defaultdict",
        "context": '{"default_factory_module": "antigravity"}',
        "children_spec": [],
    }
    call["in_spec"] = json.dumps([1, tree])


def _imported_enum(program: dict[str, Any]) -> None:
    call = program["graph_module"]["module_call_graph"][0]["signature"]
    context = '[{"__enum__": true, "fqn": "antigravity:X", "name": "y"}]'
    call["in_spec"] = json.dumps([1, {"type": "builtins.dict", "context": context, "children_spec": []}])


def _custom_object(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["custom_obj_values"] = {"evil": {"name": "evil", "class_fqn": "a"}}


def _subgraph(program: dict[str, Any]) -> None:
    _first_node(program)["inputs"][0]["arg"] = {"as_graph": {"name": "g", "graph": {}}}


ATTACKS: dict[str, tuple[str, Callable[[Entries, Path], None]]] = {
    "pickled sample inputs": ("sample_inputs", _pickled_samples),
    "legacy weights": (r"weights/model\.pt", _legacy_weights),
    "legacy constants": (r"constants/model\.pt", _legacy_constants),
    "opaque object": ("opaque_obj_0", _opaque_object),
    "pickled constant": ("`evil` is a pickle", _pickled_constant),
    "pickled weight": ("model_weights_config", _pickled_weight),
    "second model": ("other.json", _second_model),
    "compiled code": (r"model\.so", _compiled_code),
    "huge constant": ("1000000, 1000000", _huge_constant),
    "a call of the shell": (r"torch\.os\.system", _edit_program(_call_system)),
    "an operator that reads files": ("from_file", _edit_program(_read_a_file)),
    "an operator that writes": ("relu_", _edit_program(_write_in_place)),
    "a foreign operator": ("mylib", _edit_program(_foreign_operator)),
    "code in a shape": ("__import__", _edit_program(_expression)),
    "an attribute in a shape": ("__class__", _edit_program(_expression_by_attribute)),
    "code in a name": ("__import__", _edit_program(_name_as_code)),
    "an imported type": ("defaultdict", _edit_program(_imported_type)),
    "an imported enum": ("builtins.dict", _edit_program(_imported_enum)),
    "a custom object": ("evil", _edit_program(_custom_object)),
    "a subgraph": ("as_graph", _edit_program(_subgraph)),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_by_name_and_runs_nothing(name: str, zoo: Any, tmp_path: Path) -> None:
    message, attack = ATTACKS[name]
    folder = zoo.copy(zoo.folder("torch", "rows", "torch"), tmp_path / "evil")
    marker = tmp_path / "executed"
    entries = _entries(folder)
    attack(entries, marker)
    _write(folder, entries)
    with pytest.raises(InvalidInputError, match=message):
        load_format("torch", folder)
    assert not marker.exists()


def test_pytorch_alone_runs_the_pickle_that_is_refused_here(zoo: Any, tmp_path: Path) -> None:
    """The checks guard against something that happens. If this fails, PyTorch has become safe: simplify them."""
    folder = zoo.copy(zoo.folder("torch", "rows", "torch"), tmp_path / "evil")
    marker = tmp_path / "executed"
    entries = _entries(folder)
    _pickled_samples(entries, marker)
    _write(folder, entries)
    _load_with_stock_pytorch(folder / "program.pt2")
    assert marker.exists()


@pytest.mark.parametrize("kind", ["compressed", "twice", "not a zip", "a plain pickle"])
def test_another_kind_of_archive_is_refused(kind: str, zoo: Any, tmp_path: Path) -> None:
    folder = zoo.copy(zoo.folder("torch", "rows", "torch"), tmp_path / "odd")
    program = folder / "program.pt2"
    entries = _entries(folder)
    if kind == "compressed":
        with zipfile.ZipFile(program, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in entries.items():
                archive.writestr(name, data + b" " * 10_000_000 if name == MODEL else data)
    elif kind == "twice":
        with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(program, "a") as archive:
            archive.writestr(MODEL, b"{}")
    else:
        program.write_bytes(b"PK" * 50 if kind == "not a zip" else pickle.dumps(Boom(tmp_path / "executed")))
    with pytest.raises(InvalidInputError, match=r"program\.pt2"):
        load_format("torch", folder)
    assert not (tmp_path / "executed").exists()


def test_changed_bytes_never_end_in_anything_but_a_clear_error(zoo: Any, tmp_path: Path) -> None:
    folder = zoo.copy(zoo.folder("torch", "rows", "torch"), tmp_path / "fuzzed")
    original = (folder / "program.pt2").read_bytes()
    for place in range(0, len(original), max(len(original) // 60, 1)):
        data = bytearray(original)
        data[place] ^= 0x15
        (folder / "program.pt2").write_bytes(data)
        try:
            load_format("torch", folder)
        except InvalidInputError as exc:
            assert "program" in str(exc)


def test_stock_pytorch_loads_the_program(zoo: Any) -> None:
    done = _load_with_stock_pytorch(zoo.folder("torch", "rows", "torch") / "program.pt2")
    assert done.returncode == 0, done.stderr


def _load_with_stock_pytorch(program: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys, warnings; warnings.simplefilter('ignore'); import torch; torch.export.load(sys.argv[1])"
    command = [sys.executable, "-c", code, str(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_canonical_archive_is_a_fixed_point(zoo: Any) -> None:
    path = zoo.folder("torch", "image", "torch") / "program.pt2"
    data = path.read_bytes()
    assert canonical_archive(data, path) == data


class _Counts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


class _Branches(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class _FixedBatch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(3, 2)


@pytest.mark.parametrize(
    ("module", "message"), [(_Counts(), "writes to|calls"), (_Branches(), "export"), (_FixedBatch(), "export")]
)
def test_what_cannot_be_stored_is_refused(module: torch.nn.Module, message: str, tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 2)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 2)),),
    )
    with pytest.raises(ConversionError, match=message):
        save_native(TorchModel(module=module, signature=signature), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_saving_puts_the_module_back_as_it_was(zoo: Any, tmp_path: Path) -> None:
    model = zoo.torch_model("image")
    model.module.train()
    model.module.stem[1].eval()
    save_native(model, tmp_path / "out")
    assert model.module.training and model.module.dropout.training and not model.module.stem[1].training
    inputs = zoo.draw_inputs(model.signature, 2)
    first, second = (load_format("torch", tmp_path / "out").run(inputs)["logits"] for _ in range(2))
    assert (first == second).all()  # no dropout


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(2, 2)
            self.second = torch.nn.Linear(2, 2)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 2)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 2)),),
    )
    module = Tied().eval()
    save_native(TorchModel(module=module, signature=signature), tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "weights.safetensors")) == {"first.weight", "first.bias", "second.bias"}
    x = torch.rand(3, 2)
    with torch.no_grad():
        expected = module(x)
    given = torch.from_numpy(load_format("torch", tmp_path / "out").run({"x": x.numpy()})["y"])
    torch.testing.assert_close(given, expected)
