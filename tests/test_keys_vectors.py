"""The committed vectors, and the streams and recipes against a second implementation in plain Python."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.reference import open_artefact
from tests.vectors.patches import read_artefacts
from variegate.keys import cbor, component, keyfile
from variegate.keys.envelope import open_envelope
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.identity import DeviceIdentity, DevicePublic
from variegate.keys.manifest import ComponentRef
from variegate.keys.recipe import KeyedTensor
from variegate.keys.seller import Seller
from variegate.keys.signing import SellerRoot
from variegate.keys.streams import Stream

VECTORS = Path(__file__).parent / "vectors"


def read(name: str) -> Any:
    return json.loads((VECTORS / name).read_text("utf-8"))


INDEX = read("artefacts.json")
FILES = read_artefacts(VECTORS)
ROOT = SellerRoot.from_bytes(bytes.fromhex(INDEX["seller_root"]))
DEVICES = {
    name: DeviceIdentity.from_bytes(bytes.fromhex(entry["secret_cbor"])) for name, entry in INDEX["devices"].items()
}


@pytest.mark.parametrize("entry", INDEX["vectors"], ids=lambda entry: entry["name"])
def test_artefact(entry: dict[str, Any]) -> None:
    data, device = FILES[entry["name"]], DEVICES[entry["device"]]
    if entry["refusal"] is None:
        envelope, keys, plain, payload = open_artefact(data, ROOT, device)
        assert (keys.cek.hex(), keys.seed.hex()) == (INDEX["cek"], INDEX["seed"])
        assert hashlib.sha256(plain).hexdigest() == entry["payload_sha256"]
        assert payload.to_bytes() == plain
        assert envelope.manifest.ueid == device.public.ueid
        return
    with pytest.raises(RefusedError) as caught:
        open_artefact(data, ROOT, device)
    assert caught.value.refusal == Refusal(entry["refusal"])


def test_every_file_has_an_entry_and_the_folder_is_small() -> None:
    assert FILES.keys() == {entry["name"] for entry in INDEX["vectors"]}
    # The fuzzer's inputs are a folder of their own, with a bound of their own.
    sizes = {path: path.stat().st_size for path in VECTORS.rglob("*") if path.suffix != ".pyc"}
    fuzzed = sum(size for path, size in sizes.items() if VECTORS / "fuzz" in path.parents)
    assert sum(sizes.values()) - fuzzed < 500_000
    assert fuzzed < 200_000


def test_device_identities_of_the_index() -> None:
    for name, entry in INDEX["devices"].items():
        assert DevicePublic.from_json(json.dumps(entry["public"])) == DEVICES[name].public


def test_generator_agrees_with_the_committed_files() -> None:
    command = [sys.executable, str(VECTORS / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("entry", read("key_files.json")["vectors"], ids=lambda entry: entry["kind"])
def test_key_file(entry: dict[str, Any]) -> None:
    file = keyfile.KeyFile.from_bytes(bytes.fromhex(entry["file"]))
    assert file.kind == entry["kind"]
    assert file.open(read("key_files.json")["passphrase"]).hex() == entry["secret"]


# A second implementation of RFC 5869, RFC 8439 and the generators, as the folder's README describes them.


def expand(key: bytes, info: bytes) -> bytes:
    return hmac.new(key, info + b"\x01", hashlib.sha256).digest()


def extract_and_expand(key: bytes, info: bytes) -> bytes:
    return expand(hmac.new(bytes(32), key, hashlib.sha256).digest(), info)


def chacha20(key: bytes, length: int) -> bytes:
    out = b""
    for counter in range(-(-length // 64)):
        start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *struct.unpack("<8I", key), counter, 0, 0, 0]
        x = start[:]
        for round_ in range(20):
            for i in range(4):
                a, b, c, d = (i + 4 * row if round_ % 2 == 0 else (i + row) % 4 + 4 * row for row in range(4))
                for first, second, third, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                    x[first] = (x[first] + x[second]) % 2**32
                    y = x[third] ^ x[first]
                    x[third] = (y << by | y >> (32 - by)) % 2**32
        out += struct.pack("<16I", *((p + q) % 2**32 for p, q in zip(x, start, strict=True)))
    return out[:length]


class Bytes:
    def __init__(self, seed: bytes, label: str, most: int) -> None:
        self.data = chacha20(expand(seed, b"variegate/1/stream/" + label.encode()), most)
        self.at = 0

    def word(self, width: int) -> int:
        self.at += width
        assert self.at <= len(self.data)
        return int.from_bytes(self.data[self.at - width : self.at], "little")

    def below(self, bound: int) -> int:
        while (value := self.word(4)) >= 2**32 // bound * bound:
            pass
        return value % bound


def single(value: float) -> float:
    """Rounded to float32; rounding a float64 quotient or product of two float32 once more is exact."""
    return struct.unpack("<f", struct.pack("<f", value))[0]  # type: ignore[no-any-return]


def draw(seed: bytes, generator: str, label: str, count: int, modulus: int = 65536) -> list[Any]:
    if generator == "derangement":
        source = Bytes(seed, label, 64 * count + 4096)
        while True:
            order = list(range(count))
            for i in reversed(range(1, count)):
                j = source.below(i + 1)
                order[i], order[j] = order[j], order[i]
            if not any(i == value for i, value in enumerate(order)):
                return order
    source = Bytes(seed, label, 2 * count)
    if generator == "signs":
        return [1 if source.data[i // 8] >> (i % 8) & 1 else -1 for i in range(count)]
    words = [source.word(2) for _ in range(count)]
    if generator == "dithers":
        return [word % modulus for word in words]
    return [(2 * word + 1 - 65536) / 65536 for word in words]


def packed(generator: str, values: list[Any]) -> bytes:
    code = {"signs": "b", "dithers": "H", "uniform": "f", "derangement": "q"}[generator]
    return struct.pack(f"<{len(values)}{code}", *values)


def matches(entry: dict[str, Any], data: bytes) -> bool:
    if "bytes" in entry:
        return bytes.fromhex(entry["bytes"]) == data
    return bytes.fromhex(entry["head"]) == data[:32] and entry["sha256"] == hashlib.sha256(data).hexdigest()


def test_chacha20_of_the_second_implementation() -> None:
    # RFC 8439 appendix A.1, test vector 1.
    assert chacha20(bytes(32), 64).hex().startswith("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")


def test_raw_streams() -> None:
    vectors = read("streams.json")
    for entry in vectors["raw"]:
        assert Bytes(bytes.fromhex(vectors["seed"]), entry["label"], 48).data.hex() == entry["bytes"]


def test_uniform_words_below_a_bound() -> None:
    vectors = read("streams.json")
    for entry in vectors["below"]:
        seed = bytes.fromhex(vectors["seed"])
        ours, theirs = Stream(seed, entry["label"]), Bytes(seed, entry["label"], 1024)
        assert [ours.below(entry["bound"]) for _ in range(16)] == entry["values"]
        assert [theirs.below(entry["bound"]) for _ in range(16)] == entry["values"]


@pytest.mark.parametrize(
    "entry", read("streams.json")["vectors"], ids=lambda entry: f"{entry['generator']}-{entry['arguments']}"
)
def test_streams(entry: dict[str, Any]) -> None:
    seed = bytes.fromhex(read("streams.json")["seed"])
    values = draw(seed, entry["generator"], entry["label"], **entry["arguments"])
    assert matches(entry, packed(entry["generator"], values))


@pytest.mark.parametrize("entry", read("recipes.json")["vectors"], ids=lambda entry: entry["name"])
def test_recipes(entry: dict[str, Any]) -> None:
    seed = bytes.fromhex(read("recipes.json")["seed"])
    raw = bytes.fromhex(entry["cbor"])
    name, generator, shape, numerator, steps, axis = cbor.decode(raw, limit=4096)
    count = math.prod(shape)
    values = draw(seed, generator, name, count)
    inner = math.prod(shape[axis + 1 :])
    divisors = [steps[i // inner % shape[axis] % len(steps)] for i in range(count)]
    if generator == "dithers":
        values = [single(v % d / d) - 0.5 for v, d in zip(values, divisors, strict=True)]
    elif generator != "derangement":
        values = [single(single(v * numerator) / d) for v, d in zip(values, divisors, strict=True)]
    data = packed("derangement" if generator == "derangement" else "uniform", values)
    assert matches(entry, data)
    tensor = KeyedTensor.from_cbor(cbor.decode(raw, limit=4096)).expand(seed)
    assert list(tensor.shape) == entry["shape"]
    assert np.ascontiguousarray(tensor).tobytes() == data


def test_derivations() -> None:
    value = read("derivations.json")
    master = bytes.fromhex(value["master"])
    seller = Seller(serial=0, master=master, ed25519_seed=bytes(32), mldsa65_seed=bytes(32))
    for entry in value["buyer_seed"]:
        info = b"variegate/1/buyer-seed/" + cbor.encode([entry["buyer"], entry["epoch"]])
        assert extract_and_expand(master, info).hex() == entry["seed"]
        assert seller.buyer_seed(entry["buyer"], entry["epoch"]).hex() == entry["seed"]
    for entry in value["release_cek"]:
        info = b"variegate/1/release-cek/" + cbor.encode([entry["release"], entry["cohort"]])
        assert extract_and_expand(master, info).hex() == entry["cek"]
        assert seller.release_cek(entry["release"], entry["cohort"]).hex() == entry["cek"]
    ceks = [entry["cek"] for entry in value["release_cek"]]
    assert len(set(ceks)) == len(ceks)


def test_oversized_parts_are_refused_before_anything_else() -> None:
    with pytest.raises(RefusedError) as caught:
        open_envelope(bytes(64 * 1024 + 1), ROOT)
    assert caught.value.refusal is Refusal.TOO_LARGE

    huge = ComponentRef(id=bytes(16), length=(1 << 30) + 1, chunk=1024, root=bytes(32))
    with pytest.raises(RefusedError) as caught:
        component.check(b"", huge)
    assert caught.value.refusal is Refusal.TOO_LARGE
