"""The one place that knows the `model-signing` package: keys, bundles, and what its errors mean.

The package hashes a folder before it signs or verifies it; `_Hashed` stands in its place and hands over the digests
that the manifest has already. The bundles are ordinary ones: `model_signing verify key FOLDER --signature FILE
--public_key FILE` accepts them on the folder of a format. Keys are read once, and never written anywhere: what the
package takes as a path is an anonymous file in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from noa.atomic_write import translate_disk_errors, write_file
from noa.errors import DependencyMissingError, IntegrityError, InvalidInputError, NoaError, ServiceError
from noa_registry.signing import Signer, Statement, Trusted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

    from noa.settings import SigningSettings

_MOST_KEY_BYTES = 1 << 16
_MOST_BUNDLE_BYTES = 64 << 20
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


def load_signer(settings: SigningSettings) -> Signer:
    """Return the signer that the settings name.

    Raises:
        InvalidInputError: the key is missing, readable by others, or no EC key.
        DependencyMissingError: `model-signing` is not installed.
    """
    _import_package()
    if settings.method == "sigstore":
        token = settings.sigstore_token
        return _SigstoreSigner(token=None if token is None else token.get_secret_value())
    pem, label = _private_pem(settings)
    password = settings.private_key_password
    secret = None if password is None else password.get_secret_value()
    return _KeySigner(pem=pem, password=secret, label=label, fingerprint=_private_fingerprint(pem, secret, label))


def load_trusted(settings: SigningSettings) -> tuple[Trusted, ...]:
    """Return everybody whose signatures count: the trusted public keys, one's own key, the sigstore identity.

    Raises:
        InvalidInputError: a key is missing, or no EC public key.
        DependencyMissingError: `model-signing` is not installed.
    """
    _import_package()
    keys: dict[str, Trusted] = {}
    for path in settings.trusted_keys:
        key = _trusted_key(_read_key(path), path.stem)
        keys[key.fingerprint] = key
    if settings.private_key is not None or settings.private_key_pem is not None:
        pem, label = _private_pem(settings)
        password = settings.private_key_password
        private = _parse_private(pem, None if password is None else password.get_secret_value(), label)
        key = _trusted_key(_public_pem(private.public_key()), label)
        keys.setdefault(key.fingerprint, key)
    found: list[Trusted] = list(keys.values())
    if settings.sigstore_identity:
        found.append(_TrustedIdentity(name=settings.sigstore_identity, issuer=settings.sigstore_issuer))
    return tuple(found)


def new_key(folder: Path, name: str) -> tuple[Path, Path, str]:
    """Make an EC P-256 key pair, `name.pem` (mode 0600) and `name.pub.pem`; return both paths and the fingerprint.

    Raises:
        InvalidInputError: one of the files is there already: a key is never overwritten.
        StorageError: the disk refused.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private_path, public_path = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    for path in (private_path, public_path):
        if path.exists() or path.is_symlink():
            raise InvalidInputError(
                f"`{path.name}` is there already, and a key is never overwritten",
                where=str(path),
                remedy="Choose another name, or move the old key away",
            )
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with translate_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_file(private_path, pem, private=True)
    public = _public_pem(key.public_key())
    write_file(public_path, public)
    return private_path, public_path, _fingerprint(public)


@dataclass(frozen=True, slots=True, kw_only=True)
class _KeySigner:
    pem: bytes
    password: str | None
    label: str
    fingerprint: str

    @property
    def identity(self) -> str:
        return _key_identity(self.label, self.fingerprint)

    def sign(self, statement: Statement) -> str:
        from model_signing import signing

        with _in_memory(self.pem) as path:
            config = signing.Config().use_elliptic_key_signer(
                private_key=path,
                password=cast("Any", None if self.password is None else self.password.encode()),
            )
        return _run_signer(config, statement)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SigstoreSigner:
    token: str | None

    @property
    def identity(self) -> str:
        return "the sigstore identity of this process"

    def sign(self, statement: Statement) -> str:
        from model_signing import signing
        from sigstore.oidc import detect_credential

        try:
            token = self.token or detect_credential()
            if token is None:
                raise InvalidInputError(
                    "sigstore signing has no identity: there is neither a token nor one of the machine's own",
                    expected="`registry.signing.sigstore_token`, or the credential of a CI system",
                    remedy='Set NOA__REGISTRY__SIGNING__SIGSTORE_TOKEN, or use `method = "key"`',
                )
            return _run_signer(signing.Config().use_sigstore_signer(identity_token=token), statement)
        except NoaError:
            raise
        except Exception as exc:  # network, TUF, OIDC and certificate errors share no base
            raise _sigstore_unreachable("sign", exc) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class _TrustedKey:
    pem: bytes
    label: str
    fingerprint: str

    @property
    def identity(self) -> str:
        return _key_identity(self.label, self.fingerprint)

    def claims(self, bundle: str) -> bool:
        return _material(bundle).get("publicKey", {}).get("hint") == self.fingerprint

    def verify(self, bundle: str, statement: Statement) -> None:
        from model_signing import verifying

        with _in_memory(self.pem) as path:
            config = verifying.Config().use_elliptic_key_verifier(public_key=path)
        _run_verifier(config, bundle, statement)


@dataclass(frozen=True, slots=True, kw_only=True)
class _TrustedIdentity:
    name: str
    issuer: str

    @property
    def identity(self) -> str:
        return f"the sigstore identity `{self.name}` of {self.issuer}"

    def claims(self, bundle: str) -> bool:
        material = _material(bundle)
        return "certificate" in material or "x509CertificateChain" in material

    def verify(self, bundle: str, statement: Statement) -> None:
        from model_signing import verifying

        try:
            config = verifying.Config().use_sigstore_verifier(identity=self.name, oidc_issuer=self.issuer)
        except Exception as exc:  # network and TUF errors share no base
            raise _sigstore_unreachable("verify", exc) from exc
        _run_verifier(config, bundle, statement)


class _Hashed:
    """Stands where `model_signing` would hash a folder: the digests are known."""

    def __init__(self, statement: Statement) -> None:
        self._statement = statement

    def hash(self, model_path: object, *, files_to_hash: object = None) -> Any:
        """Return the statement's files as the package's manifest."""
        from model_signing import manifest
        from model_signing._hashing.hashing import Digest  # the type of a manifest's digests has no public name

        kind = manifest.SerializationType.from_args({"method": "files", "hash_type": "sha256", "allow_symlinks": False})
        items = [
            kind.new_item(path, Digest("sha256", bytes.fromhex(digest.removeprefix("sha256:"))))
            for path, digest in self._statement.files.items()
        ]
        return manifest.Manifest(self._statement.name, items, kind)


def _run_signer(config: Any, statement: Statement) -> str:
    with tempfile.TemporaryDirectory(prefix="noa-sign-") as folder:
        target = Path(folder) / "bundle.json"
        config.set_hashing_config(_Hashed(statement)).sign(folder, target)
        return target.read_text()


def _run_verifier(config: Any, bundle: str, statement: Statement) -> None:
    """Check signature, files and name; every way to fail is an `IntegrityError`."""
    with tempfile.TemporaryDirectory(prefix="noa-verify-") as folder:
        source = Path(folder) / "bundle.json"
        source.write_text(bundle)
        try:
            config.set_hashing_config(_Hashed(statement)).verify(folder, source)
            payload = json.loads(base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"]))
            signed = payload["subject"][0]["name"]
            extra = "ignore_paths" in payload["predicate"]["serialization"]
        except Exception as exc:  # the package raises whatever its parsers and cryptography do
            raise IntegrityError(_first_line(exc) or type(exc).__name__) from exc
    if signed != statement.name or extra:
        raise IntegrityError(f"it was made for `{signed}`, not for `{statement.name}`")


def _material(bundle: str) -> dict[str, Any]:
    """Return what a bundle says about its key; empty if it says nothing that can be read."""
    try:
        value: Any = json.loads(bundle) if len(bundle) <= _MOST_BUNDLE_BYTES else {}
        material = value["verificationMaterial"]
        key = material.get("publicKey", {})
        return material if isinstance(key, dict) else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _private_pem(settings: SigningSettings) -> tuple[bytes, str]:
    if settings.private_key_pem is not None:
        return settings.private_key_pem.get_secret_value().replace("\\n", "\n").encode(), "environment"
    path = settings.private_key
    if path is None:
        raise InvalidInputError("signing has no private key", remedy="Set `registry.signing.private_key`")
    data = _read_key(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise InvalidInputError(
            f"others may read the private key `{path.name}`",
            where=str(path),
            expected="mode 0600",
            received=f"mode {mode:04o}",
            remedy=f"Run: chmod 600 {path}",
        )
    return data, path.stem


def _read_key(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST_KEY_BYTES:
            raise InvalidInputError("a key file is too large to be one", where=str(path))
        return path.read_bytes()
    except OSError as exc:
        raise InvalidInputError(
            f"the key `{path.name}` cannot be read: {(exc.strerror or '').lower()}",
            where=str(path),
            expected="a PEM file, as `registry.signing` names it",
            remedy="Make one with `noa keys new-signing NAME`, or correct [registry.signing] in noa.toml",
        ) from exc


def _parse_private(pem: bytes, password: str | None, label: str) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(pem, None if password is None else password.encode())
    except (ValueError, TypeError) as exc:
        raise InvalidInputError(
            f"the private key `{label}` cannot be used: {_first_line(exc)}", expected="an EC P-256 key in PEM"
        ) from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise InvalidInputError(
            f"the private key `{label}` is of another kind",
            expected="an EC key (P-256)",
            received=type(key).__name__,
            remedy="Make one with: noa keys new-signing NAME",
        )
    return key


def _private_fingerprint(pem: bytes, password: str | None, label: str) -> str:
    return _fingerprint(_public_pem(_parse_private(pem, password, label).public_key()))


def _trusted_key(pem: bytes, label: str) -> _TrustedKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, TypeError) as exc:
        raise InvalidInputError(
            f"the trusted key `{label}` cannot be used: {_first_line(exc)}", expected="an EC public key in PEM"
        ) from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise InvalidInputError(f"the trusted key `{label}` is of another kind", expected="an EC public key (P-256)")
    public = _public_pem(key)
    return _TrustedKey(pem=public, label=label.removesuffix(".pub"), fingerprint=_fingerprint(public))


def _public_pem(key: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _fingerprint(public_pem: bytes) -> str:
    """Return what a bundle holds as the hint of its key: SHA-256 of the public key's PEM text."""
    return hashlib.sha256(public_pem).hexdigest()


def _key_identity(label: str, fingerprint: str) -> str:
    return f"key `{label}` (sha256:{fingerprint})"


@contextmanager
def _in_memory(data: bytes) -> Generator[Path]:
    """Give a path to `data` that never touches a disk."""
    handle = os.memfd_create("noa-key", os.MFD_CLOEXEC)
    try:
        os.write(handle, data)
        yield Path(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


def _import_package() -> None:
    try:
        import model_signing
    except ImportError as exc:
        raise DependencyMissingError(
            "model-signing", extra="signing", purpose="signing and checking signatures"
        ) from exc
    del model_signing


def _sigstore_unreachable(verb: str, error: Exception) -> ServiceError:
    return ServiceError(
        f"sigstore cannot {verb}: {_first_line(error) or type(error).__name__}",
        expected="a network that reaches tuf-repo-cdn.sigstore.dev, fulcio.sigstore.dev and rekor.sigstore.dev",
        received=type(error).__name__,
        remedy='Where there is no such network, use `method = "key"` with a key from `noa keys new-signing NAME`',
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else ""
