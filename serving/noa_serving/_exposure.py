"""Whether a server may listen where it is told to: nobody beyond this machine is answered unasked who they are."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from noa.errors import SettingsError
from noa.settings import is_loopback
from noa_serving._jwt import reader_of
from noa_serving._tls import check_tls
from noa_serving.api_keys import KeyFile

if TYPE_CHECKING:
    from noa.settings import ServingSettings


def check_exposure(serving: ServingSettings) -> None:
    """Check that a server beyond loopback authenticates its callers, and that its keys and certificates are usable.

    Raises:
        SettingsError: it does not; names what to do.
    """
    check_tls(serving)
    tokens = reader_of(serving)
    if tokens is not None:
        tokens.load()
    keys = KeyFile(serving.keys_file).read() if serving.has_keys_file else ()
    if is_open(serving) and not serving.allow_unauthenticated:
        raise SettingsError(
            f"host `{serving.host}` is reachable from other machines, and callers need no key",
            where="serving.host",
            expected="keys, or a loopback address",
            received=f"{len(keys)} keys, none valid" if keys else "no key",
            remedy="Make one with `noa api-keys new NAME`, or use 127.0.0.1; where something else guards the port, set "
            "`serving.allow_unauthenticated = true`",
        )


def is_open(serving: ServingSettings) -> bool:
    """Tell whether other machines reach the server and none of them has to show a key."""
    if (
        is_loopback(serving.host)
        or serving.api_keys
        or serving.tls_client_ca is not None
        or serving.jwt_jwks_file is not None
    ):
        return False
    keys = KeyFile(serving.keys_file).read() if serving.has_keys_file else ()
    now = datetime.now(UTC)
    return not any(key.is_valid(now) for key in keys)
