"""The hash tree of RFC 9162 section 2.1, over SHA-256: one root, and the path of a leaf."""

from __future__ import annotations

from collections.abc import Sequence

from variegate.keys.primitives import sha256

Levels = list[list[bytes]]


def leaf(data: bytes | memoryview) -> bytes:
    """Hash of a leaf: SHA-256(0x00 || data)."""
    return sha256(b"\x00", data)


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01", left, right)


def tree(leaves: Sequence[bytes]) -> Levels:
    """All levels, leaf hashes first, root last; an odd node moves up as it is (the RFC's tree)."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        below = levels[-1]
        pairs = [_node(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
        levels.append(pairs + below[len(pairs) * 2 :])
    return levels


def root(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes."""
    return tree(leaves)[-1][0]


def path(levels: Levels, index: int) -> list[bytes]:
    """Inclusion proof of a leaf, lowest sibling first."""
    out = []
    for level in levels[:-1]:
        sibling = index ^ 1
        if sibling < len(level):
            out.append(level[sibling])
        index >>= 1
    return out


def root_from_path(leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """The root that a proof leads to, or None when its length does not fit `index` and `size`."""
    nodes, value = iter(proof), leaf_hash
    last = size - 1
    while last > 0:
        if index % 2 or index < last:
            sibling = next(nodes, None)
            if sibling is None:
                return None
            value = _node(sibling, value) if index % 2 else _node(value, sibling)
        index, last = index >> 1, last >> 1
    return value if next(nodes, None) is None else None
