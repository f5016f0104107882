"""Addresses of this machine: the way to them is through nobody's proxy."""

from __future__ import annotations

import ipaddress
import os
import socket
from urllib.parse import urlsplit


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


def spare_proxy(url: str) -> None:
    """Where ``url`` leads to this machine, name its host in ``NO_PROXY``: for libraries that read the
    environment and cannot be told otherwise."""
    host = urlsplit(url).hostname
    if host and loopback(url):
        for name in ("NO_PROXY", "no_proxy"):
            known = [one for one in os.environ.get(name, "").split(",") if one]
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
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            tried.bind(address)
            tried.listen()
    except OSError as error:
        return error.strerror or str(error)
    return None
