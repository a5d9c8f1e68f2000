"""Root on the device's machine: what succeeds on an open one fails in the locked image."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assurance.root.attacker.attacks import SUCCEEDED
from assurance.root.image import Booted, booted
from assurance.root.run import attack
from testbed.bases import base, images
from testbed.devices import workplace
from testbed.images import skip_without_images
from variegate.attest.broker_store import BrokerStore
from variegate.attest.client import evidence_from
from variegate.attest.evidence import claimed
from variegate.attest.nonces import Nonces
from variegate.attest.policy import AppraisalPolicy
from variegate.attest.verifier import Verifier

skip_without_images()

pytestmark = pytest.mark.slow

CONTROL = (
    *("read_mem", "read_pidfd", "read_kcore", "bpf_probe", "kprobe", "activations", "write_code"),
    *("sysctls", "core_helper", "module", "kexec"),
)
"""Those that are to succeed on the same machine without the lock, each another way."""
SLOW, LOCKED_SLOW = 4.0, 3.0


def test_the_locked_image_holds() -> None:
    with workplace() as folder, booted(folder, base(folder), images(64), locked=True) as one:
        report = attack(one.target, machine=True, slow=LOCKED_SLOW)
        assert report.names(SUCCEEDED) == [], report.table()
        assert report.names("impossible") == ["uevent_helper"], report.table()
        assert not report.left_out
        assert sum(result.windows for result in report.results) == 0
        assert one.machine.running


def test_the_same_machine_without_the_lock_does_not() -> None:
    with workplace() as folder, booted(folder, base(folder), images(64), locked=False) as one:
        report = attack(one.target, only=list(CONTROL), machine=True, slow=SLOW)
        assert report.names(SUCCEEDED) == list(CONTROL), report.table()
        _is_refused_by_a_broker(one, folder / "books.sqlite")


def _is_refused_by_a_broker(one: Booted, books: Path) -> None:
    """Its evidence is true, so a broker whose policy is of a locked image releases nothing to it."""
    with BrokerStore(books, time.time, create=True) as store:
        store.allow("attacked", one.target.device.identity)
        nonces = Nonces(store.database, time.time)

        def failed(**changes: Any) -> set[str]:
            token = evidence_from(one.machine.address, nonces.issue())
            policy = replace(AppraisalPolicy.of(claimed(token)), **changes)
            verdict = Verifier(policy, store.device, nonces, time.time).appraise(token)
            return {check.name for check in verdict.checks if not check.passed}

        assert failed() == set()
        assert {"protection host-ptrace", "protection host-lockdown"} <= failed(require=("host",))
        seen = claimed(evidence_from(one.machine.address, nonces.issue())).measurements
        other = {name: (value if name != "boot" else bytes(32),) for name, value in seen.items()}
        assert failed(measurements=other) == {"measurement boot"}
