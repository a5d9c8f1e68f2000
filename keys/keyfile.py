r"""Secrets in a file under a passphrase.

    file      "vgkeys\0\1" || CBOR [header, sealed]
    header    CBOR [kind, [memory, iterations, lanes], salt]; memory in KiB, salt of 16 bytes
    stretched Argon2id (RFC 9106) of the passphrase (UTF-8, NFC) with salt and costs, 32 bytes
    key       HKDF-Expand-SHA256(stretched, "variegate/1/keyfile/" || kind, 32)
    sealed    AES-256-GCM of the secret, nonce zero, associated data = magic || header

The nonce is fixed because each file has a fresh salt, and so a fresh key. A wrong passphrase and a damaged file cannot
be distinguished, so both are refused in the same words.
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from variegate.keys import cbor
from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError
from variegate.keys.files import clear_leftovers, read_capped, write_atomic
from variegate.keys.primitives import KEY_BYTES, TAG_BYTES, aead, aead_open, hkdf_expand

MAGIC = b"vgkeys\x00\x01"
KIND_SELLER = "seller"
KIND_DEVICE = "device"
KIND_BROKER = "broker"
MAX_KEY_FILE_BYTES = 4096
_KINDS = (KIND_SELLER, KIND_DEVICE, KIND_BROKER)
_CONTEXT = b"variegate/1/keyfile/"
_SALT_BYTES = 16
_NONCE = bytes(12)


@dataclass(frozen=True)
class Argon2Costs:
    """Costs of Argon2id; the defaults are RFC 9106 section 4's second recommended option.

    Attributes:
        memory_kib: Memory in KiB.
        iterations: Passes over the memory.
        lanes: Parallelism.
    """

    memory_kib: int = 64 * 1024
    iterations: int = 3
    lanes: int = 4


WRITTEN_COSTS = Argon2Costs()
HIGHEST_COSTS = Argon2Costs(memory_kib=512 * 1024, iterations=10, lanes=16)
"""The highest costs that a file may ask for: 512 MiB and about ten seconds."""


@dataclass(frozen=True)
class KeyFile:
    """The parts of a key file, not decrypted.

    Attributes:
        kind: Its kind: "seller", "device" or "broker".
        costs: Costs of its passphrase.
        salt: 16 bytes.
        header: The header's bytes.
        sealed: The encrypted secret.
    """

    kind: str
    costs: Argon2Costs
    salt: bytes
    header: bytes
    sealed: bytes

    @classmethod
    def from_bytes(cls, data: bytes) -> KeyFile:
        """Reads a file's bytes.

        Raises:
            RefusedError: `KEY`, when it is not a key file or asks for costs out of range.
        """
        if not data.startswith(MAGIC):
            raise RefusedError(Refusal.KEY, "file is not a Variegate key file")
        try:
            outer = cbor.decode(data[len(MAGIC) :], limit=MAX_KEY_FILE_BYTES)
            match outer:
                case [bytes(header), bytes(sealed)] if len(sealed) > TAG_BYTES:
                    kind, costs, salt = _header(header)
                    return cls(kind, costs, salt, header, sealed)
        except RefusedError:
            raise _damaged() from None
        raise _damaged()

    def open(self, passphrase: str) -> bytes:
        """Decrypts the secret.

        Raises:
            RefusedError: `KEY`, when the passphrase is wrong or the file damaged.
            MisuseError: The passphrase is empty or no text.
            DeviceError: There is not enough memory for Argon2id.
        """
        key = _key(passphrase, self.kind, self.costs, self.salt)
        out = bytearray(len(self.sealed) - TAG_BYTES)
        try:
            aead_open(aead(key), _NONCE, self.sealed, MAGIC + self.header, memoryview(out))
        except RefusedError:
            raise _damaged() from None
        return bytes(out)


def seal(kind: str, secret: bytes, passphrase: str) -> bytes:
    """A key file's bytes, with a fresh salt and `WRITTEN_COSTS`.

    Raises:
        MisuseError: The passphrase is empty or no text, or the kind is unknown.
        DeviceError: There is not enough memory for Argon2id.
    """
    if kind not in _KINDS:
        raise MisuseError(f"a key file holds one of {', '.join(_KINDS)}")
    costs, salt = WRITTEN_COSTS, os.urandom(_SALT_BYTES)
    header = cbor.encode([kind, [costs.memory_kib, costs.iterations, costs.lanes], salt])
    sealed = aead(_key(passphrase, kind, costs, salt)).encrypt(_NONCE, secret, MAGIC + header)
    return MAGIC + cbor.encode([header, sealed])


def save(path: Path, kind: str, secret: bytes, passphrase: str, *, overwrite: bool = False) -> None:
    """Writes a key file with mode 0600, whole or not at all.

    Raises:
        MisuseError: The passphrase is empty or no text, or the path cannot be taken.
        DeviceError: Storage failed, or there is not enough memory for Argon2id.
    """
    clear_leftovers(path)
    write_atomic(path, seal(kind, secret, passphrase), overwrite=overwrite)


def read(path: Path) -> KeyFile:
    """Reads a key file without opening it.

    Raises:
        RefusedError: `KEY`, when it is no key file or others can read it; `TOO_LARGE`.
        MisuseError: There is no such file.
        DeviceError: Storage failed.
    """
    return KeyFile.from_bytes(read_capped(path, limit=MAX_KEY_FILE_BYTES, private=True))


def load(path: Path, kind: str, passphrase: str) -> bytes:
    """Reads a key file and decrypts its secret.

    Raises:
        RefusedError: `KEY`, when it is no key file of this kind, others can read it, the passphrase is wrong
            or the file damaged; `TOO_LARGE`.
        MisuseError: There is no such file, or the passphrase is empty or no text.
        DeviceError: Storage failed, or there is not enough memory for Argon2id.
    """
    file = read(path)
    if file.kind != kind:
        raise RefusedError(Refusal.KEY, f"key file holds a {file.kind} key, not a {kind} key")
    return file.open(passphrase)


def _header(header: bytes) -> tuple[str, Argon2Costs, bytes]:
    match cbor.decode(header, limit=MAX_KEY_FILE_BYTES):
        case [str(kind), [memory, iterations, lanes], bytes(salt)] if (
            kind in _KINDS
            and _within(memory, WRITTEN_COSTS.memory_kib, HIGHEST_COSTS.memory_kib)
            and _within(iterations, WRITTEN_COSTS.iterations, HIGHEST_COSTS.iterations)
            and _within(lanes, 1, HIGHEST_COSTS.lanes)
            and len(salt) == _SALT_BYTES
        ):
            return kind, Argon2Costs(memory, iterations, lanes), salt
    raise _damaged()


def _within(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _key(passphrase: str, kind: str, costs: Argon2Costs, salt: bytes) -> bytes:
    if not passphrase:
        raise MisuseError("passphrase is empty")
    try:
        secret = unicodedata.normalize("NFC", passphrase).encode()
    except UnicodeEncodeError:
        secret = None
    if secret is None:
        # Outside of the handler: the error caught there quotes the passphrase, and would be this one's context.
        raise MisuseError("passphrase is not valid text")
    try:
        stretched = Argon2id(
            salt=salt,
            length=KEY_BYTES,
            iterations=costs.iterations,
            lanes=costs.lanes,
            memory_cost=costs.memory_kib,
        ).derive(secret)
    except MemoryError:
        raise DeviceError(f"not {costs.memory_kib} KiB of memory free for the passphrase") from None
    return hkdf_expand(stretched, _CONTEXT + kind.encode())


def _damaged() -> RefusedError:
    return RefusedError(Refusal.KEY, "passphrase is wrong or key file is damaged")
