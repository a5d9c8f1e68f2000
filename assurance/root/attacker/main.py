"""`python3 root.pyz`: attacks the device that serves on this machine, and prints the results as JSON.

Needles are JSON on the standard input: `{"secrets": [hex, ...]}`. Without any there are no secrets, and only the last
frame shown counts as read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from assurance.root.attacker import (
    activations,
    bpf,
    budget,
    machine,
    perf,
    reads,
    restart,
    settings,
    start,
    tracer,
    writes,
)
from assurance.root.attacker.attacks import Attack, carried_out
from assurance.root.attacker.victim import NoDeviceError, Refused, Victim

ATTACKS: tuple[Attack, ...] = (
    *reads.ATTACKS,
    *bpf.ATTACKS,
    *perf.ATTACKS,
    *settings.QUIET,
    *start.QUIET,
    *activations.ATTACKS,
    *writes.ATTACKS,
    *tracer.ATTACKS,
    *restart.ATTACKS,
    *start.LOUD,
    *settings.LOUD,
    *machine.ATTACKS,
    *budget.ATTACKS,
)
"""In order of harm."""


def main(arguments: list[str] | None = None) -> int:
    """Runs attacks in their order. Exit status 2 when no device serves here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, help="of the device, where several serve")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these attacks alone")
    parser.add_argument("--machine", action="store_true", help="also those that touch the whole machine's settings")
    parser.add_argument("--slow", type=float, default=1.0, metavar="N", help="wait so many times longer (emulation)")
    parser.add_argument("--no-needles", action="store_true", help="do not read the standard input")
    args = parser.parse_args(arguments)
    needles = {} if args.no_needles else json.load(sys.stdin)
    try:
        victim = Victim.found([bytes.fromhex(text) for text in needles.get("secrets", [])], args.port)
        victim.slow = args.slow
        chosen = [
            attack
            for attack in ATTACKS
            if (attack.name in args.only if args.only else args.machine or not attack.machine)
        ]
        victim.patiently()  # it serves; its shape is known to every attack from here on
    except (NoDeviceError, Refused) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    results = []
    for attack in chosen:
        results.append(carried_out(attack, victim).to_json())
        sys.stderr.write(f"{results[-1]['name']}: {results[-1]['result']}, {results[-1]['detail']}\n")
    left_out = [attack.name for attack in ATTACKS if attack not in chosen]
    sys.stdout.write(json.dumps({"uid": os.geteuid(), "results": results, "left_out": left_out}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
