"""Who calls: API keys of the settings and of the key file, checked once per spelling of the header and then looked up.

The file is watched, never read for a request. What was verified is forgotten when it changes, so that a revoked key is
refused at the next request, on the same connection too. Of a file that becomes unreadable the last good state counts;
of one that is removed, none of its keys. Authentication that was on is never off again in a running server.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from noa.errors import NoaError
from noa_serving._http import Headers, RequestRefusedError
from noa_serving.api_keys import VERBS, ApiKey, KeyFile, KeyQuota, Verb

if TYPE_CHECKING:
    from noa_serving._jwt import TokenReader
    from noa_serving._quotas import Limits

log = logging.getLogger("noa.serving")

_LONGEST_CREDENTIAL_BYTES = 512
_LONGEST_TOKEN_BYTES = 8192
_MAX_VERIFIED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a caller may do. `who` is the id of the key, or empty where there are no keys.

    One with `limits` of its own has a `bucket` of its own, named for them: changed ones begin with a full one, and no
    debt is read by another rate than that by which it was made.
    """

    who: str
    verbs: frozenset[Verb]
    endpoints: tuple[str, ...]
    expires_at: float = math.inf  # seconds since the epoch
    infers: frozenset[str] = field(default=frozenset())  # the endpoints it may have compute, for the fast way
    limits: Limits | None = None
    bucket: str = ""

    @property
    def sees_all(self) -> bool:
        """Whether it may read of every endpoint."""
        return "read" in self.verbs and "*" in self.endpoints

    def allows(self, verb: Verb, endpoint: str) -> bool:
        """Tell whether it covers a verb on an endpoint; `*` stands for the server as a whole."""
        if verb not in self.verbs:
            return False
        return "*" in self.endpoints or (endpoint != "*" and any(fnmatchcase(endpoint, one) for one in self.endpoints))

    def require(self, verb: Verb, endpoint: str = "*") -> None:
        """Raise unless it covers a verb on an endpoint.

        Raises:
            RequestRefusedError: 403, naming what is missing.
        """
        if not self.allows(verb, endpoint):
            raise forbidden(verb, endpoint)

    def require_verb(self, verb: Verb) -> None:
        """Raise unless it covers a verb on some endpoint. Errors as in `require`."""
        if verb not in self.verbs:
            raise forbidden(verb, "*")


ANYBODY = Grant(who="", verbs=frozenset(VERBS), endpoints=("*",))


class KeyRing:
    """Checks keys. Belongs to one event loop, but for `look`, which may be called anywhere.

    `keys` are those of the settings, which may do everything; `names` are the endpoints of the server. With
    `is_required` nobody is answered without a key even where there is none (any more). `own_key` is that of the
    server's project, and no reason to ask others for one. `seen_file` comes into being when a worker of the server has
    seen a file of keys: one that starts later asks for keys too, although that file may be gone. `limits_of` makes the
    quota of a key ready.
    """

    def __init__(
        self,
        keys: Sequence[str],
        file: KeyFile | None = None,
        *,
        names: Iterable[str] = (),
        is_required: bool = False,
        own_key: str | None = None,
        tokens: TokenReader | None = None,
        seen_file: Path | None = None,
        limits_of: Callable[[KeyQuota], Limits] | None = None,
    ) -> None:
        self._file = file
        self._limits_of = limits_of
        self._seen_file = seen_file
        self._names = tuple(names)
        everything = frozenset(self._names)
        whole = [(key, f"settings-{row}") for row, key in enumerate(keys)]
        whole += [] if own_key is None else [(own_key, "noa")]
        self._whole_keys = tuple(
            (hashlib.sha256(key.encode()).digest(), _everything(who, everything)) for key, who in whole
        )
        self._file_keys: dict[bytes, tuple[bytes, Grant]] = {}
        self._bearers: dict[bytes, Grant] = {}
        self._plain: dict[bytes, Grant] = {}
        self._stamp: tuple[int, ...] | None = None
        self._tokens = tokens
        self._tokens_stamp: tuple[int, ...] | None = None
        was_seen = seen_file is not None and seen_file.exists()
        self.is_on = bool(keys) or is_required or was_seen or tokens is not None
        self.look()

    @property
    def has_limits(self) -> bool:
        """Whether a caller may have limits of its own."""
        has_some = any(grant.limits is not None for _, grant in self._file_keys.values())
        return has_some or (self._tokens is not None and self._tokens.reads_quotas)

    def look(self) -> bool:
        """Read the files again that have changed; returns whether the one of keys had."""
        self._look_at_tokens()
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        self.is_on = True
        if self._seen_file is not None:
            self._seen_file.touch(mode=0o600)
        assert self._file is not None  # there is no stamp without it
        try:
            found = self._file.read()
        except NoaError as exc:
            log.error("keys stay as they were: %s", exc)  # the reason is in the text
            return True
        self._file_keys = {
            key.id.encode(): (bytes.fromhex(key.sha256), self._grant(key)) for key in found if key.revoked is None
        }
        self._bearers, self._plain = {}, {}
        log.info("API keys read: %d of %d are not revoked", len(self._file_keys), len(found))
        return True

    def _look_at_tokens(self) -> None:
        if self._tokens is None:
            return
        try:
            stamp = _stamp_of(self._tokens.path)
        except OSError:
            stamp = ()
        if stamp == self._tokens_stamp:
            return
        self._tokens_stamp = stamp
        try:
            self._tokens.load()
        except NoaError as exc:
            log.error("the keys of tokens stay as they were: %s", exc)  # the reason is in the text
            return
        self._bearers, self._plain = {}, {}

    def check(self, headers: Headers) -> Grant:
        """Return what the caller may do.

        Raises:
            RequestRefusedError: 401, no valid key.
        """
        if not self.is_on:
            return ANYBODY
        shown = headers.get(b"authorization")
        if shown is not None:
            grant = self._bearers.get(shown)
        else:
            shown = headers.get(b"x-api-key", b"")
            grant = self._plain.get(shown)
        if grant is None:
            grant = self._verify(headers)
        if grant.expires_at <= time.time():
            raise _unauthenticated("a key that has expired")
        return grant

    def _verify(self, headers: Headers) -> Grant:
        shown = headers.get(b"authorization")
        verified, token = self._bearers, shown or b""
        if shown is None:
            shown = token = headers.get(b"x-api-key", b"")
            verified = self._plain
        else:
            scheme, _, token = shown.partition(b" ")
            token = token.strip(b" \t") if scheme.lower() == b"bearer" else b""
        longest = _LONGEST_CREDENTIAL_BYTES if self._tokens is None else _LONGEST_TOKEN_BYTES
        if not token or len(shown) > longest:
            raise _unauthenticated("no valid key")
        grant = self._find(token)
        if grant is None and self._tokens is not None and token.count(b".") == 2:
            grant = self._tokens.read(token)
        if grant is None:
            raise _unauthenticated("no valid key")
        if len(verified) >= _MAX_VERIFIED:
            verified.clear()
        verified[shown] = grant
        return grant

    def _find(self, token: bytes) -> Grant | None:
        digest = hashlib.sha256(token).digest()
        found = None
        for known, grant in self._whole_keys:  # all of them: the time does not tell which
            if hmac.compare_digest(digest, known):
                found = grant
        known, grant = self._file_keys.get(token[4:12], (b"", None))
        if hmac.compare_digest(digest, known):
            found = grant
        return found

    def _grant(self, key: ApiKey) -> Grant:
        infers = frozenset(name for name in self._names if "infer" in key.verbs and key.covers(name))
        expires_at = math.inf if key.expires is None else key.expires.timestamp()
        limits, bucket = limited(key.id, key.quota, self._limits_of)
        return Grant(
            who=key.id,
            verbs=frozenset(key.verbs),
            endpoints=key.endpoints,
            expires_at=expires_at,
            infers=infers,
            limits=limits,
            bucket=bucket,
        )

    def _read_stamp(self) -> tuple[int, ...] | None:
        """Return what tells a file from its successor; where there was one and is none, a stamp of its own."""
        if self._file is None:
            return None
        try:
            found = _stamp_of(self._file.path)
        except OSError:
            return () if self._stamp is None else self._stamp  # unknown is not open
        return None if found == () and self._stamp is None else found


def _stamp_of(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def limited(
    who: str, quota: KeyQuota | None, limits_of: Callable[[KeyQuota], Limits] | None
) -> tuple[Limits | None, str]:
    """Return a caller's own limits and the name of its bucket; None and no name if it has none."""
    if quota is None or quota.is_empty or limits_of is None:
        return None, ""
    return limits_of(quota), f"{who} {quota}"


def forbidden(verb: Verb, endpoint: str) -> RequestRefusedError:
    """Return the refusal of a caller who is known, naming the scope that is missing."""
    where = "the server as a whole (`*`)" if endpoint == "*" else f"`{endpoint[:128]}`"
    return RequestRefusedError("the key does not allow this", status=403, expected=f"the scope `{verb}` on {where}")


def _everything(who: str, names: frozenset[str]) -> Grant:
    return Grant(who=who, verbs=frozenset(VERBS), endpoints=("*",), infers=names)


def _unauthenticated(received: str) -> RequestRefusedError:
    return RequestRefusedError(
        "this server asks for a key",
        status=401,
        expected="the header `authorization: Bearer <key>` or `x-api-key: <key>`, once",
        received=received,
    )
