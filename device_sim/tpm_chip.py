"""A chip over a TPM 2.0: the same counters and burnt values as `fuses.Fuses`, and a folder that may be restored.

    lock        held (flock) while the device is on
    state       `tpm_state.State`: everything, encrypted, numbered, replaced whole

Three NV counters of the TPM decide which state is valid. An update is

    1. for a rise of the security counter: the root secret is sealed again, for `raises` one higher
    2. the state `number + 1` is durable in the folder, in place of the one before
    3. for such a rise: `raises` goes up, and what was sealed before no longer opens
    4. `updates` goes up
    5. `updates` and `openings` are read back, and only now the caller is answered

A kill before 2 leaves the old state. After 2 the next opening finds the new one, at most one `raises` and some
`updates` ahead of the TPM, and completes the update. So a state is valid while it is not behind `updates`. A state that
was written but never acknowledged could then be valid beside a later one with the same number. So an opening first
raises `openings`, which stops every other process at 5, and then writes its state under a number two above `updates`,
past every state ever written.

A bound chip opens only on a machine with the same boot, and only until `close_boot` closes it to the rest of the
machine: then the TPM unseals for nobody, root included, until the machine starts again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from variegate.device_sim.fuses import MAX_VALUE, checked_name, held
from variegate.device_sim.tpm import Policy, Tpm, pcr_after
from variegate.device_sim.tpm_secret import MAX_SECRET_BYTES, Action, Job, made_from, resealed_from
from variegate.device_sim.tpm_state import MAX_STATE_BYTES, Head, Indices, State, read_head, read_state
from variegate.isolation.memory import mappable
from variegate.keys import cbor
from variegate.keys.errors import DeviceError, MisuseError, RefusedError
from variegate.keys.files import read_capped, write_atomic
from variegate.keys.primitives import sha256
from variegate.runtime.admission import SECURITY_COUNTER

_STATE = "state"
_MOST_AHEAD = 2
"""The most that a state may be ahead of `updates`: an opening writes such a state, see above."""
_RESTORED = "restore the state that the device wrote last, if it still exists"


class TpmChip:
    """Counters and burnt values of one device over one TPM; held by one process, safe among its threads."""

    def __init__(self, folder: Path, tcti: str, measured: Mapping[str, bytes], *, launch: bytes | None = None) -> None:
        """Turns the chip on: measures into the TPM, unseals, and takes the state over.

        Args:
            folder: Where lock and state lie.
            tcti: As `tpm.checked_tcti`.
            measured: The measurements at launch, by name, 32 bytes each.
            launch: What it was made under, on another machine; `close_boot` binds it to this one and to `measured`.

        Raises:
            DeviceError: Another process holds the device; the TPM refuses or is not reached; the state is damaged, or
                not the one that the TPM knows of.
            MisuseError: tpm2-pytss is not there.
        """
        self._path = folder / _STATE
        self._tcti = tcti
        self._process = os.getpid()
        self._guard = threading.Lock()
        self._on = False
        self._descriptors: dict[str, int] = {}
        self._to_bind = None if launch is None else measured
        with ExitStack() as undo:
            undo.enter_context(held(folder))
            data = self._read_state()
            head = read_head(data)
            self._pcr = _measure(tcti, launch_digest(measured) if launch is None else launch)
            self._key = self._job(Action.STATE_KEY, head).ask()
            self._state = self._taken_over(read_state(data, self._key))
            self._close = undo.pop_all()
        self._on = True

    @classmethod
    def make(cls, folder: Path, tcti: str, measured: Mapping[str, bytes]) -> Self:
        """Defines a chip's counters in a TPM, and turns it on.

        Raises:
            DeviceError: The TPM refuses or is not reached, or the folder cannot be written.
            MisuseError: tpm2-pytss is not there, or `tcti` names no TPM.
        """
        pcr = _measure(tcti, launch_digest(measured))
        with ExitStack() as undo:
            with Tpm(tcti) as tpm:
                found = []
                for _ in range(3):
                    found.append(tpm.new_counter())
                    undo.callback(_remove, tcti, found[-1])
                indices = Indices(*found)
                raises, number, session = (tpm.value(i) for i in (indices.raises, indices.updates, indices.openings))
            sealed, key = made_from(Job(Action.MAKE, tcti, Policy(pcr, indices.raises, raises)).ask())
            state = State(
                raises=raises,
                indices=indices,
                sealed=sealed,
                number=number,
                session=session,
                counters={},
                burnt={},
                secrets={},
            )
            write_atomic(folder / _STATE, state.to_bytes(key))
            chip = cls(folder, tcti, measured)
            undo.pop_all()
        return chip

    def scrap(self) -> None:
        """Undefines the chip's counters, and the device is lost. For a device that was not made completely."""
        for index in (self._state.indices.updates, self._state.indices.openings, self._state.indices.raises):
            _remove(self._tcti, index)

    def counter(self, name: str) -> int:
        """As `Chip.counter`."""
        checked_name(name)
        with self._held():
            return self._state.counters.get(name, 0)

    def advance(self, name: str, value: int) -> None:
        """As `Chip.advance`. A rise of the security counter seals the root secret again."""
        checked_name(name)
        if not 0 <= value <= MAX_VALUE:
            raise MisuseError(f"counter {name} cannot hold {value}")
        with self._held():
            if value > self._state.counters.get(name, 0):
                self._raise(name, value)

    def reserve(self, name: str, least: int, most: int, limit: int) -> int:
        """As `Chip.reserve`."""
        checked_name(name)
        if not 0 <= limit <= MAX_VALUE:
            raise MisuseError(f"counter {name} cannot hold {limit}")
        with self._held():
            value = self._state.counters.get(name, 0)
            granted = min(most, limit - value)
            if granted < max(1, least):
                return 0
            self._raise(name, value + granted)
            return granted

    def load(self, name: str) -> bytes | None:
        """As `Chip.load`."""
        with self._held():
            return self._state.burnt.get(name)

    def burn(self, name: str, value: bytes) -> None:
        """As `Chip.burn`."""
        with self._held():
            self._commit(replace(self._state, burnt={**self._state.burnt, name: value}))

    def burn_secret(self, name: str, value: bytes) -> None:
        """As `Chip.burn_secret`: encrypted under the root secret, which stays in the TPM."""
        if len(value) > MAX_SECRET_BYTES:
            raise MisuseError(f"a secret has at most {MAX_SECRET_BYTES} bytes")
        with self._held():
            ciphertext = self._job(Action.ENCRYPT, self._state, name=name, data=value).ask()
            self._commit(replace(self._state, secrets={**self._state.secrets, name: ciphertext}))

    def open_secret(self, name: str) -> int:
        """As `Chip.open_secret`: a pipe that another process has filled; the secret was never in this one."""
        with self._held():
            if name in self._descriptors:  # opened again: a reader of one descriptor must not move another's position
                return os.open(f"/proc/self/fd/{self._descriptors[name]}", os.O_RDONLY | os.O_CLOEXEC)
            return self._opened(name)

    @property
    def bound(self) -> bool:
        """Whether it opens only on a machine with the boot to which it was bound."""
        return self._state.bound

    @property
    def boot(self) -> bytes | None:
        """As `Chip.boot`."""
        if not (self._state.bound or self._to_bind is not None):
            return None
        with Tpm(self._tcti) as tpm:
            return tpm.boot()

    def close_boot(self) -> bool:
        """As `Chip.close_boot`: secrets are kept in memory files, which this process does not map."""
        with self._held():
            if not (self._state.bound or self._to_bind is not None):
                return False
            for name in self._state.secrets.keys() - self._descriptors.keys():
                self._descriptors[name] = mappable(self._opened(name))
            if self._to_bind is not None:
                self._bind(self._to_bind)
                self._to_bind = None
            with Tpm(self._tcti) as tpm:
                tpm.close_boot()
            return True

    def close(self) -> None:
        """Turns the chip off."""
        with self._guard:
            self._on = False
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])
            self._close.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _held(self) -> Iterator[None]:
        if os.getpid() != self._process:  # before `_guard` is taken, which a fork may copy while it is held
            raise DeviceError("the device was opened by another process", hint="open it after the fork")
        with self._guard:
            if not self._on:
                raise DeviceError("the device's chip is off", hint="open the device again")
            yield

    def _bind(self, measured: Mapping[str, bytes]) -> None:
        """Binds the chip to this machine's boot, for good: the earlier sealed secret no longer opens."""
        pcr = pcr_after(launch_digest(measured))
        with self._unless_broken():
            sealed = resealed_from(self._job(Action.BIND, self._state, data=pcr).ask())
        state = self._state
        self._commit(replace(state, raises=state.raises + 1, sealed=sealed, bound=True))
        self._pcr = pcr

    def _opened(self, name: str) -> int:
        ciphertext = self._state.secrets.get(name)
        if ciphertext is None:
            raise DeviceError("the device's chip has no such secret")
        return self._job(Action.DECRYPT, self._state, name=name, data=ciphertext).descriptor()

    def _read_state(self) -> bytes:
        try:
            return read_capped(self._path, limit=MAX_STATE_BYTES)
        except (MisuseError, RefusedError) as error:
            raise DeviceError("the chip's state is damaged", hint=_RESTORED) from error

    def _job(self, action: Action, head: Head, *, name: str = "", data: bytes = b"") -> Job:
        policy = Policy(self._pcr, head.indices.raises, head.raises, head.bound)
        return Job(action, self._tcti, policy, head.sealed, name, data)

    def _taken_over(self, found: State) -> State:
        """Completes what a kill interrupted, and writes the state under a number that nothing else can have."""
        at = found.indices
        with Tpm(self._tcti) as tpm:
            session = tpm.increment(at.openings)  # from here on no other process is answered
            updates, raises = tpm.value(at.updates), tpm.value(at.raises)
            if found.number < updates or found.raises < raises:
                raise DeviceError("the chip's state is older than the TPM knows: it was restored", hint=_RESTORED)
            if found.number > updates + _MOST_AHEAD or found.raises > raises + 1:
                raise DeviceError("the chip's state is not of this TPM, or the TPM's counters were replaced")
            if found.raises == raises + 1:
                tpm.increment(at.raises)
        state = replace(found, session=session, number=updates + 2)
        self._write(state)
        with Tpm(self._tcti) as tpm:
            tpm.increment(at.updates)
            tpm.increment(at.updates)
            self._answerable(tpm, state)
        return state

    def _raise(self, name: str, value: int) -> None:
        state = replace(self._state, counters={**self._state.counters, name: value})
        if name != SECURITY_COUNTER:
            self._commit(state)
            return
        with self._unless_broken():
            sealed = resealed_from(self._job(Action.RESEAL, self._state).ask())
        self._commit(replace(state, raises=state.raises + 1, sealed=sealed))

    def _commit(self, changed: State) -> None:
        """Steps 2 to 5; `_guard` is held."""
        state = replace(changed, number=changed.number + 1)
        at = state.indices
        with self._unless_broken():
            self._write(state)
            with Tpm(self._tcti) as tpm:
                if state.raises != self._state.raises:
                    tpm.increment(at.raises)
                tpm.increment(at.updates)
                self._answerable(tpm, state)
        self._state = state

    def _write(self, state: State) -> None:
        try:
            write_atomic(self._path, state.to_bytes(self._key), overwrite=True)
        except MisuseError as error:
            raise DeviceError(f"the device's chip failed: {error.message}") from error

    def _answerable(self, tpm: Tpm, state: State) -> None:
        """Step 5: this process, and no other, has written since it was turned on."""
        at = state.indices
        if tpm.value(at.updates) != state.number or tpm.value(at.openings) != state.session:
            raise DeviceError("another process uses this device's counters", hint="open the device again")

    @contextmanager
    def _unless_broken(self) -> Iterator[None]:
        """After a failure nobody knows what is durable: the chip is off until it is opened again."""
        try:
            yield
        except BaseException:
            self._on = False
            raise


def is_bound(folder: Path) -> bool:
    """Whether the state in a chip's folder says that it is bound; hostile, so believed only to choose what to try.

    Raises:
        DeviceError: It is damaged.
    """
    try:
        return read_head(read_capped(folder / _STATE, limit=MAX_STATE_BYTES)).bound
    except (MisuseError, RefusedError) as error:
        raise DeviceError("the chip's state is damaged", hint=_RESTORED) from error


def launch_digest(measured: Mapping[str, bytes]) -> bytes:
    """The PCR is extended with this, 32 bytes: SHA-256 over a context and CBOR [[name, value], ...], by name."""
    return sha256(b"variegate/1/tpm/launch/", cbor.encode(sorted([name, value] for name, value in measured.items())))


def _measure(tcti: str, digest: bytes) -> bytes:
    """Resets the PCR and extends it with the measurements.

    Returns:
        Its value, 32 bytes.
    """
    with Tpm(tcti) as tpm:
        tpm.flush_leftovers()
        tpm.measure(digest)
    return pcr_after(digest)


def _remove(tcti: str, index: int) -> None:
    with suppress(DeviceError), Tpm(tcti) as tpm:
        tpm.remove_counter(index)
