"""Addresses that are asked, and those of this machine: the way to them is through nobody's proxy."""

from __future__ import annotations

import ipaddress
import os
import socket
from urllib.parse import urlsplit

import httpx

from raylla.errors import ConfigError


def loopback(url: str) -> bool:
    """Whether a URL leads to this machine itself: localhost, 127.0.0.0/8, ::1, or a server's 0.0.0.0."""
    try:
        name = (urlsplit(url if "://" in url else f"//{url}").hostname or "").rstrip(".")
    except ValueError:  # brackets that enclose no address
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(name))  # 127.1, or one number
        except (OSError, ValueError):
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def web_address(option: str, url: str) -> str:
    """A URL that can be asked, as it was given with ``option``.

    Raises:
        ConfigError: it cannot; names the option.
    """
    try:
        split = httpx.URL(url)
        host, port = split.host, urlsplit(url).port
        host.encode("idna")  # as whoever looks the name up does
        usable = split.scheme in ("http", "https") and bool(host) and port != 0
    except (httpx.InvalidURL, ValueError):
        usable = False
    if not usable:
        raise ConfigError(
            f"{option} {url!a}: give an http or https URL with a host and, if any, a port of 1 to 65535, "
            "such as http://127.0.0.1:8000"
        )
    return url


def header_key(option: str, key: str) -> str:
    """An API key that a header can hold, as it was given with ``option``.

    Raises:
        ConfigError: it cannot; names the option, and not the key.
    """
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{option}: the key has signs that are in no API key (beyond ASCII, or not printable); give it "
            "as it was made"
        )
    return key


def spare_proxy(url: str) -> None:
    """Where ``url`` leads to this machine, name its host in ``NO_PROXY``: for libraries that read the
    environment and cannot be told otherwise."""
    host = urlsplit(url).hostname
    if host and loopback(url):
        for name in ("NO_PROXY", "no_proxy"):
            known = [proxy for proxy in os.environ.get(name, "").split(",") if proxy]
            if host not in known:
                os.environ[name] = ",".join([*known, host])


def bracketed(host: str) -> str:
    """A host as it stands in a URL: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def occupied(host: str, port: int, shared: bool = False) -> str | None:
    """Why no server can listen at ``host`` and ``port``, in words; None: one can.

    ``shared``: a server that lets others of the same user listen there too (HAProxy does).
    """
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = addresses[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            tried.bind(address)
            tried.listen()
    except OSError as error:
        return error.strerror or str(error)
    return None
