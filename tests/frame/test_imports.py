"""The import rule: rooms import leftward only, frameworks only in their adapters, nothing heavy at the door."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FRAMEWORKS = {"torch", "jax", "jaxlib", "optax", "onnxruntime", "onnx", "onnxscript", "mlflow", "prefect", "bentoml"}
# Each room may import these rooms. Serving and training are strangers to each other.
MAY_IMPORT = {
    "noa": set[str](),
    "noa_registry": {"noa"},
    "noa_conversion": {"noa", "noa_registry"},
    "noa_training": {"noa", "noa_registry", "noa_conversion"},
    "noa_serving": {"noa", "noa_registry", "noa_conversion"},
    "noa_flows": {"noa", "noa_registry", "noa_conversion", "noa_training", "noa_serving"},
    "noa_cli": {"noa", "noa_registry", "noa_conversion", "noa_training", "noa_serving", "noa_flows"},
}


@functools.cache
def packages() -> dict[str, Path]:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    return {Path(path).name: ROOT / path for path in listed}


def modules() -> list[Path]:
    return sorted(
        path for folder in packages().values() for path in folder.rglob("*.py") if "templates" not in path.parts
    )


@functools.cache
def imports_of(path: Path) -> tuple[tuple[str, int, bool], ...]:
    """Return (module, line, whether it runs when the file is imported) of each import; a file is read once for all."""
    return tuple(_imports_in(path))


def _imports_in(path: Path) -> Iterator[tuple[str, int, bool]]:
    tree = ast.parse(path.read_text())
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or _is_type_checking(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from package import module` needs the module, not all of the package.
            names = [
                f"{node.module}.{alias.name}" if is_module(f"{node.module}.{alias.name}") else node.module or ""
                for alias in node.names
            ]
        else:
            continue
        for name in names:
            yield name, node.lineno, id(node) not in lazy


@functools.cache
def is_module(name: str) -> bool:
    top, *rest = name.split(".")
    folder = packages().get(top)
    if folder is None:
        return False
    path = folder.joinpath(*rest)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def test_every_room_is_known_to_this_test() -> None:
    assert set(packages()) == set(MAY_IMPORT)


def test_rooms_import_leftward_only() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for room, folder in packages().items()
        for path in folder.rglob("*.py")
        for name, line, _ in imports_of(path)
        if (top := name.split(".")[0]) in MAY_IMPORT and top != room and top not in MAY_IMPORT[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_import_cycles_between_modules() -> None:
    names = {module_name(path): path for path in modules()}
    edges = {
        name: {target for imported, _, eager in imports_of(path) if eager for target in (imported,) if target in names}
        for name, path in names.items()
    }
    state: dict[str, str] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if state.get(name) == "done":
            return
        assert state.get(name) != "open", f"import cycle: {' -> '.join([*trail, name])}"
        state[name] = "open"
        for target in edges[name]:
            if target != name:
                visit(target, (*trail, name))
        state[name] = "done"

    for name in names:
        visit(name, ())


def module_name(path: Path) -> str:
    for folder in packages().values():
        if path.is_relative_to(folder):
            parts = [folder.name, *path.relative_to(folder).with_suffix("").parts]
            return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    raise AssertionError(path)


def test_frameworks_are_imported_in_modules_that_bear_their_name() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules()
        for name, line, _ in imports_of(path)
        if (top := name.split(".")[0]) in FRAMEWORKS
        and not names_framework(path, top)
        and not in_type_checking(path, line)
    ]
    assert not wrong, "a framework belongs into an adapter module named for it:\n" + "\n".join(wrong)


def names_framework(path: Path, framework: str) -> bool:
    family = {
        "jaxlib": "jax",
        "optax": "jax",
        "onnxruntime": "onnx",
        "onnxscript": "onnx",
        "onnx": "onnx",
        "bentoml": "bento",
    }.get(framework, framework)
    relative = path.relative_to(next(folder for folder in packages().values() if path.is_relative_to(folder)))
    return any(family in part for part in relative.with_suffix("").parts)


def in_type_checking(path: Path, line: int) -> bool:
    return any(
        _is_type_checking(node) and node.lineno <= line <= (node.end_lineno or 0)
        for node in ast.walk(ast.parse(path.read_text()))
    )


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nimport json; print(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_importing_a_room_loads_no_framework(package: str) -> None:
    heavy = FRAMEWORKS | {"pandas", "matplotlib", "sklearn"}
    assert not loaded_after(f"import {package}") & heavy


def test_import_noa_is_light() -> None:
    loaded = loaded_after("import noa")
    assert not loaded & (FRAMEWORKS | {"numpy", "pydantic", "sqlalchemy", "rich", "typer"})


def test_help_loads_no_framework_and_no_room() -> None:
    code = "from noa_cli.__main__ import run\nassert run(['--help']) == 0"
    loaded = loaded_after(code)
    assert not loaded & (FRAMEWORKS | {"numpy", "sqlalchemy", "pandas"} | (set(MAY_IMPORT) - {"noa", "noa_cli"}))


def test_the_shop_windows_list_what_they_show() -> None:
    for name, folder in packages().items():
        tree = ast.parse((folder / "__init__.py").read_text())
        shown = {
            alias.asname or alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("noa")
            for alias in node.names
        }
        listed: set[str] = set()
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                listed = set(ast.literal_eval(node.value))
        public = {entry for entry in shown if not entry.startswith("_")}
        assert public <= listed, f"{name}: imported but not in __all__: {sorted(public - listed)}"


# Handlers that take no lock: they set a plain flag, forward a signal, raise, or (in `noa.stop_signals`) do nothing at
# all; or Python's default, which ends the process.
INSTALLS_HANDLERS = {
    "cli/noa_cli/__main__.py",
    "cli/noa_cli/_termination.py",
    "core/noa/stop_signals.py",
    "training/noa_training/worker.py",
    "cli/noa_cli/commands/serve.py",
    "flows/noa_flows/_warden.py",
}


def test_handlers_of_signals_are_installed_where_they_are_known_to_take_no_lock() -> None:
    """A handler that sets a `threading.Event`, or logs, can stand still for ever; use `noa.stop_signals`."""
    found = {str(path.relative_to(ROOT)) for path in modules() if "signal.signal(" in path.read_text()}
    assert found == INSTALLS_HANDLERS
