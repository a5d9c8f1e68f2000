"""Flashing: writes an artefact into the inactive slot leaf by leaf, tries it, and confirms it.

Cheap checks come first, and nothing is written before they pass. The confirmed slot is never touched. Every step may be
done twice: called again after a power cut, it keeps the chunks that are there and continues.

A local file is read and checked completely, even if the device has its chunks already: someone who learns that a file
was installed may pass the file on. Any other source is asked only for the missing chunks, to save the transfer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from variegate.device_sim.at_rest import AtRest
from variegate.device_sim.device import Device
from variegate.device_sim.slots import SLOTS, files
from variegate.device_sim.source import Alone, Counted, Source, Stored, open_source
from variegate.keys import component, merkle
from variegate.keys.artefact import Artefact
from variegate.keys.component import HEADER_BYTES, MAX_COMPONENT_BYTES, Layout
from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError, VariegateError
from variegate.keys.manifest import ComponentRef, Manifest
from variegate.runtime.admission import admit, uniform

_SYNC_BYTES = 1 << 20
"""Bytes written between two syncs: the most that a power cut can cost, and that waits in memory."""

Progress = Callable[[int, int], None]
"""Called as `progress(chunks done, chunks in all)`."""


@dataclass(frozen=True, kw_only=True)
class FlashReport:
    """The result of a flash.

    Attributes:
        slot: The image's slot.
        sequence: Number of its manifest.
        chunks: Of its component.
        written: Chunks written now; the others lay there already, and were checked.
        moved: Bytes that came from outside: the envelope, and what was read of the component. All of a file; of another
            source what the device lacked, and nothing is said of the rest.
        confirmed: Whether it is the confirmed image now; else it is on trial.
    """

    slot: str
    sequence: int
    chunks: int
    written: int
    moved: int
    confirmed: bool


@dataclass(frozen=True)
class _Plan:
    """A component's header and leaves, both checked against the signed root."""

    layout: Layout
    leaves: list[bytes]


def flash(
    device: Device,
    artefact: Artefact | Path | Source,
    *,
    component_file: Path | None = None,
    confirm: bool = True,
    progress: Progress | None = None,
) -> FlashReport:
    """Installs an artefact, tries it and confirms it.

    Args:
        device: The device, on.
        artefact: The artefact; or its file or another source, which is then streamed; or the file of an envelope
            alone.
        component_file: The component's file, for an envelope. Without it the envelope must be for the component that
            a slot holds already, as that of a new epoch or policy is: only the envelope moves then.
        confirm: Whether to confirm at once. Otherwise the image is on trial from the next boot on.
        progress: Called for every chunk.

    Returns:
        A summary of the work.

    Raises:
        RefusedError: `ARTEFACT`: the device's inner log has the reason. The old image stays.
        DeviceError: The hardware or the source failed; calling again continues.
        MisuseError: A file cannot be read, or no slot holds the component of an envelope that came alone.
    """
    with ExitStack() as stack:
        if isinstance(artefact, Artefact | Path):
            source = uniform(device, "flash", lambda: stack.enter_context(open_source(artefact, component_file)))
            return _install(device, source, whole=not isinstance(source, Alone), confirm=confirm, progress=progress)
        return _install(device, artefact, whole=False, confirm=confirm, progress=progress)


def _install(
    device: Device, given: Source | Alone, *, whole: bool, confirm: bool, progress: Progress | None
) -> FlashReport:
    manifest, source, plan = uniform(device, "flash", lambda: _admitted(device, given))
    record = device.settle()
    # The chip is asked whether this image was confirmed: the record is the disk's, and the disk may be an attacker's.
    if (
        record.confirmed is not None
        and device.confirms(source.envelope)
        and _holds(device, record.confirmed, source.envelope, manifest.component)
    ):
        if whole:
            uniform(device, "flash", lambda: _check_all(source, plan))
        device.drop_trial(record)
        return FlashReport(
            slot=record.confirmed,
            sequence=manifest.sequence,
            chunks=plan.layout.chunks,
            written=0,
            moved=source.moved,
            confirmed=True,
        )
    slot = device.drop_trial(record).inactive  # off trial first: a half-written slot is never booted
    envelope_name, component_name = files(slot)
    storage = device.slots.storage
    device.record("flash", f"sequence {manifest.sequence} into slot {slot}: begun")
    written = uniform(device, "flash", lambda: _stream(storage, component_name, source, plan, progress, whole=whole))
    _store(storage, envelope_name, source.envelope)
    done = f"{written} of {plan.layout.chunks} chunks written"
    device.record("flash", f"sequence {manifest.sequence} into slot {slot}: {done}")
    device.try_slot(slot)
    if confirm:
        device.confirm()
        if device.slots.record().confirmed != slot:
            raise DeviceError("the disk did not keep which image is confirmed", hint="flash again")
    return FlashReport(
        slot=slot,
        sequence=manifest.sequence,
        chunks=plan.layout.chunks,
        written=written,
        moved=source.moved,
        confirmed=confirm,
    )


def _admitted(device: Device, given: Source | Alone) -> tuple[Manifest, Counted | Stored, _Plan]:
    manifest = admit(given.envelope, device).manifest
    if isinstance(given, Alone):
        return manifest, *_stored(device, given.envelope, manifest.component)
    source = Counted(given)
    return manifest, source, _plan(source, manifest.component)


def _stored(device: Device, envelope: bytes, ref: ComponentRef) -> tuple[Stored, _Plan]:
    """A slot that holds a component already: the confirmed one, or else the other, when all of it is there."""
    confirmed = device.slots.record().confirmed
    for slot in sorted(SLOTS, key=lambda slot: slot != confirmed):
        name = files(slot)[1]
        if not device.slots.storage.exists(name):
            continue
        source = Stored(device.slots.storage, name, envelope)
        try:
            plan = _plan(source, ref)
        except RefusedError:
            continue
        if all(merkle.leaf(source.read(plan.layout.span(i))) == leaf for i, leaf in enumerate(plan.leaves)):
            return source, plan
    hint = "give the component's file as well"
    raise MisuseError("the device does not hold the component of this envelope", hint=hint)


def _plan(source: Source, ref: ComponentRef) -> _Plan:
    if ref.length > MAX_COMPONENT_BYTES:
        raise RefusedError(Refusal.TOO_LARGE, f"component exceeds {MAX_COMPONENT_BYTES} bytes")
    if source.length != ref.length:
        raise RefusedError(Refusal.COMPONENT, "component has the wrong length")
    layout = Layout.parse(bytes(source.read(slice(0, HEADER_BYTES))), ref)
    return _Plan(layout, layout.leaves(source.read(slice(HEADER_BYTES, layout.body)), ref))


def _holds(device: Device, slot: str, envelope: bytes, ref: ComponentRef) -> bool:
    """Whether a slot holds just this image, undamaged."""
    try:
        if device.slots.envelope(slot) != envelope:
            return False
        component.check(device.slots.component(slot), ref)
    except RefusedError:
        return False
    return True


def _stream(
    storage: AtRest,
    name: str,
    source: Source,
    plan: _Plan,
    progress: Progress | None,
    *,
    whole: bool,
) -> int:
    """Writes the chunks that the slot lacks, each checked before; returns how many were written."""
    layout, leaves = plan.layout, plan.leaves
    if not storage.exists(name):
        storage.create(name)
        storage.fsync_dir()
    if storage.size(name) != layout.length:
        storage.truncate(name, layout.length)
    head = layout.header + b"".join(leaves)
    if storage.read(name, 0, layout.body) != head:
        storage.write(name, 0, head)
    written = waiting = 0
    for index, leaf in enumerate(leaves):
        part = layout.span(index)
        if merkle.leaf(storage.read(name, part.start, part.stop - part.start)) != leaf:
            chunk = _chunk(source, part, leaf, storage, name)
            storage.write(name, part.start, chunk)
            written += 1
            waiting += len(chunk)
        elif whole:
            _chunk(source, part, leaf, storage, name)
        if waiting >= _SYNC_BYTES:
            storage.fsync(name)
            waiting = 0
        if progress is not None:
            progress(index + 1, layout.chunks)
    storage.fsync(name)
    storage.fsync_dir()
    return written


def _chunk(source: Source, part: slice, leaf: bytes, storage: AtRest, name: str) -> bytes | memoryview:
    """A checked chunk; if the source fails, the chunks before it are kept."""
    try:
        chunk = source.read(part)
    except VariegateError:
        storage.fsync(name)
        raise
    _check(chunk, leaf)
    return chunk


def _check_all(source: Source, plan: _Plan) -> None:
    for index, leaf in enumerate(plan.leaves):
        _check(source.read(plan.layout.span(index)), leaf)


def _check(chunk: bytes | memoryview, leaf: bytes) -> None:
    if merkle.leaf(memoryview(chunk)) != leaf:
        raise RefusedError(Refusal.COMPONENT, "component does not match its hash tree")


def _store(storage: AtRest, name: str, data: bytes) -> None:
    if not storage.exists(name):
        storage.create(name)
    if storage.read(name) != data:
        storage.truncate(name, 0)
        storage.write(name, 0, data)
    storage.fsync(name)
    storage.fsync_dir()
