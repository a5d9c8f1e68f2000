"""The place of a key as a URI, so that an HSM can replace a file.

    file:seller.key    file:/srv/seller.key    file:///srv/seller.key    seller.key
    pkcs11:token=seller;object=acme?module-path=/usr/lib/softhsm/libsofthsm2.so

`file:` follows RFC 8089 with relative paths allowed and percent-decoding; a plain path means a file. `pkcs11:` is
RFC 7512's, see `pkcs11_uri`; it needs the extra `hsm`, loaded when the first such URI is opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.files import read_capped
from variegate.keys.pkcs11_uri import SCHEME as _PKCS11
from variegate.keys.pkcs11_uri import Pkcs11Uri
from variegate.keys.seller import Seller, SellerKeys
from variegate.keys.signing import Signer

if TYPE_CHECKING:
    from variegate.keys.hsm import HsmSeller

Passphrase = Callable[[], str]
"""A key file's passphrase or a token's PIN; asked only when it is needed."""

_MAX_PIN_FILE = 256
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_LOCAL = ("", "localhost")


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


class NewSeller(NamedTuple):
    """A seller's keys just made and stored.

    Attributes:
        seller: The keys.
        undo: Removes them again from where they are stored.
    """

    seller: SellerKeys
    undo: Callable[[], None]


def scheme_of(uri: str) -> str:
    """The scheme of a URI in lower case; `file` for a plain path."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else "file"


def is_hsm(uri: str) -> bool:
    """Whether a URI names keys in an HSM, so that a PIN is needed and not a passphrase."""
    return scheme_of(uri) == _PKCS11


def open_signer(uri: str, passphrase: Passphrase) -> Signer:
    """The seller's signing keys behind a URI; arguments and errors as `open_seller`."""
    return open_seller(uri, passphrase).signer


def open_seller(uri: str, passphrase: Passphrase) -> SellerKeys:
    """The seller's secrets behind a URI.

    Args:
        uri: A `file:` URI, a plain path, or a `pkcs11:` URI.
        passphrase: Gives the passphrase of a key file, or a token's PIN when the URI has no `pin-source`.

    Raises:
        MisuseError: The scheme is unknown, there is no such file, module, token or object, or the extra `hsm` is not
            installed.
        RefusedError: `KEY` or `TOO_LARGE`.
        DeviceError: Storage or the HSM failed.
    """
    return _choose(uri)(uri, passphrase)


def new_seller(uri: str, passphrase: Passphrase, *, given: Seller | None = None) -> NewSeller:
    """Makes and stores a seller's secrets.

    Args:
        uri: Where they shall live.
        passphrase: As for `open_seller`.
        given: Secrets to store there; new ones by default. An HSM makes new ones itself.

    Raises:
        MisuseError: As `open_seller`, or the file or object is there already.
        RefusedError: `KEY`, when a token refuses the PIN.
        DeviceError: Storage or the HSM failed.
    """
    _choose(uri)
    if is_hsm(uri):
        where, pin, sellers = _token(uri, passphrase)
        owner = sellers.create(where, pin, secrets=None if given is None else given.secrets())
        return NewSeller(owner, owner.destroy)
    seller, path = given or Seller.generate(), file_path(uri)
    seller.save(path, passphrase())
    return NewSeller(seller, path.unlink)


def next_seller(old: SellerKeys, uri: str, passphrase: Passphrase) -> NewSeller:
    """Makes and stores new signing keys under the same master secret; `rotation.hand_over` tells devices of them.

    Args:
        old: The seller so far.
        uri: Where the next shall live. From a file to a file or an HSM; from an HSM only within its token.
        passphrase: As for `open_seller`.

    Raises:
        MisuseError: As `new_seller`, or the master secret would have to leave its HSM.
        RefusedError: `KEY`, when a token refuses the PIN.
        DeviceError: Storage or the HSM failed.
    """
    _choose(uri)
    if not is_hsm(uri):
        if not isinstance(old, Seller):
            raise MisuseError("master secret cannot leave its HSM", hint="rotate into another object of the same token")
        return new_seller(uri, passphrase, given=old.with_new_signing_keys())
    where, pin, sellers = _token(uri, passphrase)
    if isinstance(old, Seller):
        secrets = replace(old.secrets(), serial=old.serial + 1, ed25519_seed=None, mldsa65_seed=None)
        seller = sellers.create(where, pin, secrets=secrets)
    elif isinstance(old, sellers):
        seller = sellers.create(where, pin, after=old)
    else:
        raise MisuseError("this seller's master secret cannot be brought into an HSM")
    return NewSeller(seller, seller.destroy)


def _file_seller(uri: str, passphrase: Passphrase) -> SellerKeys:
    return Seller.load(file_path(uri), passphrase())


def _hsm_seller(uri: str, passphrase: Passphrase) -> SellerKeys:
    where, pin, sellers = _token(uri, passphrase)
    return sellers.open(where, pin)


_SELLERS: Mapping[str, Callable[[str, Passphrase], SellerKeys]] = {"file": _file_seller, _PKCS11: _hsm_seller}


def _token(uri: str, passphrase: Passphrase) -> tuple[Pkcs11Uri, str, type[HsmSeller]]:
    """The parts of a `pkcs11:` URI, the PIN, and the class that opens it."""
    where = Pkcs11Uri.parse(uri)
    try:
        # An extra, and a shared library that a device has no use for.
        from variegate.keys.hsm import HsmSeller  # noqa: PLC0415
    except ImportError as error:
        raise MisuseError("a key in an HSM needs python-pkcs11", hint='pip install "variegate[hsm]"') from error
    return where, passphrase() if where.pin_source is None else _pin(where.pin_source), HsmSeller


def _pin(path: Path) -> str:
    data = read_capped(path, limit=_MAX_PIN_FILE, private=True)
    if not data.isascii():
        raise RefusedError(Refusal.KEY, f"{path} does not hold a PIN of ASCII characters")
    return data.decode("ascii").removesuffix("\n").removesuffix("\r")


def _choose(uri: str) -> Callable[[str, Passphrase], SellerKeys]:
    scheme = scheme_of(uri)
    if scheme not in _SELLERS:
        known = ", ".join(f"{name}:" for name in sorted(_SELLERS))
        hint = f"known schemes: {known}; for a path with a colon write ./ before it"
        raise MisuseError(f"no key store has the scheme {scheme}:", hint=hint)
    return _SELLERS[scheme]


def _path(name: bytes) -> Path:
    if not name or b"\x00" in name:
        raise MisuseError("key URI names no file")
    return Path(name.decode(errors="surrogateescape"))
