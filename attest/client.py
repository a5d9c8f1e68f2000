"""The way to a broker over HTTP, with the standard library only; an `attest.release.Exchange`."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from variegate.keys import cbor
from variegate.keys.errors import DeviceError, LimitError, MisuseError, Refusal, RefusedError

CHALLENGE_PATH, RELEASE_PATH = "/v1/challenge", "/v1/release"
MEDIA_TYPE = "application/cbor"
TIMEOUT_S = 15.0
MAX_ANSWER_BYTES = 8 * 1024
_MAX_RETRY_S = 3600
_OK, _FORBIDDEN, _TOO_MANY = 200, 403, 429


class BrokerClient:
    """Speaks to one broker; each call opens a connection of its own.

    Args:
        url: `https://host[:port]`; `http://` only for this very machine, since evidence names device and buyer.
        ca: PEM file of who signs the broker's certificate; the system's authorities unless told.
        certificate: PEM file of a client certificate, if the broker asks for one.
        key: PEM file of its key.
        timeout_s: Seconds for a whole call.

    Raises:
        MisuseError: The URL or a file cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._host, self._port, secured = _address(url)
        self._timeout_s = timeout_s
        self._context = _context(ca, certificate, key) if secured else None
        if not secured and (ca, certificate, key) != (None, None, None):
            raise MisuseError("certificates belong to an https:// broker")

    def challenge(self) -> bytes:
        """A fresh nonce; errors as `release`."""
        return self._post(CHALLENGE_PATH, b"")

    def release(self, token: bytes, envelope: bytes) -> bytes:
        """The sealed share.

        Raises:
            RefusedError: `RELEASE`: the broker refuses, and says no more.
            LimitError: It does not serve this device now.
            DeviceError: It cannot be reached, or does not answer as a broker does.
        """
        return self._post(RELEASE_PATH, cbor.encode([token, envelope]))

    def _post(self, path: str, body: bytes) -> bytes:
        try:
            status, retry_after, data = self._exchange(path, body)
        except (OSError, http.client.HTTPException, ValueError):
            raise DeviceError("the key broker cannot be reached", hint="check its URL, and that it runs") from None
        if status == _FORBIDDEN:
            raise RefusedError(Refusal.RELEASE, "the key broker refuses", hint="the broker's log has the reason")
        if status == _TOO_MANY:
            raise LimitError("the key broker does not serve this device now", retry_after_s=retry_after)
        if status == _OK and len(data) <= MAX_ANSWER_BYTES:
            with suppress(RefusedError):
                answer = cbor.decode(data, limit=MAX_ANSWER_BYTES)
                if isinstance(answer, bytes):
                    return answer
        raise DeviceError("the key broker gives no answer of its protocol")

    def _exchange(self, path: str, body: bytes) -> tuple[int, float | None, bytes]:
        connection = self._connection()
        connection.connect()
        # A timeout of sockets begins anew with each byte; this one ends the call.
        timer = threading.Timer(self._timeout_s, _abort, (connection.sock,))
        timer.daemon = True
        timer.start()
        try:
            connection.request("POST", path, body, {"Content-Type": MEDIA_TYPE, "Connection": "close"})
            answer = connection.getresponse()
            data = answer.read(MAX_ANSWER_BYTES + 1)
            return answer.status, _seconds(answer.getheader("Retry-After")), data
        finally:
            timer.cancel()
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._context)


def _abort(sock: socket.socket) -> None:
    with suppress(OSError):
        # Not TLS's own: that one takes the session away under the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _seconds(text: str | None) -> float | None:
    if text is None or not text.isascii() or not text.isdigit():
        return None
    return float(min(int(text[:9]), _MAX_RETRY_S))


def _address(url: str) -> tuple[str, int, bool]:
    hint = "write https://host or https://host:port"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise MisuseError("the broker's URL is not valid", hint=hint) from None
    plain = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in ("https", "http") or not host or not plain:
        raise MisuseError("the broker's URL is not valid", hint=hint)
    if parts.scheme == "http" and not _is_here(host):
        raise MisuseError("a broker on another machine is spoken to over https only", hint=hint)
    secured = parts.scheme == "https"
    return host, port or (443 if secured else 80), secured


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if certificate is not None:
            # An encrypted key would otherwise be asked for on the terminal.
            context.load_cert_chain(certificate, key, password=lambda: "")
        elif key is not None:
            raise MisuseError("a key for the broker needs its certificate")
    except (OSError, ValueError):
        raise MisuseError("the certificates for the broker cannot be used", hint="give PEM files") from None
    return context
