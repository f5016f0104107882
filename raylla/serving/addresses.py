"""Where a webhook may go: public addresses over http and https, looked up once and then connected to.

An advertiser chooses the URL, so it could name the endpoint's own network (server-side request
forgery). The host is resolved here, every address it has must be public, and the connection goes to the
address that was checked, so that a second look-up cannot answer differently.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from raylla.errors import RayllaError

_EMBEDDING = tuple(
    ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)
"""IPv6 networks whose addresses lead to an IPv4 address inside them: NAT64, 6to4, Teredo."""


class AddressError(RayllaError):
    """A URL leads where webhooks may not go."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL with its host replaced by each of its checked addresses; ``host`` is it with its port."""

    urls: tuple[str, ...]
    host: str
    name: str


async def target(url: str, private: bool) -> Target:
    """Look the URL's host up and check where it leads; ``private`` allows every address.

    Raises:
        AddressError: not http or https, no such host, or an address that is not public.
    """
    parts = urlsplit(url)
    name = parts.hostname
    if parts.scheme not in ("http", "https") or not name:
        raise AddressError(f"{parts.scheme or 'no'} URL: notices go over http or https")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, ValueError) as error:
        raise AddressError(f"host {name}: {error}") from None
    addresses = [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in found]
    closed = [address for address in addresses if not public(address)]
    if closed and not private:
        raise AddressError(f"host {name} leads to {closed[0]}, which is not a public address")
    urls = dict.fromkeys(_at(parts, address, port) for address in addresses)
    return Target(tuple(urls), parts.netloc.rpartition("@")[2], name)


def public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether anyone on the internet would reach the same machine under ``address``."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return public(address.ipv4_mapped)
        if any(address in network for network in _EMBEDDING):
            return False
    return address.is_global and not address.is_multicast


def _at(parts: SplitResult, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> str:
    host = f"[{address}]" if address.version == 6 else str(address)
    return parts._replace(netloc=f"{host}:{port}", fragment="").geturl()
