"""What a device accepts of what it must not: changed artefacts, others' artefacts, old ones, cut flashes, more queries.

    python -m benchmarks.tamper [--quick] [--out PATH]

Everything goes through the product's own doors (`Enclave.open`, `flash`, `Device.boot`) on simulated devices. An
attempt is accepted when an enclave opens; it crashed when anything but an error of ours came out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.result import result_path, write_result
from tests.support.artefacts import CLASS, MemorySigner, frames, seal_for, tiny_payload
from tests.support.devices import twin, workplace
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.slots import TRIES
from variegate.device_sim.storage import Fault, PowerCut
from variegate.keys.artefact import MAGIC, Artefact
from variegate.keys.component import HEADER_BYTES
from variegate.keys.errors import LimitError, RefusedError
from variegate.keys.manifest import Policy
from variegate.keys.primitives import HASH_BYTES, TAG_BYTES
from variegate.runtime.enclave import Enclave

SEED = 20
CHUNK = 1024


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
    parser.add_argument("--out", type=Path, help="where to write instead")
    args = parser.parse_args()
    plan = QUICK if args.quick else Plan()
    signer = MemorySigner()
    figures: dict[str, float | int] = {}
    raw: dict[str, object] = {}
    with workplace() as folder:
        for part in (changed, real_sized, fleet, rolled_back, power_cuts, budgets):
            started = time.perf_counter()
            found, details = part(plan, folder / part.__name__, signer)
            figures |= found
            raw[part.__name__] = details
            print(f"{part.__name__}: {found} in {time.perf_counter() - started:.1f} s", flush=True)
            shutil.rmtree(folder / part.__name__)
    write_result(
        "tamper",
        figures=figures,
        raw=raw,
        seeds=[SEED],
        n={name: value for name, value in asdict(plan).items() if isinstance(value, int)},
        path=result_path("tamper", quick=args.quick, out=args.out),
    )


Found = tuple[dict[str, float | int], object]


def changed(plan: Plan, folder: Path, signer: MemorySigner) -> Found:
    """Two bits in every byte, every length, swapped chunks, components of another buyer: one small artefact."""
    chance = random.Random(SEED)
    with Device.create(folder, CLASS, signer.root) as device:
        artefact = seal_for(device.identity, signer)
        whole = artefact.to_bytes()
        with Enclave.open(Artefact.from_bytes(whole), device):
            pass  # unchanged, it opens
        other = seal_for(device.identity, signer, sequence=2, buyer="buyer-2")
        flips = Counter(attempt(device, bad) for bad in _flipped(whole, plan.stride, chance))
        cuts = Counter(attempt(device, whole[:length]) for length in range(0, len(whole), plan.stride))
        swaps = Counter(attempt(device, bad) for bad in _swapped(artefact, other))
    figures = {
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


def real_sized(plan: Plan, folder: Path, signer: MemorySigner) -> Found:
    """Single bits at random places of a component of a usual size."""
    chance = random.Random(SEED)
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


def fleet(plan: Plan, folder: Path, signer: MemorySigner) -> Found:
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


def rolled_back(plan: Plan, folder: Path, signer: MemorySigner) -> Found:
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


def power_cuts(plan: Plan, folder: Path, signer: MemorySigner) -> Found:
    """A flash cut at every storage operation; then flashes cut once and cut again while they recover."""
    chance = random.Random(SEED)
    folder.mkdir()
    empty, running, target = (folder / name for name in ("empty", "running", "target"))
    with Device.create(empty, CLASS, signer.root) as device:
        old = seal_for(device.identity, signer, security_counter=1)
        new = seal_for(device.identity, signer, sequence=2, security_counter=2)
    with twin(empty, running) as device:
        flash(device, old)
    counts, bricks, tried = {}, 0, 0
    for start in (empty, running):
        with twin(start, target) as device:
            flash(device, new)
            total = counts[start.name] = device.slots.storage.operations
        for operation in range(1, total + 1):
            for seed in range(plan.power_seeds):
                _cut(start, target, new, Fault(operation, seed))
                bricks += _bricked(target, new, first=start is empty)
                tried += 1
    for _ in range(plan.double_cuts):
        _cut(running, target, new, Fault(chance.randint(1, counts["running"]), chance.randrange(1 << 30)))
        with Device.open(target, fault=Fault(chance.randint(1, 14), chance.randrange(1 << 30))) as device:
            try:
                if chance.random() < 0.5:
                    device.boot()
                flash(device, new)
            except PowerCut:
                tried += 1
        bricks += _bricked(target, new, first=False)
    return {"power_cuts_tried": tried, "bricks": bricks}, {"storage_operations": counts}


def budgets(plan: Plan, folder: Path, signer: MemorySigner) -> Found:
    """A process that classifies is killed, its disk put back to an earlier state, over and over: labels seen."""
    chance = random.Random(SEED)
    folder.mkdir()
    multiprocessing.set_forkserver_preload(["benchmarks.tamper"])
    rows = []
    for budget in plan.budgets:
        home = folder / str(budget)
        with Device.create(home, CLASS, signer.root) as device:
            flash(device, seal_for(device.identity, signer, policy=Policy(budget=budget)))
        answered = restored = spent = 0
        backups: list[Path] = []
        for number in range(plan.kills):
            labels, end = _kill(home, chance.uniform(0, 0.15))
            answered += labels
            spent += end
            if chance.random() < 0.3:
                backups.append(shutil.copytree(home / "disk", folder / f"backup-{budget}-{number}"))
            if backups and chance.random() < 0.5:
                shutil.rmtree(home / "disk")
                shutil.copytree(chance.choice(backups), home / "disk")
                restored += 1
        rows.append(
            {
                "budget": budget,
                "answered": answered,
                "kills": plan.kills,
                "restored": restored,
                "rounds_that_found_it_spent": spent,
            }
        )
    return {
        "budget_rounds": sum(row["kills"] for row in rows),
        "budget_restores": sum(row["restored"] for row in rows),
        "budget_exceeded": sum(row["answered"] > row["budget"] for row in rows),
        "budget_used_up": sum(row["rounds_that_found_it_spent"] > 0 for row in rows),
    }, rows


def attempt(device: Device, data: bytes) -> str:
    """Opens what may be an artefact: "refused", "accepted" or "crashed"."""
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


def _swapped(artefact: Artefact, other: Artefact) -> Iterator[bytes]:
    """Chunks swapped, alone and with their leaves; parts of another artefact for the same device."""
    file = bytes(artefact.component)
    count = (len(file) - HEADER_BYTES) // (CHUNK + TAG_BYTES + HASH_BYTES)  # full chunks: the last may be short
    size, body = CHUNK + TAG_BYTES, HEADER_BYTES + HASH_BYTES * (count + (len(file) > HEADER_BYTES + count * 1072))
    for first in range(count):
        for second in range(first + 1, count):
            chunks = _exchange(file, body, size, first, second)
            for bad in (chunks, _exchange(chunks, HEADER_BYTES, HASH_BYTES, first, second)):
                yield Artefact(artefact.envelope, bad).to_bytes()
    yield Artefact(artefact.envelope, other.component).to_bytes()
    yield Artefact(other.envelope, artefact.component).to_bytes()
    yield Artefact(artefact.envelope, file[:HEADER_BYTES] + bytes(other.component)[HEADER_BYTES:]).to_bytes()
    yield MAGIC + artefact.to_bytes()


def _exchange(data: bytes, start: int, size: int, first: int, second: int) -> bytes:
    out = bytearray(data)
    a, b = (slice(start + i * size, start + (i + 1) * size) for i in (first, second))
    out[a], out[b] = data[b], data[a]
    return bytes(out)


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


def _cut(start: Path, target: Path, new: Artefact, fault: Fault) -> None:
    with twin(start, target, fault) as device:
        try:
            flash(device, new)
        except PowerCut:
            return
    raise SystemExit("the flash was over before the power cut")


def _bricked(target: Path, new: Artefact, *, first: bool) -> bool:
    """Whether the device fails to boot the old or the new image for good, or to take the new one afterwards."""
    try:
        with Device.open(target) as device:
            record = device.slots.record()
            if not first or record.confirmed is not None or record.passed:
                for _ in range(TRIES + 1):
                    device.boot().classify_batch(frames(1))
            flash(device, new)
            return device.boot().manifest.sequence != 2
    except Exception:  # noqa: BLE001  whatever it is, the device is of no use
        return True


def _kill(home: Path, seconds: float) -> tuple[int, bool]:
    """Lets a process classify for a while, then kills it: labels that came out, and whether the budget was spent."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_classify, args=(home, theirs))
    child.start()
    theirs.close()
    labels, spent, until = 0, False, None
    try:
        while until is None or time.monotonic() < until:
            if ours.poll(0.001):
                spent = ours.recv_bytes() == b"spent"
                labels += not spent
                until = until or time.monotonic() + seconds  # from the first answer on
                if spent:
                    break
        child.kill()
        while True:  # what was in the pipe had been answered
            spent = ours.recv_bytes() == b"spent"
            labels += not spent
    except EOFError:
        pass
    child.join()
    ours.close()
    return labels, spent


def _classify(home: Path, out: Connection) -> None:
    image = frames(1)[0]
    with Device.open(home) as device, device.boot() as enclave:
        try:
            while True:
                out.send_bytes(b"%d" % enclave.classify(image))
        except LimitError:
            out.send_bytes(b"spent")


if __name__ == "__main__":
    main()
