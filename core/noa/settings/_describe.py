"""Settings for people: every key with its value, type, meaning, origin; the file's text; its JSON schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Final, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel, SecretStr

from noa.database_urls import MASK, mask_password, mask_web_address
from noa.errors import NotFoundError
from noa.settings._loader import LoadedSettings, closest_key, is_for_files_only, model_at, table_around
from noa.settings.models import Settings
from noa.settings.registry import WebhookSettings

_MOST_MEANT: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingValue:
    """One key in force. Secrets that are set are masked; `origin` is `default` or the layer that set it."""

    key: str
    value: object
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingDifference:
    """One key that is not the same in two settings, as each shows it; None where it is not set.

    `is_secret`: what differs is masked, so that `a` and `b` look the same.
    """

    key: str
    a: object
    b: object
    is_secret: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingHelp:
    """What one key means. `environment` is the variable that sets it, None where only a file may.

    A key that `is_required` has no default: None stands there.
    """

    key: str
    description: str
    type: str
    default: object
    is_required: bool
    environment: str | None
    keys: tuple[str, ...]


def list_values(loaded: LoadedSettings) -> list[SettingValue]:
    """Return every key with its value and origin, in the order of the sections."""
    origins = _origins_by_prefix(loaded)
    return [
        SettingValue(key=key, value=found.shown, origin=origins.get(key, "default"))
        for key, found in _walk(loaded.settings, "")
    ]


def compare_values(a: LoadedSettings, b: LoadedSettings) -> list[SettingDifference]:
    """Return every key whose value differs, also where all that differs is a secret, which is not shown."""
    left, right = dict(_walk(a.settings, "")), dict(_walk(b.settings, ""))
    differences: list[SettingDifference] = []
    for key in {**left, **right}:
        first, second = left.get(key, _UNSET), right.get(key, _UNSET)
        if first.value != second.value:
            is_secret = first.shown == second.shown
            differences.append(SettingDifference(key=key, a=first.shown, b=second.shown, is_secret=is_secret))
    return differences


def explain(dotted: str) -> SettingHelp:
    """Describe a key or a section.

    Raises:
        NotFoundError: there is no such key.
    """
    found = model_at(dotted)
    if found is None:
        raise NotFoundError(f"no setting `{dotted}`", remedy=what_was_meant(dotted))
    section, name = found
    field = section.model_fields[name]
    inner = _section_of(field.annotation)
    is_required = field.is_required()
    has_default = inner is None and not is_required
    default = _plain(field.get_default(call_default_factory=True)) if has_default else None
    return SettingHelp(
        key=dotted,
        description=field.description or (inner.__doc__ if inner else "") or "",
        type=inner.__name__ if inner else _type_name(field.annotation),
        default=default,
        is_required=is_required,
        environment=None if is_for_files_only(dotted) else f"NOA__{dotted.upper().replace('.', '__')}",
        keys=tuple(inner.model_fields) if inner else (),
    )


def find_value(loaded: LoadedSettings, dotted: str) -> SettingValue | None:
    """Return one key's value and origin; None for a section, and for a key of a name that nothing sets."""
    return next((value for value in list_values(loaded) if value.key == dotted), None)


def what_was_meant(dotted: str) -> str:
    """Return a sentence for somebody who named a key that is none."""
    if around := table_around(dotted):
        return f"It is a key inside of `{around}`, which `noa config explain {around}` describes"
    if close := closest_key(dotted):
        return f"Did you mean `{close}`?"
    same = [key for key, _ in _walk(Settings(), "") if key.rpartition(".")[2] == dotted]
    if same:
        return f"Did you mean {' or '.join(f'`{key}`' for key in same[:_MOST_MEANT])}?"
    return "List them with `noa config show`"


def json_schema() -> dict[str, object]:
    """Return the JSON Schema of `noa.toml`, for editors."""
    schema = cast("dict[str, object]", Settings.model_json_schema())
    properties = cast("dict[str, object]", schema["properties"])
    properties.pop("root", None)
    properties["profiles"] = {"type": "object", "description": "Named layers of settings, chosen with --profile."}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "noa.toml"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A value as it is, and as it may be shown."""

    value: object
    shown: object


_UNSET = _Found(value=None, shown=None)


def _walk(section: BaseModel, prefix: str) -> Iterator[tuple[str, _Found]]:
    for name in type(section).model_fields:
        value = cast("object", getattr(section, name))
        if isinstance(section, Settings) and name == "root":
            continue
        if isinstance(value, BaseModel):
            yield from _walk(value, f"{prefix}{name}.")
        elif isinstance(value, dict) and value and _has_sections(cast("dict[str, object]", value)):
            for key, inner in cast("dict[str, BaseModel]", value).items():
                yield from _walk(inner, f"{prefix}{name}.{key}.")
        else:
            is_address = isinstance(section, WebhookSettings) and name == "url"
            shown = mask_web_address(cast("str", value)) if is_address else _plain(value)
            yield f"{prefix}{name}", _Found(value=value, shown=shown)


def _has_sections(table: dict[str, object]) -> bool:
    return all(isinstance(value, BaseModel) for value in table.values())


def _plain(value: object) -> object:
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""  # nothing is no secret
    if isinstance(value, str):
        return _without_secrets(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in cast("list[object]", value)]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in cast("dict[object, object]", value).items()}
    return value


def _without_secrets(text: str) -> str:
    """Return a text without what may be secret in it, if it is a URL: the password, and a web address's query."""
    text = mask_password(text)
    if not text.lower().startswith(("http://", "https://")):
        return text
    place, mark, _ = text.partition("?")
    return f"{place}{mark}{MASK}" if mark else text


def _origins_by_prefix(loaded: LoadedSettings) -> dict[str, str]:
    """Return the origin of each key that is set, and for each table above it that of its first one."""
    origins: dict[str, str] = {}
    for key, origin in loaded.origins.items():
        for end in (*(index for index, char in enumerate(key) if char == "."), len(key)):
            origins.setdefault(key[:end], origin)
    return origins


def _section_of(annotation: object) -> type[BaseModel] | None:
    candidates = (annotation, *cast("tuple[object, ...]", getattr(annotation, "__args__", ())))
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)


def _type_name(annotation: object) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin in (Union, UnionType):
        return " | ".join(_type_name(argument) for argument in arguments)
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if isinstance(origin, type):
        return f"{origin.__name__}[{', '.join(_type_name(argument) for argument in arguments)}]"
    if annotation is type(None) or annotation is Ellipsis:
        return "None" if annotation is type(None) else "..."
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
