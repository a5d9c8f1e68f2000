"""Where a key lives, as a URI, so that an HSM or a TPM can stand where a file stands today.

    file:seller.key    file:/srv/seller.key    file:///srv/seller.key    seller.key

`file:` follows RFC 8089 with relative paths allowed and percent-decoding; a plain path means a file. A further
scheme is one line in each table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import unquote_to_bytes, urlsplit

from variegate.keys.errors import MisuseError
from variegate.keys.identity import DeviceIdentity
from variegate.keys.seller import Seller
from variegate.keys.signing import Signer

Passphrase = Callable[[], str]
"""Asked only when the scheme needs one."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_LOCAL = ("", "localhost")
_T = TypeVar("_T")


class Unwrapper(Protocol):
    """Whatever holds a device's key-agreement key."""

    def unwrap(self, sealed: bytes, info: bytes) -> bytes:
        """Opens HPKE `sealed` under `info`.

        Raises:
            RefusedError: `SEALED`.
        """
        ...


def file_path(uri: str) -> Path:
    """The path that a `file:` URI or a plain path names.

    Raises:
        MisuseError: It has another host, a query or a fragment, or names no file.
    """
    if not _SCHEME.match(uri):
        return _path(uri.encode(errors="surrogateescape"))
    hint = "write file:relative/path, file:///absolute/path, or a plain path"
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise MisuseError("key URI is not valid", hint=hint) from None
    if parts.netloc.lower() not in _LOCAL or parts.query or parts.fragment:
        raise MisuseError("a file: URI has a path and nothing else", hint=hint)
    return _path(unquote_to_bytes(parts.path))


def open_signer(uri: str, passphrase: Passphrase) -> Signer:
    """The seller's signing keys behind a URI.

    Args:
        uri: A `file:` URI or a plain path.
        passphrase: Asked for the passphrase of a key file.

    Raises:
        MisuseError: The scheme is unknown, or there is no such file.
        RefusedError: `KEY` or `TOO_LARGE`.
        DeviceError: Storage failed.
    """
    return _choose(_SIGNERS, uri)(uri, passphrase)


def open_unwrapper(uri: str, passphrase: Passphrase) -> Unwrapper:
    """A device's key-agreement key behind a URI; arguments and errors as `open_signer`."""
    return _choose(_UNWRAPPERS, uri)(uri, passphrase)


def _file_signer(uri: str, passphrase: Passphrase) -> Signer:
    return Seller.load(file_path(uri), passphrase()).signer


def _file_unwrapper(uri: str, passphrase: Passphrase) -> Unwrapper:
    return DeviceIdentity.load(file_path(uri), passphrase())


_SIGNERS: Mapping[str, Callable[[str, Passphrase], Signer]] = {"file": _file_signer}
_UNWRAPPERS: Mapping[str, Callable[[str, Passphrase], Unwrapper]] = {"file": _file_unwrapper}


def _choose(table: Mapping[str, _T], uri: str) -> _T:
    match = _SCHEME.match(uri)
    scheme = match[1].lower() if match else "file"
    if scheme not in table:
        known = ", ".join(f"{name}:" for name in sorted(table))
        hint = f"known schemes: {known}; for a path with a colon write ./ before it"
        raise MisuseError(f"no key store has the scheme {scheme}:", hint=hint)
    return table[scheme]


def _path(name: bytes) -> Path:
    if not name or b"\x00" in name:
        raise MisuseError("key URI names no file")
    return Path(name.decode(errors="surrogateescape"))
