"""TLS: what a server shows and asks for, and how noa's own programs check one.

A project's own server is known by its very certificate, whatever name is in it, so that it can be called on loopback.
Any other is checked as everywhere: a trusted authority, and the host's name.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from noa.errors import SettingsError

if TYPE_CHECKING:
    from noa.settings import ServingSettings

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def check_tls(serving: ServingSettings) -> None:
    """Check that all files of TLS that the settings name are there and fit each other.

    Raises:
        SettingsError: one is not; names its setting.
    """
    if serving.tls_certificate is not None:
        load_pair("tls_certificate", serving.tls_certificate, serving.tls_key)
        own_server_context(serving)
    if serving.tls_client_ca is not None:
        trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "tls_client_ca", serving.tls_client_ca)
    client_context(serving)


def own_server_context(serving: ServingSettings) -> ssl.SSLContext | None:
    """Return how the project's own server is called, None if that is without TLS.

    Raises:
        SettingsError: a file is missing or damaged.
    """
    if serving.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # it is the certificate itself that is trusted, and nothing else
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        text = serving.tls_certificate.read_text()
        first = text[text.index(_BEGIN) : text.index(_END) + len(_END)]
        context.load_verify_locations(cadata=first)
    except (OSError, ValueError) as exc:  # `ssl.SSLError` is an `OSError`
        raise unusable("tls_certificate", serving.tls_certificate, exc) from exc
    return _with_certificate(context, serving)


def client_context(serving: ServingSettings) -> ssl.SSLContext:
    """Return how noa's own commands call any other server over TLS. Errors as in `own_server_context`."""
    context = ssl.create_default_context()
    if serving.client_ca is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust(context, "client_ca", serving.client_ca)
    return _with_certificate(context, serving)


def _with_certificate(context: ssl.SSLContext, serving: ServingSettings) -> ssl.SSLContext:
    if serving.client_certificate is not None:
        load_pair("client_certificate", serving.client_certificate, serving.client_certificate_key, context)
    return context


def trust(context: ssl.SSLContext, setting: str, path: Path, *, shown: Path | None = None) -> None:
    """Let a context trust the authorities of a file; an error calls it `shown`.

    Raises:
        SettingsError: it cannot be used; names its setting.
    """
    try:
        context.load_verify_locations(cafile=path)
    except OSError as exc:
        raise unusable(setting, shown or path, exc) from exc


def load_pair(
    setting: str,
    certificate: Path,
    key: Path | None,
    context: ssl.SSLContext | None = None,
    *,
    shown: Path | None = None,
) -> None:
    """Load a certificate and its key into a context. Errors as in `trust`."""
    try:
        # A key with a password would ask for it on the terminal: an empty one is tried instead.
        (context or ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)).load_cert_chain(certificate, key, password="")
    except OSError as exc:
        raise unusable(setting, shown or certificate, exc) from exc


def unusable(setting: str, path: Path, error: Exception) -> SettingsError:
    """Return the error of a file that cannot be used, for a reason."""
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "no certificate is in it"
    return SettingsError(
        f"`serving.{setting}` cannot be used: {str(reason).lower().replace('_', ' ')}",
        where=str(path),
        expected="a certificate in PEM and the key that belongs to it, without a password",
    )
