"""Tries to make a device accept changed, foreign and old artefacts, interrupted flashes, and queries beyond its budget.

    python -m assurance.tamper [--quick] [--out PATH]

All attempts use the product's own entry points (`Enclave.open`, `flash`, `Device.boot`) on simulated devices. An
attempt is accepted if an enclave opens; it is a crash if it ends in anything but an error of ours.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from assurance.tamper.budget import budgets
from assurance.tamper.power import power_cuts
from testbed.artefacts import CLASS, MemorySigner, frames, seal_for, tiny_payload
from testbed.devices import twin, workplace
from testbed.result import result_path, write_result
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.keys.artefact import MAGIC, Artefact
from variegate.keys.component import HEADER_BYTES, Layout
from variegate.keys.envelope import open_envelope
from variegate.keys.errors import RefusedError
from variegate.keys.primitives import HASH_BYTES
from variegate.runtime.enclave import Enclave

SEED = 20
Figures = dict[str, float | int]


@dataclass(frozen=True)
class Plan:
    """How much to try.

    Attributes:
        stride: Every which byte is changed and cut at.
        sampled: Changes sampled in an artefact of a usual size.
        padding: Bytes that make it so.
        fleet: Devices and artefacts of the matrix.
        power_seeds: Power cuts at each storage operation.
        double_cuts: Flashes cut, and cut again in recovery.
        rollbacks: Updates after which the old image is tried.
        budgets: Query budget of each device of the budget attack.
        kills: Kills of each such device.
    """

    stride: int = 1
    sampled: int = 1000
    padding: int = 1 << 20
    fleet: int = 8
    power_seeds: int = 24
    double_cuts: int = 600
    rollbacks: int = 20
    budgets: tuple[int, ...] = (64, 500, 4000, 16000, 32000)
    kills: int = 80


QUICK = Plan(stride=40, sampled=10, fleet=3, power_seeds=1, double_cuts=10, rollbacks=2, budgets=(64, 4000), kills=6)


def main() -> None:
    """Runs everything and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds; its figures mean nothing")
    parser.add_argument("--out", type=Path, help="write the result there instead")
    args = parser.parse_args()
    plan = QUICK if args.quick else Plan()
    signer = MemorySigner()
    figures: Figures = {}
    raw: dict[str, object] = {}
    with workplace() as folder:
        for name, part in PARTS.items():
            started = time.perf_counter()
            found, details = part(plan, folder / name, signer)
            figures |= found
            raw[name] = details
            print(f"{name}: {found} in {time.perf_counter() - started:.1f} s", flush=True)
            shutil.rmtree(folder / name)
    write_result(
        "tamper",
        figures=figures,
        raw=raw,
        seeds=[SEED],
        n={name: value for name, value in asdict(plan).items() if isinstance(value, int)},
        path=result_path("tamper", quick=args.quick, out=args.out),
    )


def changed(plan: Plan, folder: Path, signer: MemorySigner) -> tuple[Figures, object]:
    """Two bits in every byte, every length, swapped chunks, components of another buyer: one small artefact."""
    chance = random.Random(SEED)  # noqa: S311  to repeat
    with Device.create(folder, CLASS, signer.root) as device:
        artefact = seal_for(device.identity, signer)
        whole = artefact.to_bytes()
        with Enclave.open(Artefact.from_bytes(whole), device):
            pass  # unchanged, it opens
        other = seal_for(device.identity, signer, sequence=2, buyer="buyer-2")
        flips = Counter(attempt(device, bad) for bad in _flipped(whole, plan.stride, chance))
        cuts = Counter(attempt(device, whole[:length]) for length in range(0, len(whole), plan.stride))
        swaps = Counter(attempt(device, bad) for bad in _swapped(artefact, other, signer))
    figures: Figures = {
        "mutations_tried": flips.total() + swaps.total(),
        "mutations_accepted": flips["accepted"] + swaps["accepted"],
        "mutations_crashed": flips["crashed"] + swaps["crashed"],
        "cuts_tried": cuts.total(),
        "cuts_accepted": cuts["accepted"],
        "cuts_crashed": cuts["crashed"],
    }
    return figures, {
        "artefact_bytes": len(whole),
        "envelope_bytes": len(artefact.envelope),
        "flips": flips,
        "cuts": cuts,
        "swaps": swaps,
    }


def real_sized(plan: Plan, folder: Path, signer: MemorySigner) -> tuple[Figures, object]:
    """Single bits at random places of a component of a usual size."""
    chance = random.Random(SEED)  # noqa: S311  to repeat
    with Device.create(folder, CLASS, signer.root) as device:
        payload = tiny_payload(padding=plan.padding)
        whole = seal_for(device.identity, signer, payload=payload, chunk=1 << 16).to_bytes()
        found: Counter[str] = Counter()
        for _ in range(plan.sampled):
            bad = bytearray(whole)
            bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
            found[attempt(device, bytes(bad))] += 1
    return {
        "sampled_mutations_tried": found.total(),
        "sampled_mutations_accepted": found["accepted"],
        "sampled_mutations_crashed": found["crashed"],
    }, {"artefact_bytes": len(whole)}


def fleet(plan: Plan, folder: Path, signer: MemorySigner) -> tuple[Figures, object]:
    """Every artefact on every device."""
    folder.mkdir()
    homes = [folder / str(i) for i in range(plan.fleet)]
    artefacts = []
    for home in homes:
        with Device.create(home, CLASS, signer.root) as device:
            artefacts.append(seal_for(device.identity, signer, buyer=f"buyer-{home.name}"))
    opened = []
    for home in homes:
        row = []
        for artefact in artefacts:
            with twin(home, folder / "twin") as device:
                try:
                    flash(device, artefact)
                    row.append(int(len(device.boot().classify_batch(frames(2))) == 2))
                except RefusedError:
                    row.append(0)
        opened.append(row)
    diagonal = sum(opened[i][i] for i in range(plan.fleet))
    return {"diagonal_opened": diagonal, "off_diagonal_opened": sum(map(sum, opened)) - diagonal}, opened


def rolled_back(plan: Plan, folder: Path, signer: MemorySigner) -> tuple[Figures, object]:
    """After each update: the old artefact flashed again, and the disk restored from before the update."""
    accepted = tried = 0
    with Device.create(folder, CLASS, signer.root) as device:
        old = seal_for(device.identity, signer)
        flash(device, old)
    for number in range(1, plan.rollbacks + 1):
        backup = folder / "backup"
        shutil.copytree(folder / "disk", backup)
        with Device.open(folder) as device:
            new = seal_for(device.identity, signer, sequence=number, security_counter=number)
            flash(device, new)
            accepted += _flashes(device, old)
        shutil.rmtree(folder / "disk")
        backup.rename(folder / "disk")
        with Device.open(folder) as device:
            accepted += _boots(device) + _flashes(device, old)
            flash(device, new)
        old = new
        tried += 3
    return {"rollbacks_tried": tried, "rollbacks_accepted": accepted}, None


def _power(plan: Plan, folder: Path, _signer: MemorySigner) -> tuple[Figures, object]:
    return power_cuts(folder, seeds=plan.power_seeds, double=plan.double_cuts, seed=SEED)


def _budgets(plan: Plan, folder: Path, signer: MemorySigner) -> tuple[Figures, object]:
    return budgets(folder, signer, sizes=plan.budgets, kills=plan.kills, seed=SEED)


def attempt(device: Device, data: bytes) -> str:
    """Opens bytes as an artefact: "refused", "accepted" or "crashed"."""
    try:
        Enclave.open(Artefact.from_bytes(data), device).close()
    except RefusedError:
        return "refused"
    except Exception:  # noqa: BLE001  what is counted
        return "crashed"
    return "accepted"


def _flipped(whole: bytes, stride: int, chance: random.Random) -> Iterator[bytes]:
    for place in range(0, len(whole), stride):
        for bit in chance.sample(range(8), 2):
            bad = bytearray(whole)
            bad[place] ^= 1 << bit
            yield bytes(bad)


def _swapped(artefact: Artefact, other: Artefact, signer: MemorySigner) -> Iterator[bytes]:
    """Chunks swapped, alone and with their leaves; parts of another artefact for the same device."""
    file = bytes(artefact.component)
    ref = open_envelope(artefact.envelope, signer.root).manifest.component
    layout = Layout.parse(file[:HEADER_BYTES], ref)
    for first in range(layout.chunks):
        for second in range(first + 1, layout.chunks):
            chunks = _exchange(file, layout.span(first), layout.span(second))
            leaves = [
                slice(HEADER_BYTES + HASH_BYTES * i, HEADER_BYTES + HASH_BYTES * (i + 1)) for i in (first, second)
            ]
            for bad in (chunks, _exchange(chunks, *leaves)):
                yield Artefact(artefact.envelope, bad).to_bytes()
    yield Artefact(artefact.envelope, other.component).to_bytes()
    yield Artefact(other.envelope, artefact.component).to_bytes()
    yield Artefact(artefact.envelope, file[:HEADER_BYTES] + bytes(other.component)[HEADER_BYTES:]).to_bytes()
    yield MAGIC + artefact.to_bytes()


def _exchange(data: bytes, first: slice, second: slice) -> bytes:
    """Two parts exchanged, whatever their lengths."""
    return b"".join(
        (data[: first.start], data[second], data[first.stop : second.start], data[first], data[second.stop :])
    )


def _boots(device: Device) -> bool:
    try:
        device.boot()
    except RefusedError:
        return False
    return True


def _flashes(device: Device, artefact: Artefact) -> bool:
    try:
        flash(device, artefact)
    except RefusedError:
        return False
    return True


PARTS = {
    "changed": changed,
    "real_sized": real_sized,
    "fleet": fleet,
    "rolled_back": rolled_back,
    "power": _power,
    "budgets": _budgets,
}
"""The parts of the run, in order."""

if __name__ == "__main__":
    main()
