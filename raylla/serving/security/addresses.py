"""Where a webhook may go: public addresses over http and https, looked up once and then connected to.

An advertiser chooses the URL, so it could name the endpoint's own network (server-side request
forgery). The host is resolved here, every address it has must be public, and the connection goes to the
address that was checked, so that a second look-up cannot answer differently.

`Hook.parse` reads a URL at the door and before each call alike: what it takes can be called.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import socket
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

import httpx

from raylla.errors import RayllaError

_EMBEDDING = tuple(
    ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)
"""IPv6 networks whose addresses lead to an IPv4 address inside them: NAT64, 6to4, Teredo."""
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_LONGEST_HOST = 253
_SAMPLE = ipaddress.ip_address("192.0.2.1")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressError(RayllaError):
    """A URL leads where webhooks may not go, or nowhere; ``final`` where it always will."""

    def __init__(self, message: str, final: bool = True) -> None:
        super().__init__(message)
        self.final = final


@dataclass(frozen=True, slots=True)
class Hook:
    """A webhook's URL: ``name`` is looked up and told to TLS, ``host`` and ``authorization`` (from user and
    password) are the headers of those names."""

    parts: SplitResult
    name: str
    port: int
    host: str
    authorization: str | None

    @classmethod
    def parse(cls, url: str) -> Hook:
        """The URL as it is called.

        Raises:
            AddressError: it cannot be called; says why.
        """
        try:
            parts = urlsplit(url)
            name, port = parts.hostname, parts.port
        except ValueError as error:
            raise AddressError(f"no URL: {error}") from None
        if parts.scheme not in _PORTS or not name:
            raise AddressError(f"{parts.scheme or 'no'} URL: notices go over http or https, to a host")
        if port == 0:
            raise AddressError("port 0: nothing listens there")
        name, literal = name.removesuffix("."), _literal(name)
        if literal is None and (not _HOST.fullmatch(name) or len(name) > _LONGEST_HOST):
            raise AddressError(f"host {name!r} is no name of a host")
        shown = f"[{name}]" if literal is not None and literal.version == 6 else name
        host = shown if port is None else f"{shown}:{port}"
        hook = cls(parts, name, port or _PORTS[parts.scheme], host, _basic(parts))
        try:
            httpx.Request("POST", hook.at(_SAMPLE), headers=hook.headers())
        except (httpx.InvalidURL, ValueError) as error:
            raise AddressError(f"no URL that can be called: {error}") from None
        return hook

    @property
    def destination(self) -> str:
        """Whom it reaches: scheme, host and port."""
        return f"{self.parts.scheme}://{self.name}:{self.port}"

    def at(self, address: Address) -> str:
        """The URL with an address in the place of its host, and without user, password and fragment."""
        host = f"[{address}]" if address.version == 6 else str(address)
        return self.parts._replace(netloc=f"{host}:{self.port}", fragment="").geturl()

    def headers(self) -> dict[str, str]:
        """What the receiver must be told, for the URL that is called names an address only."""
        told = {"Host": self.host}
        return told if self.authorization is None else told | {"Authorization": self.authorization}


@dataclass(frozen=True, slots=True)
class HookTarget:
    """A hook's URL with its host replaced by each of its checked addresses, and what it is called with."""

    urls: tuple[str, ...]
    host: str
    name: str
    headers: Mapping[str, str]


class Resolver:
    """Looks hosts up, each destination's on a thread of its own and one at a time: a look-up that hangs
    cannot be ended, and so holds up its own destination only."""

    def __init__(self, most: int) -> None:
        """``most`` destinations can be looked up at a time."""
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="resolver")
        self._running: dict[str, Future[list[Address]]] = {}

    def busy(self) -> set[str]:
        """Destinations whose look-up has not ended; it may have been waited for in vain."""
        self._running = {whose: one for whose, one in self._running.items() if not one.done()}
        return set(self._running)

    async def addresses(self, hook: Hook) -> list[Address]:
        """Where a hook's host is, by the look-up of its destination that is under way, else by a new one.

        Raises:
            OSError: nobody knows the host.
            UnicodeError: its name cannot be asked for.
        """
        running = self._running.get(hook.destination)
        if running is None or running.done():
            running = self._threads.submit(_look_up, hook)
            self._running[hook.destination] = running
        return await asyncio.wrap_future(running)


def _look_up(hook: Hook) -> list[Address]:
    addresses = socket.getaddrinfo(hook.name, hook.port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in addresses]


async def target(url: str, private: bool, resolver: Resolver) -> HookTarget:
    """Look the URL's host up and check where it leads; ``private`` allows every address.

    Raises:
        AddressError: not http or https, no such host, or an address that is not public.
    """
    hook = Hook.parse(url)
    try:
        addresses = await resolver.addresses(hook)
    except UnicodeError as error:
        raise AddressError(f"host {hook.name}: {error}") from None
    except OSError as error:  # it may be there the next time
        raise AddressError(f"host {hook.name}: {error}", final=False) from None
    closed = [address for address in addresses if not public(address)]
    if closed and not private:
        raise AddressError(f"host {hook.name} leads to {closed[0]}, which is not a public address")
    urls = dict.fromkeys(hook.at(address) for address in addresses)
    return HookTarget(tuple(urls), hook.host, hook.name, hook.headers())


def destination(url: str) -> str:
    """`Hook.destination`; "" of a URL that cannot be called."""
    try:
        return Hook.parse(url).destination
    except AddressError:
        return ""


def public(address: Address) -> bool:
    """Whether anyone on the internet would reach the same machine under ``address``."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return public(address.ipv4_mapped)
        if any(address in network for network in _EMBEDDING):
            return False
    return address.is_global and not address.is_multicast


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _basic(parts: SplitResult) -> str | None:
    """The URL's user and password as basic authentication (RFC 7617).

    Raises:
        AddressError: the user's name holds a colon, which would end it.
    """
    if parts.username is None and parts.password is None:
        return None
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if ":" in user:
        raise AddressError("the user of the URL holds a colon, at which its name would end")
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
