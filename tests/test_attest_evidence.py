"""Evidence and receipts: what they say, who signed them, and everything that is not quite one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import cwt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vectors.attest_cases import DEVICE, EVIDENCE, FRAMES, RECEIPT, outcome
from variegate.attest import cose, receipt
from variegate.attest import evidence as tokens
from variegate.attest.evidence import DebugStatus, Ephemeral, Evidence, ProtectionClaim
from variegate.keys import cbor, signing
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.identity import DeviceIdentity
from variegate.keys.primitives import KEM_CLASSIC

PUBLIC = DEVICE.public.signing_public
TOKEN = tokens.issue(EVIDENCE, DEVICE.sign, PUBLIC)
RECEIPT_TOKEN = receipt.issue(RECEIPT, DEVICE.sign, PUBLIC)
VECTORS = json.loads((Path(__file__).parent / "vectors" / "attest.json").read_text("utf-8"))
LIMIT = 1 << 16


def refusal_of(call: Callable[[], object]) -> Refusal | None:
    try:
        call()
    except RefusedError as error:
        return error.refusal
    return None


def with_claim(number: int, value: object) -> bytes:
    """The claims with one replaced or added, unsigned."""
    return cbor.encode({**cbor.decode(EVIDENCE.to_bytes(), limit=LIMIT), number: value})


def test_evidence_comes_back_as_it_was() -> None:
    assert tokens.verify(TOKEN, PUBLIC) == tokens.claimed(TOKEN) == EVIDENCE
    bare = replace(EVIDENCE, model=None, ephemeral=None, measurements={}, protections=(), nonce=bytes(64))
    assert tokens.verify(tokens.issue(bare, DEVICE.sign, PUBLIC), PUBLIC) == bare


def test_receipts_come_back_as_they_were() -> None:
    assert receipt.verify(RECEIPT_TOKEN, PUBLIC) == RECEIPT
    RECEIPT.require_frames(FRAMES)
    for other in (FRAMES[:1], FRAMES ^ 1, FRAMES.reshape(2, 12), (FRAMES / np.float32(255)).astype(np.float32)):
        with pytest.raises(RefusedError) as caught:
            RECEIPT.require_frames(other)
        assert caught.value.refusal is Refusal.INPUT
    for wrong in (FRAMES.astype(np.int32), np.zeros((), np.uint8), np.array([None])):
        with pytest.raises(MisuseError):
            receipt.frames_digest(wrong)
    assert receipt.frames_digest(FRAMES[::-1]) == receipt.frames_digest(FRAMES[::-1].copy())
    assert receipt.labels_of(np.array([3, 1], np.int64)) == (3, 1)


def test_the_largest_batch_has_a_receipt_and_a_larger_one_has_none() -> None:
    labels = (2**62,) * receipt.MAX_LABELS
    made = receipt.issue(replace(RECEIPT, labels=labels), DEVICE.sign, PUBLIC)
    assert receipt.verify(made, PUBLIC).labels == labels
    assert refusal_of(lambda: receipt.issue(replace(RECEIPT, labels=(*labels, 0)), DEVICE.sign, PUBLIC))


@pytest.mark.parametrize("entry", VECTORS["vectors"], ids=lambda entry: entry["name"])
def test_vectors(entry: dict[str, Any]) -> None:
    assert outcome(entry["kind"], bytes.fromhex(entry["token"])) == entry["refusal"]


def test_a_cwt_library_takes_our_token_as_a_plain_cwt() -> None:
    key = cwt.COSEKey.new({1: 1, 2: signing.key_id(PUBLIC), 3: -19, 4: [2], -1: 6, -2: PUBLIC})
    tagged = cbor2.dumps(cbor2.CBORTag(61, cbor2.CBORTag(18, cbor2.loads(TOKEN))))
    claims = cwt.decode(tagged, key)
    assert (claims[10], claims[256], claims[263]) == (EVIDENCE.nonce, EVIDENCE.ueid, EVIDENCE.debug)
    assert claims[265] == tokens.SIMULATED
    for at in range(len(tagged) - 64, len(tagged)):
        spoilt = tagged[:at] + bytes([tagged[at] ^ 1]) + tagged[at + 1 :]
        with pytest.raises(cwt.VerifyError):
            cwt.decode(spoilt, key)
    receipts = cwt.COSE.new(verify_kid=True)
    tagged = cbor2.dumps(cbor2.CBORTag(18, cbor2.loads(RECEIPT_TOKEN)))
    assert receipts.decode(tagged, key) == RECEIPT.to_bytes()


@pytest.mark.parametrize("bit", [0, 7])
def test_no_byte_of_a_token_can_change(bit: int) -> None:
    pairs: list[tuple[bytes, Callable[[bytes, bytes], object]]] = [
        (TOKEN, tokens.verify),
        (RECEIPT_TOKEN, receipt.verify),
    ]
    for token, verify in pairs:
        for at in range(len(token)):
            spoilt = token[:at] + bytes([token[at] ^ (1 << bit)]) + token[at + 1 :]
            with pytest.raises(RefusedError):
                verify(spoilt, PUBLIC)


def test_a_token_is_one_kind_of_one_device() -> None:
    other = DeviceIdentity.generate("camera-v1", KEM_CLASSIC)
    assert refusal_of(lambda: tokens.verify(TOKEN, other.public.signing_public)) is Refusal.SIGNATURE
    assert refusal_of(lambda: receipt.verify(RECEIPT_TOKEN, other.public.signing_public)) is Refusal.SIGNATURE
    assert refusal_of(lambda: tokens.verify(RECEIPT_TOKEN, PUBLIC)) is Refusal.SIGNATURE
    assert refusal_of(lambda: receipt.verify(TOKEN, PUBLIC)) is Refusal.SIGNATURE
    crossed = cose.sign1(receipt.TYP, EVIDENCE.to_bytes(), DEVICE.sign, PUBLIC)
    assert refusal_of(lambda: tokens.verify(crossed, PUBLIC)) is Refusal.SIGNATURE


def test_oversized_tokens_are_refused_before_anything_else() -> None:
    assert refusal_of(lambda: tokens.verify(bytes(tokens.MAX_EVIDENCE_BYTES + 1), PUBLIC)) is Refusal.TOO_LARGE
    assert refusal_of(lambda: receipt.verify(bytes(receipt.MAX_RECEIPT_BYTES + 1), PUBLIC)) is Refusal.TOO_LARGE


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (6, -1),
        (6, True),
        (10, bytes(7)),
        (10, bytes(65)),
        (10, [bytes(8), bytes(8)]),
        (256, bytes(33)),
        (256, b"\x01" * 32),
        (263, 5),
        (263, False),
        (265, ""),
        (265, "a" * 129),
        (265, "a\nb"),
        (265, b"\x01"),
        (267, 1 << 63),
        (-65537, None),
        (-65538, bytes(31)),
        (-65539, bytes(31)),
        (-65540, "1"),
        (-65541, None),
        (-65541, [["a", "maybe", ""]]),
        (-65541, [["a", "on"]]),
        (-65541, [["a", "on", "x" * 513]]),
        (-65541, [["a", "on", ""], ["a", "off", ""]]),
        (-65541, [["a", "on", "\x1b[2J"]]),
        (-65541, [[str(i), "on", ""] for i in range(65)]),
        (-65542, ["X448", bytes(32)]),
        (-65542, ["X25519", bytes(33)]),
        (-65543, [["b", bytes(32)], ["a", bytes(32)]]),
        (-65543, [["a", bytes(32)], ["a", bytes(32)]]),
        (-65543, [["a", bytes(31)]]),
        (-65543, [[str(i).zfill(2), bytes(32)] for i in range(65)]),
        (-65544, 0),
        (4, 2**31),
    ],
)
def test_claims_out_of_range_are_refused(number: int, value: object) -> None:
    assert refusal_of(lambda: Evidence.from_bytes(with_claim(number, value))) is Refusal.MALFORMED


@pytest.mark.parametrize("number", sorted(cbor.decode(EVIDENCE.to_bytes(), limit=LIMIT)))
def test_no_claim_may_be_missing(number: int) -> None:
    claims = cbor.decode(EVIDENCE.to_bytes(), limit=LIMIT)
    del claims[number]
    assert refusal_of(lambda: Evidence.from_bytes(cbor.encode(claims))) is Refusal.MALFORMED


def test_no_device_signs_what_no_verifier_reads() -> None:
    long = tuple(ProtectionClaim(str(i), "on", "x" * 512) for i in range(40))
    for wrong, refusal in (
        (replace(EVIDENCE, nonce=b""), Refusal.MALFORMED),
        (replace(EVIDENCE, profile=""), Refusal.MALFORMED),
        (replace(EVIDENCE, ephemeral=Ephemeral(KEM_CLASSIC, b"")), Refusal.MALFORMED),
        (replace(EVIDENCE, protections=long), Refusal.TOO_LARGE),
    ):
        with pytest.raises(RefusedError) as caught:
            tokens.issue(wrong, DEVICE.sign, PUBLIC)
        assert caught.value.refusal is refusal


TEXT = st.text(min_size=1, max_size=30).filter(str.isprintable)
UINT = st.integers(0, 2**63 - 1)
HASH = st.binary(min_size=32, max_size=32)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers(-65545, 300), inner, max_size=4),
    max_leaves=10,
)
GENERATED = st.builds(
    Evidence,
    nonce=st.binary(min_size=8, max_size=64),
    ueid=HASH.map(lambda tail: b"\x01" + tail),
    issued_at=UINT,
    profile=TEXT,
    debug=st.sampled_from(DebugStatus),
    boot_count=UINT,
    measurements=st.dictionaries(TEXT, HASH, max_size=5),
    security_counter=UINT,
    root=HASH,
    model=st.none() | HASH,
    budget_used=UINT,
    protections=st.dictionaries(TEXT, st.sampled_from(tokens.STATES), max_size=4).map(
        lambda found: tuple(ProtectionClaim(name, state, "") for name, state in found.items())
    ),
    ephemeral=st.none() | HASH.map(lambda public: Ephemeral(KEM_CLASSIC, public)),
)


@given(GENERATED)
@settings(max_examples=100, deadline=None)
def test_every_evidence_comes_back(evidence: Evidence) -> None:
    assert Evidence.from_bytes(evidence.to_bytes()) == evidence


@given(st.binary(max_size=300) | ANY.map(cbor.encode))
@settings(max_examples=200, deadline=None)
def test_nothing_but_a_token_is_taken(data: bytes) -> None:
    for call in (tokens.claimed, Evidence.from_bytes, receipt.Receipt.from_bytes):
        with pytest.raises(RefusedError):
            call(data)


@given(st.sampled_from(sorted(cbor.decode(EVIDENCE.to_bytes(), limit=LIMIT))), ANY)
@settings(max_examples=200, deadline=None)
def test_what_is_read_is_written_the_same_again(number: int, value: object) -> None:
    data = with_claim(number, value)
    refusal = refusal_of(lambda: Evidence.from_bytes(data))
    assert refusal in {None, Refusal.MALFORMED}
    if refusal is None:
        assert Evidence.from_bytes(data).to_bytes() == data
