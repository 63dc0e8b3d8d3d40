"""What may be in a stored exported program, checked before PyTorch reads it.

`torch.export.load` trusts its file: an archive can hold pickles (`use_pickle`, custom objects, sample inputs), shape
expressions are evaluated as Python by sympy, operator names may walk to any attribute of `torch`, and node names are
pasted into generated source. So the archive is opened here as a plain zip, every entry and every string with a meaning
is matched against what an exported program of ATen operators needs, and PyTorch is given a new archive made of the
checked entries. Operators that write to their arguments are refused: calls share the weights.
Nothing here imports torch.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from noa.errors import InvalidInputError

PROGRAM_FILE = "program.pt2"
_MODEL = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_WEIGHTS = "data/weights/model_weights_config.json"
_CONSTANTS = "data/constants/model_constants_config.json"
_FIXED = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little", ".data/version": b"6\n"}
_IGNORED = ".data/serialization_id"
_TENSOR = re.compile(r"data/constants/tensor_\d{1,6}")
_WEIGHT = re.compile(r"data/weights/weight_\d{1,6}")
_MAX_ENTRIES = 10_000
_MAX_DEPTH = 64

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,511}")
_DOTTED = re.compile(r"[A-Za-z0-9_.]{0,1024}")
_ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)")
# `save`, `from_file` and `warn` are registered as ATen operators and reach the file system or the terminal.
_REFUSED_ATEN = {"save", "from_file", "warn", "_print", "set_data", "_test_string_default"}
_OPERATORS = {
    *(f"_operator.{name}" for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "getitem")),
    *(f"_operator.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "pos", "abs")),
    *(f"math.{name}" for name in ("ceil", "floor", "trunc", "sqrt")),
    *(f"torch.{name}" for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite", "sym_sqrt")),
}
_ARGUMENTS = {
    *("as_none", "as_tensor", "as_tensors", "as_optional_tensor", "as_optional_tensors", "as_nested_tensors"),
    *("as_int", "as_ints", "as_int_lists", "as_float", "as_floats", "as_bool", "as_bools", "as_string", "as_strings"),
    *("as_sym_int", "as_sym_ints", "as_sym_float", "as_sym_floats", "as_sym_bool", "as_sym_bools", "as_name"),
    *("as_expr", "as_scalar_type", "as_memory_format", "as_layout", "as_device"),
}
_TREE_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
_EXPRESSION_CALLS = {
    *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Eq", "Ne", "Lt", "Le", "Gt"),
    *("Ge", "And", "Or", "Not", "FloorDiv", "CleanDiv", "CeilDiv", "PythonMod", "ModularIndexing", "PowByNatural"),
    *("IntTrueDiv", "FloatTrueDiv", "Where", "CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt", "ToFloat"),
    *("StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "Equality", "Unequality"),
}
_EXPRESSION_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.USub, ast.UAdd,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip
_KEYWORDS = {"positive", "integer", "negative", "nonnegative", "real", "evaluate", "precision"}


def canonical_archive(data: bytes, path: Path, *, from_outside: bool = False) -> bytes:
    """Check an exported program's archive and return a new one of the same program, equal for equal programs.

    Source text, file names and ids of the machine that exported it are left out. The result is a valid `.pt2` file.
    `from_outside`: as `torch.export.save` writes it, with raw weights inside, operators that write to their arguments,
    and sample inputs, which are left out. Such a program is exported anew before it is stored or run.

    Raises:
        InvalidInputError: the archive is corrupt, or holds a pickle or anything else an ATen program does not need; the
            message names the entry, operator or expression.
    """
    entries = _read_entries(data, path)
    for name in entries:
        is_raw = _TENSOR.fullmatch(name) or (from_outside and _WEIGHT.fullmatch(name))
        if name not in {*_FIXED, _IGNORED, _MODEL, _SAMPLES, _WEIGHTS, _CONSTANTS} and not is_raw:
            reason = "which can run code when it is read" if name.endswith((".pt", ".pkl")) or "obj" in name else ""
            raise _refuse(path, f"holds `{name}`", reason or "which an exported program does not need")
    if entries.get(_SAMPLES) and not from_outside:
        raise _refuse(path, f"holds pickled sample inputs in `{_SAMPLES}`", "which can run code when they are read")
    for name, expected in _FIXED.items():
        if entries.get(name, expected) != expected:
            raise _refuse(path, f"has an unknown `{name}`", f"expected {expected!r}")
    if from_outside:
        _check_tensors(entries, path, _WEIGHTS, _WEIGHT)
    elif _json(entries, _WEIGHTS, path) != {"config": {}}:
        raise _refuse(path, f"keeps weights in `{_WEIGHTS}`", "they belong in weights.safetensors")
    _check_tensors(entries, path, _CONSTANTS, _TENSOR)
    program = _checked_program(_json(entries, _MODEL, path), path, may_write=from_outside)
    entries[_MODEL] = json.dumps(program, sort_keys=True, separators=(",", ":")).encode()
    return _write_archive({**_FIXED, **entries, _SAMPLES: b""})


def read_graph(data: bytes, path: Path) -> tuple[dict[str, object], int]:
    """Return the graph of an archive as plain JSON values, and how many of its inputs are constants of its own.

    Only to look at: whoever runs it checks the whole archive first.

    Raises:
        InvalidInputError: not a whole archive with a program.
    """
    program = _json(_read_entries(data, path), _MODEL, path)
    try:
        module = cast("Any", program["graph_module"])
        graph, specs = (
            cast("dict[str, object]", module["graph"]),
            cast("list[object]", module["signature"]["input_specs"]),
        )
        constants = sum("user_input" not in cast("dict[str, object]", spec) for spec in specs)
    except (KeyError, TypeError) as exc:
        raise InvalidInputError(f"`{path.name}` holds no graph", where=str(path)) from exc
    return graph, constants


def _read_entries(data: bytes, path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if len(infos) > _MAX_ENTRIES:
                raise _refuse(path, f"has {len(infos)} entries", f"at most {_MAX_ENTRIES} are read")
            entries: dict[str, bytes] = {}
            for info in infos:
                name = info.filename.partition("/")[2]
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data) or info.flag_bits & 1:
                    raise _refuse(path, f"claims {info.file_size} bytes for `{info.filename}`", "more than it holds")
                if not name or name in entries:
                    raise _refuse(path, f"holds `{info.filename}` twice or outside its root", "names must be unique")
                entries[name] = archive.read(info)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as exc:
        raise InvalidInputError(f"`{path.name}` is not a whole archive: {exc}", where=str(path)) from exc
    return entries


def _write_archive(entries: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(entries, key=lambda name: (name != "archive_format", name)):
            if name != _IGNORED:
                archive.writestr(zipfile.ZipInfo(f"program/{name}", date_time=(1980, 1, 1, 0, 0, 0)), entries[name])
    return buffer.getvalue()


def _json(entries: Mapping[str, bytes], name: str, path: Path) -> dict[str, object]:
    try:
        value: object = json.loads(entries[name])
    except KeyError as exc:
        raise InvalidInputError(f"`{path.name}` has no entry `{name}`", where=str(path)) from exc
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError(f"entry `{name}` of `{path.name}` is not JSON", where=str(path)) from exc
    if not isinstance(value, dict):
        raise InvalidInputError(f"entry `{name}` of `{path.name}` is not an object", where=str(path))
    return cast("dict[str, object]", value)


def _check_tensors(entries: Mapping[str, bytes], path: Path, config_name: str, place: re.Pattern[str]) -> None:
    """Check that each tensor is raw bytes of the size it claims; a size claimed alone would be allocated."""
    what, folder = ("weight" if config_name == _WEIGHTS else "constant"), config_name.rpartition("/")[0]
    config = cast("dict[str, dict[str, object]]", _json(entries, config_name, path).get("config", {}))
    for fqn, payload in config.items():
        name = f"{folder}/{payload.get('path_name')}"
        if payload.get("use_pickle") is not False or not place.fullmatch(name):
            raise _refuse(path, f"claims that {what} `{fqn}` is a pickle (`{name}`)", "which can run code when read")
        try:
            meta = cast("dict[str, object]", payload["tensor_meta"])
            sizes = [int(size["as_int"]) for size in cast("list[dict[str, int]]", meta["sizes"])]
            strides = [int(size["as_int"]) for size in cast("list[dict[str, int]]", meta["strides"])]
            offset = int(cast("dict[str, int]", meta["storage_offset"])["as_int"])
            held = len(entries[name])
        except (KeyError, TypeError, ValueError) as exc:
            raise _refuse(path, f"describes {what} `{fqn}` badly", f"{type(exc).__name__} {exc}") from exc
        reach = offset + 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True) if size)
        is_fine = offset >= 0 and min((*sizes, *strides), default=0) >= 0 and reach <= max(held, 1)
        if not is_fine or (held == 0) != (math.prod(sizes) == 0):
            raise _refuse(path, f"claims shape {tuple(sizes)} for {what} `{fqn}`", f"it holds {held} bytes")


def _checked_program(program: dict[str, object], path: Path, *, may_write: bool) -> dict[str, object]:
    """Return the program without what PyTorch does not need to run it, or refuse it."""
    result = dict(program)
    result["guards_code"] = []
    result["torch_version"] = str(program.get("torch_version", ""))[:64]
    module = dict(cast("dict[str, object]", program.get("graph_module") or {}))
    module["metadata"] = {}
    module["treespec_namedtuple_fields"] = {}
    calls = cast("list[dict[str, object]]", module.get("module_call_graph") or [])
    module["module_call_graph"] = [call for call in calls if call.get("fqn") == ""]
    result["graph_module"] = _walk(module, path, 0, may_write)
    result["range_constraints"] = _walk(program.get("range_constraints") or {}, path, 0, may_write)
    for name in cast("dict[str, object]", result["range_constraints"]):
        _match(_IDENTIFIER, name, "symbol", path)
    return result


def _walk(value: object, path: Path, depth: int, may_write: bool) -> object:
    if depth > _MAX_DEPTH:
        raise _refuse(path, "is nested too deeply", f"at most {_MAX_DEPTH} levels")
    if isinstance(value, list):
        return [_walk(item, path, depth + 1, may_write) for item in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    table = cast("dict[str, object]", value)
    if "target" in table and "inputs" in table:
        table = {**table, "metadata": {}}
        _check_operator(str(table["target"]), path, may_write)
    return {key: _walk_entry(key, item, path, depth, may_write) for key, item in table.items()}


def _walk_entry(key: str, item: object, path: Path, depth: int, may_write: bool) -> object:
    if key.startswith("as_") and key not in _ARGUMENTS:
        raise _refuse(path, f"has an argument of kind `{key}`", "which an ATen program does not need")
    if key in ("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "custom_obj_values"):
        names = cast("dict[str, object]", item)
        for name in names:
            _match(_IDENTIFIER, name, "tensor name", path)
        if key == "custom_obj_values" and names:
            raise _refuse(path, f"holds the custom objects {sorted(names)}", "which can run code when they are read")
    if isinstance(item, str):
        _check_text(key, item, path)
    return _walk(item, path, depth + 1, may_write)


def _check_text(key: str, text: str, path: Path) -> None:
    if key in ("name", "as_name", "class_fqn"):
        _match(_IDENTIFIER, text, "name", path)
    elif key in ("parameter_name", "buffer_name", "tensor_constant_name", "custom_obj_name"):
        _match(_DOTTED, text, "tensor name", path)
    elif key == "expr_str":
        _check_expression(text, path)
    elif key in ("in_spec", "out_spec"):
        _check_tree(text, path)


def _check_operator(target: str, path: Path, may_write: bool) -> None:
    match = _ATEN.fullmatch(target)
    if not may_write and match is not None and (re.fullmatch(r"(?!__).*[^_]_", match[1]) or match[2].endswith("out")):
        raise _refuse(path, f"calls `{target[:120]}`, which writes to its arguments", "a program must leave them alone")
    if target not in _OPERATORS and (match is None or match[1] in _REFUSED_ATEN):
        raise _refuse(path, f"calls `{target[:120]}`", "only ATen operators and integer arithmetic are run")


def _check_expression(text: str, path: Path) -> None:
    """Check a shape expression, which sympy would evaluate as Python: names, numbers and a few calls only."""
    try:
        tree = ast.parse(text, mode="eval") if len(text) <= 2000 else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None:
        raise _refuse(path, f"has the shape expression `{text[:80]}`", "which is not one")
    for node in ast.walk(tree):
        is_fine = isinstance(node, _EXPRESSION_NODES)
        if isinstance(node, ast.Call):
            is_fine = isinstance(node.func, ast.Name) and node.func.id in _EXPRESSION_CALLS
        elif isinstance(node, ast.keyword):
            is_fine = node.arg in _KEYWORDS
        elif isinstance(node, ast.Name):
            is_fine = (
                node.id in _EXPRESSION_CALLS or re.fullmatch(r"[suz]+\d+|oo|int_oo|true|false", node.id) is not None
            )
        elif isinstance(node, ast.Constant):
            is_fine = isinstance(node.value, bool | int | float) or _IDENTIFIER.fullmatch(str(node.value)) is not None
        if not is_fine:
            raise _refuse(path, f"has the shape expression `{text[:80]}`", "which is more than arithmetic on sizes")


def _check_tree(text: str, path: Path) -> None:
    """Check a tree of inputs or outputs: tuples, lists and dicts with text keys; other types import modules."""
    try:
        _, root = cast("tuple[int, dict[str, object]]", tuple(json.loads(text)))
        stack = [root]
        while stack:
            node = stack.pop()
            context = json.loads(cast("str", node["context"])) if node["context"] is not None else None
            keys = cast("list[object]", context if context is not None else [])
            if node["type"] not in _TREE_TYPES or not all(isinstance(key, str) for key in keys):
                raise _refuse(path, f"has inputs or outputs of type `{node['type']}`", "which would be imported")
            stack += cast("list[dict[str, object]]", node["children_spec"])
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise _refuse(path, "describes its inputs and outputs badly", type(exc).__name__) from exc


def _match(pattern: re.Pattern[str], text: str, what: str, path: Path) -> None:
    if not pattern.fullmatch(text):
        raise _refuse(path, f"has the {what} `{text[:80]}`", "which would be pasted into source text")


def _refuse(path: Path, what: str, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"`{path.name}` {what}; {why}", where=str(path), remedy="Load only programs that noa wrote"
    )
