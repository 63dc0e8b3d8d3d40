"""`noa init`: make a project here, without touching what is already here."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from noa.plain_paths import plain_path
from noa_cli import _console as console
from noa_cli._options import DryRunOption, JsonOption

TEMPLATES = ("digits", "flights")
# Private keys, as `noa keys new` and `noa keys new-signing` name them; the public ones belong to the project.
_IGNORED = (".noa/", "__pycache__/", "*.key", "*.pem", "!*.pub.pem")


def init(
    folder: Annotated[Path, typer.Argument(help="Where; created if missing.")] = Path(),
    template: Annotated[
        str, typer.Option("--template", "-t", help=f"What to start from: {', '.join(TEMPLATES)}.")
    ] = "digits",
    name: Annotated[str | None, typer.Option("--name", help="The project's name (default: the folder's).")] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a project: `noa.toml`, a recipe that trains, and a line in `.gitignore`.

    Tells which settings the project has from outside of its file: from your own settings and NOA__* variables.
    """
    written = write_project(folder, template=template, name=name, dry_run=dry_run)
    outside = {} if dry_run else _set_outside(folder)
    if as_json:
        told = {"folder": str(plain_path(folder)), "written": written, "dry_run": dry_run, "set_outside": outside}
        console.print_json(told)
        return
    for file in written:
        console.print_line(f"{'would write' if dry_run else 'wrote'} {folder / file}")
    for key, origin in outside.items():
        console.print_line(f"note: `{key}` is set outside of noa.toml: {origin}")
    if not dry_run:
        step = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
        recipe = "digits" if template == "digits" else template
        console.print_line(f"Next: {step}noa train {recipe}")


def write_project(folder: Path, *, template: str, name: str | None = None, dry_run: bool = False) -> list[str]:
    """Write a template's files into `folder`; return their names.

    Raises:
        InvalidInputError: no such template.
        ConflictError: a file of the template is already there; nothing is written.
    """
    from noa.errors import ConflictError, InvalidInputError
    from noa.references import check_name
    from noa.settings import PROJECT_FILE

    if template not in TEMPLATES:
        raise InvalidInputError(f"no template `{template}`", expected=", ".join(TEMPLATES), received=template)
    project_name = check_name(name) if name is not None else _name_from(folder)
    source = files("noa_cli") / "templates" / template
    contents = {entry.name: entry.read_text() for entry in source.iterdir() if entry.is_file()}
    contents["noa.toml"] = re.sub(r'(?m)^name = ".*"$', f'name = "{project_name}"', contents["noa.toml"], count=1)
    present = [file for file in contents if (folder / file).exists()]
    if present and not _was_begun(folder, contents, present):
        raise ConflictError(
            f"`{present[0]}` is already there",
            where=str(plain_path(folder)),
            remedy="Choose another folder, or move the file away; nothing was written",
        )
    ignore = _gitignore_with_state(folder)
    if not dry_run:
        # noa.toml last: a folder with it is a whole project.
        texts = {} if ignore is None else {".gitignore": ignore}
        texts |= {file: contents[file] for file in sorted(contents, key=lambda file: file == PROJECT_FILE)}
        _write_all(folder, texts)
    return [*sorted(contents), *([".gitignore"] if ignore is not None else [])]


def _write_all(folder: Path, texts: dict[str, str]) -> None:
    """Write files into a folder; if one cannot be written, leave nothing that was not there."""
    from noa.atomic_write import translate_disk_errors, write_file
    from noa.errors import NoaError

    before = {name: (folder / name).read_text() if (folder / name).is_file() else None for name in texts}
    made = [parent for parent in (folder, *folder.absolute().parents) if not parent.exists()]
    written: list[str] = []
    try:
        with translate_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_file(folder / name, text)
            written.append(name)
    except BaseException:
        for name in sorted(written, key=lambda name: before[name] is not None):  # what was removed has made room
            with suppress(OSError, NoaError):
                _put_back(folder / name, before[name])
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise


def _put_back(path: Path, text: str | None) -> None:
    from noa.atomic_write import write_file

    if text is None:
        path.unlink(missing_ok=True)
    else:
        write_file(path, text)


def _was_begun(folder: Path, contents: dict[str, str], present: list[str]) -> bool:
    """Tell whether what is there is what a killed `noa init` wrote before the last file, and nothing of the user's."""
    from noa.settings import PROJECT_FILE

    return PROJECT_FILE not in present and all(
        (folder / file).read_bytes() == contents[file].encode() for file in present
    )


def _set_outside(folder: Path) -> dict[str, str]:
    """Return the settings that a new project does not have from its own file, each with its origin."""
    from noa.settings import PROJECT_FILE, load_settings

    own = str((folder / PROJECT_FILE).absolute())
    origins = load_settings(folder).origins
    return {key: origin for key, origin in origins.items() if not origin.startswith(own)}


def _name_from(folder: Path) -> str:
    text = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("-.")[:100]
    return text if re.match(r"[A-Za-z]", text) else f"project-{text}".rstrip("-")


def _gitignore_with_state(folder: Path) -> str | None:
    """Return `.gitignore` with what must not be committed added; None if nothing is to be added."""
    from noa.errors import ConflictError
    from noa.regular_files import special_kind

    path = folder / ".gitignore"
    if kind := special_kind(path):
        raise ConflictError(f"`.gitignore` is {kind}", where=str(path), remedy="Move it away; nothing was written")
    text = path.read_text() if path.is_file() else ""
    present = {line.strip().strip("/") for line in text.splitlines()}
    missing = [entry for entry in _IGNORED if entry.strip("/") not in present]
    if not missing:
        return None
    return text + ("" if not text or text.endswith("\n") else "\n") + "\n".join(missing) + "\n"
