"""A PKCS#11 token, through python-pkcs11: its one session, and its errors turned into ours.

Login belongs to the process, not to the session (PKCS#11 v3.1 section 5.6): a second session of the same process is
logged in already, and closing the one that logged in ends them all. A wrong PIN is tried once and never again, since
tokens lock themselves after a few.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pkcs11
from pkcs11 import Attribute, Mechanism, ObjectClass, exceptions

from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError, VariegateError
from variegate.keys.pkcs11_uri import Pkcs11Uri

NEEDED = {
    Mechanism.EDDSA: "Ed25519 signatures (CKM_EDDSA)",
    Mechanism.SHA256_HMAC: "HMAC-SHA256 (CKM_SHA256_HMAC)",
    Mechanism.AES_GCM: "AES-GCM (CKM_AES_GCM)",
}
"""The operations that a token must support."""
_MAX_PIN_BYTES = 255
_WRONG_PIN = (exceptions.PinIncorrect, exceptions.PinInvalid, exceptions.PinLenRange)
_LOST = (
    exceptions.DeviceRemoved,
    exceptions.KeyHandleInvalid,
    exceptions.ObjectHandleInvalid,
    exceptions.SessionClosed,
    exceptions.SessionHandleInvalid,
    exceptions.TokenNotPresent,
    exceptions.TokenNotRecognised,
    exceptions.UserNotLoggedIn,
)
_CANNOT = (exceptions.FunctionNotSupported, exceptions.MechanismInvalid, exceptions.MechanismParamInvalid)


@contextlib.contextmanager
def hsm_calls(what: str) -> Iterator[None]:
    """Converts errors of python-pkcs11 into ours.

    Args:
        what: The operation, as in "sign".

    Raises:
        RefusedError: `KEY`, when the PIN is wrong or locked.
        DeviceError: Anything else that the token or its module fails at.
    """
    try:
        yield
    except exceptions.PKCS11Error as error:
        raise _ours(error, what) from error


class HsmToken:
    """A token, logged in.

    Args:
        where: Module, token, and how to identify it.
        pin: The user's PIN.
        writes: Whether objects are made; a session that only reads also works with a write-protected token.

    Raises:
        MisuseError: There is no such module or token, two tokens answer to the name, or the PIN cannot be one.
        RefusedError: `KEY`, when the token refuses the PIN.
        DeviceError: The token lacks a mechanism, or fails.
    """

    def __init__(self, where: Pkcs11Uri, pin: str, *, writes: bool = False) -> None:
        # Checked here, since an error in encoding it further down would quote it.
        if not pin.isascii() or not 0 < len(pin) <= _MAX_PIN_BYTES:
            raise MisuseError(f"a PIN has 1 to {_MAX_PIN_BYTES} ASCII characters")
        self._token = _find(where)
        with hsm_calls("say what it can do"):
            able = set(self._token.slot.get_mechanisms())
        missing = [name for mechanism, name in NEEDED.items() if mechanism not in able]
        if missing:
            raise DeviceError(f"token {where.token} cannot do {missing[0]}")
        self.session: Any = _session(where, self._token, pin, writes)

    @property
    def serial(self) -> str:
        """The token's serial number."""
        return _serial(self._token)

    def close(self) -> None:
        """Ends the session; the process is logged out when this was the session that logged in."""
        with contextlib.suppress(exceptions.PKCS11Error):
            self.session.close()

    def find(self, label: str, template: Mapping[Attribute, object]) -> list[Any]:
        """The objects with a label.

        Raises:
            DeviceError: The token fails.
        """
        with hsm_calls("search"):
            return list(self.session.get_objects({Attribute.LABEL: label, Attribute.TOKEN: True, **template}))

    def all_of(self, label: str) -> list[Any]:
        """Every object with a label, of any class.

        Raises:
            DeviceError: The token fails.
        """
        classes = (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY, ObjectClass.SECRET_KEY, ObjectClass.DATA)
        return [object_ for kind in classes for object_ in self.find(label, {Attribute.CLASS: kind})]


def _find(where: Pkcs11Uri) -> Any:
    if not where.module.is_file():
        raise MisuseError(f"there is no PKCS#11 module at {where.module}", hint="see module-path in the URI")
    try:
        library = pkcs11.lib(str(where.module))
    except exceptions.PKCS11Error as error:
        raise DeviceError(f"{where.module} does not work as a PKCS#11 module") from error
    with hsm_calls("list tokens"):
        objects = [
            token
            for token in library.get_tokens(token_label=where.token)
            if where.serial is None or _serial(token) == where.serial
        ]
    if not objects:
        raise MisuseError(f"no token {where.token} is there", hint="is it connected, and its module set up for it?")
    if len(objects) > 1:
        raise MisuseError(f"{len(objects)} tokens are called {where.token}", hint="add ;serial= to the URI")
    return objects[0]


def _session(where: Pkcs11Uri, token: Any, pin: str, writes: bool) -> Any:
    try:
        return token.open(rw=writes, user_pin=pin)
    except exceptions.UserAlreadyLoggedIn:
        with hsm_calls("open a session"):
            return token.open(rw=writes)
    except exceptions.PinLocked as error:
        hint = "the token's security officer can set a new one"
        raise RefusedError(Refusal.KEY, f"the PIN of token {where.token} is locked", hint=hint) from error
    except _WRONG_PIN as error:
        hint = "it was tried once; a token locks itself after a few wrong PINs"
        raise RefusedError(Refusal.KEY, f"token {where.token} refuses the PIN", hint=hint) from error
    except exceptions.UserPinNotInitialized as error:
        hint = "its security officer sets the user's PIN first"
        raise MisuseError(f"token {where.token} has no PIN yet", hint=hint) from error
    except exceptions.PKCS11Error as error:
        raise _ours(error, "log in") from error


def _serial(token: Any) -> str:
    serial = token.serial
    return serial.decode(errors="replace").rstrip() if isinstance(serial, bytes) else str(serial)


def _ours(error: exceptions.PKCS11Error, what: str) -> VariegateError:
    if isinstance(error, _LOST):
        return DeviceError(f"the HSM was lost and did not {what}", hint="connect it and run again")
    if isinstance(error, _CANNOT):
        return DeviceError(f"the HSM cannot {what}")
    return DeviceError(f"the HSM failed to {what} ({type(error).__name__})")
