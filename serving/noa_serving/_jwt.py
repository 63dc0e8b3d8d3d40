"""Tokens of an identity provider (JWT) as keys: signed by a key of a JWKS file, for this server, and not expired.

Nothing is fetched: the file is put there by whoever runs the server, and watched as the file of keys is. RS256 and
ES256 are read, and no other algorithm, so that neither `none` nor a public key taken for a shared secret opens a door.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from noa.errors import DependencyMissingError, InvalidInputError, SettingsError
from noa_serving._key_ring import Grant, limited
from noa_serving._quotas import Limits
from noa_serving.api_keys import VERBS, KeyQuota, Verb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from noa.settings import ServingSettings

_ALGORITHMS = {"RSA": "RS256", "EC": "ES256"}
_LEAST_RSA_BITS = 2048
_MOST_BYTES = 1 << 20
_PREFIX = "noa:"


class TokenReader:
    """Reads tokens with the keys of a JWKS file. Not usable before `load`.

    `quota_claim` is the claim that holds a bearer's quota, which `limits_of` makes ready; empty: none does.
    """

    def __init__(
        self,
        path: Path,
        *,
        issuer: str,
        audience: str,
        names: Iterable[str],
        quota_claim: str = "",
        limits_of: Callable[[KeyQuota], Limits] | None = None,
    ) -> None:
        self.path = path
        self._issuer = issuer
        self._audience = audience
        self._names = tuple(names)
        self._keys: dict[str, Any] = {}
        self._quota_claim = quota_claim
        self._limits_of = limits_of

    @property
    def reads_quotas(self) -> bool:
        """Whether a token may give its bearer a quota."""
        return bool(self._quota_claim)

    def load(self) -> None:
        """Read the file; what was read before stays if it is damaged.

        Raises:
            SettingsError: it is damaged, or holds no key for signatures that has an id.
            DependencyMissingError: PyJWT is not installed.
        """
        try:
            with self.path.open("rb") as file:
                rows = cast("list[dict[str, object]]", json.loads(file.read(_MOST_BYTES))["keys"])
            keys = {str(row["kid"]): _read_key(row) for row in rows if _is_ours(row)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise SettingsError(
                "the JWKS file is not readable", where=str(self.path), received=str(exc) or type(exc).__name__
            ) from exc
        if not keys:
            raise SettingsError(
                "the JWKS file holds no usable key",
                where=str(self.path),
                expected="RSA keys of at least 2048 bits or EC keys on P-256, with `kid`, for signatures",
            )
        self._keys = keys

    def read(self, token: bytes) -> Grant | None:
        """Return what the bearer of a token may do, None if it is not one for this server."""
        import jwt

        try:
            key = self._keys[str(jwt.get_unverified_header(token)["kid"])]
            claims = jwt.decode(
                token,
                key[1],
                algorithms=[key[0]],
                audience=self._audience,
                issuer=self._issuer,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            return self._grant(claims)
        except (jwt.PyJWTError, KeyError, ValueError, TypeError, InvalidInputError):
            return None

    def _grant(self, claims: dict[str, Any]) -> Grant:
        scopes = str(claims.get("scope", "")).split()
        verbs: frozenset[Verb] = frozenset(verb for verb in VERBS if _PREFIX + verb in scopes)
        endpoints = claims.get("noa_endpoints", ["*"])
        if not isinstance(endpoints, list) or not all(isinstance(one, str) for one in endpoints):
            raise TypeError("`noa_endpoints` is no list of names")
        expires_at = float(claims["exp"])
        if not math.isfinite(expires_at):
            raise ValueError("`exp` is no time")
        who = f"{claims['sub']}@{self._issuer}"[:256]
        quota = KeyQuota.parse(claims.get(self._quota_claim)) if self._quota_claim else None
        limits, bucket = limited(who, quota, self._limits_of)
        grant = Grant(
            who=who,
            verbs=verbs,
            endpoints=tuple(cast("list[str]", endpoints)),
            expires_at=expires_at,
            limits=limits,
            bucket=bucket,
        )
        return replace(grant, infers=frozenset(name for name in self._names if grant.allows("infer", name)))


def reader_of(serving: ServingSettings, names: Iterable[str] = ()) -> TokenReader | None:
    """Return the reader that the settings ask for, None if they ask for none."""
    if serving.jwt_jwks_file is None:
        return None
    return TokenReader(
        serving.jwt_jwks_file,
        issuer=serving.jwt_issuer,
        audience=serving.jwt_audience,
        names=names,
        quota_claim=serving.jwt_quota_claim,
        limits_of=partial(Limits.of, serving),
    )


def _is_ours(row: dict[str, object]) -> bool:
    kind = row.get("kty")
    is_for_signatures = row.get("use", "sig") == "sig" and "verify" in cast("list[str]", row.get("key_ops", ["verify"]))
    is_known = kind in _ALGORITHMS and row.get("alg", _ALGORITHMS.get(str(kind))) == _ALGORITHMS.get(str(kind))
    return bool(row.get("kid")) and is_for_signatures and is_known and (kind == "RSA" or row.get("crv") == "P-256")


def _read_key(row: dict[str, object]) -> tuple[str, Any]:
    try:
        import jwt
    except ModuleNotFoundError as exc:
        raise DependencyMissingError("pyjwt", extra="jwt", purpose="reading tokens") from exc
    kind = str(row["kty"])
    try:
        key = jwt.PyJWK({**row, "alg": _ALGORITHMS[kind]}).key
    except jwt.PyJWTError as exc:
        raise ValueError(f"key `{row['kid']}` is damaged") from exc
    if "d" in row:
        raise ValueError(f"key `{row['kid']}` is a private one; only public ones belong here")
    if kind == "RSA" and key.key_size < _LEAST_RSA_BITS:
        raise ValueError(f"key `{row['kid']}` is too short")
    return _ALGORITHMS[kind], key
