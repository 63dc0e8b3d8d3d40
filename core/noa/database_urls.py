"""URLs of databases and of web servers as people may see them: without what is secret in them.

Works on the text alone, so that also a URL that nothing can parse is safe to show in an error.
"""

from __future__ import annotations

import re

MASK = "********"
_SECRET_OPTIONS = re.compile(r"(?i)([?&](?:password|sslpassword)=)[^&]*")


def mask_password(url: str) -> str:
    """Return `url` with what may be a password replaced by asterisks, also where it was not percent-encoded."""
    scheme, separator, rest = url.partition("://")
    # The last `@`: an unescaped one may be part of the password. So may `/`, which would end the part with the host.
    account, at, place = rest.rpartition("@")
    user, colon, password = account.partition(":")
    if separator and at and colon and password:
        url = f"{scheme}{separator}{user}:{MASK}@{place}"
    return _SECRET_OPTIONS.sub(rf"\g<1>{MASK}", url)


def mask_web_address(url: str) -> str:
    """Return the address of a web server without what may be a secret in it: user, path, query and fragment.

    Webhooks of many services carry their token in one of them.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return MASK if url else url
    place = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    account, at, host = place.rpartition("@")
    shown = f"{scheme}{separator}{f'{MASK}@' if at and account else ''}{host}"
    return shown if rest in (place, f"{place}/") else f"{shown}/{MASK}"


def has_password(url: str) -> bool:
    """Tell whether showing `url` would show a password."""
    return mask_password(url) != url
