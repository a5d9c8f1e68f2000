"""The state file of a chip over a TPM: counters and burnt values, encrypted, authenticated, numbered. No I/O here.

    file    CBOR [format, raises, [updates, openings, raises], [private, public], salt (32, random), ciphertext]
    inside  CBOR [number, session, [[name, value], ...], [[name, bytes], ...], [[name, bytes], ...]]

    ciphertext = AES-256-GCM under HKDF-Expand(key, context || salt), nonce zero; beside it, CBOR of what precedes it

The format is 1, or 2 for a chip that is bound to its machine's boot.

The key comes from the TPM (`tpm_secret`), which needs the sealed object from the file itself. So the file's head is
read as hostile, its object is unsealed, and the resulting key must open the rest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag

from variegate.device_sim.tpm import Sealed
from variegate.keys import cbor
from variegate.keys.errors import DeviceError, RefusedError
from variegate.keys.primitives import HASH_BYTES, aead, hkdf_expand

MAX_STATE_BYTES = 256 * 1024
_FORMAT, _BOUND = 1, 2
_CONTEXT = b"variegate/1/tpm-state/"
_NONCE = bytes(12)  # a key for every file written
_LAST = (1 << 63) - 1


@dataclass(frozen=True)
class Indices:
    """The chip's three NV counters.

    Attributes:
        updates: Raised once for each state that takes the place of another.
        openings: Raised each time that the chip is turned on.
        raises: Raised once for each rise of the security counter; the root secret's policy looks at it.
    """

    updates: int
    openings: int
    raises: int


@dataclass(frozen=True, kw_only=True)
class Head:
    """The part of a state that can be read without its key.

    Attributes:
        raises: Value of `indices.raises` that it goes with.
        indices: The TPM's counters.
        sealed: The root secret, under the measurements and `indices.raises <= raises`.
        bound: Whether it is also sealed under the machine's boot.
    """

    raises: int
    indices: Indices
    sealed: Sealed
    bound: bool = False

    def to_list(self) -> list[object]:
        """As it stands in the file."""
        at, sealed = self.indices, self.sealed
        return [
            _BOUND if self.bound else _FORMAT,
            self.raises,
            [at.updates, at.openings, at.raises],
            [sealed.private, sealed.public],
        ]


@dataclass(frozen=True, kw_only=True)
class State(Head):
    """One state of the chip.

    Attributes:
        number: Value of `indices.updates` from which on this state is the only one that counts.
        session: Value of `indices.openings` in the process that wrote it.
        counters: Values by name.
        burnt: Values by name.
        secrets: Ciphertexts by name.
    """

    number: int
    session: int
    counters: Mapping[str, int]
    burnt: Mapping[str, bytes]
    secrets: Mapping[str, bytes]

    def to_bytes(self, key: bytes) -> bytes:
        """The file, under a salt of its own.

        Raises:
            DeviceError: More is kept than a chip holds.
        """
        parts: tuple[Mapping[str, object], ...] = (self.counters, self.burnt, self.secrets)
        listed = [[[name, part[name]] for name in sorted(part)] for part in parts]
        inside = cbor.encode([self.number, self.session, *listed])
        salt = os.urandom(HASH_BYTES)
        ahead = [*self.to_list(), salt]
        data = cbor.encode([*ahead, aead(_file_key(key, salt)).encrypt(_NONCE, inside, cbor.encode(ahead))])
        if len(data) > MAX_STATE_BYTES:
            raise DeviceError(f"the device's chip holds no more than {MAX_STATE_BYTES} bytes")
        return data


def read_head(data: bytes) -> Head:
    """Reads the head of hostile bytes; trust it only after `read_state`.

    Raises:
        DeviceError: They are not in the format.
    """
    return _parsed(data)[0]


def read_state(data: bytes, key: bytes) -> State:
    """Opens a file.

    Raises:
        DeviceError: It was not written under this key, or is not in the format.
    """
    head, salt, ciphertext = _parsed(data)
    try:
        inside = aead(_file_key(key, salt)).decrypt(_NONCE, ciphertext, cbor.encode([*head.to_list(), salt]))
    except (InvalidTag, ValueError):
        raise _damaged() from None
    match _decoded(inside):
        case [int(number), int(session), list(counters), list(burnt), list(secrets)] if _in_range(number, session):
            return State(
                raises=head.raises,
                indices=head.indices,
                sealed=head.sealed,
                bound=head.bound,
                number=number,
                session=session,
                counters=_integers(counters),
                burnt=_blobs(burnt),
                secrets=_blobs(secrets),
            )
    raise _damaged()


def _parsed(data: bytes) -> tuple[Head, bytes, bytes]:
    match _decoded(data):
        case [
            int(version),
            int(raises),
            [int(updates), int(openings), int(raising)],
            [bytes(private), bytes(public)],
            bytes(salt),
            bytes(ciphertext),
        ] if version in (_FORMAT, _BOUND) and _in_range(raises, updates, openings, raising) and len(salt) == HASH_BYTES:
            indices, sealed = Indices(updates, openings, raising), Sealed(private, public)
            return Head(raises=raises, indices=indices, sealed=sealed, bound=version == _BOUND), salt, ciphertext
    raise _damaged()


def _file_key(key: bytes, salt: bytes) -> bytes:
    return hkdf_expand(key, _CONTEXT + salt)


def _decoded(data: bytes) -> Any:
    try:
        return cbor.decode(data, limit=MAX_STATE_BYTES)
    except RefusedError:
        raise _damaged() from None


def _in_range(*values: int) -> bool:
    return all(0 <= value <= _LAST for value in values)


def _integers(items: list[object]) -> dict[str, int]:
    integers: dict[str, int] = {}
    for item in items:
        match item:
            case [str(name), int(value)] if name not in integers and _in_range(value):
                integers[name] = value
            case _:
                raise _damaged()
    return integers


def _blobs(items: list[object]) -> dict[str, bytes]:
    blobs: dict[str, bytes] = {}
    for item in items:
        match item:
            case [str(name), bytes(value)] if name not in blobs:
                blobs[name] = value
            case _:
                raise _damaged()
    return blobs


def _damaged() -> DeviceError:
    return DeviceError("the chip's state is damaged", hint="restore the state that the device wrote last")
