"""The files that settings name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from noa.errors import SettingsError
from noa.regular_files import special_kind
from noa.settings.models import Settings
from noa.settings.registry import PUBLIC_KEY_PREFIX


def refuse_special_files(settings: Settings, origins: Mapping[str, str]) -> None:
    """Refuse a named pipe, folder or device now: whoever read it when it is needed could wait for ever.

    Raises:
        SettingsError: a file is there and no regular one; names the setting and its place.
    """
    for key, path in _named_files(settings):
        if kind := special_kind(path):
            raise SettingsError(
                f"setting `{key}` names {kind}",
                where=origins.get(key),
                expected="a regular file",
                received=str(path),
                key=key,
            )


def _named_files(settings: Settings) -> Iterator[tuple[str, Path]]:
    registry = settings.registry
    if registry.signing.private_key is not None:
        yield "registry.signing.private_key", registry.signing.private_key
    for path in registry.signing.trusted_keys:
        yield "registry.signing.trusted_keys", path
    if registry.ledger_anchor is not None:
        yield "registry.ledger_anchor", registry.ledger_anchor
    for name, key in registry.principals.items():
        if not key.startswith(PUBLIC_KEY_PREFIX):
            yield f"registry.principals.{name}", Path(key)
    for name, hook in settings.webhooks.items():
        if hook.ca_file is not None:
            yield f"webhooks.{name}.ca_file", hook.ca_file
    for name, gate in settings.gates.items():
        if gate.check:
            yield f"gates.{name}.check", Path(gate.check.rpartition(":")[0])
