"""Copies released against evidence: the isolated enclave and a real broker; what the broker must refuse."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.artefacts import CLASS, MemorySigner, frames, seal_for, tiny_payload
from variegate.attest import evidence, receipt
from variegate.attest.broker import Broker
from variegate.attest.broker_store import BrokerStore
from variegate.attest.evidence import DebugStatus
from variegate.attest.groups import HOST, HOST_PROTECTIONS
from variegate.attest.policy import AppraisalPolicy
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.hosting import POLICY_FILE, host_of
from variegate.isolation import launch, machine
from variegate.isolation.host import Isolated
from variegate.isolation.policy import DevicePolicy
from variegate.keys.artefact import Artefact
from variegate.keys.broker import BrokerKey
from variegate.keys.envelope import EnvelopeDraft, SealedKeys, open_envelope, seal_batch
from variegate.keys.errors import DeviceError, RefusedError
from variegate.runtime.enclave import ProtectionState

SIGNER = MemorySigner()
BUYER = "buyer-1"


class Scene:
    """A device, a copy for it that a broker must release, and the broker."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "device"
        self.key = BrokerKey.generate()
        self.store = BrokerStore(folder / "books.sqlite", time.time, create=True)
        with Device.create(self.place, CLASS, SIGNER.root) as device:
            self.public = device.identity
            # A plain copy first: its evidence is what the broker will expect.
            flash(device, seal_for(self.public, SIGNER))
        with self.opened() as device:
            port = device.boot()
            assert isinstance(port, Isolated)
            good = evidence.verify(port.evidence(os.urandom(32)), self.public.signing_public)
            self.label = port.classify(frames(1)[0])
        self.policy = AppraisalPolicy.of(good)
        self.store.allow(BUYER, self.public)
        self.artefact = self.sealed()
        self.broker: Broker | None = Broker(self.key, SIGNER.root, self.store, self.policy, time.time)

    def opened(self) -> Device:
        """The device, on, isolated as its policy says."""
        return Device.open(self.place, host=host_of(self.place))

    def sealed(self) -> Artefact:
        """A copy whose keys the broker must complete."""
        payload, keys = tiny_payload(), SealedKeys(os.urandom(32), os.urandom(32))
        plain = seal_for(self.public, SIGNER, payload=payload, keys=keys, sequence=2)
        manifest = open_envelope(plain.envelope, SIGNER.root).manifest
        manifest, split = self.key.public.split(manifest, keys)
        draft = EnvelopeDraft(manifest, split, self.public.kem, self.public.kem_public)
        return replace(plain, envelope=seal_batch([draft], SIGNER)[0])

    def boot(self) -> int:
        """Flashes the copy with the broker in reach and asks it for a label."""
        with self.opened() as device:
            device.broker = self.broker
            flash(device, self.artefact)
            return device.boot().classify(frames(1)[0])


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_copy_is_released_to_good_evidence_and_to_no_other(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = scene.broker
    scene.broker = None
    with pytest.raises(DeviceError, match="none is known"):
        scene.boot()
    other = BrokerKey.generate()
    for wrong in (
        Broker(other, SIGNER.root, scene.store, scene.policy, time.time),  # another key
        Broker(scene.key, MemorySigner().root, scene.store, scene.policy, time.time),  # another seller's
    ):
        scene.broker = wrong
        with pytest.raises(RefusedError):
            scene.boot()
    scene.broker = honest
    for spoil in (_debug, _weaker_policy):
        spoil(scene)
        with pytest.raises(RefusedError):
            scene.boot()
        (scene.place / POLICY_FILE).write_bytes(DevicePolicy().to_toml())
    with monkeypatch.context() as patched:
        _swapped_runtime(scene, patched)
        with pytest.raises(RefusedError):
            scene.boot()
    assert isinstance(scene.boot(), int)  # and all is well again
    scene.store.deny(BUYER)
    with pytest.raises(RefusedError):
        scene.boot()


def _debug(scene: Scene) -> None:
    (scene.place / POLICY_FILE).write_bytes(DevicePolicy(debug=True).to_toml())


def _weaker_policy(scene: Scene) -> None:
    (scene.place / POLICY_FILE).write_bytes(DevicePolicy(secret_pages=False).to_toml())


def _swapped_runtime(scene: Scene, patched: pytest.MonkeyPatch) -> None:
    ours = {}
    for name, init in launch._OURS.items():
        copied = scene.place.parent / "code" / name
        shutil.copytree(Path(init).parent, copied, ignore=shutil.ignore_patterns("__pycache__"))
        ours[name] = str(copied / "__init__.py")
    swapped = scene.place.parent / "code" / "runtime" / "allowance.py"
    swapped.write_text(swapped.read_text().replace("self._reserve(count)", "self._ready = count"))
    patched.setattr(launch, "_OURS", ours)


def test_a_broker_that_requires_the_host_releases_nothing_to_an_ordinary_machine(scene: Scene) -> None:
    if all(p.state == ProtectionState.ON for p in machine.protections()):
        pytest.skip("this machine stops root")
    assert not {HOST, *HOST_PROTECTIONS}.intersection(scene.policy.require)
    asking = replace(scene.policy, require=(*scene.policy.require, HOST))
    scene.broker = Broker(scene.key, SIGNER.root, scene.store, asking, time.time)
    with pytest.raises(RefusedError):
        scene.boot()
    entry = list(scene.store.log())[-1]
    assert entry.event == "refused"
    for one in machine.protections():
        told = f"protection {one.name}: {one.state}: {one.reason}"[:60]
        assert (told in entry.detail) == (one.state != ProtectionState.ON), entry.detail
    scene.broker = Broker(scene.key, SIGNER.root, scene.store, scene.policy, time.time)
    assert isinstance(scene.boot(), int)


def test_an_in_process_device_does_not_open_such_a_copy(scene: Scene) -> None:
    with Device.open(scene.place) as device:
        device.broker = scene.broker
        with pytest.raises(RefusedError):
            flash(device, scene.artefact)


def test_evidence_says_what_runs(scene: Scene) -> None:
    with scene.opened() as device:
        port = device.boot()
        assert isinstance(port, Isolated)
        nonce = os.urandom(32)
        said = evidence.verify(port.evidence(nonce), scene.public.signing_public)
        assert said.nonce == nonce
        assert said.ueid == device.ueid
        assert said.debug is DebugStatus.DISABLED_SINCE_BOOT
        assert said.boot_count == device.boots
        assert said.root == SIGNER.root.fingerprint
        assert set(said.measurements) == {"interpreter", "runtime", "libraries", "system", "policy", "root"}
        assert said.measurements["policy"] == DevicePolicy().digest
        state = {claim.name: claim.state for claim in said.protections}
        assert state["isolation"] == ProtectionState.ON
        assert {p.name for p in port.status().protections} >= set(state)
        for wrong in (b"", bytes(7), bytes(65)):
            with pytest.raises(RefusedError):
                port.evidence(wrong)


def test_receipts_are_numbered_and_name_frames_and_labels(scene: Scene) -> None:
    shown = frames(5)
    with scene.opened() as device:
        port = device.boot()
        assert isinstance(port, Isolated)
        numbers = []
        for turn in range(4):
            if turn == 2 and port.pid is not None:  # a restart within the boot repeats no number
                os.kill(port.pid, signal.SIGKILL)
                with contextlib.suppress(DeviceError):
                    port.classify(shown[0])
            labels, token = port.classify_with_receipt(shown)
            given = receipt.verify(token, scene.public.signing_public)
            assert given.boot_count == device.boots
            numbers.append(given.sequence)
            assert given.labels == tuple(labels.tolist())
            given.require_frames(shown)
            with pytest.raises(RefusedError):
                given.require_frames(frames(5, seed=9))
        assert numbers == sorted(set(numbers))
        assert given.model == open_envelope(device.slots.envelope("a"), SIGNER.root).digest
