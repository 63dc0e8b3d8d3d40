"""Signing: who sealed these bytes, said with a key and not only with a row in a database.

Two kinds of things are signed, each as one statement in the format of the `model-signing` package: every format of a
version (its files with their digests) and the version's record (one file, `version.json`, whose digest is the version's
own). A statement also names the model and the version's digest, so that a signature cannot be moved to another version.
The digests are those of the manifest: nothing is hashed a second time. Signatures are rows of `noa_signatures`, written
in the transaction that makes what they sign visible.

`Signatures` is what the registry holds. Without settings it does nothing and costs nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

from sqlalchemy import Connection, insert, select

from noa.digests import Manifest, digest_json, sha256_bytes
from noa.errors import IntegrityError, InvalidInputError
from noa_registry.database import Database, now, to_text
from noa_registry.events.outbox import append_event
from noa_registry.json_columns import parse_time
from noa_registry.records import require_version, version_record
from noa_registry.tables import signatures

if TYPE_CHECKING:
    from noa.settings import SigningSettings
    from noa_registry.versions import ModelVersion

WHOLE_VERSION: Final = "version"
"""The subject of the signature of a version's record; a format's signature has the format's name."""
RECORD_FILE: Final = "version.json"
_MOST_REMEMBERED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a signature says: these files, with these digests, are `subject` of this version of this model."""

    model: str
    version_digest: str
    subject: str
    digest: str
    files: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name under which the statement is signed."""
        return f"noa:{self.model}:{self.subject}:{self.version_digest}"

    @property
    def fingerprint(self) -> str:
        """A digest of all that the statement says."""
        return digest_json([self.name, self.digest, dict(self.files)])


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSignature:
    """One signature. `identity` says for people who signed; `bundle` is the Sigstore bundle as JSON text."""

    subject: str
    digest: str
    identity: str
    bundle: str
    created_at: datetime


class Signer(Protocol):
    """Signs statements with one key or identity."""

    @property
    def identity(self) -> str:
        """Who signs, for people: method, label and fingerprint."""
        ...

    def sign(self, statement: Statement) -> str:
        """Return the bundle, as JSON text."""
        ...


class Trusted(Protocol):
    """Somebody whose signatures count."""

    @property
    def identity(self) -> str:
        """Who it is, for people: method, label and fingerprint."""
        ...

    def claims(self, bundle: str) -> bool:
        """Tell whether a bundle says that it is by this one; whether that is true is for `verify`."""
        ...

    def verify(self, bundle: str, statement: Statement) -> None:
        """Raise `IntegrityError` unless this one signed exactly this statement."""
        ...


def check_signing(settings: SigningSettings) -> None:
    """Check that signing and checking can work as they are set up, before somebody works for hours in vain.

    A sigstore identity is not asked for: that needs a network.

    Raises:
        InvalidInputError: a key is missing, a private one is readable by others, or it is no key of this kind.
        DependencyMissingError: `model-signing` is not installed.
    """
    if not settings.signs and not settings.checks:
        return
    from noa_registry import model_signing_adapter

    if settings.signs:
        model_signing_adapter.load_signer(settings)
    model_signing_adapter.load_trusted(settings)


class Signatures:
    """Signs what is sealed and checks what is opened, as the settings say. Safe to share between threads."""

    def __init__(self, database: Database, settings: SigningSettings | None) -> None:
        self._database = database
        self._settings = settings
        self._lock = threading.Lock()
        self._signer: Signer | None = None
        self._trusted: tuple[Trusted, ...] | None = None
        self._verified: dict[tuple[str, str, str], None] = {}

    @property
    def signs(self) -> bool:
        """Whether what is sealed is signed."""
        return self._settings is not None and self._settings.signs

    @property
    def checks(self) -> bool:
        """Whether what is opened must carry a signature, or one that verifies where there is one."""
        return self._settings is not None and self._settings.checks

    def check_ready(self) -> None:
        """Do as `check_signing` with the registry's own settings."""
        if self._settings is not None:
            check_signing(self._settings)

    def prepare(self, statements: Sequence[Statement]) -> list[StoredSignature]:
        """Sign before the transaction, for it may take a network; empty where nothing is signed.

        Raises:
            InvalidInputError: the key is missing, readable by others, or no key of this kind.
            DependencyMissingError: `model-signing` is not installed.
        """
        if not self.signs:
            return []
        signer, moment = self._open_signer(), now()
        return [
            StoredSignature(
                subject=statement.subject,
                digest=statement.digest,
                identity=signer.identity,
                bundle=signer.sign(statement),
                created_at=moment,
            )
            for statement in statements
        ]

    def sign(self, version: ModelVersion, *, actor: str) -> list[StoredSignature]:
        """Sign an existing version and all its formats, where this key has not signed them already.

        Raises:
            InvalidInputError: signing is not set up.
        """
        self._database.require_writable()
        if not self.signs:
            raise InvalidInputError(
                "there is no key to sign with",
                remedy="Make one with `noa keys new-signing NAME` and set `registry.signing.private_key`",
            )
        identity = self._open_signer().identity
        have = {(row.subject, row.digest) for row in self.stored(version) if row.identity == identity}
        missing = [each for each in statements_of(version) if (each.subject, each.digest) not in have]
        made = self.prepare(missing)
        if made:
            with self._database.write() as connection:
                require_version(connection, version.name, version.number)
                insert_signatures(connection, version.name, version.number, made)
                append_event(
                    connection,
                    "version.signed",
                    name=version.name,
                    payload={
                        "number": version.number,
                        "digest": version.digest,
                        "subjects": [row.subject for row in made],
                        "identity": identity,
                        "actor": actor,
                    },
                )
        return made

    def stored(self, version: ModelVersion) -> list[StoredSignature]:
        """Return all signatures of a version in the order in which they were made, verified or not."""
        with self._database.read() as connection:
            return load_signatures(connection, version.name, version.number)

    def verify(self, version: ModelVersion, *, format: str | None = None) -> None:  # our word
        """Check the signatures of a version's record and of its formats (or of one format).

        Does nothing if neither trusted keys nor `required` is set.

        Raises:
            IntegrityError: a signature does not verify, is by nobody who is trusted, or is missing where it is
                required; `facts["file"]` names the subject, `facts["identity"]` who signed.
        """
        if not self.checks:
            return
        rows = self.stored(version)
        for statement in statements_of(version):
            if format is None or statement.subject in (WHOLE_VERSION, format):
                mine = [row for row in rows if row.subject == statement.subject]
                self._check(version.reference, statement, mine)

    def trusted(self) -> tuple[Trusted, ...]:
        """Return everybody whose signatures count: the trusted keys, and the key that signs here."""
        with self._lock:
            if self._trusted is None:
                from noa_registry import model_signing_adapter

                self._trusted = () if self._settings is None else model_signing_adapter.load_trusted(self._settings)
            return self._trusted

    def _check(self, reference: str, statement: Statement, rows: Sequence[StoredSignature]) -> None:
        what = "the record" if statement.subject == WHOLE_VERSION else f"format `{statement.subject}`"
        if not rows:
            if self._settings is not None and self._settings.required:
                raise IntegrityError(
                    f"{what} of `{reference}` is not signed",
                    expected="a signature by " + self._names(),
                    received="none",
                    remedy=f"If you trust it, sign it with: noa models sign {reference}",
                    file=statement.subject,
                    identity=None,
                )
            return
        verified = [row for row in rows if self._is_by_a_trusted_one(reference, what, statement, row)]
        if not verified:
            raise IntegrityError(
                f"{what} of `{reference}` is signed by nobody who is trusted",
                expected="a signature by " + self._names(),
                received=", ".join(sorted({row.identity for row in rows})),
                remedy="Add the public key to `registry.signing.trusted_keys` if you know whose it is",
                file=statement.subject,
                identity=rows[-1].identity,
            )

    def _is_by_a_trusted_one(self, reference: str, what: str, statement: Statement, row: StoredSignature) -> bool:
        for trusted in self.trusted():
            if not trusted.claims(row.bundle):
                continue
            key = (statement.fingerprint, sha256_bytes(row.bundle.encode()), trusted.identity)
            with self._lock:
                if key in self._verified:
                    return True
            try:
                trusted.verify(row.bundle, statement)
            except IntegrityError as exc:
                raise IntegrityError(
                    f"the signature of {what} of `{reference}` does not verify with {trusted.identity}: {exc.what}",
                    expected=statement.digest,
                    remedy="Do not use this version: find out who changed it",
                    file=statement.subject,
                    identity=trusted.identity,
                ) from exc
            with self._lock:
                if len(self._verified) >= _MOST_REMEMBERED:
                    self._verified.clear()
                self._verified[key] = None
            return True
        return False

    def _names(self) -> str:
        return " or ".join(trusted.identity for trusted in self.trusted()) or "a trusted key"

    def _open_signer(self) -> Signer:
        with self._lock:
            if self._signer is None:
                from noa_registry import model_signing_adapter

                if self._settings is None:
                    raise InvalidInputError("signing is not set up", remedy="Set `registry.signing.private_key`")
                self._signer = model_signing_adapter.load_signer(self._settings)
            return self._signer


def record_of(version: ModelVersion) -> bytes:
    """Return the record of a version as a file: `version.json`."""
    return version_record(
        name=version.name,
        native=version.native,
        native_digest=version.formats[version.native].digest,
        wrapper_digest=version.wrapper.digest,
        signature=version.signature,
        dataset_digest=version.dataset_digest,
    )


def record_statement(model: str, version_digest: str) -> Statement:
    """Return the statement about a version's record."""
    return Statement(
        model=model,
        version_digest=version_digest,
        subject=WHOLE_VERSION,
        digest=version_digest,
        files={RECORD_FILE: version_digest},
    )


def format_statement(model: str, version_digest: str, format_name: str, manifest: Manifest) -> Statement:
    """Return the statement about one format."""
    return Statement(
        model=model,
        version_digest=version_digest,
        subject=format_name,
        digest=manifest.digest,
        files={file.path: file.digest for file in manifest.files},
    )


def statements_of(version: ModelVersion) -> list[Statement]:
    """Return all statements about a version: its record first, then its formats."""
    return [
        record_statement(version.name, version.digest),
        *(
            format_statement(version.name, version.digest, name, sealed.manifest)
            for name, sealed in version.formats.items()
        ),
    ]


def insert_signatures(connection: Connection, name: str, number: int, rows: Sequence[StoredSignature]) -> None:
    """Append signatures in the caller's transaction."""
    values = [
        {
            "name": name,
            "number": number,
            "subject": row.subject,
            "digest": row.digest,
            "identity": row.identity,
            "bundle": row.bundle,
            "created_at": to_text(row.created_at),
        }
        for row in rows
    ]
    if values:
        connection.execute(insert(signatures), values)


def load_signatures(connection: Connection, name: str, number: int) -> list[StoredSignature]:
    """Return all signatures of a version in the order in which they were made."""
    query = select(signatures).where(signatures.c.name == name, signatures.c.number == number).order_by(signatures.c.id)
    return [
        StoredSignature(
            subject=row.subject,
            digest=row.digest,
            identity=row.identity,
            bundle=row.bundle,
            created_at=parse_time(
                row.created_at, of=f"the signature {row.id} of `{name}/{number}`", column="noa_signatures.created_at"
            ),
        )
        for row in connection.execute(query)
    ]
