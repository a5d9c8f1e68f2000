"""What the fuzzer found once stays mended, and its targets still judge: kept inputs, each with its verdict."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from random import Random

import pytest

from assurance.fuzz import vectors
from assurance.fuzz.all_targets import TARGETS
from assurance.fuzz.mutation import of_cbor, of_json
from assurance.fuzz.target import Broken, Finding, Run, Target, judged, need, pure, verdict
from assurance.fuzz.worker import minimised
from testbed.devices import workplace
from variegate.keys import cbor
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.manifest import Manifest

INDEX = vectors.index()


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs_get_their_verdicts(name: str) -> None:
    target, wrong = TARGETS[name], []
    assert INDEX[name]
    with workplace() as folder, target.opened(folder) as run:
        for file, entry in INDEX[name].items():
            said = judged(target, run, (vectors.FOLDER / name / file).read_bytes())
            if said != entry["verdict"]:
                wrong.append((file, entry, said))
    assert not wrong


def test_every_kept_input_is_in_the_index_under_its_hash() -> None:
    found = {f"{path.parent.name}/{path.name}" for path in vectors.FOLDER.glob("*/*")}
    assert found == {f"{name}/{file}" for name, entries in INDEX.items() for file in entries}
    assert set(INDEX) == set(TARGETS)
    for path in vectors.FOLDER.glob("*/*.bin"):
        assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_an_input_that_gets_through(name: str) -> None:
    """A target whose seeds are all refused at the door tests the door."""
    good = ("accepted", "200", "bytes", "DONE", "skipped")
    assert any(word in entry["verdict"] for entry in INDEX[name].values() for word in good)


def toy(run: Run, *, live: bool = False) -> Target:
    return Target(name="toy", opened=pure(run), seeds=lambda: [b""], live=live)


def test_what_counts_as_a_finding() -> None:
    def run(data: bytes) -> str:
        need(data != b"broken", "broken")
        if data == b"slow":
            end = time.thread_time() + 1.05
            while time.thread_time() < end:
                pass
            return "slow"
        if data == b"message":
            return verdict(lambda: refuse("a\n"))
        if data == b"refused":
            return verdict(lambda: refuse("no"))
        return verdict(lambda: int(data))

    def refuse(text: str) -> None:
        raise RefusedError(Refusal.INPUT, text)

    target = toy(run)
    assert judged(target, run, b"1") == "accepted"
    assert judged(target, run, b"refused") == "input"
    for data, kind in ((b"x", "ValueError"), (b"broken", "Broken"), (b"slow", "slow"), (b"message", "Broken")):
        found = judged(target, run, data)
        assert isinstance(found, Finding)
        assert found.kind == kind


def test_memory_counts_as_a_finding() -> None:
    """In a process of its own: what is measured is the most that a process ever had."""
    code = """
from assurance.fuzz.target import Target, judged, pure

def run(data):
    return str(len(bytearray(b"1") * (len(data) << 20)))

for count in (10, 300):
    print(judged(Target(name="toy", opened=pure(run), seeds=list), run, bytes(count)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=vectors.ROOT, capture_output=True, text=True, check=True)
    small, large = done.stdout.splitlines()
    assert small == str(10 << 20)
    assert large.startswith("Finding(kind='memory'")


def test_a_finding_is_made_smaller_and_stays_the_same() -> None:
    def run(data: bytes) -> str:
        if b"ab" in data:
            raise Broken("ab")
        if b"a" in data:
            raise KeyError
        return "fine"

    assert minimised(toy(run), run, b"12345678ab9" * 3) == b"ab"


def test_mutations_that_know_a_format_reach_inside() -> None:
    seed = TARGETS["manifest"].seeds()[0]

    def plain(data: bytes, most: int) -> bytes:
        return (data + b"\0")[:most]

    made = [of_cbor(seed, 4096, Random(i), plain) for i in range(300)]
    again = [of_cbor(seed, 4096, Random(i), plain) for i in range(300)]
    assert made == again
    assert all(len(data) <= 4096 for data in made)
    still_cbor = [data for data in made if verdict(lambda d=data: cbor.decode(d, limit=1 << 16)) == "accepted"]  # type: ignore[misc]
    assert len(still_cbor) > 100
    manifests = [data for data in still_cbor if verdict(lambda d=data: Manifest.from_bytes(d)) == "accepted"]  # type: ignore[misc]
    assert 0 < len(set(manifests)) < len(still_cbor)
    assert any(of_json(b'{"a": [1]}', 99, Random(i), plain).startswith(b'{"a": ') for i in range(50))
