"""HTTP client for a broker (`attest.release.Exchange`) and for a device's evidence, with the standard library only."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from variegate.attest.evidence import MAX_EVIDENCE_BYTES, claimed
from variegate.keys import cbor
from variegate.keys.errors import DeviceError, LimitError, MisuseError, Refusal, RefusedError

CHALLENGE_PATH, RELEASE_PATH = "/v1/challenge", "/v1/release"
EVIDENCE_PATH = "/v1/evidence/"
MEDIA_TYPE = "application/cbor"
TIMEOUT_S = 15.0
EVIDENCE_TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 8 * 1024
_MAX_RETRY_S = 3600
_OK, _FORBIDDEN, _TOO_MANY = 200, 403, 429


class _Way:
    """To one server; each call opens a connection of its own. `BrokerClient` says what the arguments are.

    Raises:
        MisuseError: The URL or a file cannot be used.
    """

    def __init__(
        self,
        what: str,
        url: str,
        *,
        ca: Path | None,
        certificate: Path | None,
        key: Path | None,
        timeout_s: float,
    ) -> None:
        self._what = what
        self._host, self._port, secured = _address(what, url)
        self._timeout_s = timeout_s
        self._context = _context(what, ca, certificate, key) if secured else None
        if not secured and (ca, certificate, key) != (None, None, None):
            raise MisuseError(f"certificates are for a {what} at https://")

    def ask(self, method: str, path: str, body: bytes = b"", *, limit: int) -> tuple[int, float | None, bytes]:
        """One request.

        Returns:
            Status, seconds to wait if it says so, and at most one byte more than `limit` of the body.

        Raises:
            DeviceError: It cannot be reached.
        """
        try:
            return self._exchange(method, path, body, limit)
        except (OSError, http.client.HTTPException, ValueError):
            raise DeviceError(f"the {self._what} cannot be reached", hint="check its URL, and that it runs") from None

    def _exchange(self, method: str, path: str, body: bytes, limit: int) -> tuple[int, float | None, bytes]:
        connection = self._connection()
        connection.connect()
        # A timeout of sockets starts again with each byte; this one ends the call.
        timer = threading.Timer(self._timeout_s, _abort, (connection.sock,))
        timer.daemon = True
        timer.start()
        try:
            connection.request(method, path, body, {"Content-Type": MEDIA_TYPE, "Connection": "close"})
            answer = connection.getresponse()
            data = answer.read(limit + 1)
            return answer.status, _seconds(answer.getheader("Retry-After")), data
        finally:
            timer.cancel()
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._context)


class BrokerClient:
    """Speaks to one broker.

    Args:
        url: `https://host[:port]`; `http://` only for this very machine, since evidence names device and buyer.
        ca: PEM file of the CA of the broker's certificate; the system's authorities by default.
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
        self._way = _Way("key broker", url, ca=ca, certificate=certificate, key=key, timeout_s=timeout_s)

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
        status, retry_after, data = self._way.ask("POST", path, body, limit=MAX_ANSWER_BYTES)
        if status == _FORBIDDEN:
            raise RefusedError(Refusal.RELEASE, "the key broker refuses", hint="the broker's log has the reason")
        if status == _TOO_MANY:
            raise LimitError("the key broker does not serve this device now", retry_after_s=retry_after)
        if status == _OK and len(data) <= MAX_ANSWER_BYTES:
            with suppress(RefusedError):
                answer = cbor.decode(data, limit=MAX_ANSWER_BYTES)
                if isinstance(answer, bytes):
                    return answer
        raise DeviceError("the key broker's answer does not follow the protocol")


def evidence_from(url: str, nonce: bytes, *, ca: Path | None = None, timeout_s: float = EVIDENCE_TIMEOUT_S) -> bytes:
    """Evidence of a device that serves, for this nonce by its own claim: an `attest.verifier` must appraise it.

    Args:
        url: Of the device, as of a broker.
        nonce: 8 to 64 bytes.
        ca: PEM file of the CA of its certificate.
        timeout_s: Seconds for the call.

    Raises:
        MisuseError: The URL or the file cannot be used.
        LimitError: It gives no more now.
        DeviceError: The device cannot be reached, or gives no evidence, or evidence for another nonce.
    """
    way = _Way("device", url, ca=ca, certificate=None, key=None, timeout_s=timeout_s)
    status, wait, data = way.ask("GET", f"{EVIDENCE_PATH}{nonce.hex()}", limit=MAX_EVIDENCE_BYTES)
    if status == _TOO_MANY:
        raise LimitError("the device gives no more evidence now", retry_after_s=wait)
    if status != _OK or len(data) > MAX_EVIDENCE_BYTES:
        raise DeviceError("the device gives no evidence", hint="start its server with --evidence")
    try:
        said = claimed(data)
    except RefusedError:
        raise DeviceError("the device's answer is not evidence") from None
    if said.nonce != nonce:
        raise DeviceError("the device answers with evidence for another nonce")
    return data


def _abort(sock: socket.socket) -> None:
    with suppress(OSError):
        # Not TLS's own: that one takes the session away under the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _seconds(text: str | None) -> float | None:
    if text is None or not text.isascii() or not text.isdigit():
        return None
    return float(min(int(text[:9]), _MAX_RETRY_S))


def _address(what: str, url: str) -> tuple[str, int, bool]:
    hint = "write https://host or https://host:port"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise MisuseError(f"the {what}'s URL is not valid", hint=hint) from None
    plain = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in ("https", "http") or not host or not plain:
        raise MisuseError(f"the {what}'s URL is not valid", hint=hint)
    if parts.scheme == "http" and not _is_here(host):
        raise MisuseError(f"a {what} on another machine is reached over https only", hint=hint)
    secured = parts.scheme == "https"
    return host, port or (443 if secured else 80), secured


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _context(what: str, ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if certificate is not None:
            # An encrypted key would otherwise be asked for on the terminal.
            context.load_cert_chain(certificate, key, password=lambda: "")
        elif key is not None:
            raise MisuseError(f"a key for the {what} needs its certificate")
    except (OSError, ValueError):
        raise MisuseError(f"the certificates for the {what} cannot be used", hint="give PEM files") from None
    return context
