"""The four quarters of `assurance.soak`, and the figures taken from them."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from assurance.soak import clients as soak_clients
from assurance.soak import hostile as soak_hostile
from assurance.soak.ledger import Gate, Ledger, Pool
from assurance.soak.server import Sample, Served, Usage, until

SEED = 0
_RESTARTED_S = 90.0


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


@dataclass(frozen=True, kw_only=True)
class Rest:
    """Measurements while no client was connected.

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
            "rss_growth_from_start_mib": sum(one.rss_mib for one in _both(last))
            - sum(one.rss_mib for one in _both(first)),
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
    """The difference between charged and answered labels; uncertain ones may have been charged or not."""
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
