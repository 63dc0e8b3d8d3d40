"""Find a recipe in the user's project: by file (`recipe.py`, `recipe.py:name`) or by import path
(`package.module:name`).

The project's root goes first on `sys.path`, so that the user's packages are found whatever they are called. An error in
the user's file is reported with file and line; a field that is refused, with the line where it is written.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from noa.digests import sha256_file
from noa.errors import NoaError, NotFoundError, RecipeError
from noa_training.recipe_checks import check_recipe
from noa_training.recipes import Recipe
from noa_training.user_code import user_code

_HEAD, _TAIL = 1200, 400  # characters of a user's text that are kept where it is longer than both


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRecipe:
    """A checked recipe and where it is from: `where` is `file:line` for people, `source_digest` names the file's
    bytes."""

    recipe: Recipe
    file: Path
    where: str
    source_digest: str


def load_recipe(path: str, *, root: Path) -> Recipe:
    """Return the checked recipe that `path` names; see `find_recipe`."""
    return find_recipe(path, root=root).recipe


def find_recipe(path: str, *, root: Path) -> LoadedRecipe:
    """Load and check the recipe that `path` names in the project at `root`.

    Raises:
        NotFoundError: no such file or module, or no recipe of that name in it; the message lists those that are there.
        RecipeError: the file cannot be imported, holds several recipes and none was named, or a field is not valid.
    """
    target, _, wanted = path.partition(":")
    root = root.absolute()
    _put_first(root)
    is_file = target.endswith(".py") or "/" in target or (root / target).is_file()
    # Before it runs: a recipe that writes into its own file is recorded as it was.
    digest = sha256_file(root / target) if is_file and (root / target).is_file() else None
    with user_code():
        module = _load_file(root / target, path) if is_file else _load_module(target, root)
    file = Path(str(module.__file__))
    name, recipe = _choose(module, wanted, file)
    source = file.read_text(encoding="utf-8")
    lines = _lines_of(source, name)
    try:
        recipe = check_recipe(recipe, where=f"{file}:{lines.get('', 1)}")
    except RecipeError as exc:
        field = re.search(r"`(\w+)", exc.what)
        line = lines.get(field[1] if field else "", lines.get("", 1))
        raise RecipeError(
            exc.what,
            where=f"{file}:{line}",
            expected=exc.expected,
            received=exc.received,
            remedy=exc.remedy,
            **exc.facts,
        ) from exc
    return LoadedRecipe(
        recipe=recipe, file=file, where=f"{file}:{lines.get('', 1)}", source_digest=digest or sha256_file(file)
    )


def user_text(text: str) -> str:
    """Return what the user's code says, at a length that a message, an event and a terminal can hold."""
    cut = len(text) - _HEAD - _TAIL
    if cut <= 0:
        return text
    return f"{text[:_HEAD]} ... [{cut} of {len(text)} characters left out] ... {text[-_TAIL:]}"


def describe_exception(exc: BaseException) -> str:
    """Return type and text of what the user's code raised; a text that cannot be made is told as that."""
    try:
        text = exc.what if isinstance(exc, NoaError) else f"{type(exc).__name__}: {exc}"
    except Exception as broken:  # noqa: BLE001  # the user's `__str__` may raise anything
        text = f"{type(exc).__name__}, whose text cannot be made: {type(broken).__name__}"
    return user_text(text)


def user_location(error: BaseException, *, root: Path) -> str | None:
    """Return `file:line` of the innermost frame of `error` that lies in the project, None if there is none."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno or 1}"
    place = None
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(root) and "site-packages" not in path.parts:
            place = f"{frame.filename}:{frame.lineno}"
    return place


def _put_first(root: Path) -> None:
    text = str(root)
    if sys.path[:1] != [text]:
        sys.path[:] = [text, *(entry for entry in sys.path if entry != text)]


def _load_file(file: Path, path: str) -> ModuleType:
    if not file.is_file():
        raise NotFoundError(
            f"no recipe file `{path.partition(':')[0]}`",
            where=str(file.parent),
            expected="a Python file",
            received=path,
        )
    # A name of its own: two projects have a `recipe.py` each, and neither may be taken for the other.
    name = "noa_recipe_" + hashlib.sha256(str(file).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise RecipeError("a recipe must be a Python file", where=str(file), expected="*.py", received=file.name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as exc:
        del sys.modules[name]
        raise _import_error(exc, file.parent, str(file)) from exc
    return module


def _load_module(target: str, root: Path) -> ModuleType:
    try:
        if importlib.util.find_spec(target) is None:
            raise ModuleNotFoundError(target, name=target)
        module = importlib.import_module(target)
    except (ModuleNotFoundError, ValueError) as exc:
        missing = getattr(exc, "name", target) or target
        if isinstance(exc, ModuleNotFoundError) and not (target == missing or target.startswith(f"{missing}.")):
            raise _import_error(exc, root, target) from exc
        raise NotFoundError(
            f"no recipe module `{target}`",
            where=str(root),
            expected="`recipe.py`, `recipe.py:name` or `package.module:name`",
            received=target,
        ) from exc
    except (Exception, SystemExit) as exc:
        raise _import_error(exc, root, target) from exc
    if getattr(module, "__file__", None) is None:
        raise NotFoundError(f"`{target}` is a folder, not a module with recipes", where=str(root), received=target)
    return module


def _import_error(exc: BaseException, root: Path, fallback: str) -> RecipeError:
    where = user_location(exc, root=root) or fallback
    return RecipeError(f"the recipe cannot be imported: {describe_exception(exc)}", where=where)


def _choose(module: ModuleType, wanted: str, file: Path) -> tuple[str, Recipe]:
    found = {name: value for name, value in vars(module).items() if isinstance(value, Recipe)}
    own = {name: value for name, value in found.items() if name in _assigned_names(file)}
    found = own or found  # a recipe that was only imported, to start from, is not meant
    listed = ", ".join(f"`{name}`" for name in found) or "no recipe at all"
    if not wanted:
        distinct = {id(value): (name, value) for name, value in found.items()}
        if len(distinct) == 1:
            return next(iter(distinct.values()))
        if not found:
            raise NotFoundError(f"no recipe in `{file.name}`", where=str(file), expected="a variable with a Recipe")
        raise RecipeError(
            f"`{file.name}` holds several recipes", where=str(file), expected=f"{file.name}:NAME", received=listed
        )
    for name, value in found.items():
        if wanted in (name, value.name):
            return name, value
    raise NotFoundError(f"no recipe `{wanted}` in `{file.name}`", where=str(file), expected=listed, received=wanted)


def _assigned_names(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _lines_of(source: str, variable: str) -> dict[str, int]:
    """Return the line of the recipe's variable (key "") and of each field as it is written in the file."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == variable for target in targets):
            lines = {"": node.lineno}
            if isinstance(node.value, ast.Call):
                lines |= {keyword.arg: keyword.lineno for keyword in node.value.keywords if keyword.arg is not None}
            return lines
    return {}
