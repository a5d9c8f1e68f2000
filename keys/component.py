r"""The base component: AES-256-GCM in chunks (the STREAM construction) under a hash tree.

    header     36 bytes   "vgcomp\0\1" || id (16) || payload length (8) || chunk size (4); integers big-endian
    leaves     32 n       SHA-256(0x00 || chunk), n = ceil(payload length / chunk size)
    chunks                chunk i = AES-256-GCM of payload bytes [i * size, (i + 1) * size), tag (16) last

    key    HKDF-Expand-SHA256(CEK, "variegate/1/component/" || id, 32)
    nonce  i (11 bytes, big-endian) || 1 for the last chunk, else 0;  associated data = header
    root   RFC 9162 tree over [leaf(header), leaves...]; signed in the manifest

Everything is checked against the root before a key is used, and a download can resume at any leaf.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from variegate.keys import merkle
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.manifest import COMPONENT_ID_BYTES, ComponentRef
from variegate.keys.primitives import HASH_BYTES, TAG_BYTES, aead, aead_open, hkdf_expand

MAGIC = b"vgcomp\x00\x01"
CHUNK_BYTES = 64 * 1024
HEADER_BYTES = len(MAGIC) + COMPONENT_ID_BYTES + 8 + 4
MAX_COMPONENT_BYTES = 1 << 30
_MIN_CHUNK, _MAX_CHUNK = 1 << 10, 1 << 24
_CONTEXT = b"variegate/1/component/"


@dataclass(frozen=True)
class Layout:
    """The layout of a component file.

    Attributes:
        header: The 36 bytes.
        id: 16 bytes.
        payload: Plaintext bytes in all.
        chunk: Plaintext bytes of a chunk.
    """

    header: bytes
    id: bytes
    payload: int
    chunk: int

    @property
    def chunks(self) -> int:
        """Number of chunks, at least 1."""
        return -(-self.payload // self.chunk)

    @property
    def body(self) -> int:
        """Offset of the first chunk."""
        return HEADER_BYTES + HASH_BYTES * self.chunks

    @property
    def length(self) -> int:
        """Bytes of the whole file."""
        return self.body + self.payload + TAG_BYTES * self.chunks

    def span(self, index: int) -> slice:
        """The place of chunk `index` in the file."""
        start = self.body + index * (self.chunk + TAG_BYTES)
        return slice(start, min(start + self.chunk + TAG_BYTES, self.length))

    @classmethod
    def parse(cls, header: bytes, ref: ComponentRef) -> Layout:
        """Reads a header and holds it against the manifest.

        Raises:
            RefusedError: `COMPONENT`, when it is not the component that the manifest means.
        """
        if len(header) != HEADER_BYTES or not header.startswith(MAGIC):
            raise RefusedError(Refusal.COMPONENT, "component does not begin with a component header")
        at = len(MAGIC) + COMPONENT_ID_BYTES
        layout = cls(
            header=header,
            id=header[len(MAGIC) : at],
            payload=int.from_bytes(header[at : at + 8], "big"),
            chunk=int.from_bytes(header[at + 8 :], "big"),
        )
        if (
            not _MIN_CHUNK <= layout.chunk <= _MAX_CHUNK
            or layout.payload < 1
            or (layout.id, layout.chunk, layout.length) != (ref.id, ref.chunk, ref.length)
        ):
            raise RefusedError(Refusal.COMPONENT, "component header does not match the manifest")
        return layout

    def leaves(self, table: bytes | memoryview, ref: ComponentRef) -> list[bytes]:
        """Reads the table of leaves and checks it against the signed root.

        Raises:
            RefusedError: `COMPONENT`.
        """
        hashes = [bytes(table[i : i + HASH_BYTES]) for i in range(0, len(table), HASH_BYTES)]
        if len(hashes) != self.chunks or merkle.root([merkle.leaf(self.header), *hashes]) != ref.root:
            raise RefusedError(Refusal.COMPONENT, "component's hash tree does not match the manifest")
        return hashes


def seal(
    payload: bytes | memoryview, cek: bytes, component_id: bytes, *, chunk: int = CHUNK_BYTES
) -> tuple[bytearray, ComponentRef]:
    """Encrypts a payload.

    Args:
        payload: At least one byte.
        cek: Content encryption key, 32 bytes, used for this component id once.
        component_id: 16 bytes, unique.
        chunk: Plaintext bytes of a chunk.

    Returns:
        The component file, and its description for the manifest.

    Raises:
        MisuseError: When payload or chunk size is out of range.
    """
    if not payload or not _MIN_CHUNK <= chunk <= _MAX_CHUNK:
        raise MisuseError(f"a payload needs a byte, and chunks of {_MIN_CHUNK} to {_MAX_CHUNK} bytes")
    lengths = len(payload).to_bytes(8, "big") + chunk.to_bytes(4, "big")
    layout = Layout(MAGIC + component_id + lengths, component_id, len(payload), chunk)
    out = bytearray(layout.length)
    view, source = memoryview(out), memoryview(payload)
    view[:HEADER_BYTES] = layout.header
    cipher = _cipher(cek, component_id)
    leaves = []
    for index in range(layout.chunks):
        span = layout.span(index)
        plain = source[index * chunk : (index + 1) * chunk]
        cipher.encrypt_into(_nonce(index, layout), plain, layout.header, view[span])
        leaves.append(merkle.leaf(view[span]))
    view[HEADER_BYTES : layout.body] = b"".join(leaves)
    root = merkle.root([merkle.leaf(layout.header), *leaves])
    return out, ComponentRef(id=component_id, length=layout.length, chunk=chunk, root=root)


def check(file: bytes | memoryview, ref: ComponentRef) -> Layout:
    """Checks every byte of a component held in memory against the manifest's root, without any key.

    Raises:
        RefusedError: `TOO_LARGE` or `COMPONENT`.
    """
    if max(len(file), ref.length) > MAX_COMPONENT_BYTES:
        raise RefusedError(Refusal.TOO_LARGE, f"component exceeds {MAX_COMPONENT_BYTES} bytes")
    view = memoryview(file)
    layout = Layout.parse(bytes(view[:HEADER_BYTES]), ref)
    if len(view) != layout.length:
        raise RefusedError(Refusal.COMPONENT, "component has the wrong length")
    leaves = layout.leaves(view[HEADER_BYTES : layout.body], ref)
    if any(merkle.leaf(view[layout.span(i)]) != leaves[i] for i in range(layout.chunks)):
        raise RefusedError(Refusal.COMPONENT, "component does not match its hash tree")
    return layout


def unseal(file: bytes | memoryview, layout: Layout, cek: bytes, into: memoryview | None = None) -> memoryview:
    """Decrypts a component that `check` passed.

    Args:
        file: The component.
        layout: The result of `check`.
        cek: Content encryption key, 32 bytes.
        into: Writable memory of exactly `layout.payload` bytes for the plaintext, which is then nowhere else; new
            memory unless given.

    Returns:
        The payload: `into`, or the new memory.

    Raises:
        MisuseError: `into` has another length.
        RefusedError: `COMPONENT`, when a chunk does not decrypt.
    """
    plain = memoryview(bytearray(layout.payload)) if into is None else into
    if len(plain) != layout.payload:
        raise MisuseError(f"the payload has {layout.payload} bytes; there is room for {len(plain)}")
    view, cipher = memoryview(file), _cipher(cek, layout.id)
    for index in range(layout.chunks):
        chunk = plain[index * layout.chunk : (index + 1) * layout.chunk]
        aead_open(cipher, _nonce(index, layout), view[layout.span(index)], layout.header, chunk)
    return plain


def _cipher(cek: bytes, component_id: bytes) -> AESGCM:
    return aead(hkdf_expand(cek, _CONTEXT + component_id))


def _nonce(index: int, layout: Layout) -> bytes:
    return index.to_bytes(11, "big") + bytes([index == layout.chunks - 1])
