"""Copies for a whole fleet: in parallel, resumable, each registered once its file is safe.

A batch of orders is sealed under one ML-DSA signature, its files are written and flushed, and only then are its
rows added to the registry. Whatever is killed in between is made again with the same sequence numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from multiprocessing.synchronize import Lock
from pathlib import Path
from urllib.parse import quote

from variegate.export.fleet_list import Wanted
from variegate.export.registry import Registry, Row, now, parameters_text
from variegate.export.release import Release
from variegate.export.rewriters import to_parameters
from variegate.export.sealing import CopyOrder, SealedCopy, SharedComponent, Terms, seal_copies, share_component
from variegate.keys.artefact import Artefact
from variegate.keys.envelope import open_envelope
from variegate.keys.errors import DeviceError, MisuseError, RefusedError
from variegate.keys.files import write_atomic
from variegate.keys.primitives import sha256
from variegate.keys.seller import SellerKeys
from variegate.keys.signing import SellerRoot, Signer

_BUYER_BYTES = 100
"""Of a file's name; ueid and sequence keep it unique."""
_LIBC = ctypes.CDLL(None, use_errno=True)

BATCH = 64
"""Copies under one batch signature: what a kill can lose, and how often progress shows."""
COMPONENT_FILE = "component.vgb"


@dataclass(frozen=True)
class FleetReport:
    """What an export did.

    Attributes:
        made: Copies made now.
        skipped: Copies that were there already.
        folder: Where they are.
    """

    made: int
    skipped: int
    folder: Path


def file_name(order: CopyOrder, *, shared: bool) -> str:
    """Name of the file handed out; buyers with odd characters are percent-encoded, long ones are cut."""
    kind = "vge" if shared else "vgc"
    # A cut through %C3 leaves nothing of it.
    buyer = re.sub("%.?$", "", quote(order.buyer, safe=" ")[:_BUYER_BYTES])
    return f"{buyer}-{order.device.ueid[1:9].hex()}-{order.sequence}.{kind}"


@dataclass(frozen=True)
class Exporter:
    """Makes copies of one release for one seller.

    Attributes:
        release_folder: The release; worker processes read it again.
        seller: Holder of the secrets.
        terms: Common to all copies.
        folder: For the files; made when missing.
        cohort: Share one component among the devices under this name; None gives every copy its own.
        signer: Who signs; the seller's own keys unless told. It stays in this process, so it works alone.
    """

    release_folder: Path
    seller: SellerKeys
    terms: Terms
    folder: Path
    cohort: str | None = None
    signer: Signer | None = None

    @cached_property
    def release(self) -> Release:
        """The release, read once."""
        return Release.load(self.release_folder)

    @property
    def root(self) -> SellerRoot:
        """What devices must have pinned to take these copies."""
        return (self.signer or self.seller.signer).root

    @cached_property
    def shared(self) -> SharedComponent | None:
        """The shared component, sealed once."""
        return None if self.cohort is None else share_component(self.release, self.seller, self.cohort)

    def fleet(
        self,
        wanted: Sequence[Wanted],
        registry: Registry,
        *,
        jobs: int = 1,
        progress: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005
    ) -> FleetReport:
        """Makes what a fleet still lacks.

        Args:
            wanted: The fleet.
            registry: Where copies are entered.
            jobs: Worker processes; 1 works in this one.
            progress: Called with copies done and all copies to make, after each batch.

        Returns:
            What was done.

        Raises:
            RefusedError: `PARITY`, or a damaged release; batches registered before it stay valid.
            MisuseError: When the folder cannot be written, or worker processes are asked for with a signer.
        """
        if self.signer is not None and jobs > 1:
            raise MisuseError("a signer of its own works in one process", hint="leave out --jobs")
        prepare_folder(self.folder)
        if self.shared is not None:
            write_atomic(self.folder / COMPONENT_FILE, bytes(self.shared.file), mode=0o644, overwrite=True)
        orders = self._missing(wanted, registry)
        done = 0
        for rows in self._run(orders, jobs):
            registry.add(rows)
            done += len(rows)
            progress(done, len(orders))
        return FleetReport(len(orders), len(wanted) - len(orders), self.folder)

    def make(self, orders: Sequence[CopyOrder]) -> list[Row]:
        """Seals a batch, writes its files, and returns its rows, not yet registered."""
        copies = seal_copies(self.release, self.seller, orders, self.terms, self.shared, signer=self.signer)
        files = [(file_name(c.order, shared=self.shared is not None), c.to_bytes()) for c in copies]
        _write_batch(self.folder, files)
        return [_row(self.release, c, name, data) for c, (name, data) in zip(copies, files, strict=True)]

    def _missing(self, wanted: Sequence[Wanted], registry: Registry) -> list[CopyOrder]:
        """Orders for what has no registered file in this folder yet, with their sequence numbers."""
        release, shared = self.release, self.shared
        parameters = parameters_text(to_parameters(release.template.rewriter))
        suffix = ".vgc" if shared is None else ".vge"
        asked = {(w.buyer, w.device.ueid.hex(), w.epoch, w.security_counter) for w in wanted}
        # The last whole file counts: a device may have taken it and would refuse the ones before.
        there: dict[tuple[str, str, int, int], Row] = {}
        for row in registry.rows():
            key = (row.buyer, row.ueid, row.epoch, row.security_counter)
            if (
                key in asked
                and (row.release, row.base, row.parameters) == (release.name, release.base_digest.hex(), parameters)
                and (shared is None or row.component == shared.ref.root.hex())
                and row.file.endswith(suffix)
                and _is_whole(self.folder / row.file, row.artefact)
            ):
                there[key] = row
        sequences = dict(registry.latest_sequences())
        orders = []
        for w in wanted:
            ueid = w.device.ueid.hex()
            row_there = there.get((w.buyer, ueid, w.epoch, w.security_counter))
            if row_there is not None and self._is_as_asked(self.folder / row_there.file, w):
                continue
            sequences[ueid] = sequences.get(ueid, 0) + 1
            orders.append(
                CopyOrder(
                    buyer=w.buyer,
                    device=w.device,
                    epoch=w.epoch,
                    sequence=sequences[ueid],
                    security_counter=w.security_counter,
                )
            )
        return orders

    def _is_as_asked(self, path: Path, wanted: Wanted) -> bool:
        """Whether a whole file was sealed on these terms, for this class, under the root of today's signer."""
        try:
            data = path.read_bytes()
            envelope = Artefact.from_bytes(data).envelope if self.shared is None else data
            manifest = open_envelope(envelope, self.root).manifest
        except (OSError, RefusedError):
            return False
        terms = self.terms
        sealed = (manifest.vendor, manifest.policy, manifest.not_after, manifest.measurements, manifest.device_class)
        asked = (terms.vendor, terms.policy, terms.not_after, terms.measurements, wanted.device.device_class)
        broker = None if manifest.release is None else manifest.release.broker
        return sealed == asked and broker == (None if terms.broker is None else terms.broker.id)

    def _run(self, orders: Sequence[CopyOrder], jobs: int) -> Iterator[list[Row]]:
        """Rows of each batch as it is finished."""
        # itertools.batched came with Python 3.12.
        batches = iter([orders[i : i + BATCH] for i in range(0, len(orders), BATCH)])
        if jobs <= 1 or len(orders) <= BATCH:
            yield from map(self.make, batches)
            return
        context = multiprocessing.get_context("spawn")
        reopen = self.seller.reopener()
        start = _Start(self.release_folder, reopen, self.terms, self.folder, self.cohort, context.Lock())
        with ProcessPoolExecutor(jobs, context, _start_worker, (start,)) as pool:
            # Only a few batches ahead, so that a failure stops the rest at once.
            with _no_interrupts():
                running: set[Future[list[Row]]] = {pool.submit(_work, b) for b in islice(batches, 2 * jobs)}
            try:
                while running:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        yield future.result()
                        running |= {pool.submit(_work, b) for b in islice(batches, 1)}
            except BrokenProcessPool:
                raise DeviceError("a worker process died", hint="run again: finished batches are kept") from None
            finally:
                for future in running:
                    future.cancel()


@dataclass(frozen=True)
class _Start:
    """A worker's orders. One worker at a time has the `turn` to open the seller's keys."""

    release: Path
    reopen: Callable[[], SellerKeys]
    terms: Terms
    folder: Path
    cohort: str | None
    turn: Lock


_start: _Start | None = None


def _start_worker(start: _Start) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    global _start  # noqa: PLW0603  a worker's one state, set before its first batch
    _start = start


@cache
def _worker() -> Exporter:
    """Opens the keys with the first batch: an error then reaches the process that waits for it."""
    start = _start
    if start is None:
        raise MisuseError("worker was not started")
    # A login writes to the token, and SoftHSM overlooks a token that another process is writing to.
    with start.turn:
        seller = start.reopen()
    return Exporter(start.release, seller, start.terms, start.folder, start.cohort)


def _work(orders: Sequence[CopyOrder]) -> list[Row]:
    return _worker().make(orders)


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ignores Ctrl-C while workers start: they inherit it, and leave the word to this process."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it is interrupted
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def prepare_folder(folder: Path) -> None:
    """Makes the folder, and removes what a killed run left half-written.

    Raises:
        MisuseError: When it is no folder or may not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (*folder.glob(".*.vgc.part"), *folder.glob(".*.vge.part")):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MisuseError(f"cannot write to {folder}: permission denied")


def _cannot_write(folder: Path, error: OSError) -> MisuseError:
    return MisuseError(f"cannot write to {folder}: {(error.strerror or type(error).__name__).lower()}")


def _is_whole(path: Path, digest: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except OSError:
        return False


def _write_batch(folder: Path, files: Sequence[tuple[str, bytes]]) -> None:
    """Writes files so that each is whole or absent, and all are on the disk on return.

    One flush of the file system serves the whole batch; `write_atomic` would pay one for every file.
    """
    partial = [folder / f".{name}.part" for name, _ in files]
    try:
        for path, (_, data) in zip(partial, files, strict=True):
            path.write_bytes(data)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _sync_file_system(handle)
            for path, (name, _) in zip(partial, files, strict=True):
                path.replace(folder / name)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    finally:
        # Whatever has not got its name by now, never will: an interrupt ends here as well.
        for path in partial:
            with contextlib.suppress(OSError):
                path.unlink()


def _sync_file_system(handle: int) -> None:
    """syncfs(2) of the file system that holds `handle`; Python has only sync(2), which waits for all of them."""
    if _LIBC.syncfs(handle) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _row(release: Release, copy: SealedCopy, name: str, data: bytes) -> Row:
    order = copy.order
    return Row(
        made=now(),
        release=release.name,
        buyer=order.buyer,
        ueid=order.device.ueid.hex(),
        device_class=order.device.device_class,
        epoch=order.epoch,
        sequence=order.sequence,
        security_counter=order.security_counter,
        parameters=parameters_text(to_parameters(release.template.rewriter)),
        base=release.base_digest.hex(),
        component=copy.manifest.component.root.hex(),
        artefact=sha256(data).hex(),
        file=name,
    )
