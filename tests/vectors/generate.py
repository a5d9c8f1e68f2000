"""Writes the test vectors, or checks the committed ones.

    python tests/vectors/generate.py            rewrites every file of this folder
    python tests/vectors/generate.py --check    compares them

Derivations, streams and recipes are deterministic and compared byte for byte. HPKE and ML-DSA are randomised, so
`--check` opens each artefact and key file and holds the outcome against the index.
All keys here are TEST KEYS from a published seed (`reference.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np  # noqa: E402 - the path first

from testbed import artefact_parts as parts  # noqa: E402
from testbed.artefact_parts import Case  # noqa: E402
from testbed.reference import open_artefact, published_device, secret_of  # noqa: E402
from tests.vectors.artefact_cases import cases  # noqa: E402
from tests.vectors.attest_cases import attest_vectors  # noqa: E402
from tests.vectors.patches import difference, read_artefacts  # noqa: E402
from variegate.keys import cbor, keyfile, streams  # noqa: E402
from variegate.keys.errors import RefusedError  # noqa: E402
from variegate.keys.primitives import sha256  # noqa: E402
from variegate.keys.recipe import KeyedTensor  # noqa: E402

WARNING = "TEST KEYS derived from a published seed: never for use"
HEAD_BYTES = 32
PASSPHRASE = "correct horse battery staple"
SEED = secret_of("streams")


def derivations() -> dict[str, Any]:
    """The seller's derived keys."""
    buyers = [("test-buyer", 0), ("test-buyer", 1), ("b", 1 << 40), ("Bücher & Söhne", 24)]
    releases = [("test-release", "test-cohort"), ("r/1", "c"), ("r", "1/c")]
    return {
        "warning": WARNING,
        "master": secret_of("seller/master").hex(),
        "buyer_seed": [
            {"buyer": buyer, "epoch": epoch, "seed": parts.SELLER.buyer_seed(buyer, epoch).hex()}
            for buyer, epoch in buyers
        ],
        "release_cek": [
            {"release": release, "cohort": cohort, "cek": parts.SELLER.release_cek(release, cohort).hex()}
            for release, cohort in releases
        ],
    }


def stream_vectors() -> dict[str, Any]:
    """Every generator, small and large."""
    made: list[tuple[str, str, dict[str, int], Any]] = []
    for label, count in (("a", 1), ("messages", 13), ("messages", 8192)):
        made.append((label, "signs", {"count": count}, streams.signs(SEED, label, count)))
    for label, count, modulus in (("t", 5, 1), ("t", 9, 64), ("dithers/scale 2", 4096, 65536)):
        arguments = {"count": count, "modulus": modulus}
        made.append((label, "dithers", arguments, streams.dithers(SEED, label, count, modulus)))
    for label, count in (("u", 7), ("ü", 4096)):
        made.append((label, "uniform", {"count": count}, streams.uniform(SEED, label, count)))
    for label, count in (("order", 2), ("order", 10), ("order", 43), ("order", 1000)):
        made.append((label, "derangement", {"count": count}, streams.derangement(SEED, label, count)))
    return {
        "seed": SEED.hex(),
        "output": "array bytes, little-endian: int8, uint16, float32 or int64",
        "below": [{"label": "below", "bound": bound, "values": _below(bound)} for bound in (10, 3 << 30, 1 << 32)],
        "raw": [{"label": name, "bytes": streams.Stream(SEED, name).read(48).hex()} for name in ("", "a", "ü")],
        "vectors": [
            {"label": label, "generator": generator, "arguments": arguments, **_digest(array)}
            for label, generator, arguments, array in made
        ],
    }


def recipe_vectors() -> dict[str, Any]:
    """Recipes as CBOR and what they expand to."""
    tensors = (
        *parts.TENSORS,
        KeyedTensor(name="scaled", generator="signs", shape=(3, 2, 5), numerator=255, steps=(64, 96, 128)),
        KeyedTensor(name="spread", generator="uniform", shape=(4, 33), numerator=5, steps=(3, 1 << 24), axis=1),
        KeyedTensor(name="mixed", generator="dithers", shape=(2, 6, 2), steps=(1, 512, 1024, 65536), axis=1),
    )
    return {
        "seed": SEED.hex(),
        "output": "array bytes, little-endian: float32, and int64 for derangement",
        "vectors": [
            {
                "name": tensor.name,
                "cbor": cbor.encode(tensor.to_cbor()).hex(),
                "shape": list(tensor.shape),
                **_digest(np.ascontiguousarray(tensor.expand(SEED))),
            }
            for tensor in tensors
        ],
    }


def artefact_index(made: list[Case]) -> dict[str, Any]:
    """What is deterministic about the artefacts."""
    devices = {name: published_device(name) for name in ("x25519", "hybrid", "other")}
    payloads = {case.name: _payload(case.data, case.device) for case in made if case.refusal is None}
    return {
        "warning": WARNING,
        "seller_root": parts.SELLER.root.to_bytes().hex(),
        "cek": parts.KEYS.cek.hex(),
        "seed": parts.KEYS.seed.hex(),
        "devices": {
            name: {"secret_cbor": device.to_bytes().hex(), "public": json.loads(device.public.to_json())}
            for name, device in devices.items()
        },
        "vectors": [
            {
                "name": case.name,
                "note": case.note,
                "device": case.device,
                "refusal": case.refusal,
                **({} if case.refusal else {"payload_sha256": payloads[case.name]}),
            }
            for case in made
        ],
    }


def write_artefacts(made: list[Case]) -> None:
    """Writes each as a file, or as a patch when it differs little from a good one."""
    folder = HERE / "artefacts"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    good = {case.name: case.data for case in made if case.refusal is None}
    patches = {}
    for case in made:
        hunks = None if case.base is None else difference(good[case.base], case.data)
        if hunks is None:
            (folder / f"{case.name}.vgcopy").write_bytes(case.data)
        else:
            patches[case.name] = {"base": case.base, "hunks": hunks}
    (HERE / "patches.json").write_text(_text(patches), "utf-8")


def check_artefacts(index: dict[str, Any]) -> list[str]:
    """Opens every committed artefact; returns what differs."""
    faults = []
    files = read_artefacts(HERE)
    if files.keys() != {entry["name"] for entry in index["vectors"]}:
        return ["artefacts: not those that the index names"]
    for entry in index["vectors"]:
        try:
            found, digest = None, _payload(files[entry["name"]], entry["device"])
        except RefusedError as error:
            found, digest = error.refusal.value, None
        if (found, digest) != (entry["refusal"], entry.get("payload_sha256")):
            faults.append(f"artefacts/{entry['name']}: {found}, should be {entry['refusal']}")
    return faults


def key_files() -> dict[str, Any]:
    """One key file of each kind."""
    seller = cbor.encode([1, 0, *(secret_of(f"seller/{n}") for n in ("master", "ed25519", "mldsa65"))])
    device = published_device("x25519").to_bytes()
    return {
        "warning": WARNING,
        "passphrase": PASSPHRASE,
        "vectors": [
            {"kind": kind, "secret": secret.hex(), "file": keyfile.seal(kind, secret, PASSPHRASE).hex()}
            for kind, secret in (("seller", seller), ("device", device))
        ],
    }


def check_key_files(value: dict[str, Any]) -> list[str]:
    """Opens the committed key files; returns what differs."""
    return [
        f"key_files.json: {entry['kind']}"
        for entry in value["vectors"]
        if keyfile.KeyFile.from_bytes(bytes.fromhex(entry["file"])).open(value["passphrase"]).hex() != entry["secret"]
    ]


def main() -> int:
    """Runs the command; status 1 when `--check` finds a difference."""
    parser = argparse.ArgumentParser(description="Write or check the test vectors.")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    made = cases()
    fixed = {
        "derivations.json": derivations(),
        "streams.json": stream_vectors(),
        "recipes.json": recipe_vectors(),
        "artefacts.json": artefact_index(made),
        "attest.json": attest_vectors(),
    }
    if check:
        faults = [name for name, value in fixed.items() if (HERE / name).read_text("utf-8") != _text(value)]
        faults += check_artefacts(json.loads((HERE / "artefacts.json").read_text("utf-8")))
        faults += check_key_files(json.loads((HERE / "key_files.json").read_text("utf-8")))
        for fault in faults:
            print(f"differs: {fault}", file=sys.stderr)
        return 1 if faults else 0
    for name, value in {**fixed, "key_files.json": key_files()}.items():
        (HERE / name).write_text(_text(value), "utf-8")
    write_artefacts(made)
    return 0


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _digest(array: Any) -> dict[str, Any]:
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    if len(data) <= 4 * HEAD_BYTES:
        return {"bytes": data.hex()}
    return {"head": data[:HEAD_BYTES].hex(), "sha256": sha256(data).hex()}


def _below(bound: int) -> list[int]:
    """With 3 * 2^30 one word in four is dropped."""
    stream = streams.Stream(SEED, "below")
    return [stream.below(bound) for _ in range(16)]


def _payload(data: bytes, device: str) -> str:
    return sha256(open_artefact(data, parts.SIGNER.root, published_device(device))[2]).hex()


if __name__ == "__main__":
    sys.exit(main())
