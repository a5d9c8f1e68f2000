"""The name of a key in an HSM: the part of RFC 7512 that names the token, the object and the module.

    pkcs11:token=seller;object=acme?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/seller.pin

The path must have `token` and `object`, and may have `serial`; the query must have `module-path`, and may have
`pin-source`. Any other attribute is refused and not ignored, so that no wrong key is opened.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from variegate.keys.errors import MisuseError

SCHEME = "pkcs11"
MAX_URI = 4096
MAX_LABEL_BYTES = 32
"""Of a token's label and an object's: PKCS#11 pads a token's label to 32 bytes."""
_PATH = ("token", "object", "serial")
_QUERY = ("module-path", "pin-source")
_HINT = "write pkcs11:token=LABEL;object=LABEL?module-path=/absolute/path.so, quoted for the shell"
_PIN_HINT = "put the PIN into a file of mode 0600 and name it: pin-source=file:/absolute/path"
# RFC 7512 section 2.3: pk11-pchar and pk11-qchar.
_CHARS = r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,={extra}]|%[0-9A-Fa-f]{{2}})*"
_PATH_VALUE = re.compile(_CHARS.format(extra="&"))
_QUERY_VALUE = re.compile(_CHARS.format(extra="/?|"))
_SAFE = "-._~"


@dataclass(frozen=True)
class Pkcs11Uri:
    """One seller's keys in one token.

    Attributes:
        token: The token's label.
        label: The label that all objects of the seller share.
        module: The PKCS#11 module that reaches the token.
        serial: The token's serial number, when two tokens have the same label; or None.
        pin_source: File with the PIN, or None.
    """

    token: str
    label: str
    module: Path
    serial: str | None = None
    pin_source: Path | None = None

    def __str__(self) -> str:
        """The URI in one canonical form."""
        serial = "" if self.serial is None else f";serial={quote(self.serial, safe=_SAFE)}"
        source = "" if self.pin_source is None else f"&pin-source=file:{quote(str(self.pin_source), safe=_SAFE + '/')}"
        return (
            f"{SCHEME}:token={quote(self.token, safe=_SAFE)};object={quote(self.label, safe=_SAFE)}{serial}"
            f"?module-path={quote(str(self.module), safe=_SAFE + '/')}{source}"
        )

    @classmethod
    def parse(cls, uri: str) -> Pkcs11Uri:
        """Reads a URI strictly. No message quotes it, since somebody may have put a PIN into it.

        Raises:
            MisuseError: It is not such a URI, has an attribute twice or one that is not known here, lacks one, or
                holds a PIN.
        """
        scheme, colon, rest = uri.partition(":")
        if not colon or scheme.lower() != SCHEME or len(uri) > MAX_URI:
            raise MisuseError(
                f"a key in an HSM is named by a {SCHEME}: URI of at most {MAX_URI} characters", hint=_HINT
            )
        path, _, query = rest.partition("?")
        named = _attributes(path, ";", _PATH, _PATH_VALUE) | _attributes(query, "&", _QUERY, _QUERY_VALUE)
        for name in ("token", "object", "module-path"):
            if not named.get(name):
                raise MisuseError(f"{SCHEME}: URI lacks {name}", hint=_HINT)
        for name in ("token", "object", "serial"):
            value = named.get(name, "-")
            if not value or not value.isprintable() or len(value.encode()) > MAX_LABEL_BYTES:
                raise MisuseError(f"{name} in a {SCHEME}: URI is printable text of at most {MAX_LABEL_BYTES} bytes")
        source = named.get("pin-source")
        return cls(
            token=named["token"],
            label=named["object"],
            module=_absolute("module-path", named["module-path"]),
            serial=named.get("serial"),
            pin_source=None if source is None else _pin_source(source),
        )


def _attributes(text: str, separator: str, known: tuple[str, ...], value_of: re.Pattern[str]) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for part in text.split(separator) if text else ():
        name, equals, value = part.partition("=")
        if name == "pin-value":
            raise MisuseError("a PIN does not belong on a command line, where others can read it", hint=_PIN_HINT)
        if name not in known:
            # The name is shown only when it looks like one: a slip of the pen could leave a PIN here.
            shown = name if re.fullmatch("[a-z-]{1,24}", name) and equals else "one"
            raise MisuseError(f"{SCHEME}: URI has an attribute that is not known here: {shown}", hint=_HINT)
        if not equals or not value_of.fullmatch(value):
            raise MisuseError(f"{name} in a {SCHEME}: URI is not encoded as RFC 7512 asks", hint=_HINT)
        if name in attributes:
            raise MisuseError(f"{name} is in the {SCHEME}: URI twice")
        attributes[name] = _text(name, value)
    return attributes


def _text(name: str, value: str) -> str:
    try:
        text = unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise MisuseError(f"{name} in a {SCHEME}: URI is not UTF-8 text")
    return text


def _pin_source(value: str) -> Path:
    """RFC 7512 section 2.4 leaves the forms open; here a file, since running a program found in a URI is not meant."""
    if value.startswith("|"):
        raise MisuseError("pin-source names a program, which is not run", hint=_PIN_HINT)
    return _absolute("pin-source", value.removeprefix("file:").removeprefix("//"))


def _absolute(name: str, value: str) -> Path:
    if not value.startswith("/"):
        # A relative module would depend on where the command runs, and so would the code that is loaded.
        raise MisuseError(f"{name} in a {SCHEME}: URI is an absolute path", hint=_HINT)
    return Path(value)
