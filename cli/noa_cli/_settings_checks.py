"""What no value of the settings shows by itself to be wrong: keys that are none, kinds, formats and files that are not.

Everything is checked that needs no network. What may come to exist later, such as a model, is a remark and no mistake.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from noa.errors import (
    DependencyMissingError,
    InvalidInputError,
    NoaError,
    NotFoundError,
    SettingsError,
    SignatureError,
)
from noa.references import parse_reference

if TYPE_CHECKING:
    from noa.settings import LoadedSettings, RegistrySettings, Settings, WebhookSettings
    from noa_registry import ModelVersion, Registry

SIGNING = "registry.signing"
_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """One thing that somebody should look at."""

    text: str
    remedy: str


def find_mistakes(loaded: LoadedSettings) -> Iterator[SettingsError]:
    """Return what is wrong, each with the place of its setting; `facts["key"]` names it."""
    settings = loaded.settings
    for key, error in (
        *_database(settings.registry),
        *_principals(settings.registry),
        *_signing(settings),
        *_webhooks(settings),
        *_endpoints(settings),
        *_streams(settings),
        *_files(settings),
        *_sweeps(settings),
        *_serving(settings),
    ):
        yield SettingsError(
            error.what if f"`{key}`" in error.what else f"setting `{key}` is not valid: {error.what}",
            where=_place(loaded, key),
            expected=error.expected,
            received=error.received or (error.where if error.where != key else None),
            remedy=error.remedy,
            key=key,
        )


def reference_remarks(settings: Settings, known: Collection[str]) -> list[Remark]:
    """Return what endpoints and webhooks say of models that are neither registered nor made by a recipe."""
    named = [(f"[endpoints.{name}] serves", _model_of(found.model)) for name, found in settings.endpoints.items()]
    named += [
        (f"[endpoints.{name}.arms.{arm}] serves", _model_of(one.model))
        for name, found in settings.endpoints.items()
        for arm, one in found.arms.items()
    ]
    named += [
        (f"[endpoints.{name}] falls back to", _model_of(found.fallback))
        for name, found in settings.endpoints.items()
        if found.fallback
    ]
    named += [
        (f"[webhooks.{name}] waits for", model) for name, hook in settings.webhooks.items() for model in hook.models
    ]
    return [unknown_model(who, model, known) for who, model in named if model not in known]


def unknown_model(who: str, name: str, known: Collection[str]) -> Remark:
    """Return the remark about a model that nobody knows."""
    there = ", ".join(f"`{model}`" for model in list(known)[:_SHOWN])
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return Remark(
        text=f"{who} a model that is neither registered nor made by a recipe; there "
        + (f"are {there}{more}" if there else "is none yet"),
        remedy=_did_you_mean(name, known) or "Correct the name, or register the model under it",
    )


_Mistakes = Iterator[tuple[str, NoaError]]


def _database(registry: RegistrySettings) -> _Mistakes:
    from noa_registry.database_url import parse_database_url

    try:
        parse_database_url(registry.database_url)
    except InvalidInputError as exc:
        yield "registry.database_url", exc


def _principals(registry: RegistrySettings) -> _Mistakes:
    from noa_registry.approvals.keys import load_principals, public_text

    owners: dict[str, str] = {}
    for name, value in registry.principals.items():
        try:
            first = owners.setdefault(public_text(load_principals({name: value})[name]), name)
            load_principals({each: registry.principals[each] for each in (first, name)})  # one key is one person
        except InvalidInputError as exc:
            yield f"registry.principals.{name}", exc


def _signing(settings: Settings) -> _Mistakes:
    from noa_registry import check_signing

    signing = settings.registry.signing
    for path in signing.trusted_keys:
        try:
            check_signing(type(signing)(trusted_keys=(path,)))
        except DependencyMissingError:  # told once, below
            break
        except InvalidInputError as exc:
            yield f"{SIGNING}.trusted_keys", exc
    try:
        check_signing(signing.model_copy(update={"trusted_keys": ()}))
    except DependencyMissingError as exc:
        yield SIGNING, exc
    except InvalidInputError as exc:
        yield f"{SIGNING}.{'private_key' if signing.private_key else 'private_key_pem'}", exc


def _webhooks(settings: Settings) -> _Mistakes:
    from noa_registry.events.outbox import EventKind
    from noa_registry.events.webhooks import build_webhook

    for name, hook in settings.webhooks.items():
        for pattern in hook.events:
            try:
                build_webhook(name, hook.model_copy(update={"events": (pattern,)}))
            except SettingsError as exc:
                exc.remedy = _did_you_mean(pattern, get_args(EventKind))
                yield f"webhooks.{name}.events", exc
        yield from _authority(name, hook)


def _authority(name: str, hook: WebhookSettings) -> _Mistakes:
    import ssl

    if hook.ca_file is not None:
        try:
            ssl.create_default_context(cafile=str(hook.ca_file))
        except OSError as exc:  # an SSLError is one
            reason = exc.strerror or "no certificates"
            what = f"its certificates cannot be read: {reason.lower()}"
            yield f"webhooks.{name}.ca_file", InvalidInputError(what, expected="a PEM file", received=str(hook.ca_file))


def _endpoints(settings: Settings) -> _Mistakes:
    from noa.formats import KEPT_FORMATS, format_names

    formats = [name for name in format_names() if name not in KEPT_FORMATS]
    named = [(f"endpoints.{name}.format", endpoint.format) for name, endpoint in settings.endpoints.items()]
    named += [
        (f"endpoints.{name}.arms.{arm}.format", one.format)
        for name, endpoint in settings.endpoints.items()
        for arm, one in endpoint.arms.items()
        if one.format
    ]
    for key, format in named:
        if format not in (*formats, "auto"):
            what = "is kept, never served" if format in KEPT_FORMATS else "is no format of a model"
            yield (
                key,
                InvalidInputError(
                    f"`{format}` {what}",
                    expected=", ".join(formats),
                    received=repr(format),
                    remedy=_did_you_mean(format, formats),
                ),
            )


def _streams(settings: Settings) -> _Mistakes:
    """Streams that do not fit the model which an endpoint would serve now; what is not registered is known later."""
    from noa_cli._registry import open_registry
    from noa_serving.stream_fit import fit_stream

    streaming = {name: one for name, one in settings.endpoints.items() if one.stream.is_on}
    if not streaming:
        return
    try:
        with open_registry(settings) as registry:
            versions = {name: _resolved(registry, endpoint.model) for name, endpoint in streaming.items()}
    except NoaError:  # the settings are valid also where the database does not answer, and a warning tells of that
        return
    for name, version in versions.items():
        if version is not None:
            try:
                fit_stream(streaming[name].stream, version.signature)
            except SignatureError as exc:
                exc.what = f"{exc.what}, with `{version.reference}`"
                yield f"endpoints.{name}.{exc.facts['field']}", exc


def _resolved(registry: Registry, reference: str) -> ModelVersion | None:
    try:
        return registry.resolve(reference)
    except NotFoundError:
        return None


def _serving(settings: Settings) -> _Mistakes:
    from noa_serving import check_exposure

    try:
        check_exposure(settings.serving)
    except SettingsError as exc:
        yield "serving.host" if exc.where == "serving.host" else "serving.keys_file", exc


def _files(settings: Settings) -> _Mistakes:
    """Files of the project that a setting names; an import path is looked up only when it is used."""
    named = [(f"gates.{name}.check", gate.check.rpartition(":")[0]) for name, gate in settings.gates.items()]
    for name, recipe in settings.recipes.items():
        file = recipe.path if recipe.path.endswith(".py") else recipe.path.rpartition(":")[0]
        named.append((f"recipes.{name}.path", file if file.endswith(".py") else ""))
    for name, sweep in settings.sweeps.items():
        file = sweep.recipe.partition(":")[0]
        named.append((f"sweeps.{name}.recipe", file if file.endswith(".py") else ""))
    for key, text in named:
        file = settings.root / Path(text).expanduser()
        if text and not file.is_file():
            near = [path.name for path in file.parent.glob("*.py")]
            remedy = _did_you_mean(file.name, near)
            yield key, InvalidInputError("there is no such file", received=str(file), remedy=remedy)


def _sweeps(settings: Settings) -> _Mistakes:
    """A sweep is of a recipe of the settings, or of one by its path."""
    for name, sweep in settings.sweeps.items():
        recipe = sweep.recipe or name
        if recipe not in settings.recipes and not recipe.endswith(".py") and ":" not in recipe:
            yield (
                f"sweeps.{name}.recipe" if sweep.recipe else f"sweeps.{name}",
                InvalidInputError(
                    "there is no such recipe",
                    expected=", ".join(f"`{one}`" for one in settings.recipes) or "a table [recipes.NAME]",
                    received=f"`{recipe}`",
                    remedy=_did_you_mean(recipe, settings.recipes),
                ),
            )


def _place(loaded: LoadedSettings, key: str) -> str:
    """Return where a key is set, or what of it is."""
    for candidate, origin in loaded.origins.items():
        if candidate == key or candidate.startswith(f"{key}.") or key.startswith(f"{candidate}."):
            return origin
    return "defaults"


def _model_of(reference: str) -> str:
    return parse_reference(reference).name


def _did_you_mean(text: str, known: Collection[str]) -> str | None:
    close = difflib.get_close_matches(text, known, n=1)
    return f"Did you mean `{close[0]}`?" if close else None
