"""Ed25519 keys of principals: make a pair, read them, sign and verify. The one module that imports `cryptography`.

A private key is a PEM file (PKCS 8) that only its owner may read. A public key is written `ed25519:<base64>` or is a
PEM file; `noa.toml` says which principal has which.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from noa.atomic_write import sync_folder, translate_disk_errors
from noa.errors import ConflictError, InvalidInputError, NotFoundError
from noa.settings.registry import PUBLIC_KEY_PREFIX

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PREFIX = PUBLIC_KEY_PREFIX
_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A new pair of keys. `public` is what belongs into `noa.toml`."""

    private_file: Path
    public_file: Path
    public: str


def new_key_pair(name: str, folder: Path) -> KeyPair:
    """Write `NAME.key` (readable by the owner only) and `NAME.pub` into `folder`.

    Raises:
        ConflictError: one of the files is there already; a key is never overwritten.
        InvalidInputError: `name` cannot be a file's name.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    if not _KEY_NAME.fullmatch(name):
        raise InvalidInputError(f"`{name}` cannot be a key's name", expected=_KEY_NAME.pattern, received=repr(name))
    private_file, public_file = folder / f"{name}.key", folder / f"{name}.pub"
    for path in (private_file, public_file):
        if path.exists():
            raise ConflictError(
                "there is a key of this name already",
                where=str(path),
                remedy="Take another name or another folder; who has lost trust in a key removes it from `noa.toml`",
            )
    key = Ed25519PrivateKey.generate()
    public = key.public_key()
    _create(private_file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    _create(public_file, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644)
    return KeyPair(private_file=private_file, public_file=public_file, public=public_text(public))


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key that only its owner may read.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: others may read it, or it holds no Ed25519 private key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        data = path.read_bytes()
    except OSError as exc:
        raise NotFoundError(
            f"cannot read the key: {os.strerror(exc.errno or 0).lower()}",
            where=str(path),
            remedy="Make one with: noa keys new NAME",
        ) from exc
    if b"PRIVATE KEY-----" not in data and b"PUBLIC KEY-----" in data:
        private = path.with_suffix(".key")
        raise InvalidInputError(
            "this is a public key, and only a private one can sign",
            where=str(path),
            expected="an Ed25519 private key, as `noa keys new` makes beside the public one",
            received=path.name,
            remedy=f"Give the private one: --key {private}" if private.is_file() else "Give the private one",
        )
    if mode & 0o077:
        raise InvalidInputError(
            "other users may read this private key",
            where=str(path),
            expected="mode 0600",
            received=f"mode {mode:04o}",
            remedy=f"Take their right away, chmod 600 {path}; if somebody may have read it, make a new key",
        )
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise _no_key(path, "a PEM file with an Ed25519 private key and no password") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "an Ed25519 private key")
    return key


def load_principals(table: Mapping[str, str]) -> dict[str, Ed25519PublicKey]:
    """Return the public key of each principal; values are `ed25519:<base64>` or the path of a PEM file.

    Raises:
        InvalidInputError: a value is no public key, or two principals have the same key.
    """
    found = {name: _load_public_key(name, value) for name, value in table.items()}
    owners: dict[str, str] = {}
    for name, key in found.items():
        first = owners.setdefault(public_text(key), name)
        if first != name:
            raise InvalidInputError(
                f"the principals `{first}` and `{name}` have the same key",
                where="registry.principals",
                remedy="One key must mean one person; make another with: noa keys new NAME",
            )
    return found


def principal_of(key: Ed25519PrivateKey, principals: Mapping[str, Ed25519PublicKey]) -> str:
    """Return whose private key this is.

    Raises:
        InvalidInputError: it belongs to none of the principals.
    """
    mine = public_text(key.public_key())
    for name, public in principals.items():
        if public_text(public) == mine:
            return name
    raise InvalidInputError(
        "this key belongs to none of the project's principals",
        expected=", ".join(f"`{name}`" for name in sorted(principals)),
        received=mine,
        remedy="Let whoever keeps `noa.toml` add it to [registry.principals]",
    )


def sign(key: Ed25519PrivateKey, message: bytes) -> str:
    """Return the signature of `message` in base64."""
    return base64.b64encode(key.sign(message)).decode()


def is_signed_by(key: Ed25519PublicKey, message: bytes, signature: str) -> bool:
    """Tell whether `signature` is that of `message` by the owner of `key`."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(base64.b64decode(signature, validate=True), message)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def public_text(key: Ed25519PublicKey) -> str:
    """Return a public key as `ed25519:<base64>`."""
    return PREFIX + base64.b64encode(key.public_bytes_raw()).decode()


def _load_public_key(name: str, value: str) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    where = f"registry.principals.{name}"
    if value.startswith(PREFIX):
        try:
            return Ed25519PublicKey.from_public_bytes(base64.b64decode(value.removeprefix(PREFIX), validate=True))
        except (binascii.Error, ValueError) as exc:
            raise InvalidInputError(
                "this is no Ed25519 public key",
                where=where,
                expected=f"`{PREFIX}` and {_KEY_BYTES} bytes in base64",
                received=repr(value),
            ) from exc
    try:
        key = load_pem_public_key(Path(value).read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as exc:
        raise InvalidInputError(
            "cannot read a principal's public key",
            where=where,
            expected=f"`{PREFIX}<base64>`, or the path of a PEM file with a public key",
            received=repr(value),
        ) from exc
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(Path(value), "an Ed25519 public key")
    return key


def _create(path: Path, data: bytes, mode: int) -> None:
    with translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Born with its mode: there is no instant at which others could read it.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)


def _no_key(path: Path, expected: str) -> InvalidInputError:
    return InvalidInputError("the file holds another kind of key, or none", where=str(path), expected=expected)
