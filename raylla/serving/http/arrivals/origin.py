"""Where users reach the endpoint, which click URLs begin with: by setting, trusted proxy or Host."""

from __future__ import annotations

import re
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from starlette.requests import Request

from raylla.config import Serving

_HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_SCHEMES = ("http", "https")


def base_url(request: Request, serving: Serving) -> str:
    """Scheme and host of the endpoint's own URLs, without a slash at the end.

    `X-Forwarded-Proto` and `X-Forwarded-Host` count where the peer is in ``serving.trusted_proxies``, each
    as the nearest proxy has set it; a value that is no scheme or host counts for nothing.
    """
    if serving.public_url is not None:
        return serving.public_url.rstrip("/")
    url = request.base_url
    if trusted(request.client.host if request.client else "", serving.trusted_proxies):
        scheme, host = _last(request, "x-forwarded-proto").lower(), _last(request, "x-forwarded-host")
        if scheme in _SCHEMES:
            url = url.replace(scheme=scheme)
        if _HOST.fullmatch(host):
            url = url.replace(netloc=host)
    return str(url).rstrip("/")


def trusted(peer: str, networks: tuple[str, ...]) -> bool:
    """Whether an address is in one of ``networks``; what is no address is in none."""
    if not networks:
        return False
    try:
        address = ip_address(peer)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any(
        spelling in network for network in _networks(networks) for spelling in (address, mapped) if spelling
    )


@cache
def _networks(given: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(network) for network in given)


def _last(request: Request, name: str) -> str:
    values = request.headers.getlist(name)
    return values[-1].rpartition(",")[2].strip() if values else ""
