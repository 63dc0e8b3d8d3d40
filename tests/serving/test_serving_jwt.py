"""Tokens of an identity provider: what is not signed, for us and in time opens nothing."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from serving_kit import Project, ask, build_app

from noa.errors import SettingsError
from noa.settings import ServingSettings, Settings
from noa_serving import check_exposure
from noa_serving._http import RequestRefusedError
from noa_serving._jwt import TokenReader, reader_of
from noa_serving._key_ring import Grant, KeyRing

ISSUER, AUDIENCE = "https://login.example.com/", "models"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())


def public(key: Any, kid: str, **more: object) -> dict[str, object]:
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig", **more}


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text(json.dumps({"keys": rows}))
    return path


def token(key: Any = EC_KEY, kid: str = "ec", algorithm: str = "ES256", **changes: object) -> str:
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ada",
        "exp": time.time() + 600,
        "scope": "openid noa:infer noa:read",
        **changes,
    }
    kept = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(kept, key, algorithm=algorithm, headers={"kid": kid})


@pytest.fixture
def jwks(tmp_path: Path) -> Path:
    return write(tmp_path / "jwks.json", public(RSA_KEY, "rsa"), public(EC_KEY, "ec"))


@pytest.fixture
def ring(jwks: Path) -> KeyRing:
    return KeyRing([], tokens=TokenReader(jwks, issuer=ISSUER, audience=AUDIENCE, names=["digits", "other"]))


def grant_of(ring: KeyRing, text: str) -> Grant:
    return ring.check({b"authorization": b"Bearer " + text.encode()})


def test_tokens_of_both_kinds_count_with_their_claims(ring: KeyRing) -> None:
    for text in (token(), token(RSA_KEY, "rsa", "RS256"), token(aud=["another", AUDIENCE])):
        for _ in range(2):  # verified, then looked up
            grant = grant_of(ring, text)
            assert (grant.who, grant.verbs) == (f"ada@{ISSUER}", {"infer", "read"})
            assert grant.infers == {"digits", "other"}
    assert grant_of(ring, token(noa_endpoints=["dig*"])).infers == {"digits"}
    assert grant_of(ring, token(scope="openid noa:everything")).verbs == frozenset()
    assert grant_of(ring, token(noa_endpoints=[])).infers == frozenset()


def unsigned() -> str:
    head, claims, _ = token().split(".")
    table = json.loads(base64.urlsafe_b64decode(head + "=="))
    head = base64.urlsafe_b64encode(json.dumps({**table, "alg": "none"}).encode()).decode().rstrip("=")
    return f"{head}.{claims}."


def confused() -> str:
    """A token signed with the public key as a shared secret."""
    import hashlib
    import hmac

    pem = EC_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    parts = [{"alg": "HS256", "typ": "JWT", "kid": "ec"}, {"iss": ISSUER, "aud": AUDIENCE, "sub": "a", "exp": 9e9}]
    text = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    mac = hmac.new(pem, text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


@pytest.mark.parametrize(
    "make",
    [
        lambda: token(OTHER_KEY),
        lambda: token(kid="rsa"),
        lambda: token(kid="unknown"),
        lambda: token(RSA_KEY, "rsa", "PS256"),
        lambda: token(RSA_KEY, "rsa", "RS512"),
        lambda: token(iss="https://evil.example.com/"),
        lambda: token(aud="others"),
        lambda: token(exp=time.time() - 1),
        lambda: token(nbf=time.time() + 600),
        *(lambda name=name: token(**{name: None}) for name in ("iss", "aud", "exp", "sub")),
        lambda: token(noa_endpoints="*"),
        lambda: token(noa_endpoints=[1]),
        lambda: token()[:-4] + "AAAA",
        lambda: token(scope="x" * 9000),
        unsigned,
        confused,
        lambda: "..",
        lambda: "a.b.c",
        lambda: "\u00e9.\u00e9.\u00e9",
    ],
)
def test_what_is_not_signed_for_us_and_in_time_is_401(ring: KeyRing, make: Callable[[], str]) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        grant_of(ring, make())
    assert caught.value.status == 401


def test_a_token_that_was_verified_expires_and_falls_with_its_key(
    ring: KeyRing, jwks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, other = token(), token(RSA_KEY, "rsa", "RS256")
    grant_of(ring, text)
    grant_of(ring, other)
    jwks.write_text("{")
    ring.look()
    grant_of(ring, text)  # damaged: the last good keys count
    write(jwks, public(RSA_KEY, "rsa"))
    ring.look()
    with pytest.raises(RequestRefusedError):
        grant_of(ring, text)
    grant_of(ring, other)
    later = time.time() + 601
    monkeypatch.setattr("noa_serving._key_ring.time.time", lambda: later)
    with pytest.raises(RequestRefusedError, match="expired"):
        grant_of(ring, other)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"kty": "oct", "k": "c2VjcmV0", "kid": "a", "alg": "HS256"}],
        [public(EC_KEY, "")],
        [public(EC_KEY, "a", use="enc")],
        [public(RSA_KEY, "a", alg="RS512")],
        [public(rsa.generate_private_key(public_exponent=65537, key_size=1024), "a")],
        [public(ec.generate_private_key(ec.SECP384R1()), "a")],
        [{**public(EC_KEY, "a"), "d": "AAAA"}],
        [{**public(EC_KEY, "a"), "x": "AAAA"}],
        [3],
    ],
)
def test_a_file_without_a_usable_key_stops_the_start(tmp_path: Path, rows: list[Any]) -> None:
    path = write(tmp_path / "jwks.json", *rows)
    table = {"jwt_jwks_file": path, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    with pytest.raises(SettingsError, match="JWKS"):
        check_exposure(ServingSettings.model_validate(table))


def test_a_server_with_tokens_may_listen_everywhere_and_asks_for_one(content: Project, jwks: Path) -> None:
    table = content.settings.model_dump()
    serving = {"host": "0.0.0.0", "jwt_jwks_file": jwks, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    settings = Settings.model_validate({**table, "serving": {**table["serving"], **serving}})
    check_exposure(settings.serving)
    app = build_app(settings, digits="digits@champion", first="digits/1")
    shown = {"authorization": f"Bearer {token(noa_endpoints=['digits'])}"}
    body = {"inputs": [[1, 2, 3, 4]]}
    assert ask(app, "POST", "/predict/digits", body, shown).status == 200
    assert ask(app, "POST", "/predict/first", body, shown).status == 403
    assert ask(app, "POST", "/predict/digits", body).status == 401
    with pytest.raises(ValueError, match="jwt_issuer"):
        ServingSettings.model_validate({"jwt_jwks_file": jwks})
    app._application.close()


def test_a_claim_gives_a_quota_only_where_the_settings_name_it(jwks: Path) -> None:
    def grant_of(claim: str, value: object) -> Grant:
        settings = ServingSettings(
            jwt_jwks_file=jwks, jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_quota_claim=claim, quota_burst_s=2.0
        )
        ring = KeyRing([], tokens=reader_of(settings, ["digits"]))
        assert ring.has_limits == bool(claim)
        return ring.check({b"authorization": f"Bearer {token(noa_quota=value)}".encode()})

    assert grant_of("", 5).limits is None
    assert grant_of("other", 5).limits is None
    assert grant_of("noa_quota", None).limits is None
    five = grant_of("noa_quota", 5)
    assert five.limits is not None
    assert (five.limits.interval_s, five.limits.slack_s) == (0.2, pytest.approx(1.8, abs=1e-5))
    table = grant_of("noa_quota", {"requests_per_s": 5, "burst_requests": 50, "bytes_per_s": 100})
    assert table.limits is not None
    assert (table.limits.slack_s, table.limits.byte_s) == (pytest.approx(9.8, abs=1e-5), 0.01)
    assert table.who == five.who
    for wrong in ("5", -1, True, [5], {"rate": 5}, {"burst_requests": 5}, 10**300):
        with pytest.raises(RequestRefusedError, match="asks for a key"):
            grant_of("noa_quota", wrong)
