"""Which addresses a webhook may be sent to: public ones, unless it is allowed more.

A name is resolved once, every address that it has is checked, and the connection goes to one of exactly these: a name
that means another address a moment later (DNS rebinding) changes nothing.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from noa.errors import InvalidInputError, NotFoundError

# Python counts them as global: examples in documents (RFC 9637), and relays that no longer exist (RFC 7526).
_NOT_PUBLIC = (IPv6Network("3fff::/20"), IPv4Network("192.88.99.0/24"))
_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))


def resolve(host: str, port: int, *, allow_private: bool) -> list[str]:
    """Return the addresses of a host, in the order in which to try them.

    Raises:
        NotFoundError: the name has no address.
        InvalidInputError: one of its addresses is private, loopback, link-local or otherwise not public.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise NotFoundError(f"`{host}` has no address", received=str(exc)) from exc
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if not allow_private and not is_public(address):
            raise InvalidInputError(
                f"`{host}` is at {address}, which is no public address",
                remedy="Set `allow_private = true` for this webhook if that is meant",
            )
    return addresses


def is_public(address: str) -> bool:
    """Tell whether an address is one of the public internet; what carries an IPv4 address inside is judged by that."""
    parsed = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address):
        inner = _inside(parsed)
        if inner is not None:
            return is_public(str(inner))
        if parsed.is_site_local:  # Python counts the retired `fec0::/10` as global
            return False
    if any(parsed in network for network in _NOT_PUBLIC):
        return False
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


def _inside(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that an IPv6 address leads to: mapped, 6to4, Teredo or NAT64."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if any(address in network for network in _NAT64):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None
