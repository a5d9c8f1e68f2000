"""Ten minutes of good and hostile clients at the real server: leaks, wrong labels, the budget's exactness.

    python -m benchmarks.soak [--seconds 600] [--quick]

`variegate device serve` runs as a process of its own over a device with a copy of the GTSRB network and the default
policy: an isolated enclave with secret pages. Clients are in order (`benchmarks.soak_clients`: tritonclient, HTTP kept
alive, pipelined and compressed, the label socket, 1 to 64 frames) or hostile (`benchmarks.soak_hostile`). Every label
is compared with that of the same copy run in this process beforehand.

Four quarters; between them all clients leave, and the server is looked at when it has come to rest:

    1  everybody, and the enclave is killed (SIGKILL) and stopped (SIGSTOP) again and again
    2  everybody
    3  everybody but those who leave before their answer: what is charged must be what is answered
    4  everybody

Figures:

    requests          queries in order whose answer was judged
    labels            labels in those answers
    attacks           of hostile clients
    wrong_labels      labels other than the reference's
    unexpected        lost answers, answers of another query, statuses that should not have been, answers to what is not
                      in order, words of the server on its standard error
    kills, hangs      of the enclave, each followed by a restart
    rss_growth_mib    resident memory of server and enclave together: median of the fourth quarter minus median of the
                      second; one enclave lives through both
    fd_growth         open descriptors of server and enclave together, at rest: end minus start, all restarts between
    thread_growth     the same of threads
    budget_error      labels, summed: answered beyond what the device's counter was raised by (whole run); answered in
                      the third quarter other than what was charged in it; and of a small budget asked for to its end,
                      `benchmarks.soak_budget.exhaust`

A budget is reserved in blocks ahead, and a killed enclave loses its block: charged may exceed answered, never the other
way round. In the third quarter nothing is killed and nobody leaves, so both are the same to the label.

The descriptors of the enclave need root; without, the figure is the server's alone (`raw` says which).
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks import soak_clients, soak_hostile
from benchmarks.bases import GTSRB
from benchmarks.cars import DEVICE_CLASS
from benchmarks.result import result_path, source_commit, write_result
from benchmarks.settings import calibrated
from benchmarks.soak_budget import exhaust
from benchmarks.soak_ledger import Gate, Ledger, Pool
from benchmarks.soak_server import Sample, Served, Usage, sampled, served, until
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.export.release import Release, make_release
from variegate.export.rewriters import Qim
from variegate.export.sealing import CopyOrder, Terms, seal_copies
from variegate.isolation.policy import DevicePolicy
from variegate.keys.artefact import Artefact
from variegate.keys.manifest import Policy
from variegate.keys.seller import Seller
from variegate.runtime.allowance import budget_counter

SEED = 0
_BUDGET, _RESTARTED_S = 10**9, 90.0


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything.

    Attributes:
        seconds: Of all quarters together.
        images: In the pool.
        period_s: Between samples, and between kills.
        apart_s: Between two looks at a server at rest; it looks at its enclave once a second.
        hang_s: Of the device's policy.
        head_s: Of the server.
        body_s: Of the server.
        attackers: Hostile clients at a time.
        budget: The small one.
        askers: Clients at the small budget.
    """

    seconds: float
    images: int = 4000
    period_s: float = 2.0
    apart_s: float = 2.5
    hang_s: float = 5.0
    head_s: float = 2.0
    body_s: float = 4.0
    attackers: int = 5
    budget: int = 5000
    askers: int = 6


@contextmanager
def car(release: Release, seller: Seller, budget: int, scale: Scale) -> Iterator[Path]:
    """A folder with a device that holds a copy of the release."""
    policy = DevicePolicy(restarts=1000, hang_s=scale.hang_s)
    with TemporaryDirectory(prefix="variegate-") as folder:
        place = Path(folder) / "device"
        with Device.create(place, DEVICE_CLASS, seller.root, policy=policy) as device:
            order = CopyOrder(buyer="soak", device=device.identity, epoch=0, sequence=1, security_counter=0)
            terms = Terms(vendor="benchmark", policy=Policy(budget=budget))
            (copy,) = seal_copies(release, seller, [order], terms)
            flash(device, Artefact.from_bytes(copy.to_bytes()))
        yield Path(folder)


@dataclass(frozen=True, kw_only=True)
class Rest:
    """What was seen while nobody was there.

    Attributes:
        sample: Both processes.
        left: Labels left in the budget.
        answered: Labels that clients had got.
        uncertain: Frames that may have been charged besides.
    """

    sample: Sample
    left: int
    answered: int
    uncertain: int


class Soak:
    """One run of the four quarters.

    Args:
        server: Running.
        pool: Frames with reference labels.
        scale: How much of everything.
    """

    def __init__(self, server: Served, pool: Pool, scale: Scale) -> None:
        self.server, self.scale, self.ledger = server, scale, Ledger()
        self.rests: list[Rest] = []
        self.quarters: list[tuple[float, float]] = []
        self.ends: list[tuple[str, float]] = []
        """How the enclave was ended, and seconds until it was ready again."""
        self._gate = Gate()
        kinds = soak_clients.kinds(server.address, server.path)
        self._threads = [
            threading.Thread(
                target=soak_clients.live,
                args=(kind, make, pool, self._gate, self.ledger),
                kwargs={"seed": i},
                name=kind,
            )
            for i, (kind, make) in enumerate(kinds.items())
        ]
        attacks = soak_hostile.attacks()
        for i in range(scale.attackers):
            target = soak_hostile.Target(
                address=server.address,
                path=server.path,
                pool=pool,
                ledger=self.ledger,
                rng=np.random.default_rng(100 + i),
                slow_s=scale.head_s + scale.body_s + 10,
            )
            self._threads.append(threading.Thread(target=soak_hostile.live, args=(attacks, target, self._gate)))

    def run(self) -> None:
        """All four quarters."""
        for thread in self._threads:
            thread.start()
        try:
            self._gate.start()
            time.sleep(min(5.0, self.scale.seconds / 20))
            self._rest()
            for number in range(4):
                began = time.monotonic() - self.server.began
                self._gate.start(leaving=number != 2)
                if number == 0:
                    self._disturb()
                self._wait(began + self.scale.seconds / 4)
                self.quarters.append((began, time.monotonic() - self.server.began))
                self._rest()
        finally:
            self._gate.end()
            for thread in self._threads:
                thread.join()

    def _wait(self, until_s: float) -> None:
        while (left := until_s - (time.monotonic() - self.server.began)) > 0:
            time.sleep(min(left, 30))
            self._say()

    def _say(self) -> None:
        ledger, sample = self.ledger, self.server.sample()
        enclave = "none" if sample.enclave is None else f"{sample.enclave.rss_mib:.1f} MiB"
        print(
            f"{sample.at_s:5.0f} s: {sum(ledger.requests.values())} requests, {ledger.answered} labels, "
            f"{ledger.wrong} wrong, {sum(ledger.attacks.values())} attacks, {ledger.unexpected.total()} unexpected, "
            f"server {sample.server.rss_mib:.1f} MiB, enclave {enclave}",
            flush=True,
        )

    def _rest(self) -> None:
        self._gate.hold(180)
        sample, left = self.server.quiet(self.scale.apart_s)
        answered, uncertain = self.ledger.state()
        self.rests.append(Rest(sample=sample, left=left, answered=answered, uncertain=uncertain))

    def _disturb(self) -> None:
        """Ends the enclave again and again, in both ways, while clients ask."""
        rng = np.random.default_rng(SEED)
        end = time.monotonic() + self.scale.seconds / 4
        while not self.ends or time.monotonic() + self.scale.hang_s < end or len(self.ends) < 2:
            how = (signal.SIGKILL, signal.SIGSTOP)[len(self.ends) % 2]
            time.sleep(rng.uniform(0, 2 * self.scale.period_s))
            pid, before = self.server.enclave, self.server.metrics()["enclave_restarts"]
            assert pid is not None
            began = time.monotonic()
            os.kill(pid, how)
            again = until(self._again(before), _RESTARTED_S)
            self.ends.append((how.name, time.monotonic() - began))
            if not again:
                self.ledger.note(f"the enclave was not ready again after {how.name}")
            if len(self.ends) % 5 == 0:
                self._say()

    def _again(self, before: float) -> Callable[[], bool]:
        def ready() -> bool:
            page = self.server.metrics()
            return page["enclave_restarts"] > before and page["ready"] == 1

        return ready

    def figures(self, samples: list[Sample], charged: int) -> dict[str, float]:
        """See the module's text; the small budget's part of `budget_error` is not in it yet."""
        ledger, first, last = self.ledger, self.rests[0].sample, self.rests[-1].sample
        before, after = self.rests[2], self.rests[3]
        answered = after.answered - before.answered
        taken = before.left - after.left
        uncertain = after.uncertain - before.uncertain
        gap = budget_gap(answered=answered, uncertain=uncertain, charged=taken)
        return {
            "requests": sum(ledger.requests.values()),
            "labels": ledger.answered,
            "attacks": sum(ledger.attacks.values()),
            "wrong_labels": ledger.wrong,
            "unexpected": ledger.unexpected.total(),
            "kills": sum(how == "SIGKILL" for how, _ in self.ends),
            "hangs": sum(how == "SIGSTOP" for how, _ in self.ends),
            "rss_growth_mib": _rss(samples, *self.quarters[3]) - _rss(samples, *self.quarters[1]),
            "fd_growth": _descriptors(last) - _descriptors(first),
            "thread_growth": _threads(last) - _threads(first),
            "budget_error": max(0, ledger.answered - charged) + gap,
            "labels_in_exact_quarter": answered,
            "uncertain_in_exact_quarter": uncertain,
            "charged": charged,
        }

    def raw(self, samples: list[Sample]) -> Mapping[str, object]:
        """The counts and samples behind the figures."""
        ledger = self.ledger
        return {
            "requests": dict(ledger.requests),
            "refused": dict(sorted(ledger.refused.items())),
            "turned_away": ledger.turned_away,
            "uncertain": ledger.uncertain,
            "attacks": dict(sorted(ledger.attacks.items())),
            "told": dict(sorted(ledger.told.items())),
            "unexpected": dict(ledger.unexpected),
            "ends": self.ends,
            "quarters": self.quarters,
            "rests": [asdict(rest) for rest in self.rests],
            "samples": [asdict(sample) for sample in samples],
        }


def budget_gap(*, answered: int, uncertain: int, charged: int) -> int:
    """How far a charge is from what was answered; what is uncertain may have been charged or not."""
    return max(0, answered - charged, charged - answered - uncertain)


def _both(sample: Sample) -> list[Usage]:
    return [sample.server] if sample.enclave is None else [sample.server, sample.enclave]


def _rss(samples: list[Sample], began: float, ended: float) -> float:
    within = [one for one in samples if began <= one.at_s <= ended and one.enclave is not None]
    return statistics.median(sum(usage.rss_mib for usage in _both(sample)) for sample in within)


def _descriptors(sample: Sample) -> int:
    return sum(usage.descriptors or 0 for usage in _both(sample))


def _threads(sample: Sample) -> int:
    return sum(usage.threads for usage in _both(sample))


def reference(place: Path, count: int) -> tuple[Pool, int]:
    """Frames with the labels of the device's own copy run in this process, and what the counter says afterwards."""
    images, _ = GTSRB.test_set(count)
    with Device.open(place) as device:
        labels = device.boot().classify_batch(images)
        return Pool(images, labels), device.counter(budget_counter(0))


def soaked(release: Release, seller: Seller, scale: Scale) -> tuple[dict[str, float], dict[str, object]]:
    """The four quarters; figures and raw."""
    options = ("--head-s", f"{scale.head_s}", "--body-s", f"{scale.body_s}", "--keep-alive-s", "20", "--write-s", "3")
    with car(release, seller, _BUDGET, scale) as place:
        pool, before = reference(place / "device", scale.images)
        with served(place / "device", place / "said", place / "labels", *options) as server:
            soak = Soak(server, pool, scale)
            with sampled(server, scale.period_s) as samples:
                soak.run()
                page = server.metrics()
            status, said = server.stop()
        for line in said:
            if line != "stopped":
                soak.ledger.note(f"the server said: {line}"[:200])
        if status != 0:
            soak.ledger.note(f"the server's exit status was {status}")
        with Device.open(place / "device") as device:
            charged = device.counter(budget_counter(0)) - before
    return soak.figures(samples, charged), {**soak.raw(samples), "metrics": page}


def spent(release: Release, seller: Seller, scale: Scale) -> tuple[int, Mapping[str, object]]:
    """The small budget, asked for to its end."""
    with car(release, seller, scale.budget, scale) as place:
        # Its own labels are not asked for beforehand: that would spend them. A twin with a large budget has the same.
        with car(release, seller, _BUDGET, scale) as twin:
            pool, _ = reference(twin / "device", scale.images)
        return exhaust(place / "device", place, pool, scale.budget, scale.askers)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="of the four quarters together")
    parser.add_argument("--quick", action="store_true", help="some seconds; a smoke test")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    source_commit()
    scale = Scale(seconds=args.seconds)
    if args.quick:
        scale = Scale(
            seconds=12,
            images=256,
            period_s=0.3,
            apart_s=1.3,
            hang_s=2.0,
            head_s=1.0,
            body_s=2.0,
            attackers=3,
            budget=300,
            askers=3,
        )
    images, _ = GTSRB.test_set(256)
    release, _ = make_release("soak", GTSRB.base, calibrated("gtsrb", Qim.kind), images)
    seller = Seller.generate()
    figures, raw = soaked(release, seller, scale)
    error, raw["small_budget"] = spent(release, seller, scale)
    figures["budget_error"] += error
    for name, value in figures.items():
        print(f"{name}: {value:.6g}", flush=True)
    n = {"seconds": round(scale.seconds), "clients": 6, "attackers": scale.attackers, "budget": scale.budget}
    write_result(
        "soak",
        figures=figures,
        raw=raw,
        seeds=[SEED],
        n=n,
        path=result_path("soak", quick=args.quick, out=args.out),
    )


if __name__ == "__main__":
    main()
