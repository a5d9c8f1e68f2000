"""Binds a TCP address of either family."""

from __future__ import annotations

import errno
import os
import socket

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
        hint = "another program may have the port" if number == errno.EADDRINUSE else None
        raise MisuseError(f"cannot listen on {host} port {port}: {reason}", hint=hint) from None


def address_text(address: tuple[str, int]) -> str:
    """Host and port as a URL has them (RFC 3986 section 3.2.2: IPv6 in brackets)."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
