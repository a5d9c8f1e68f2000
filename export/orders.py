"""Finds the copies that a fleet still lacks, and gives them their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from variegate.export.fleet_list import FleetLine
from variegate.export.outbox import is_whole
from variegate.export.registry import Registry, Row, parameters_text
from variegate.export.release import Release
from variegate.export.rewriters import to_parameters
from variegate.export.sealing import CopyOrder, SharedComponent, Terms
from variegate.keys.artefact import Artefact
from variegate.keys.envelope import open_envelope
from variegate.keys.errors import RefusedError
from variegate.keys.signing import SellerRoot


@dataclass(frozen=True)
class Shelf:
    """The conditions under which a copy is kept instead of made again.

    Attributes:
        folder: Where files are.
        release: The release of the copies.
        shared: The component that they point to, or None for those with their own.
        terms: The terms on which they were sealed.
        root: The root under which they are signed.
    """

    folder: Path
    release: Release
    shared: SharedComponent | None
    terms: Terms
    root: SellerRoot

    def has(self, row: Row, wanted: FleetLine) -> bool:
        """Whether the file of a row is there, whole, of this release, and as it is asked for."""
        release, shared = self.release, self.shared
        return (
            (row.release, row.base, row.parameters) == (release.name, release.base_digest.hex(), self._parameters)
            and (shared is None or row.component == shared.ref.root.hex())
            and row.file.endswith(".vgc" if shared is None else ".vge")
            and is_whole(self.folder / row.file, row.artefact)
            and self._is_as_asked(self.folder / row.file, wanted)
        )

    @cached_property
    def _parameters(self) -> str:
        return parameters_text(to_parameters(self.release.template.rewriter))

    def _is_as_asked(self, path: Path, wanted: FleetLine) -> bool:
        """Whether a whole file was sealed on these terms, for this class, under the root of today's signer."""
        try:
            data = path.read_bytes()
            envelope = Artefact.from_bytes(data).envelope if self.shared is None else data
            manifest = open_envelope(envelope, self.root).manifest
        except (OSError, RefusedError):
            return False
        terms = self.terms
        sealed = (manifest.vendor, manifest.policy, manifest.not_after, manifest.measurements, manifest.device_class)
        terms_now = (terms.vendor, terms.policy, terms.not_after, terms.measurements, wanted.device.device_class)
        broker = None if manifest.release is None else manifest.release.broker
        return (
            sealed == terms_now
            and manifest.allow_downgrade == terms.allow_downgrade
            and broker == (None if terms.broker is None else terms.broker.id)
        )


def missing(wanted: Sequence[FleetLine], registry: Registry, shelf: Shelf) -> list[CopyOrder]:
    """Orders for what has no registered file on the shelf that a device would take, with reserved numbers.

    A line without a security counter keeps the newest copy of its buyer, device and epoch, if this copy has the
    device's highest counter: a device with a later copy refuses all others. Such lines for several epochs of one device
    share a counter, so they are made together or not at all.

    Raises:
        MisuseError: A device has had the highest number there is.
        RefusedError: `MALFORMED`, when the registry is damaged.
    """
    books = _Books.read(wanted, registry)
    there = [(row := books.newest(w)) is not None and shelf.has(row, w) for w in wanted]
    stale = {w.device.ueid for w, whole in zip(wanted, there, strict=True) if w.security_counter is None and not whole}
    lacking = [
        w
        for w, whole in zip(wanted, there, strict=True)
        if not whole or (w.security_counter is None and w.device.ueid in stale)
    ]
    numbers = registry.reserve([(w.device.ueid.hex(), w.security_counter) for w in lacking])
    return [
        CopyOrder(
            buyer=w.buyer,
            device=w.device,
            epoch=w.epoch,
            sequence=n.sequence,
            security_counter=n.security_counter,
        )
        for w, n in zip(lacking, numbers, strict=True)
    ]


@dataclass(frozen=True)
class _Books:
    """The registry's rows for these devices.

    Attributes:
        rows: By buyer, ueid and epoch, in the order in which they were made.
        highest: The highest security counter by ueid.
    """

    rows: dict[tuple[str, str, int], list[Row]]
    highest: dict[str, int]

    @classmethod
    def read(cls, wanted: Sequence[FleetLine], registry: Registry) -> _Books:
        ueids = {w.device.ueid.hex() for w in wanted}
        books = cls({}, {})
        for row in registry.rows():
            if row.ueid in ueids:
                books.rows.setdefault((row.buyer, row.ueid, row.epoch), []).append(row)
                books.highest[row.ueid] = max(row.security_counter, books.highest.get(row.ueid, 0))
        return books

    def newest(self, wanted: FleetLine) -> Row | None:
        """The one row whose file would do: the device may have taken it, and would refuse those before."""
        ueid = wanted.device.ueid.hex()
        rows = self.rows.get((wanted.buyer, ueid, wanted.epoch), [])
        counter = self.highest.get(ueid) if wanted.security_counter is None else wanted.security_counter
        under = [row for row in rows if row.security_counter == counter]
        return max(under, key=lambda row: row.sequence, default=None)
