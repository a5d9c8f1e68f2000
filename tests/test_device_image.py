"""A device as a locked machine: it boots, gives labels, and does not if anything of it was changed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tritonclient.http as triton

from assurance.shell import RootShell
from testbed.artefacts import frames
from testbed.images import Car, built, free_port, skip_without_images
from variegate.attest.client import evidence_from
from variegate.attest.evidence import verify
from variegate.attest.groups import HOST_PROTECTIONS
from variegate.device_sim.image import Machine, build
from variegate.device_sim.image.build import BOOT, DATA, FACTS, ROOT, read_facts
from variegate.device_sim.image.kernel import seal_root
from variegate.device_sim.image.tools import run
from variegate.isolation.policy import DevicePolicy
from variegate.keys.errors import DeviceError, MisuseError, RefusedError

skip_without_images()

pytestmark = pytest.mark.slow

STRICT = DevicePolicy(strict=True, require=("host", "memory", "ptrace", "supervisor", "seccomp", "landlock"))


@pytest.fixture(scope="module")
def car() -> Iterator[Car]:
    with built(policy=STRICT) as made:
        yield made


@pytest.fixture(scope="module")
def bound(car: Car) -> Car:
    """The same, booted once: its key opens in this image alone."""
    with car.booted(shell=True) as machine:
        machine.wait()
        _gives_labels(machine)
        _is_locked(car.shell)
        _says_so(machine, car)
    return car


def _gives_labels(machine: Machine) -> None:
    shown = frames(3)
    client = triton.InferenceServerClient(machine.address.removeprefix("http://"), network_timeout=120)
    image = triton.InferInput("image", shown.shape, "UINT8")
    image.set_data_from_numpy(shown)
    first, second = (client.infer("copy", [image]).as_numpy("label") for _ in range(2))
    client.close()
    assert first.shape == (3,)
    assert (first == second).all()


def _says_so(machine: Machine, car: Car) -> None:
    nonce = b"n" * 16
    evidence = verify(evidence_from(machine.address, nonce), car.identity.signing_public)
    assert evidence.nonce == nonce
    assert evidence.ueid == car.identity.ueid
    assert len(evidence.measurements["boot"]) == 32
    states = {claim.name: claim.state for claim in evidence.protections}
    assert {states[name] for name in HOST_PROTECTIONS} == {"on"}
    assert (states["ptrace"], states["supervisor"]) == ("on", "on")


def _is_locked(shell: Path) -> None:
    with RootShell(shell) as root:
        assert root.run("id -u") == (0, "0")
        assert root.run("cat /proc/sys/kernel/yama/ptrace_scope")[1] == "3"
        assert "[confidentiality]" in root.run("cat /sys/kernel/security/lockdown")[1]
        for refused in (
            "echo 0 > /proc/sys/kernel/yama/ptrace_scope",
            "mount -o remount,rw /proc/sys",
            "mount -t tmpfs none /tmp",
            "dd if=/proc/kcore of=/dev/null bs=1 count=1",
            "dd if=/dev/mem of=/dev/null bs=1 count=1",
            "dd if=/proc/1/mem of=/dev/null bs=1 count=1",
            "echo > /usr/bin/python3.11",
            "ln -sf /dev/ttyS1 /dev/tpmrm0",
            "mv /dev/tpmrm0 /dev/tpm1",
            "insmod /nowhere.ko",
            "python3.11 -I -m variegate.cli.main device status /device",
        ):
            status, _ = root.run(f"{refused} 2>/dev/null")
            assert status != 0, refused


def changed(car: Car, folder: Path, name: str, change: Callable[[bytes], bytes]) -> Car:
    """A copy of an image, one file changed, and of its TPM."""
    shutil.copytree(car.image, folder / "image")
    shutil.copytree(car.tpm_state, folder / "tpm")
    path = folder / "image" / name
    before = path.read_bytes()
    after = change(before)
    assert after != before
    path.write_bytes(after)
    return replace(car, image=folder / "image", tpm_state=folder / "tpm")


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def refusal(car: Car) -> str:
    with car.booted() as machine:
        reason = machine.ended()
        assert not any("[2J" in line for line in machine.console)  # as the firmware clears the screen
        return reason


def test_a_device_gives_labels_in_its_image_and_the_machine_is_locked(bound: Car) -> None:
    facts = read_facts(bound.image)
    assert facts.locked
    assert facts.shell
    assert bound.identity.ueid.hex() == facts.ueid


def test_another_command_line_is_another_boot(bound: Car, tmp_path: Path) -> None:
    weaker = changed(bound, tmp_path, BOOT, lambda data: data.replace(b"=confidentiality", b"=integrity      "))
    assert "did not unseal" in refusal(weaker)


def test_another_policy_is_another_launch(bound: Car, tmp_path: Path) -> None:
    weaker = changed(bound, tmp_path, DATA, lambda data: data.replace(b'"host", ', b" " * 8))
    assert "did not unseal" in refusal(weaker)


def test_a_changed_byte_of_the_root_file_system_is_seen(bound: Car, tmp_path: Path) -> None:
    assert "root file system" in refusal(changed(bound, tmp_path, ROOT, lambda data: flipped(data, 8)))


def test_another_runtime_is_another_boot(bound: Car, tmp_path: Path) -> None:
    """Whoever changes our code has to make the hash tree anew, and so another command line."""
    root = tmp_path / "root"
    run("unsquashfs", "-no-progress", "-dest", root, bound.image / ROOT)
    with (root / "usr/lib/python3/dist-packages/variegate/runtime/engine.py").open("a") as file:
        file.write("# changed\n")
    made = seal_root(root, tmp_path / "changed")
    facts = read_facts(bound.image)
    before = facts.command_line.encode()
    after = before.replace(facts.root.encode(), made.digest.encode())
    after = re.sub(rb"blocks=\d+", b"blocks=%d" % made.blocks, after)
    assert len(after) == len(before)
    weaker = changed(bound, tmp_path, BOOT, lambda data: data.replace(before, after))
    (tmp_path / "changed").replace(weaker.image / ROOT)
    assert "did not unseal" in refusal(weaker)


def test_another_tpm_has_no_key(bound: Car, tmp_path: Path) -> None:
    (tmp_path / "tpm").mkdir()
    assert "TPM" in refusal(replace(bound, tpm_state=tmp_path / "tpm"))


def test_another_device_has_the_same_root_and_boot_program(car: Car) -> None:
    with built() as other:
        assert read_facts(other.image).ueid != read_facts(car.image).ueid
        for name in (BOOT, ROOT):
            assert (other.image / name).read_bytes() == (car.image / name).read_bytes()


def test_what_an_image_is_not_made_of(tmp_path: Path, car: Car) -> None:
    with pytest.raises(MisuseError, match=r"cannot read .*policy.toml"):
        build(tmp_path, tmp_path / "out")
    with pytest.raises(MisuseError, match="is there already"):
        build(tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_booted(tmp_path: Path, car: Car) -> None:
    with pytest.raises(MisuseError, match="no device image"):
        Machine(tmp_path, car.tpm_state, port=free_port())
    with pytest.raises(MisuseError, match="no state of a TPM"):
        Machine(car.image, tmp_path / "none", port=free_port())
    for name in (BOOT, ROOT, DATA):
        (tmp_path / name).write_bytes(b"")
    for damaged in ("", "[]", '{"schema": 2}', "{" * 100_000, '{"schema": 1, "kernel": 5}'):
        (tmp_path / FACTS).write_text(damaged)
        with pytest.raises(RefusedError, match="damaged"):
            Machine(tmp_path, car.tpm_state, port=free_port())
    with pytest.raises(DeviceError, match="failed"):
        run("veritysetup", "format", tmp_path / "none", tmp_path / "none")
