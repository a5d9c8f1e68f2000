"""Ten minutes of good and hostile clients on the real server: finds leaks, wrong labels and errors of the budget.

    python -m assurance.soak [--seconds 600] [--quick]

`variegate device serve` runs as a process of its own over a device with a copy of the GTSRB network and the default
policy: an isolated enclave with secret pages. Clients are good (`assurance.soak.clients`: tritonclient, HTTP kept
alive, pipelined and compressed, the label socket, 1 to 64 frames) or hostile (`assurance.soak.hostile`). Every label is
compared with that of the same copy, run in this process beforehand.

There are four quarters. Between them all clients leave, and the server is examined when it is at rest:

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
                      in order, restarts of the enclave other than those asked for, words of the server on its standard
                      error
    kills, hangs      of the enclave, each followed by a restart
    rss_growth_mib    resident memory of server and enclave together: median of the fourth quarter minus median of the
                      second; one enclave lives through both
    rss_growth_from_start_mib   the same at rest: end minus start; the server's first restarts of the enclave are in it
    fd_growth         open descriptors of server and enclave together, at rest: end minus start, all restarts between
    thread_growth     the same of threads
    budget_error      labels, summed: answered beyond what the device's counter was raised by (whole run); answered in
                      the third quarter other than what was charged in it; and of a small budget asked for to its end,
                      `assurance.soak.budget.exhaust`

Budget is reserved in blocks beforehand, and a killed enclave loses its block: more labels may be charged than answered,
but never fewer. In the third quarter nothing is killed and nobody leaves, so both numbers are equal.

Counting the enclave's descriptors needs root; without root the figure is that of the server alone (`raw` says which).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from assurance.soak.budget import exhaust
from assurance.soak.ledger import Pool
from assurance.soak.run import SEED, Scale, Soak
from assurance.soak.server import sampled, served
from testbed.cars import DEVICE_CLASS
from testbed.result import result_path, source_commit, write_result
from testbed.settings import calibrated
from testbed.subjects import GTSRB
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

_BUDGET = 10**9


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
        restarts = int(page["enclave_restarts"])
        if restarts != len(soak.ends):
            soak.ledger.note(f"the enclave was started again {restarts} times, and ended {len(soak.ends)} times")
        for line in said:
            if line != "stopped":
                soak.ledger.note(f"the server said: {line}"[:200])
        if status != 0:
            soak.ledger.note(f"the server's exit status was {status}")
        with Device.open(place / "device") as device:
            charged = device.counter(budget_counter(0)) - before
    return soak.figures(samples, charged), {**soak.raw(samples), "metrics": page}


def spent(release: Release, seller: Seller, scale: Scale) -> tuple[int, Mapping[str, object]]:
    """Spends the small budget to its end."""
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
    release = make_release("soak", GTSRB.base, calibrated("gtsrb", Qim.kind), images)
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
