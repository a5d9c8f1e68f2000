"""One HTTP connection to one device: its address, the settings of TLS, and exchanges with a time limit."""

from __future__ import annotations

import http.client
import re
import select
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError

MODEL = "copy"
"""Name of the model if the address has none: that of `variegate device serve`."""
_MAX_RETRY_S = 3600
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?")
"""A name, or a number of IPv4 or IPv6."""


@dataclass(frozen=True, kw_only=True)
class Trust:
    """The settings of TLS.

    Attributes:
        ca: PEM file of the CA of the server's certificate; the system's authorities by default.
        certificate: PEM file of a client certificate, where the server asks for one.
        key: PEM file of its key, not encrypted.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """The context.

        Raises:
            MisuseError: A file cannot be used.
        """
        if self.key is not None and self.certificate is None:
            raise MisuseError("a key needs its certificate")
        try:
            context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate is not None:
                # An encrypted key would otherwise be asked for on the terminal.
                context.load_cert_chain(self.certificate, self.key, password=lambda: "")
        except (OSError, ValueError):
            raise MisuseError("the certificates for the device cannot be used", hint="give PEM files") from None
        return context


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        host: Name or number.
        port: Of TCP.
        secured: Whether it speaks TLS.
    """

    host: str
    port: int
    secured: bool


def parsed(url: str) -> tuple[Address, str]:
    """The address in a URL, and the path of its model.

    Raises:
        MisuseError: It is no such URL.
    """
    hint = "write http://host:port or https://host:port/model"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise MisuseError("the device's address is not valid", hint=hint) from None
    name = parts.path.strip("/") or MODEL
    plain = name.isascii() and name.isprintable() and not set(name) & set("/ ?#%")
    if parts.query or parts.fragment or parts.username or parts.password:
        plain = False
    if parts.scheme not in ("http", "https") or not host or not _HOST.fullmatch(host) or port == 0 or not plain:
        raise MisuseError("the device's address is not valid", hint=hint)
    secured = parts.scheme == "https"
    return Address(host, port or (443 if secured else 80), secured), f"/v2/models/{name}"


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        status: Of HTTP.
        body: All of it.
        split: Value of `Inference-Header-Content-Length`; -1 for one that is no number, None without one.
        retry_after_s: `Retry-After` in seconds, given so or as a date (RFC 9110, section 10.2.3); None without.
    """

    status: int
    body: bytes
    split: int | None
    retry_after_s: float | None


class Line:
    """One connection, kept alive; an exchange ends at its time, however slowly bytes come."""

    def __init__(self, address: Address, context: ssl.SSLContext | None, timeout_s: float) -> None:
        self._where, self._timeout_s = address, timeout_s
        self._connection: http.client.HTTPConnection
        if context is None:
            self._connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
        else:
            self._connection = http.client.HTTPSConnection(
                address.host, address.port, timeout=timeout_s, context=context
            )

    def ready(self) -> None:
        """Connects, where there is no connection or the server has left it; nothing has been asked then.

        Raises:
            DeviceError: It cannot be reached.
        """
        sock = self._connection.sock
        if sock is not None:
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            if not poll.poll(0):
                return
            self.close()  # the end, or an answer to nothing
        try:
            self._connection.connect()
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            reason, hint = _why(error)
            raise DeviceError(f"cannot connect to {self._where.host}:{self._where.port}: {reason}", hint=hint) from None

    def exchange(self, method: str, path: str, body: bytes, headers: dict[str, str], limit: int) -> Answer:
        """Asks once.

        Raises:
            DeviceError: No whole answer in time; the query may have been charged.
            RefusedError: `MALFORMED`, for an answer of more than `limit` bytes.
        """
        # A timeout of sockets starts again with each byte; this one ends the exchange.
        timer = threading.Timer(self._timeout_s, _abort, (self._connection.sock,))
        timer.daemon = True
        timer.start()
        whole = False
        try:
            self._connection.request(method, path, body or None, headers)
            answer = self._connection.getresponse()
            data = answer.read(limit + 1)
            if len(data) > limit:
                raise RefusedError(Refusal.MALFORMED, "the server answers with too many bytes")
            if answer.length:
                raise http.client.IncompleteRead(data)
            whole = answer.isclosed() or not answer.read(1)
            split, wait = answer.getheader("Inference-Header-Content-Length"), answer.getheader("Retry-After")
            return Answer(answer.status, data, _number(split), _seconds(wait))
        except (OSError, http.client.HTTPException, ValueError):
            raise DeviceError("the device's answer did not come; the query may have been charged") from None
        finally:
            timer.cancel()
            if not whole:
                self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()


def _why(error: Exception) -> tuple[str, str]:
    """The reason why a connection failed, and a hint."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not trusted", "name the CA that signed it"
    if isinstance(error, ssl.SSLError):
        return "it does not agree on TLS", "does it serve https? else write http://"
    return "no answer", "is the device served there?"


def _abort(sock: socket.socket) -> None:
    with suppress(OSError):
        # Not TLS's own: that one takes the session away under the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else -1  # noqa: PLR2004


def _seconds(text: str | None) -> float | None:
    if text is None or not text.isascii():
        return None
    if text.isdigit():
        return float(min(int(text[:9]), _MAX_RETRY_S))
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        return None
    return min(max(0.0, at.timestamp() - time.time()), _MAX_RETRY_S)
