"""The file of API keys: who may call a server, what for, and until when.

It holds no key, only its SHA-256: a key is 256 random bits, which no list of words finds again. Every change is one
atomic replacement of the file, under a lock, so that a server that reads it meanwhile sees the one or the other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, cast, get_args

from noa.atomic_write import translate_disk_errors, write_file
from noa.errors import InvalidInputError, NotFoundError, SettingsError

Verb = Literal["infer", "read", "control"]
"""`infer`: models compute. `read`: metadata, statistics, pages. `control`: loads, shared memory, metrics, status."""

VERBS: tuple[Verb, ...] = get_args(Verb)

_VERSION = 1
_PREFIX = "noa"
_ID = re.compile(r"[0-9a-f]{8}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PATTERN = re.compile(r"[A-Za-z0-9._*?\[\]!-]{1,128}")
_NAME = re.compile(r"[\w.@+-][\w.@+ -]{0,63}")
_MOST_BYTES = 16 << 20
_LEAST_RATE, _MOST_RATE = 1e-6, 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyQuota:
    """What one key may send, in place of `serving.quota_requests_per_s` and `serving.quota_bytes_per_s`.

    None leaves a rate as the settings have it. A burst is what a silent client may send at once, None: as much as in
    `serving.quota_burst_s` seconds.
    """

    requests_per_s: float | None = None
    burst_requests: int | None = None
    bytes_per_s: float | None = None
    burst_bytes: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InvalidInputError: one is out of range, or a burst has no rate.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            least = 1 if field.name.startswith("burst") else _LEAST_RATE
            if value is not None and not least <= value <= _MOST_RATE:  # also one that is no number
                raise InvalidInputError(
                    f"`{field.name}` of a quota is out of range",
                    expected=f"from {least:g} to {_MOST_RATE:g}",
                    received=f"{value!s:.40}",
                )
        for burst, rate in (("burst_requests", "requests_per_s"), ("burst_bytes", "bytes_per_s")):
            if getattr(self, burst) is not None and getattr(self, rate) is None:
                raise InvalidInputError(f"`{burst}` of a quota needs `{rate}`", expected=f"`{rate}` beside it")

    @classmethod
    def parse(cls, value: object) -> KeyQuota | None:
        """Read a quota that comes from outside: a table of its numbers, or one, requests per second. None is none.

        Raises:
            InvalidInputError: it is neither.
        """
        if value is None:
            return None
        table = cast("dict[str, object]", value if isinstance(value, dict) else {"requests_per_s": value})
        known = {field.name for field in fields(cls)}
        for name, number in table.items():
            kinds = (int,) if name.startswith("burst") else (int, float)
            if name not in known or (number is not None and type(number) not in kinds):
                raise InvalidInputError("not a quota", expected=", ".join(sorted(known)), received=f"`{name[:64]}`")
        return cls(**cast("dict[str, int | None]", table))

    @property
    def is_empty(self) -> bool:
        """Whether it leaves everything to the settings."""
        return self.requests_per_s is None and self.bytes_per_s is None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is known about one key. `endpoints` are names or globs; `sha256` is in lower-case hexadecimal digits.

    Without a `quota` of its own the settings' holds.
    """

    id: str
    name: str
    sha256: str
    endpoints: tuple[str, ...]
    verbs: tuple[Verb, ...]
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None
    quota: KeyQuota | None = None

    def is_valid(self, now: datetime) -> bool:
        """Tell whether a server takes it."""
        return self.revoked is None and (self.expires is None or now < self.expires)

    def covers(self, endpoint: str) -> bool:
        """Tell whether its scope holds an endpoint."""
        return any(fnmatchcase(endpoint, pattern) for pattern in self.endpoints)


class KeyFile:
    """The keys of one project. The file appears with the first key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self,
        name: str,
        *,
        now: datetime,
        endpoints: Sequence[str] = ("*",),
        verbs: Sequence[str] = ("infer", "read"),
        lifetime: timedelta | None = None,
        quota: KeyQuota | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key. Returns what is kept of it, and the key itself, which is nowhere kept.

        Raises:
            InvalidInputError: a name, glob or verb is none.
            SettingsError: the file is damaged.
            StorageError: it cannot be written.
        """
        _check(name, endpoints, verbs)
        with self._changing() as keys:
            taken = {key.id for key in keys}
            key_id = next(found for found in iter(lambda: secrets.token_hex(4), "") if found not in taken)
            text = f"{_PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
            key = ApiKey(
                id=key_id,
                name=name,
                sha256=hashlib.sha256(text.encode()).hexdigest(),
                endpoints=tuple(dict.fromkeys(endpoints)),
                verbs=tuple(verb for verb in VERBS if verb in verbs),
                created=now,
                expires=None if lifetime is None else now + lifetime,
                quota=quota,
            )
            keys.append(key)
        return key, text

    def revoke(self, which: str, *, now: datetime) -> tuple[ApiKey, ...]:
        """Revoke the key with this id, or all keys with this name; servers refuse them within a second.

        Raises:
            NotFoundError: no key that is not yet revoked is called so.
            SettingsError, StorageError: as in `add`.
        """
        with self._changing() as keys:
            found = _rows_of(keys, which)
            for row in found:
                keys[row] = replace(keys[row], revoked=now)
            return tuple(keys[row] for row in found)

    def limit(self, which: str, quota: KeyQuota | None) -> tuple[ApiKey, ...]:
        """Give the key with this id, or all keys with this name, another quota, or with None that of the settings.

        Servers go by it within a second, and begin with a full bucket. Errors as in `revoke`.
        """
        with self._changing() as keys:
            found = _rows_of(keys, which)
            for row in found:
                keys[row] = replace(keys[row], quota=quota)
            return tuple(keys[row] for row in found)

    def read(self) -> tuple[ApiKey, ...]:
        """Return all keys, revoked ones too; none if there is no file.

        Raises:
            SettingsError: the file is damaged, or others could have written it.
        """
        try:
            with self.path.open("rb") as file:
                _refuse_writable(os.fstat(file.fileno()))
                return _parse(file.read(_MOST_BYTES))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError, InvalidInputError) as exc:
            raise SettingsError(
                "the file of API keys is not readable",
                where=str(self.path),
                received=str(exc) or type(exc).__name__,
                remedy="Put back a good copy, or remove it and make new keys with `noa api-keys new`",
            ) from exc

    @contextmanager
    def _changing(self) -> Generator[list[ApiKey]]:
        with translate_disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = list(self.read())
            yield keys
            table = {"version": _VERSION, "keys": [_row(key) for key in keys]}
            write_file(self.path, json.dumps(table, indent=1) + "\n", private=True)
        finally:
            os.close(lock)


def _rows_of(keys: Sequence[ApiKey], which: str) -> list[int]:
    found = [row for row, key in enumerate(keys) if which in (key.id, key.name) and key.revoked is None]
    if found:
        return found
    known = ", ".join(f"`{key.id}` ({key.name})" for key in keys if key.revoked is None)
    raise NotFoundError(
        f"no key `{which}`",
        expected=known or "any key; none is valid",
        received=f"`{which}`",
        remedy="List them with: noa api-keys list",
    )


def _check(name: str, endpoints: Sequence[str], verbs: Sequence[str]) -> None:
    if _NAME.fullmatch(name) is None:
        raise InvalidInputError("not a name for a key", expected="up to 64 letters, digits, . _ - @ +", received=name)
    for pattern in endpoints:
        if _PATTERN.fullmatch(pattern) is None:
            raise InvalidInputError("not a glob of endpoints", expected="e.g. `digits` or `shop-*`", received=pattern)
    unknown = [verb for verb in verbs if verb not in VERBS]
    if unknown:
        raise InvalidInputError(f"`{unknown[0]}` is no verb", expected=", ".join(VERBS), received=", ".join(verbs))
    if not verbs or not endpoints:
        raise InvalidInputError(
            "a key needs verbs and endpoints", expected=f"some of {', '.join(VERBS)}, and endpoints"
        )


def _refuse_writable(status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError("others may write it: its owner must be this user or root, and its mode 0600")


def _row(key: ApiKey) -> dict[str, object]:
    times = {"created": key.created, "expires": key.expires, "revoked": key.revoked}
    return {
        "id": key.id,
        "name": key.name,
        "sha256": key.sha256,
        "endpoints": list(key.endpoints),
        "verbs": list(key.verbs),
        **{name: None if time is None else time.isoformat() for name, time in times.items()},
        "quota": None if key.quota is None else asdict(key.quota),
    }


def _parse(content: bytes) -> tuple[ApiKey, ...]:
    table = cast("dict[str, object]", json.loads(content))
    if table["version"] != _VERSION:
        raise ValueError(f"its version is {table['version']!r}; this noa reads {_VERSION}")
    keys = tuple(_parse_row(row) for row in cast("list[dict[str, object]]", table["keys"]))
    if len({key.id for key in keys}) != len(keys):
        raise ValueError("an id stands twice")
    return keys


def _parse_row(row: Mapping[str, object]) -> ApiKey:
    key_id, digest, name = str(row["id"]), str(row["sha256"]), str(row["name"])
    endpoints, verbs = cast("list[str]", row["endpoints"]), cast("list[Verb]", row["verbs"])
    if _ID.fullmatch(key_id) is None or _DIGEST.fullmatch(digest) is None or not isinstance(endpoints, list):  # pyright: ignore[reportUnnecessaryIsInstance]  # it comes from a file
        raise ValueError("a row is no key")
    _check(name, endpoints, verbs)
    created = _time(row["created"])
    if created is None:
        raise ValueError("a key has no time")
    return ApiKey(
        id=key_id,
        name=name,
        sha256=digest,
        endpoints=tuple(endpoints),
        verbs=tuple(verbs),
        created=created,
        expires=_time(row.get("expires")),
        revoked=_time(row.get("revoked")),
        quota=KeyQuota.parse(row.get("quota")),
    )


def _time(value: object) -> datetime | None:
    if value is None:
        return None
    found = datetime.fromisoformat(str(value))
    if found.tzinfo is None:
        raise ValueError("a time has no zone")
    return found
