"""What a worker shows and asks for over TLS, followed on disk: files that are replaced count for new connections.

All files are read at one time into an `Identity`, which is proved before it counts: what cannot be read, does not
belong together or has expired is refused by name, and what was served goes on. As two files are never replaced at the
same moment, they are refused only when the next look finds them as they were.

Each identity has a context of its own: an authority that is taken away is not kept by an older one, nor are the
sessions that clients might resume by it. uvicorn is given a `_Door`, which hands a new connection the newest; gRPC
asks for it itself. Certificate and key are given to OpenSSL through files in memory: no copy of a key is on a disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from noa.errors import SettingsError
from noa_serving._tls import load_pair, trust, unusable

if TYPE_CHECKING:
    from noa.settings import ServingSettings

log = logging.getLogger("noa.serving")

_LOOK_EVERY_S = 0.5
_WARN_EVERY = timedelta(days=1)
_MOST_BYTES = 4 << 20
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_OWN_VERSION, _UTC_TIME = 0xA0, 0x17

Stamp = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The files of one moment, proved to fit each other."""

    certificate: bytes
    key: bytes = field(repr=False)
    authorities: bytes | None
    context: ssl.SSLContext = field(repr=False, compare=False)
    sha256: str = field(compare=False)
    not_after: datetime = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why the files on disk do not count. The reason names the setting and no path."""

    reason: str
    since: datetime


class ServedTls:
    """TLS of one worker. Belongs to its event loop; `identity` may be read anywhere."""

    def __init__(self, serving: ServingSettings, *, now: datetime | None = None) -> None:
        """Read the files.

        Raises:
            SettingsError: they cannot be used; names the setting.
        """
        self._serving = serving
        self._stamp = self._read_stamp()
        self._doubted: Stamp | None = None
        self._warned: datetime | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.identity = _read_identity(serving)
        self.refusal: Refusal | None = None
        self.reloads = 0
        self._warn(now or datetime.now(UTC))

    def look(self, now: datetime | None = None) -> None:
        """Take in files that were replaced, or refuse them; tell of a certificate that will soon expire."""
        now = now or datetime.now(UTC)
        stamp = self._read_stamp()
        if stamp != self._stamp:
            self._take(stamp, now)
        self._warn(now)

    def expires_soon(self, now: datetime | None = None) -> bool:
        """Tell whether what is served expires within the days of the settings, or has."""
        warning = timedelta(days=self._serving.tls_expiry_warning_days)
        return self.identity.not_after - (now or datetime.now(UTC)) < warning

    def describe(self) -> dict[str, object]:
        """Return what is served and what is refused, as `/status` shows it."""
        table: dict[str, object] = {
            "sha256": self.identity.sha256,
            "not_after": self.identity.not_after.isoformat(),
            "expires_soon": self.expires_soon(),
            "reloads": self.reloads,
        }
        if self.refusal is not None:
            table["refused"] = {"reason": self.refusal.reason, "since": self.refusal.since.isoformat()}
        return table

    def watch(self) -> None:
        """Look again and again, on the running event loop."""
        self.look()
        self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self.watch)

    def close(self) -> None:
        """Look no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def guard_uvicorn(self) -> None:
        """Let uvicorn, in this process, serve what is read here, whether it is told of files or, in a package, not."""
        door = _Door(ssl.PROTOCOL_TLS_SERVER)
        door.served = self

        def open_door(*_: object) -> ssl.SSLContext:
            return door

        # BentoML's worker makes its uvicorn configuration after this call and has no option for a context.
        uvicorn.Config = partial(uvicorn.Config, ssl_context_factory=open_door)  # pyright: ignore[reportAttributeAccessIssue]  # it is called as the class is

    def _take(self, stamp: Stamp, now: datetime) -> None:
        try:
            found = _read_identity(self._serving)
            if found != self.identity and found.not_after <= now:
                raise SettingsError(f"`serving.tls_certificate` has expired on {found.not_after:%Y-%m-%d %H:%M} UTC")
        except SettingsError as exc:
            if stamp != self._doubted:
                self._doubted = stamp  # perhaps one file of two
                return
            self._stamp = stamp
            self.refusal = Refusal(reason=exc.what, since=now)
            log.error("TLS goes on with what it had: %s", exc)
            return
        self._stamp, self._doubted, self.refusal = stamp, None, None
        if found == self.identity:
            return
        self.identity = found
        self.reloads += 1
        self._warned = None
        log.info("TLS read: certificate %s, valid until %s", found.sha256[:16], found.not_after.isoformat())

    def _warn(self, now: datetime) -> None:
        if not self.expires_soon(now) or (self._warned is not None and now - self._warned < _WARN_EVERY):
            return
        self._warned = now
        end = self.identity.not_after
        word = "has expired" if end <= now else "expires"
        log.warning("`serving.tls_certificate` %s on %s UTC: replace it and its key", word, f"{end:%Y-%m-%d %H:%M}")

    def _read_stamp(self) -> Stamp:
        serving = self._serving
        paths = (serving.tls_certificate, serving.tls_key, serving.tls_client_ca)
        return tuple(() if path is None else _stamp_of(path) for path in paths)


class _Door(ssl.SSLContext):
    """Stands where a server keeps its context, and hands each connection the newest one."""

    served: ServedTls

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Begin a connection with the context of this moment."""
        return self.served.identity.context.wrap_bio(*arguments, **options)


def _stamp_of(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _read_identity(serving: ServingSettings) -> Identity:
    assert serving.tls_certificate is not None and serving.tls_key is not None  # the settings see to it
    certificate = _read("tls_certificate", serving.tls_certificate)
    key = _read("tls_key", serving.tls_key)
    authorities = None if serving.tls_client_ca is None else _read("tls_client_ca", serving.tls_client_ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with _in_memory(certificate) as certificate_file, _in_memory(key) as key_file:
        load_pair("tls_certificate", certificate_file, key_file, context, shown=serving.tls_certificate)
    if authorities is not None:
        assert serving.tls_client_ca is not None
        with _in_memory(authorities) as authorities_file:
            trust(context, "tls_client_ca", authorities_file, shown=serving.tls_client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    try:
        text = certificate.decode("ascii")
        der = ssl.PEM_cert_to_DER_cert(text[text.index(_BEGIN) : text.index(_END) + len(_END)])
        not_after = end_of_validity(der)
    except (ValueError, IndexError) as exc:
        raise unusable("tls_certificate", serving.tls_certificate, exc) from exc
    return Identity(
        certificate=certificate,
        key=key,
        authorities=authorities,
        context=context,
        sha256=hashlib.sha256(der).hexdigest(),
        not_after=not_after,
    )


def _read(setting: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except OSError as exc:
        raise unusable(setting, path, exc) from exc


@contextmanager
def _in_memory(content: bytes) -> Generator[Path]:
    """Give the path of a file that is in memory only."""
    descriptor = os.memfd_create("noa-tls", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        yield Path(f"/proc/self/fd/{descriptor}")


def end_of_validity(der: bytes) -> datetime:
    """Return when an X.509 certificate ends, in DER (RFC 5280, section 4.1); `ssl` has no public way to tell.

    Raises:
        ValueError, IndexError: it is none.
    """
    at = _enter(der, _enter(der, 0))  # Certificate, TBSCertificate
    for _ in range(4 if der[at] == _OWN_VERSION else 3):  # version, serial number, algorithm, issuer
        at = _pass(der, at)
    at = _pass(der, _enter(der, at))  # Validity, notBefore
    start, end = _enter(der, at), _pass(der, at)
    text = der[start:end].decode("ascii")
    if der[at] == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _enter(der: bytes, at: int) -> int:
    """Return where the content of the element at `at` begins."""
    length = der[at + 1]
    return at + 2 + (length & 0x7F if length & 0x80 else 0)


def _pass(der: bytes, at: int) -> int:
    """Return where the element at `at` ends."""
    length, start = der[at + 1], _enter(der, at)
    return start + (int.from_bytes(der[at + 2 : start], "big") if length & 0x80 else length)
