"""Copies for a whole fleet: in parallel, resumable, each registered once its file is on the disk.

Sequence numbers and security counters are reserved in the registry before anything is signed. A batch of orders is
sealed under one ML-DSA signature, its files are written and flushed, its rows are added to the registry, and only then
do the files get their names. A kill in between leaves no file outside the registry, and the copy is made again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from multiprocessing.synchronize import Lock
from pathlib import Path
from urllib.parse import quote

from variegate.export.fleet_list import FleetLine
from variegate.export.orders import Shelf, missing
from variegate.export.outbox import Making, give_names, making, prepare_folder, write_all
from variegate.export.registry import Registry, Row, now, parameters_text
from variegate.export.release import Release
from variegate.export.rewriters import to_parameters
from variegate.export.sealing import CopyOrder, SealedCopy, SharedComponent, Terms, seal_copies, share_component
from variegate.keys.errors import DeviceError, MisuseError
from variegate.keys.files import PUBLIC, write_atomic
from variegate.keys.primitives import sha256
from variegate.keys.seller import SellerKeys
from variegate.keys.signing import SellerRoot, Signer

_BUYER_BYTES = 100
"""Of a file's name; ueid and sequence keep it unique."""

BATCH = 64
"""Copies under one batch signature: the most that a kill can lose, and the step of the progress."""
COMPONENT_FILE = "component.vgb"


@dataclass(frozen=True)
class FleetReport:
    """The result of an export.

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
        signer: The signer; the seller's own keys by default. It stays in this process, so it works alone.
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
        """The root that devices must have pinned to accept these copies."""
        return (self.signer or self.seller.signer).root

    @cached_property
    def shared(self) -> SharedComponent | None:
        """The shared component, sealed once."""
        return None if self.cohort is None else share_component(self.release, self.seller, self.cohort)

    def fleet(
        self,
        wanted: Sequence[FleetLine],
        registry: Registry,
        *,
        jobs: int = 1,
        progress: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005
    ) -> FleetReport:
        """Makes the copies that a fleet still lacks.

        Args:
            wanted: The fleet.
            registry: Where copies are entered.
            jobs: Worker processes; 1 works in this one.
            progress: Called with copies done and all copies to make, after each batch.

        Returns:
            A summary of the work.

        Raises:
            RefusedError: `PARITY`, or a damaged release; batches registered before it stay valid.
            MisuseError: When the folder cannot be written, or worker processes are asked for with a signer.
        """
        if self.signer is not None and jobs > 1:
            raise MisuseError("a signer of its own works in one process", hint="leave out --jobs")
        prepare_folder(self.folder)
        if self.shared is not None:
            write_atomic(self.folder / COMPONENT_FILE, bytes(self.shared.file), mode=PUBLIC, overwrite=True)
        orders = missing(wanted, registry, Shelf(self.folder, self.release, self.shared, self.terms, self.root))
        done = 0
        # Closed in this order: no worker writes any more when the folder goes.
        with making(self.folder) as place, contextlib.closing(self._run(orders, jobs, place)) as batches:
            for rows in batches:
                hand_out(place, rows, registry)
                done += len(rows)
                progress(done, len(orders))
        return FleetReport(len(orders), len(wanted) - len(orders), self.folder)

    def make(self, orders: Sequence[CopyOrder], place: Making) -> list[Row]:
        """Seals a batch and writes its files into a folder of `outbox.making`; they are not yet registered.

        Returns:
            Its rows, for `hand_out`.
        """
        copies = seal_copies(self.release, self.seller, orders, self.terms, self.shared, signer=self.signer)
        files = [(file_name(c.order, shared=self.shared is not None), c.to_bytes()) for c in copies]
        write_all(place, files)
        return [_row(self.release, c, name, data) for c, (name, data) in zip(copies, files, strict=True)]

    def _run(self, orders: Sequence[CopyOrder], jobs: int, place: Making) -> Generator[list[Row]]:
        """Rows of each batch as it is finished."""
        # itertools.batched came with Python 3.12.
        batches = iter([orders[i : i + BATCH] for i in range(0, len(orders), BATCH)])
        if jobs <= 1 or len(orders) <= BATCH:
            for batch in batches:
                yield self.make(batch, place)
            return
        context = multiprocessing.get_context("spawn")
        reopen = self.seller.reopener()
        start = _Start(self.release_folder, reopen, self.terms, self.folder, self.cohort, context.Lock())
        with ProcessPoolExecutor(jobs, context, _start_worker, (start,)) as pool:
            # Only a few batches ahead, so that a failure stops the rest at once.
            with _no_interrupts():
                running: set[Future[list[Row]]] = {pool.submit(_work, b, place) for b in islice(batches, 2 * jobs)}
            try:
                while running:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        yield future.result()
                        running |= {pool.submit(_work, b, place) for b in islice(batches, 1)}
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


def _work(orders: Sequence[CopyOrder], place: Making) -> list[Row]:
    return _worker().make(orders, place)


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


def hand_out(place: Making, rows: Sequence[Row], registry: Registry) -> None:
    """Enters a batch in the registry and gives its files their names.

    Args:
        place: Where `Exporter.make` wrote it.
        rows: Its result.
        registry: Where copies are entered.

    Raises:
        RefusedError: `MALFORMED`, when a sequence number is taken or the registry is damaged; no file has a name then.
        MisuseError: When the folder cannot be written.
    """
    registry.add(rows)
    give_names(place, [row.file for row in rows])


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
