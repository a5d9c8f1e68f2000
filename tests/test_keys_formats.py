"""Formats under arbitrary bytes: CBOR, manifest, hash tree, signed statements; and COSE against another library."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import cbor2
import cwt
import pytest
from cwt.cose_key_interface import COSEKeyInterface
from hypothesis import example, given, settings
from hypothesis import strategies as st

from testbed.artefact_parts import BATCH, GOOD, GOOD_BODY, SIGNER, manifest
from variegate.keys import cbor, merkle, signing
from variegate.keys.envelope import CONTEXT
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.manifest import ComponentRef, Manifest, Policy
from variegate.keys.primitives import KEM_CLASSIC, KEM_HYBRID, hpke_seal, sha256
from variegate.keys.recipe import KeyedTensor

ITEMS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers(-30, 300), inner, max_size=4),
    max_leaves=12,
)


def refusal_of(call: Callable[[], object]) -> Refusal | None:
    """The class of refusal, or None when the call went through; anything else raised is a failure."""
    try:
        call()
    except RefusedError as error:
        return error.refusal
    return None


@given(st.binary(max_size=64))
@example(b"\xc1\x00")
@example(b"\xd8\x23\x61\x28")
@example(b"\xfb" + bytes(8))
@example(b"\xbb" + b"\xff" * 8)
@example(b"\x81" * 60)
@example(b"\xa1\xa1\x01\x02\x02")
def test_cbor_of_any_bytes_is_refused_or_encodes_to_the_same(data: bytes) -> None:
    refused_or_same(data)


def refused_or_same(data: bytes) -> None:
    refusal = refusal_of(lambda: cbor.decode(data, limit=1 << 20))
    assert refusal in (None, Refusal.MALFORMED)
    if refusal is None:
        assert cbor.encode(cbor.decode(data, limit=1 << 20)) == data


@given(ITEMS)
def test_cbor_round_trip(value: Any) -> None:
    assert cbor.decode(cbor.encode(value), limit=1 << 20) == value


@given(ITEMS, st.data())
def test_cbor_of_changed_bytes(value: Any, data: st.DataObject) -> None:
    raw = bytearray(cbor.encode(value))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    refused_or_same(bytes(raw))


def test_cbor_limit() -> None:
    with pytest.raises(RefusedError) as caught:
        cbor.decode(bytes(11), limit=10)
    assert caught.value.refusal is Refusal.TOO_LARGE


@pytest.mark.parametrize("inner", [b"\x80", b"\x00", b"\x81\x80", b"\xa1\x00\x80"])
def test_cbor_of_too_many_items_is_refused_before_anything_is_built(inner: bytes) -> None:
    """An empty list is one byte, and 56 when it is built."""
    count = 400_000
    data = b"\x9a" + count.to_bytes(4, "big") + inner * count
    tracemalloc.start()
    refusal = refusal_of(lambda: cbor.decode(data, limit=1 << 30))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refusal is Refusal.TOO_LARGE
    assert peak < 1 << 16


def test_cbor_counts_items_of_all_containers_and_keys() -> None:
    data = cbor.encode([{0: [1, 2]}, 3])
    assert cbor.decode(data, limit=100, items=6) == [{0: [1, 2]}, 3]
    assert refusal_of(lambda: cbor.decode(data, limit=100, items=5)) is Refusal.TOO_LARGE


UINT = st.integers(0, 2**63 - 1)
POSITIVE = st.integers(1, 2**63 - 1)
TEXT = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=128).filter(str.isprintable)
HASH = st.binary(min_size=32, max_size=32)
MANIFESTS = st.builds(
    Manifest,
    sequence=UINT,
    security_counter=UINT,
    vendor=TEXT,
    device_class=TEXT,
    ueid=st.binary(min_size=32, max_size=32).map(lambda raw: b"\x01" + raw),
    buyer=TEXT,
    epoch=UINT,
    component=st.builds(
        ComponentRef, id=st.binary(min_size=16, max_size=16), length=POSITIVE, chunk=POSITIVE, root=HASH
    ),
    policy=st.builds(
        Policy, version=UINT, budget=st.none() | UINT, rate_per_hour=st.none() | POSITIVE, burst=POSITIVE, grace_s=UINT
    ),
    dtype=st.sampled_from(["uint8", "float32"]),
    shape=st.tuples(POSITIVE, POSITIVE, POSITIVE),
    classes=st.integers(2, 2**63 - 1),
    canaries=HASH,
    measurements=st.dictionaries(TEXT, HASH, max_size=3),
    not_after=st.none() | UINT,
    previous=st.none() | HASH,
    allow_downgrade=st.booleans(),
)


@given(MANIFESTS)
def test_manifest_round_trip(value: Manifest) -> None:
    data = value.to_bytes()
    assert Manifest.from_bytes(data) == value
    assert Manifest.from_bytes(data).to_bytes() == data


@given(st.integers(2, 15), ITEMS)
def test_manifest_with_any_field_is_refused_or_means_the_same(field: int, item: Any) -> None:
    fields = cbor.decode(manifest().to_bytes(), limit=1 << 16)
    fields[field] = item
    data = cbor.encode(fields)
    refusal = refusal_of(lambda: Manifest.from_bytes(data))
    assert refusal in (None, Refusal.MALFORMED)
    if refusal is None:
        assert Manifest.from_bytes(data).to_bytes() == data


def test_tree_paths_for_every_size() -> None:
    leaves = [merkle.leaf(i.to_bytes(2, "big")) for i in range(70)]
    for size in range(1, 71):
        levels = merkle.tree(leaves[:size])
        root = levels[-1][0]
        for index in range(size):
            path = merkle.path(levels, index)
            assert merkle.root_from_path(leaves[index], index, size, path) == root
            assert merkle.root_from_path(leaves[index], index, size, [*path, root]) is None
            if path:
                assert merkle.root_from_path(leaves[index], index, size, path[:-1]) is None
            for other in {0, index ^ 1, size - 1} - {index}:
                if other < size:
                    assert merkle.root_from_path(leaves[index], other, size, path) != root
            if index < 69:
                assert merkle.root_from_path(leaves[index + 1], index, size, path) != root


def test_tree_follows_the_recursion_of_the_rfc() -> None:
    def recursive(leaves: list[bytes]) -> bytes:
        """RFC 9162 section 2.1.1: split at the largest power of two below n."""
        if len(leaves) == 1:
            return leaves[0]
        split = 1 << (len(leaves) - 1).bit_length() - 1
        return sha256(b"\x01", recursive(leaves[:split]), recursive(leaves[split:]))

    leaves = [merkle.leaf(bytes([i])) for i in range(70)]
    for size in range(1, 71):
        assert merkle.root(leaves[:size]) == recursive(leaves[:size])


def test_statement_with_any_bit_flipped_is_refused() -> None:
    assert signing.verify(CONTEXT, GOOD, SIGNER.root) == GOOD_BODY
    # Every byte but those of the long ML-DSA signature, of which every seventh.
    long = GOOD.index(cbor.decode(GOOD, limit=1 << 16)[1][3])
    for position in [*range(long), *range(long, long + 3309, 7), *range(long + 3309, len(GOOD))]:
        changed = bytearray(GOOD)
        changed[position] ^= 1 << position % 8
        with pytest.raises(RefusedError) as caught:
            signing.verify(CONTEXT, bytes(changed), SIGNER.root)
        assert caught.value.refusal in (Refusal.SIGNATURE, Refusal.MALFORMED)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_statement_of_a_batch_under_changes_never_gives_another_payload(data: st.DataObject) -> None:
    index = data.draw(st.integers(0, 4))
    changed = bytearray(BATCH[index])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1) | st.integers(len(changed) - 120, len(changed) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 3))
    raw = bytes(changed[: len(changed) - cut])
    refusal = refusal_of(lambda: signing.verify(CONTEXT, raw, SIGNER.root))
    assert refusal in (None, Refusal.SIGNATURE, Refusal.MALFORMED)
    if refusal is None:
        assert signing.verify(CONTEXT, raw, SIGNER.root) == signing.verify(CONTEXT, BATCH[index], SIGNER.root)


def test_context_and_root_must_fit() -> None:
    for context, root in (
        (b"variegate/1/root", SIGNER.root),
        (CONTEXT, signing.SellerRoot(SIGNER.root.ed25519, bytes(1952))),
        (CONTEXT, signing.SellerRoot(bytes(32), SIGNER.root.mldsa65)),
    ):
        with pytest.raises(RefusedError) as caught:
            signing.verify(context, GOOD, root)
        assert caught.value.refusal is Refusal.SIGNATURE


def cose_key() -> COSEKeyInterface:
    """RFC 9053 section 7: kty OKP, kid, alg Ed25519, key_ops verify, crv Ed25519, x."""
    public = SIGNER.root.ed25519
    return cwt.COSEKey.new({1: 1, 2: signing.key_id(public), 3: -19, 4: [2], -1: 6, -2: public})


def test_another_cose_library_accepts_the_ed25519_half() -> None:
    first = cbor2.loads(GOOD)[0]
    tagged = cbor2.dumps(cbor2.CBORTag(18, first))
    decoder = cwt.COSE.new(verify_kid=True)
    assert decoder.decode(tagged, cose_key(), external_aad=CONTEXT) == GOOD_BODY
    with pytest.raises(cwt.VerifyError):
        decoder.decode(tagged, cose_key(), external_aad=b"variegate/1/root")
    first[2] = first[2][:-1] + bytes([first[2][-1] ^ 1])
    with pytest.raises(cwt.VerifyError):
        decoder.decode(cbor2.dumps(cbor2.CBORTag(18, first)), cose_key(), external_aad=CONTEXT)


def _manifest_with(field: int, value: object) -> Callable[[], object]:
    fields = cbor.decode(manifest().to_bytes(), limit=1 << 16)
    fields[field] = value
    return lambda: Manifest.from_bytes(cbor.encode(fields))


def _statement_with(edit: dict[int, object]) -> Callable[[], object]:
    value = cbor.decode(BATCH[0], limit=1 << 16)
    for position, item in edit.items():
        value[position] = item
    return lambda: signing.verify(CONTEXT, cbor.encode(value), SIGNER.root)


TENSOR = ["name", "uniform", [2], 1, [1], 0]


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(_manifest_with(1, True), id="format-boolean"),
        pytest.param(_manifest_with(13, [["b", bytes(32)], ["a", bytes(32)]]), id="measurements-unsorted"),
        pytest.param(_manifest_with(13, [["a", bytes(32)], ["a", bytes(32)]]), id="measurements-repeated"),
        pytest.param(_statement_with({2: 6}), id="batch-size-unsigned"),
        pytest.param(_statement_with({3: False}), id="batch-index-boolean"),
        pytest.param(lambda: KeyedTensor.from_cbor([*TENSOR[:3], True, *TENSOR[4:]]), id="numerator-boolean"),
        pytest.param(lambda: KeyedTensor.from_cbor([*TENSOR[:5], False]), id="axis-boolean"),
    ],
)
def test_second_encodings_are_refused(call: Callable[[], object]) -> None:
    assert refusal_of(call) in (Refusal.MALFORMED, Refusal.SIGNATURE)


@pytest.mark.parametrize(("kem", "length"), [(KEM_CLASSIC, 32), (KEM_HYBRID, 1216)])
def test_sealing_to_a_key_of_small_order_is_refused(kem: str, length: int) -> None:
    assert refusal_of(lambda: hpke_seal(kem, bytes(length), b"", b"")) is Refusal.KEY
