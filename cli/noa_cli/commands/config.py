"""`noa config`: what is set, where it comes from, and what can be set."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._command import add_command, new_group
from noa_cli._invocation import current
from noa_cli._options import JsonOption

if TYPE_CHECKING:
    from noa.settings import LoadedSettings, Settings, SettingValue

_ANOTHER = " (another secret)"
_FILES = "`noa.toml`, a profile of it, or a file given with --config FILE"


def build() -> typer.Typer:
    """Return the group with its commands."""
    group = new_group("Show, explain and check the settings.")
    for function in (show, explain, validate, schema, diff):
        add_command(group, function)
    return group


def show(
    origin: Annotated[bool, typer.Option("--origin", help="Show where each value comes from.")] = False,
    section: Annotated[str | None, typer.Argument(help="Only this section or key, e.g. `serving`.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show every setting in force."""
    from noa.errors import NotFoundError
    from noa.settings import list_values, model_at, what_was_meant

    values = list_values(current().load())
    if section is not None:
        values = [value for value in values if value.key == section or value.key.startswith(f"{section}.")]
        if not values:
            known = f"`noa config explain {section}` tells what it is"
            remedy = known if model_at(section) else what_was_meant(section)
            raise NotFoundError(f"no setting `{section}` is in force", remedy=remedy)
    if as_json:
        console.print_json([asdict(value) for value in values] if origin else {v.key: v.value for v in values})
        return
    rows = [[value.key, _text(value.value), *([value.origin] if origin else [])] for value in values]
    console.print_table(["setting", "value", *(["origin"] if origin else [])], rows)


def explain(
    key: Annotated[str, typer.Argument(help="A setting, e.g. `serving.port`.")], as_json: JsonOption = False
) -> None:
    """Tell what one setting means, what it is now and where that comes from, and how to set it."""
    from noa.settings import explain as describe

    found = describe(key)
    now, problem = (None, None) if found.keys else _value_now(key)
    if as_json:
        held = {"value": now.value if now else None, "origin": now.origin if now else None, "problem": problem}
        console.print_json({**asdict(found), **held})
        return
    console.print_line(f"{found.key}: {found.description}")
    console.print_line(f"  type         {found.type}")
    if found.keys:
        console.print_line(f"  keys         {', '.join(found.keys)}")
        console.print_line(f"  now          see: noa config show {key} --origin")
    else:
        console.print_line(f"  default      {'none, it must be set' if found.is_required else _text(found.default)}")
        console.print_line(f"  now          {f'{_text(now.value)} ({now.origin})' if now else problem}")
    if found.environment is None:
        console.print_line(f"  set it in    {_FILES}")
    elif not found.keys:
        console.print_line(f"  environment  {found.environment}")
        console.print_line(f"  command line -o {found.key}=...")
        console.print_line(f"  file         {_FILES}")


def _value_now(key: str) -> tuple[SettingValue | None, str | None]:
    """Return what holds now, else why that cannot be told: an error about a setting sends people here, too."""
    from noa.errors import SettingsError
    from noa.settings import find_value

    try:
        found = find_value(current().load(), key)
    except SettingsError as exc:
        return None, f"the settings are not valid: {exc}"
    return found, None if found else f"nothing has set `{key.rpartition('.')[0]}`"


def validate(as_json: JsonOption = False) -> None:
    """Check all layers and what they name: keys, kinds, formats, files; exit code 1 and the place of the first mistake.

    Nothing but the database is asked. What is odd and no mistake, such as a gate of a model that nobody knows, is a
    warning.
    """
    from noa_cli._settings_checks import find_mistakes

    loaded = current().load()
    for mistake in find_mistakes(loaded):
        raise mistake
    where = str(loaded.project_file) if loaded.project_file else None
    warnings = _warnings(loaded.settings)
    if as_json:
        console.print_json(
            {"valid": True, "project_file": where, "keys_set": len(loaded.origins), "warnings": warnings}
        )
        return
    console.print_line(f"valid: {console.count(len(loaded.origins), 'setting')} set, project file {where or 'none'}")
    for warning in warnings:
        console.print_line(f"warning: {warning}")


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", help="Write to this file instead of standard output.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the JSON Schema of `noa.toml`, for editors."""
    from noa.atomic_write import write_file
    from noa.settings import json_schema

    del as_json  # it is JSON in any case
    text = json.dumps(json_schema(), indent=2) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_file(output, text)


def diff(
    profile_a: Annotated[str, typer.Argument(help="A profile, or `-` for no profile.")],
    profile_b: Annotated[str, typer.Argument(help="Another profile, or `-`.")],
    as_json: JsonOption = False,
) -> None:
    """Show what differs between two profiles; of secrets only that they differ."""
    from noa.settings import compare_values

    sides: list[LoadedSettings] = []
    for name in (profile_a, profile_b):
        current().profile = None if name == "-" else name
        sides.append(current().load())
    found = compare_values(*sides)
    if as_json:
        console.print_json([asdict(difference) for difference in found])
    elif found:
        rows = [[each.key, _text(each.a), _text(each.b) + (_ANOTHER if each.is_secret else "")] for each in found]
        console.print_table(["setting", profile_a, profile_b], rows)
    else:
        console.print_line("no difference")


def _warnings(settings: Settings) -> list[str]:
    return [*_port_warnings(settings), *_name_warnings(settings)]


def _port_warnings(settings: Settings) -> list[str]:
    """`noa up` refuses it; who starts one service only may want it so."""
    from noa.errors import SettingsError
    from noa_flows import refuse_shared_ports

    try:
        refuse_shared_ports(settings)
    except SettingsError as exc:
        return [str(exc)]
    return []


def _name_warnings(settings: Settings) -> list[str]:
    if not (settings.gates or settings.endpoints or settings.webhooks):
        return []
    from noa.errors import NoaError
    from noa_cli._gate_remarks import gate_remarks, name_remarks
    from noa_cli._registry import open_registry

    try:
        with open_registry(settings) as registry:
            remarks = [*gate_remarks(settings, registry), *name_remarks(settings, registry)]
    except NoaError as exc:  # the settings are valid also where the database does not answer
        return [f"the settings could not be compared with the registry: {exc}"]
    return [f"{remark.text}. {remark.remedy}" for remark in remarks]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
