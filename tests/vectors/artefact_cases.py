"""The table of artefact vectors: the good ones, and one for each way to be wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from testbed import artefact_parts as p
from testbed.artefact_parts import Case
from testbed.reference import other_signer
from variegate.keys import artefact, cbor, component, recipe, signing
from variegate.keys.envelope import SealedKeys
from variegate.keys.errors import Refusal
from variegate.keys.manifest import Policy
from variegate.keys.primitives import HASH_BYTES

Edit = Callable[[Any], None]
_SINGLE = "good-single-chunk"


def cases() -> list[Case]:
    """Every vector, good ones first."""
    return [
        *_good(),
        *_files(),
        *_signatures(),
        *_shapes(),
        *_paths(),
        *_sealed(),
        *_manifests(),
        *_components(),
        *_other_payload(),
        *_signed_components(),
        *_payloads(),
    ]


def _put(*way: Any, value: Any) -> Edit:
    """An edit that sets one place deep in a structure."""

    def edit(structure: Any) -> None:
        for step in way[:-1]:
            structure = structure[step]
        structure[way[-1]] = value

    return edit


def _good() -> list[Case]:
    rich = p.manifest(
        sequence=7,
        security_counter=3,
        epoch=2,
        policy=Policy(version=2, budget=100_000, rate_per_hour=3600, burst=60, grace_s=86_400),
        dtype="float32",
        measurements={"runtime": bytes(32), "interpreter": bytes(range(32))},
        not_after=2_000_000_000,
        previous=bytes(32),
    )
    out = [
        Case("good-single-chunk", "one chunk, X25519", p.whole(p.GOOD)),
        Case("good-every-field", "optional fields set", p.whole(p.sign(p.signed_payload(rich.to_bytes())))),
    ]
    hybrid = p.sign(p.signed_payload(p.manifest(device=p.HYBRID).to_bytes(), to=p.HYBRID))
    out.append(Case("good-hybrid", "one chunk, ML-KEM-768 with X25519", p.whole(hybrid), device="hybrid"))
    out.append(Case("good-several-chunks", "three chunks", p.whole(p.SEVERAL, p.SEVERAL_FILE)))
    for name, length in (("exact-multiple", 2048), ("one-byte-over", 2049)):
        note = f"payload of {length} bytes in chunks of {p.CHUNK}"
        out.append(Case(f"good-{name}", note, p.with_component(*p.seal(p.payload(length)))))
    lower = p.manifest(allow_downgrade=True).to_bytes()
    out.append(Case("good-allow-downgrade", "field 17 is there", p.whole(p.sign(p.signed_payload(lower)))))
    out.append(Case("good-batch-first", "index 0 of a batch of 5", p.whole(p.BATCH[0])))
    out.append(Case("good-batch-last", "index 4 of a batch of 5, path of one", p.whole(p.BATCH[4])))
    return out


def _files() -> list[Case]:
    good = p.whole(p.GOOD)
    after = len(artefact.MAGIC) + 4 + int.from_bytes(good[8:12], "big")
    faults = [
        ("file-magic", "first magic byte flipped", p.flipped(good, 0)),
        ("file-version", "version byte of the magic flipped", p.flipped(good, 7)),
        ("file-empty", "no byte", b""),
        ("file-cut-in-envelope", "envelope shorter than said", good[: after - 1]),
        ("file-no-component", "nothing after the envelope", good[:after]),
    ]
    return [Case(name, note, data, Refusal.MALFORMED, base=_SINGLE) for name, note, data in faults]


def _signatures() -> list[Case]:
    body, good, root = p.GOOD_BODY, p.GOOD, p.SIGNER.root
    ed, ml = p.headers(signing.ALG_ED25519, root.ed25519), p.headers(signing.ALG_ML_DSA_65, root.mldsa65)
    value = cbor.decode(good, limit=1 << 16)
    foreign = other_signer()
    faults = [
        ("ed25519", "bit of R flipped", p.edited(good, _put(0, 3, value=p.flipped(value[0][3], 0)))),
        ("ed25519-s", "bit of S flipped", p.edited(good, _put(0, 3, value=p.flipped(value[0][3], 32)))),
        ("ed25519-short", "Ed25519 signature of 63 bytes", p.edited(good, _put(0, 3, value=value[0][3][:-1]))),
        ("ed25519-empty", "no Ed25519 signature", p.edited(good, _put(0, 3, value=b""))),
        ("mldsa65", "bit flipped", p.edited(good, _put(1, 3, value=p.flipped(value[1][3], 0)))),
        ("mldsa65-empty", "no ML-DSA signature", p.edited(good, _put(1, 3, value=b""))),
        ("payload", "payload flipped after signing", p.edited(good, _put(0, 2, value=p.flipped(body, -1)))),
        ("other-seller-ed25519", "Ed25519 part by another seller", p.signed_by(foreign, p.SIGNER, body)),
        ("other-seller-mldsa65", "ML-DSA part by another seller", p.signed_by(p.SIGNER, foreign, body)),
        ("alg-eddsa", "alg -8 (EdDSA) for -19, signed", p.sign_with_headers(body, {**ed, 1: -8}, ml)),
        ("alg-mldsa44", "alg -48 (ML-DSA-44) for -49, signed", p.sign_with_headers(body, ed, {**ml, 1: -48})),
        ("kid-ed25519", "another kid, signed", p.sign_with_headers(body, {**ed, 4: bytes(16)}, ml)),
        ("kid-mldsa65", "another kid, signed", p.sign_with_headers(body, ed, {**ml, 4: bytes(16)})),
        ("header-extra", "one protected header more, signed", p.sign_with_headers(body, {**ed, 3: 0}, ml)),
        ("context", "signed as a root statement", p.sign(body, b"variegate/1/root")),
    ]
    return [
        Case(f"signature-{name}", note, p.whole(data), Refusal.SIGNATURE, base=_SINGLE) for name, note, data in faults
    ]


def _shapes() -> list[Case]:
    good = p.GOOD
    three = cbor.encode([p.manifest().to_bytes(), b"", b""])
    faults = [
        ("unprotected-ed25519", "unprotected header", p.edited(good, _put(0, 1, value={4: b"kid"}))),
        ("unprotected-mldsa65", "unprotected header", p.edited(good, _put(1, 1, value={4: b"kid"}))),
        ("mldsa65-attached", "batch payload not detached", p.edited(good, _put(1, 2, value=bytes(32)))),
        ("ed25519-detached", "payload missing", p.edited(good, _put(0, 2, value=None))),
        ("tag", "COSE_Sign1 tag 18 on the first", good[:1] + b"\xd2" + good[1:]),
        ("long-head", "array head in two bytes", b"\x98\x05" + good[1:]),
        ("long-integer", "batch size in two bytes", good[:-3] + b"\x18\x01" + good[-2:]),
        ("indefinite", "outer array of indefinite length", b"\x9f" + good[1:] + b"\xff"),
        ("trailing", "one byte after the statement", good + b"\x00"),
        ("cut", "last byte missing", good[:-1]),
        ("empty", "no byte of a statement", b""),
        ("extra-item", "six items", p.edited(good, lambda value: value.append(0))),
        ("payload-items", "three items signed in place of two", p.sign(three)),
    ]
    return [
        Case(f"statement-{name}", note, p.whole(data), Refusal.MALFORMED, base=_SINGLE) for name, note, data in faults
    ]


def _paths() -> list[Case]:
    batch, base = p.BATCH, "good-batch-first"
    path = cbor.decode(batch[0], limit=1 << 16)[4]
    wrong = [
        ("short", "last node missing", p.edited(batch[0], _put(4, value=path[:-1]))),
        ("long", "one node too many", p.edited(batch[0], _put(4, value=[*path, bytes(32)]))),
        ("node", "bit of a node flipped", p.edited(batch[0], _put(4, 0, value=p.flipped(path[0], 0)))),
        ("swapped", "nodes in the wrong order", p.edited(batch[0], _put(4, value=path[::-1]))),
        ("index", "index 1 for 0", p.edited(batch[0], _put(3, value=1))),
        ("size", "size 9 for 5", p.edited(batch[0], _put(2, value=9))),
    ]
    out = [Case(f"path-{name}", note, p.whole(data), Refusal.SIGNATURE, base=base) for name, note, data in wrong]
    shapes = [
        ("index-past-end", "index 5 of 5", p.edited(batch[0], _put(3, value=5))),
        ("index-negative", "index -1", p.edited(batch[0], _put(3, value=-1))),
        ("node-short", "node of 31 bytes", p.edited(batch[0], _put(4, 0, value=path[0][:-1]))),
        ("too-many", "33 nodes", p.edited(batch[0], _put(4, value=[bytes(32)] * 33))),
    ]
    return out + [
        Case(f"path-{name}", note, p.whole(data), Refusal.MALFORMED, base=base) for name, note, data in shapes
    ]


def _sealed() -> list[Case]:
    body = p.manifest().to_bytes()
    opened = cbor.decode(p.signed_payload(body), limit=1 << 16)[1]
    faults = [
        ("other-device", "sealed to another device", p.signed_payload(body, to=p.OTHER)),
        ("other-manifest", "sealed for another manifest", p.signed_payload(body, info=bytes(51))),
        ("flipped", "last bit of the tag flipped", cbor.encode([body, p.flipped(opened, -1)])),
        ("cut", "last byte missing", cbor.encode([body, opened[:-1]])),
        ("empty", "nothing sealed", cbor.encode([body, b""])),
        ("short-keys", "one key in place of two", p.signed_payload(body, secret=p.KEYS.cek)),
        ("small-order", "encapsulated key of all zeros", cbor.encode([body, bytes(32) + opened[32:]])),
    ]
    return [Case(f"sealed-{name}", note, p.whole(p.sign(data)), Refusal.SEALED) for name, note, data in faults]


def _manifests() -> list[Case]:
    edits: list[tuple[str, str, Edit]] = [
        ("unknown-field", "field 16", _put(16, value=0)),
        ("missing-field", "no field 15", lambda value: value.pop(15)),
        ("format", "format 2", _put(1, value=2)),
        ("sequence-text", "sequence is a text", _put(2, value="1")),
        ("sequence-negative", "sequence -1", _put(2, value=-1)),
        ("counter-boolean", "security counter is true", _put(3, value=True)),
        ("counter-too-large", "security counter 2^63", _put(3, value=1 << 63)),
        ("vendor-empty", "vendor is empty", _put(4, value="")),
        ("class-unprintable", "device class holds a line end", _put(5, value="camera\n")),
        ("ueid-short", "ueid of 32 bytes", _put(6, value=bytes(32))),
        ("buyer-long", "buyer of 129 characters", _put(7, value="b" * 129)),
        ("component-items", "component of three items", lambda value: value[9].pop()),
        ("component-root-short", "root of 31 bytes", _put(9, 3, value=bytes(31))),
        ("policy-scores", "output other than label", _put(10, 1, value="scores")),
        ("policy-burst-zero", "burst 0", _put(10, 4, value=0)),
        ("dtype", "frames of int8", _put(11, 0, value="int8")),
        ("shape-rank", "frame of two sides", _put(11, 1, value=[4, 4])),
        ("classes-one", "one class", _put(11, 2, value=1)),
        ("canaries-short", "canaries of 31 bytes", _put(12, value=bytes(31))),
        ("measurement-short", "measurement of 31 bytes", _put(13, value=[["runtime", bytes(31)]])),
        ("previous-text", "previous manifest is a text", _put(15, value="0" * 32)),
        ("downgrade-false", "field 17 is false, which is to be left out", _put(17, value=False)),
        ("downgrade-number", "field 17 is 1 in place of true", _put(17, value=1)),
        ("field-18", "field 18", _put(18, value=True)),
    ]
    out = [Case(f"manifest-{name}", note, p.with_manifest(e), Refusal.MALFORMED) for name, note, e in edits]
    good = p.manifest().to_bytes()
    for name, note, body in (
        ("trailing", "one byte after the map", good + b"\x00"),
        ("long-head", "map head in two bytes", b"\xb8\x0f" + good[1:]),
        ("unsorted", "last field first", b"\xaf\x0f\xf6" + good[1:-2]),
        ("array", "an array in place of the map", cbor.encode([1])),
    ):
        signed = p.whole(p.sign(p.signed_payload(body)))
        out.append(Case(f"manifest-{name}", note, signed, Refusal.MALFORMED))
    return out


def _components() -> list[Case]:
    """A good signed manifest, and a component changed afterwards."""
    file = p.SEVERAL_FILE
    body = component.HEADER_BYTES + 3 * HASH_BYTES
    first, second = file[body : body + 1040], file[body + 1040 : body + 2080]
    other = component.seal(p.payload(2500), p.KEYS.cek, bytes(16), chunk=p.CHUNK)[0]
    faults = [
        ("magic", "first byte flipped", p.flipped(file, 0)),
        ("id", "id flipped", p.flipped(file, 8)),
        ("length", "payload length flipped", p.flipped(file, 31)),
        ("chunk-size", "chunk size flipped", p.flipped(file, 35)),
        ("leaf", "a leaf flipped", p.flipped(file, component.HEADER_BYTES)),
        ("chunk", "a chunk flipped", p.flipped(file, body)),
        ("tag", "last tag flipped", p.flipped(file, -1)),
        ("cut", "last byte missing", file[:-1]),
        ("cut-in-header", "ends within the header", file[:20]),
        ("trailing", "one byte more", file + b"\x00"),
        ("swapped", "two chunks swapped", file[:body] + second + first + file[body + 2080 :]),
        ("other", "component of another envelope", bytes(other)),
    ]
    return [
        Case(f"component-{name}", note, p.whole(p.SEVERAL, data), Refusal.COMPONENT, base="good-several-chunks")
        for name, note, data in faults
    ]


def _other_payload() -> list[Case]:
    """Same id, key and lengths, sound in itself: only the signed root tells that it is another component."""
    plain = p.payload()
    file = p.seal(plain[:-1] + bytes([plain[-1] ^ 1]))[0]
    note = "another payload, its tree and tags right"
    return [Case("component-root", note, p.whole(p.GOOD, file), Refusal.COMPONENT, base=_SINGLE)]


def _signed_components() -> list[Case]:
    """Components whose hash tree fits and is signed: only the header's rules and the AEAD can refuse them."""
    plain = p.payload(2500)
    head = p.header(2500)
    parts = [plain[:1024], plain[1024:2048], plain[2048:]]
    good = [p.chunk_of(head, i, part, final=i == 2) for i, part in enumerate(parts)]
    unfinished = p.chunk_of(head, 2, parts[2], final=False)
    early = p.chunk_of(head, 0, parts[0], final=True)
    short, tiny = p.header(2048), p.header(300, chunk=1023)
    renamed = p.header(2500, component_id=bytes(16))
    small = p.chunk_of(tiny, 0, p.payload(), final=True)
    faults = [
        ("reordered", "chunks 0 and 1 in each other's place", p.assemble(head, [good[1], good[0], good[2]])),
        ("not-final", "last chunk without the final flag", p.assemble(head, [*good[:2], unfinished])),
        ("final-early", "first chunk with the final flag", p.assemble(head, [early, *good[1:]])),
        ("truncated", "last chunk dropped, length adapted", p.assemble(short, good[:2])),
        ("renamed", "another id around the same chunks", p.assemble(renamed, good)),
        ("chunk-too-small", "chunks of 1,023 bytes", p.assemble(tiny, [small], chunk=1023)),
        ("empty", "payload of no byte", p.assemble(p.header(0), [])),
    ]
    out = [
        Case(f"signed-component-{name}", note, p.with_component(*made), Refusal.COMPONENT)
        for name, note, made in faults
    ]
    wrong = SealedKeys(bytes(32), p.KEYS.seed)
    envelope = p.sign(p.signed_payload(p.manifest().to_bytes(), secret=wrong.to_bytes()))
    out.append(Case("sealed-wrong-cek", "another CEK sealed", p.whole(envelope), Refusal.COMPONENT))
    return out


def _keyed_too(good: list[Any]) -> bytes:
    """A whole payload whose constant has the name of a keyed tensor."""
    head = cbor.encode([2, good, b"", [["messages", "float32", [6]]]])
    start = len(head).to_bytes(4, "big") + (5).to_bytes(4, "big") + head + b"graph"
    return start + bytes(-len(start) % 64 + 24)


def _payloads() -> list[Case]:
    """Everything signed and sealed; the plaintext is not laid out as it has to be."""
    good = recipe.to_cbor(p.TENSORS)
    floats = ["w", "float32", [2, 3]]

    def framed(value: object, rest: bytes = b"graph", graph: int | None = None) -> bytes:
        data = cbor.encode(value)
        lengths = len(data).to_bytes(4, "big") + (len(rest) if graph is None else graph).to_bytes(4, "big")
        return lengths + data + rest

    def with_field(field: int, value: object) -> bytes:
        tensors: list[Any] = recipe.to_cbor(p.TENSORS)
        tensors[1] = [*tensors[1][:field], value, *tensors[1][field + 1 :]]
        return framed([2, tensors, b"", []])

    def with_constants(*table: object, slack: int = 0, pad: int = 0) -> bytes:
        """A graph of five bytes, and behind it room for each of `table` as for six floats."""
        start = framed([2, [], b"", list(table)])
        return (
            start
            + bytes([pad]) * (-len(start) % 64)
            + (24 * b"w").ljust(64, b"\0") * (len(table) - 1)
            + bytes(24 + slack)
        )

    faults = [
        ("no-graph", "nothing after the head", framed([2, good, b"", []], b"")),
        ("cut", "head longer than the payload", b"\x00\x00\xff\xff" + bytes(24)),
        ("graph-cut", "graph longer than the payload", framed([2, good, b"", []], graph=6)),
        ("trailing", "head with a byte after it", b"\x00\x00\x00\x06\x00\x00\x00\x05\x84\x02\x80\x40\x80\x00graph"),
        ("layout", "layout 1", framed([1, good, b"", []])),
        ("old", "the head of layout 1", framed([good, b""])),
        ("after-end", "a byte after the graph", framed([2, good, b"", []], b"graph!", graph=5)),
        ("constant-cut", "constant a byte short", with_constants(floats, slack=-1)),
        ("constant-after-end", "a byte after the constant", with_constants(floats, slack=1)),
        ("constant-padding", "padding that is not zero", with_constants(floats, pad=1)),
        ("constant-repeated", "a constant named twice", with_constants(floats, floats)),
        ("constant-keyed", "a constant with a keyed tensor's name", _keyed_too(good)),
        ("constant-type", "constant of complex numbers", with_constants(["w", "complex64", [3]])),
        ("constant-shape-zero", "constant without elements", with_constants(["w", "float32", [0]])),
        ("repeated", "a tensor named twice", framed([2, [*good, good[0]], b"", []])),
        ("generator", "unknown generator", with_field(1, "numpy")),
        ("shape-empty", "tensor without dimensions", with_field(2, [])),
        ("shape-huge", "tensor of 2^29 elements", with_field(2, [1 << 15, 1 << 14])),
        ("numerator", "numerator 0", with_field(3, 0)),
        ("modulus", "dithers modulo 63", with_field(4, [63])),
        ("axis", "axis past the last", with_field(5, 2)),
    ]
    return [
        Case(f"payload-{name}", note, p.with_component(*p.seal(plain)), Refusal.MALFORMED)
        for name, note, plain in faults
    ]
