"""`noa api-keys`: keys by which clients call this project's servers."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._command import add_command, new_group
from noa_cli._invocation import current
from noa_cli._options import JsonOption

if TYPE_CHECKING:
    from noa_serving.api_keys import ApiKey, KeyFile, KeyQuota

Rate = Annotated[
    float | None, typer.Option("--rate", help="Requests per second, over all workers (default: as in the settings).")
]
Burst = Annotated[
    int | None,
    typer.Option("--burst", help="Requests at once after a silence (default: `serving.quota_burst_s` of the rate)."),
]
ByteRate = Annotated[
    float | None, typer.Option("--byte-rate", help="Bytes of request bodies per second (default: as in the settings).")
]
ByteBurst = Annotated[
    int | None,
    typer.Option("--byte-burst", help="Bytes at once after a silence (default: `serving.quota_burst_s` of the rate)."),
]


def build() -> typer.Typer:
    """Return the group with its commands."""
    group = new_group("Make, limit and revoke the keys by which clients call a server.")
    add_command(group, new)
    add_command(group, list_keys, name="list")
    add_command(group, limit)
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
    rate: Rate = None,
    burst: Burst = None,
    byte_rate: ByteRate = None,
    byte_burst: ByteBurst = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, once: only its hash is kept. Running servers take it within a second."""
    from noa.durations import parse_duration

    lifetime = None if expires is None else parse_duration(expires, where="--expires")
    quota = _quota_of(rate, burst, byte_rate, byte_burst)
    key, text = _file().add(
        name,
        now=datetime.now(UTC),
        endpoints=endpoints or ["*"],
        verbs=verbs or ["infer", "read"],
        lifetime=lifetime,
        quota=quota,
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
    rows = [[key.id, key.name, _scope(key), _quota(key), _state(key), f"{key.created:%Y-%m-%d}"] for key in keys]
    console.print_table(("id", "name", "scope", "quota", "state", "made"), rows)


def limit(
    which: Annotated[str, typer.Argument(help="The id of a key, or a name: then all keys of that name.")],
    rate: Rate = None,
    burst: Burst = None,
    byte_rate: ByteRate = None,
    byte_burst: ByteBurst = None,
    is_none: Annotated[bool, typer.Option("--none", help="No quota of its own: that of the settings.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Give a key another quota, as a whole. Running servers go by it within a second, without a restart."""
    from noa.errors import InvalidInputError

    quota = _quota_of(rate, burst, byte_rate, byte_burst)
    if (quota is None) != is_none:
        raise InvalidInputError("which quota?", expected="either `--rate` or `--byte-rate` (or both), or `--none`")
    keys = _file().limit(which, quota)
    if as_json:
        console.print_json([_row(key) for key in keys])
        return
    for key in keys:
        console.print_line(f"{key.id} of {key.name}: {_quota(key) or 'the quota of the settings'}")


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


def _quota_of(
    rate: float | None, burst: int | None, byte_rate: float | None, byte_burst: int | None
) -> KeyQuota | None:
    from noa_serving.api_keys import KeyQuota

    if all(number is None for number in (rate, burst, byte_rate, byte_burst)):
        return None
    return KeyQuota(requests_per_s=rate, burst_requests=burst, bytes_per_s=byte_rate, burst_bytes=byte_burst)


def _quota(key: ApiKey) -> str | None:
    """Return a key's own quota for people, None if it has that of the settings."""
    quota = key.quota
    if quota is None:
        return None
    parts = [
        f"{rate:.12g} {what}/s" + ("" if burst is None else f", {burst} at once")
        for what, rate, burst in (
            ("requests", quota.requests_per_s, quota.burst_requests),
            ("bytes", quota.bytes_per_s, quota.burst_bytes),
        )
        if rate is not None
    ]
    return "; ".join(parts) or None


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
        "quota": None if key.quota is None else asdict(key.quota),
    }
