"""Root on the device's machine: what succeeds on an open one fails in the locked image."""

from __future__ import annotations

import pytest

from assurance.root.attacker.attacks import SUCCEEDED
from assurance.root.image import booted
from assurance.root.run import attack
from tests.support.bases import base, images
from tests.support.devices import workplace
from tests.support.images import skip_without_images

skip_without_images()

pytestmark = pytest.mark.slow

CONTROL = (
    *("read_mem", "read_pidfd", "read_kcore", "bpf_probe", "kprobe", "activations", "write_code"),
    *("sysctls", "core_helper", "module", "kexec"),
)
"""Those that are to succeed on the same machine without the lock: each by another way. `benchmarks.root` runs all."""
SLOW = 4.0


def test_the_locked_image_holds() -> None:
    with workplace() as folder, booted(folder, base(folder), images(64), locked=True) as one:
        report = attack(one.target, machine=True, slow=SLOW)
        assert report.names(SUCCEEDED) == [], report.table()
        assert report.names("impossible") == ["uevent_helper"], report.table()
        assert not report.left_out
        assert sum(result.windows for result in report.results) == 0
        assert one.machine.running


def test_the_same_machine_without_the_lock_does_not() -> None:
    with workplace() as folder, booted(folder, base(folder), images(64), locked=False) as one:
        report = attack(one.target, only=list(CONTROL), machine=True, slow=SLOW)
        assert report.names(SUCCEEDED) == list(CONTROL), report.table()
