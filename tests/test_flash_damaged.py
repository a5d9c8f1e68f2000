"""A damaged file is refused although the device holds what it should contain, and a stream is told from a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.artefacts import CLASS, MemorySigner, seal_for, tiny_payload
from testbed.devices import twin, workplace
from variegate.cli.main import main
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.keys.artefact import Artefact
from variegate.keys.component import HEADER_BYTES, Layout
from variegate.keys.envelope import open_envelope
from variegate.keys.errors import Refusal, RefusedError

SIGNER = MemorySigner()


@dataclass(frozen=True)
class Bench:
    """A device that runs an image of several chunks, and the places in its component where each chunk begins."""

    folder: Path
    running: Path
    image: Artefact
    chunks: list[slice]

    def damaged(self, chunk: int) -> Artefact:
        component = bytearray(self.image.component)
        component[self.chunks[chunk].start + 5] ^= 1
        return Artefact(self.image.envelope, bytes(component))


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with workplace() as folder:
        with Device.create(folder / "running", CLASS, SIGNER.root) as device:
            image = seal_for(device.identity, SIGNER, payload=tiny_payload(padding=20_000), security_counter=1)
            flash(device, image)
        ref = open_envelope(image.envelope, SIGNER.root).manifest.component
        layout = Layout.parse(bytes(image.component[:HEADER_BYTES]), ref)
        yield Bench(folder, folder / "running", image, [layout.span(i) for i in range(layout.chunks)])


@pytest.mark.parametrize("chunk", [0, 7, -1])
@pytest.mark.parametrize("how", ["memory", "file", "envelope and component"])
def test_a_damaged_file_over_the_same_content_is_refused(bench: Bench, chunk: int, how: str) -> None:
    bad = bench.damaged(chunk)
    whole, envelope, component = (bench.folder / name for name in ("bad.vgc", "bad.vge", "bad.vgb"))
    whole.write_bytes(bad.to_bytes())
    envelope.write_bytes(bad.envelope)
    component.write_bytes(bad.component)
    given: Artefact | Path = bad if how == "memory" else whole if how == "file" else envelope
    with twin(bench.running, bench.folder / "t") as device:
        before = device.slots.storage.operations
        with pytest.raises(RefusedError) as caught:
            flash(device, given, component_file=component if given is envelope else None)
        assert caught.value.refusal is Refusal.ARTEFACT
        assert f"flash: {Refusal.COMPONENT}: " in device.log()[-1]
        assert device.slots.record().confirmed == "a"
        assert device.slots.storage.exists("b.component") is False
        assert device.boot().manifest.sequence == 1
        assert device.slots.storage.operations > before  # the log's


def test_a_damaged_file_is_refused_over_a_half_written_slot(bench: Bench) -> None:
    """Its own chunks lie in the other slot already, whole."""
    with twin(bench.running, bench.folder / "t") as device:
        newer = seal_for(device.identity, SIGNER, payload=tiny_payload(padding=20_000), sequence=2, security_counter=1)
        component = bytearray(newer.component)
        component[-30] ^= 1
        flash(device, newer, confirm=False)
        with pytest.raises(RefusedError):
            flash(device, Artefact(newer.envelope, bytes(component)))
        assert device.slots.record().trial is None
        assert device.boot().manifest.sequence == 1


def test_what_was_read_is_reported(bench: Bench) -> None:
    whole = bench.folder / "whole.vgc"
    whole.write_bytes(bench.image.to_bytes())
    size = len(bench.image.envelope) + len(bench.image.component)
    with twin(bench.running, bench.folder / "t") as device:
        for source in (bench.image, whole):
            report = flash(device, source)
            assert (report.written, report.moved, report.confirmed) == (0, size, True)
        # A connection is asked for what is missing only, and the report says that nothing more came.
        stream = _Stream(bench.damaged(3))
        report = flash(device, stream)
        assert (report.written, report.confirmed) == (0, True)
        assert report.moved == len(bench.image.envelope) + bench.chunks[0].start


def test_command(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bad = bench.folder / "bad.vgc"
    bad.write_bytes(bench.damaged(2).to_bytes())
    twin(bench.running, bench.folder / "t").close()
    assert main(["device", "flash", str(bench.folder / "t"), str(bad)]) == 1
    assert "artefact refused" in capsys.readouterr().err
    bad.write_bytes(bench.image.to_bytes())
    assert main(["device", "flash", str(bench.folder / "t"), str(bad)]) == 0
    assert f"0 chunks written, {len(bench.chunks)} kept" in capsys.readouterr().err


class _Stream:
    def __init__(self, artefact: Artefact) -> None:
        self.envelope, self.length = artefact.envelope, len(artefact.component)
        self._component = artefact.component

    def read(self, part: slice) -> bytes:
        return bytes(self._component[part])
