"""`noa api-keys`: keys by which clients call this project's servers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._command import add_command, new_group
from noa_cli._invocation import current
from noa_cli._options import JsonOption

if TYPE_CHECKING:
    from noa_serving.api_keys import ApiKey, KeyFile


def build() -> typer.Typer:
    """Return the group with its commands."""
    group = new_group("Make and revoke the keys by which clients call a server.")
    add_command(group, new)
    add_command(group, list_keys, name="list")
    add_command(group, revoke)
    return group


def new(
    name: Annotated[str, typer.Argument(help="Who will use the key, e.g. `shop` or `prometheus`.")],
    endpoints: Annotated[
        list[str] | None,
        typer.Option("--endpoint", "-e", help="Endpoint, or a glob such as `shop-*` (repeatable; default: all)."),
    ] = None,
    verbs: Annotated[
        list[str] | None,
        typer.Option(
            "--verb",
            help="`infer`, `read` (metadata, statistics) or `control` (shared memory, metrics, status); repeatable; "
            "default: infer and read.",
        ),
    ] = None,
    expires: Annotated[str | None, typer.Option("--expires", help="For how long, e.g. 90d (default: no end).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, once: only its hash is kept. Running servers take it within a second."""
    from noa.durations import parse_duration

    lifetime = None if expires is None else parse_duration(expires, where="--expires")
    file = _file()
    key, text = file.add(
        name, now=datetime.now(UTC), endpoints=endpoints or ["*"], verbs=verbs or ["infer", "read"], lifetime=lifetime
    )
    if as_json:
        console.print_json({**_row(key), "key": text})
        return
    console.print_line(text)
    console.note(f"key {key.id} of {key.name}: {_scope(key)}; it is shown this once. Clients send it as")
    console.note("`Authorization: Bearer KEY` or `X-API-Key: KEY`, noa's commands as NOA__SERVING__CLIENT_KEY")


def list_keys(as_json: JsonOption = False) -> None:
    """List the keys with their scopes; the keys themselves are nowhere kept."""
    keys = _file().read()
    if as_json:
        console.print_json([_row(key) for key in keys])
        return
    rows = [[key.id, key.name, _scope(key), _state(key), f"{key.created:%Y-%m-%d}"] for key in keys]
    console.print_table(("id", "name", "scope", "state", "made"), rows)


def revoke(
    which: Annotated[str, typer.Argument(help="The id of a key, or a name: then all keys of that name.")],
    as_json: JsonOption = False,
) -> None:
    """Revoke a key. Running servers refuse it within a second, on open connections too."""
    keys = _file().revoke(which, now=datetime.now(UTC))
    if as_json:
        console.print_json([_row(key) for key in keys])
        return
    for key in keys:
        console.print_line(f"revoked {key.id} of {key.name}")


def _file() -> KeyFile:
    from noa_serving.api_keys import KeyFile

    return KeyFile(current().settings().serving.keys_file)


def _scope(key: ApiKey) -> str:
    return f"{', '.join(key.verbs)} on {', '.join(key.endpoints)}"


def _state(key: ApiKey) -> str:
    if key.revoked is not None:
        return f"revoked {key.revoked:%Y-%m-%d}"
    if key.expires is None:
        return "valid"
    return f"{'valid until' if key.is_valid(datetime.now(UTC)) else 'expired'} {key.expires:%Y-%m-%d %H:%M} UTC"


def _row(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "endpoints": list(key.endpoints),
        "verbs": list(key.verbs),
        "created": key.created.isoformat(),
        "expires": None if key.expires is None else key.expires.isoformat(),
        "revoked": None if key.revoked is None else key.revoked.isoformat(),
    }
