"""What the shell offers when TAB is pressed: models, versions, endpoints, recipes and their keys, formats, settings.

A parameter is completed by its name, so that `reference` or `recipe` means the same in every command; `_command.py`
looks here. A key press must be fast, silent and leave nothing behind: no room is imported, the registry's tables are
read through SQLite alone, and any error offers nothing.
"""

from __future__ import annotations

import shlex
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import typer

from noa.errors import InvalidInputError
from noa_cli._invocation import Invocation, current

if TYPE_CHECKING:
    from noa.settings import LoadedSettings, Settings

Completer: TypeAlias = Callable[[typer.Context, str], list[str]]

_NEWEST = 10  # versions offered of a model before its `/` is typed
_SQLITE = "sqlite:///"
_RUN_DIGITS = 12
_MOST_RUNS = 20
_BREAKS = ("@", ":", "=")  # bash takes each for a word of its own
_SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
_IN_USE = """
SELECT name, number FROM noa_versions AS one
WHERE NOT EXISTS (SELECT 1 FROM noa_trash WHERE noa_trash.name = one.name AND noa_trash.number = one.number)
ORDER BY name, number DESC
"""

_RUNS = """
SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active' AND substr(run_uuid, 1, length(:typed)) = :typed
ORDER BY start_time DESC LIMIT :most
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    numbers: tuple[int, ...]  # newest first
    aliases: tuple[str, ...]


def mend_bash_words(environ: MutableMapping[str, str], invocation: Invocation) -> None:
    """Put together what bash breaks at `@`, `:` and `=`.

    It gives `digits @ ch` for `digits@ch`, and replaces the `@ch` alone; of `digits/1:on` it replaces the `on` alone.
    """
    if environ.get("_NOA_COMPLETE") != "complete_bash":
        return
    here = int(environ["COMP_CWORD"])
    try:
        words = shlex.split(environ["COMP_WORDS"])[: here + 1]
    except ValueError:  # a quote is open
        return
    if not any(mark in words for mark in _BREAKS):
        return
    mended: list[str] = []
    for word in [*words, *([""] if len(words) == here else [])]:
        if mended and (word in _BREAKS or mended[-1].endswith(_BREAKS)):
            mended[-1] += word
        else:
            mended.append(word)
    before, mark, behind = mended[-1].rpartition("@")
    if ":" in behind:
        before, mark, behind = mended[-1].rpartition(":")
        before, mark = before + mark, ""
    invocation.typed_before = before
    environ["COMP_WORDS"] = shlex.join([*mended[:-1], mark + behind])
    environ["COMP_CWORD"] = str(len(mended) - 1)


def print_completion(arguments: Sequence[str]) -> bool:
    """Print or install the completion of the shell that is named, as in `--show-completion fish`; tell whether one was.

    Without a name, typer finds out in which shell it runs.
    """
    for flag in ("--show-completion", "--install-completion"):
        head, _, shell = " ".join(arguments).replace(f"{flag}=", f"{flag} ").partition(f"{flag} ")
        if head or not shell:
            continue
        if shell not in _SHELLS:
            raise InvalidInputError(f"noa completes nothing in `{shell}`", expected=", ".join(_SHELLS), received=shell)
        # typer gives these no public name with a shell that is chosen.
        from typer._completion_classes import completion_init
        from typer._completion_shared import get_completion_script, install

        completion_init()
        if flag == "--show-completion":
            typer.echo(get_completion_script(prog_name="noa", complete_var="_NOA_COMPLETE", shell=shell))
        else:
            _, path = install(shell=shell, prog_name="noa", complete_var="_NOA_COMPLETE")
            typer.echo(f"{shell} completion is in {path}; it works in the next shell")
        return True
    return False


def _completer(
    find: Callable[[LoadedSettings, str], Iterable[str]],
    **others: Callable[[LoadedSettings, str], Iterable[str]],
) -> Completer:
    """Return what completes by `find`, in commands named in `others` by theirs."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        before = current().typed_before
        try:
            offers = list(others.get(str(ctx.info_name), find)(_load(ctx), before + incomplete))
        except Exception:  # noqa: BLE001 - whatever is wrong here is told by the command itself, not by a key press
            return []
        return [offer.removeprefix(before) for offer in offers if offer.startswith(before)]

    return complete


def _load(ctx: typer.Context) -> LoadedSettings:
    """Read the settings with the common options that stand before the cursor."""
    from noa_cli._command import keep_common

    contexts = [ctx]
    while (parent := contexts[-1].parent) is not None:
        contexts.append(parent)  # pyright: ignore[reportArgumentType]  # typer types the parent as its base class
    for params in (context.params for context in reversed(contexts)):
        keep_common(*(params.get(name) for name in ("override", "directory", "profile", "config")), debug=False)
    return current().load()


def _references(loaded: LoadedSettings, typed: str) -> Iterator[str]:
    for name, model in _registered(loaded.settings).items():
        yield name
        yield from (f"{name}@{alias}" for alias in model.aliases)
        numbers = model.numbers if typed.startswith(f"{name}/") else model.numbers[:_NEWEST]
        yield from (f"{name}/{number}" for number in numbers)


def _trashed(loaded: LoadedSettings, _typed: str) -> Iterator[str]:
    """Give what can be restored."""
    with _opened(loaded.settings) as connection:
        rows = connection.execute("SELECT name, number FROM noa_trash WHERE state = 'trashed' ORDER BY name, number")
        yield from [f"{name}/{number}" for name, number in rows]


def _aliases(loaded: LoadedSettings, _typed: str) -> Iterable[str]:
    known = [alias for model in _registered(loaded.settings).values() for alias in model.aliases]
    return dict.fromkeys([*known, *(recipe.promote_to for recipe in loaded.settings.recipes.values()), "champion"])


def _backends(_loaded: LoadedSettings, _typed: str) -> Iterable[str]:
    return ("torch", "jax", "torch,jax")


def _models(loaded: LoadedSettings, _typed: str) -> Iterable[str]:
    return _registered(loaded.settings)


def _servable(loaded: LoadedSettings, typed: str) -> Iterator[str]:
    """Give endpoints by name and versions; the bare name of a model is neither."""
    yield from loaded.settings.endpoints
    yield from (offer for offer in _references(loaded, typed) if "@" in offer or "/" in offer)


def _runs(loaded: LoadedSettings, typed: str) -> Iterator[str]:
    """Give the newest runs, or those whose id begins like what is typed; as long as a list shows them."""
    if loaded.settings.registry.database_url.startswith(_SQLITE):
        with _opened(loaded.settings) as connection:
            rows = connection.execute(_RUNS, {"typed": typed.lower(), "most": _MOST_RUNS}).fetchall()
        yield from (str(run) if len(typed) > _RUN_DIGITS else str(run)[:_RUN_DIGITS] for (run,) in rows)


def _recipes(loaded: LoadedSettings, _typed: str) -> Iterable[str]:
    return loaded.settings.recipes


def _searchable(loaded: LoadedSettings, _typed: str) -> Iterable[str]:
    """Give what `noa sweep` takes: sweeps, recipes, and `show`."""
    return dict.fromkeys([*loaded.settings.sweeps, *loaded.settings.recipes, "show"])


def _sweeps(loaded: LoadedSettings, _typed: str) -> Iterable[str]:
    """Give the searches that have begun."""
    return sorted(path.parent.name for path in loaded.settings.state_dir.glob("sweeps/*/sweep.json"))


def _formats(_loaded: LoadedSettings, _typed: str) -> Iterable[str]:
    from noa.formats import format_names

    return format_names()


def _setting_keys(loaded: LoadedSettings, _typed: str) -> Iterable[str]:
    """Give each key in force and the sections that hold it."""
    from noa.settings import list_values

    parts = [value.key.split(".") for value in list_values(loaded)]
    return dict.fromkeys(".".join(key[:depth]) for key in parts for depth in range(1, len(key) + 1))


def _overrides(loaded: LoadedSettings, typed: str) -> Iterator[str]:
    """Give `KEY=` of each setting; of its value nothing is known."""
    from noa.settings import list_values

    if "=" not in typed:
        yield from (f"{value.key}=" for value in list_values(loaded))


def _change(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete `KEY=` of the recipe that stands before the cursor."""
    from noa_cli._recipe_keys import recipe_keys

    try:
        # An option that lacks its value, as here, leaves the arguments where the parser had them.
        settings, name = _load(ctx).settings, str(ctx.params.get("recipe") or ctx.args[0])
        if ctx.info_name == "sweep" and name in settings.sweeps:
            name = settings.sweeps[name].recipe or name
        path = (settings.recipes[name].path if name in settings.recipes else name).partition(":")[0]
        file = Path(path if path.endswith(".py") else f"{path.replace('.', '/')}.py")
        base = settings.root if name in settings.recipes or not (current().directory / file).is_file() else None
        keys = recipe_keys((base or current().directory) / file)
    except Exception:  # noqa: BLE001 - whatever is wrong here is told by the command itself, not by a key press
        return []
    return [f"{key}=" for key in keys if key.startswith(incomplete)]


def _folder(_ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a folder; one that begins with a dot is offered when the dot is typed."""
    above, mark, start = incomplete.rpartition("/")
    try:
        found = sorted(Path(f"{above}{mark}" or ".").expanduser().iterdir())
        names = [path.name for path in found if path.name.startswith(start) and path.is_dir()]
    except (OSError, RuntimeError):
        return []
    return [f"{above}{mark}{name}/" for name in names if start or not name.startswith(".")]


def _registered(settings: Settings) -> Mapping[str, _Model]:
    """Return what is registered by name; nothing if the database is not a file of SQLite."""
    if not settings.registry.database_url.startswith(_SQLITE):
        return {}
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    aliases: defaultdict[str, list[str]] = defaultdict(list)
    with _opened(settings) as connection:
        for name, number in connection.execute(_IN_USE):
            numbers[name].append(number)
        for name, alias in connection.execute("SELECT name, alias FROM noa_aliases ORDER BY name, alias"):
            aliases[name].append(alias)
    return {name: _Model(numbers=tuple(found), aliases=tuple(aliases[name])) for name, found in numbers.items()}


def _opened(settings: Settings) -> closing[sqlite3.Connection]:
    """Open the database for reading; an error if it is no file of SQLite."""
    url = settings.registry.database_url
    file = Path(url.removeprefix(_SQLITE)).expanduser().absolute()
    # Even a read-only connection makes the files of the write-ahead log. Without them nobody writes now.
    mode = "mode=ro" if Path(f"{file}-wal").exists() else "immutable=1"
    return closing(sqlite3.connect(f"{file.as_uri()}?{mode}", uri=True))


def _models_and_files(loaded: LoadedSettings, typed: str) -> Iterator[str]:
    """Give versions, behind a `:` the formats, and files and folders that begin like what is typed."""
    reference, mark, _ = typed.rpartition(":")
    if mark:
        yield from (f"{reference}:{name}" for name in _formats(loaded, typed))
        return
    with suppress(sqlite3.Error):  # without a registry there are still files
        yield from _references(loaded, typed)
    start = typed.rpartition("/")[2]
    for path in sorted(Path(typed.removesuffix(start) or ".").glob(f"{start}*")) if typed else ():
        if path.is_dir() or path.suffix == ".onnx":
            yield f"{path}/" if path.is_dir() else str(path)


def _libraries(_loaded: LoadedSettings, _typed: str) -> Iterable[str]:
    return ("keras", "lightgbm", "tflite", "xgboost")  # the room that knows them is not imported for a key press


ARGUMENTS: Mapping[str, Completer] = {
    "reference": _completer(_references, restore=_trashed),
    "other": _completer(_references),
    "name": _completer(_models),
    "what": _completer(_servable),
    "recipe": _completer(_recipes, sweep=_searchable),
    "run": _completer(_runs),
    "runs": _completer(_runs),
    "shown": _completer(_sweeps),
    "key": _completer(_setting_keys),
    "section": _completer(_setting_keys),
    "source": _completer(_models_and_files),
    "target": _completer(_models_and_files),
}
OPTIONS: Mapping[str, Completer] = {
    "to": _completer(_formats),
    "format": _completer(_formats),
    "formats": _completer(_formats),
    "from_library": _completer(_libraries),
    "alias": _completer(_aliases),
    "backend": _completer(_backends),
    "override": _completer(_overrides),
    "change": _change,
    "space": _change,
    "directory": _folder,
}
