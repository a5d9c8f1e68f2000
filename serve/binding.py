"""Binds a TCP address of either family, and decides which names a request's Host may have."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Callable

from variegate.keys.errors import MisuseError

_BACKLOG = 128


def bound(host: str, port: int) -> socket.socket:
    """A listening socket; the caller's to close.

    Args:
        host: A name, or an address of IPv4 or IPv6.
        port: 0 takes any free one.

    Raises:
        MisuseError: The address cannot be bound, or is none.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        number = (error.errno or 0) if isinstance(error, OSError) else 0
        # Below zero are getaddrinfo's own numbers.
        reason = os.strerror(number).lower() if number > 0 else "no such address"
        hint = "another program may use the port" if number == errno.EADDRINUSE else None
        raise MisuseError(f"cannot listen on {host} port {port}: {reason}", hint=hint) from None


def address_text(address: tuple[str, int]) -> str:
    """Host and port as a URL has them (RFC 3986 section 3.2.2: IPv6 in brackets)."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(sock: socket.socket) -> bool:
    """Whether a bound socket is reached from this machine alone."""
    return ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback


def host_check(sock: socket.socket, host: str) -> Callable[[bytes], bool]:
    """Decides which values of the header Host are ours.

    A web page can make its own name resolve to this machine (DNS rebinding), and then read here like a local page; only
    the name that its browser sends reveals it. So a port for this machine alone accepts `localhost`, addresses, which
    no page can have as its name, and the name to which it was bound. Ports on the network have names that are not known
    here, and accept any.

    Args:
        sock: Bound.
        host: The host to which it was bound.
    """
    if not is_loopback(sock):
        return lambda _: True
    names = {"localhost", host.lower()}

    def ours(value: bytes) -> bool:
        name = value.decode("latin-1").strip().lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        return name.removesuffix(".") in names or _is_address(name)

    return ours


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
