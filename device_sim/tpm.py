"""The few TPM 2.0 commands that a chip needs, over tpm2-pytss (extra `tpm`, loaded when first used).

Names of commands and attributes are those of the TCG's TPM 2.0 Library specification, parts 2 and 3.

A `Tpm` is a connection for one operation: a TPM without a resource manager serves one connection at a time, and after a
TPM was restarted the next operation finds it again. Every object and session is flushed before the connection ends;
`flush_leftovers` flushes those that a killed process left.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, Self

from variegate.keys.errors import DeviceError, MisuseError
from variegate.keys.primitives import HASH_BYTES, sha256

PCR = 23
"""Application support (PC Client profile, section 4.6): resettable, so that turning a device on can start it again."""
BOOT_PCRS = (0, 2, 4, 7, 11, 12)
"""What firmware and boot stub measured before the kernel ran: firmware, option ROMs, the boot image, the state of
Secure Boot, the image's parts, and what was passed to it from outside. Numbers 0 to 7 are those of the PC Client
profile, section 2.3.4; 11 and 12 those of the UAPI group's TPM2 PCR registry. Only the machine's start clears them."""
CLOSED_PCR = 14
"""Zero until `close_boot`, and again after the next start of the machine."""
_COUNTER_BYTES = 8
_NV_FIRST, _NV_COUNT = 0x01800000, 0x00400000  # owner-defined indices, TCG handle registry section 2.2.2
_NV_TRIES = 16
_TRANSIENT, _SESSIONS = 0x80000000, 0x02000000
_MAX_HANDLES = 64
_FLUSH_CONTEXT = bytes.fromhex("80010000000e00000165")  # no sessions, 14 bytes, TPM_CC_FlushContext; then the handle
# Not `cmd`, which runs a program, nor a library's path: the loader takes both, and a device's folder may be hostile.
_TCTI = re.compile(r"(swtpm|device)(:[A-Za-z0-9_./=,:+-]{1,200})?")


@dataclass(frozen=True)
class Sealed:
    """A sealed data object, of use on its TPM only: TPM2B_PRIVATE and TPM2B_PUBLIC, marshalled."""

    private: bytes
    public: bytes


@dataclass(frozen=True)
class Policy:
    """When a sealed object opens: PolicyPCR and PolicyNV.

    Attributes:
        pcr: Value that PCR 23 must have, 32 bytes.
        index: NV counter that is looked at.
        most: It must not be above this.
        boot: Whether `BOOT_PCRS` must be as they are now, and `CLOSED_PCR` zero.
    """

    pcr: bytes
    index: int
    most: int
    boot: bool = False


def pcr_after(digest: bytes) -> bytes:
    """Value of the PCR, 32 bytes, when it was reset and extended with `digest` once."""
    return sha256(bytes(HASH_BYTES), digest)


def checked_tcti(tcti: str) -> str:
    """Lets the name of a way to a TPM through.

    Raises:
        MisuseError: It is not `swtpm:...` or `device:...`.
    """
    if not _TCTI.fullmatch(tcti):
        raise MisuseError("a TPM is named by swtpm:SETTINGS or device:PATH", hint="for example device:/dev/tpmrm0")
    return tcti


class Tpm:
    """One connection to a TPM. Use it as a context manager; not from two threads at once.

    Every method raises `DeviceError` when the TPM cannot be reached or refuses.
    """

    def __init__(self, tcti: str) -> None:
        """Connects.

        Args:
            tcti: As `checked_tcti`.

        Raises:
            MisuseError: tpm2-pytss is not there, or `tcti` names no TPM.
            DeviceError: The TPM cannot be reached.
        """
        self._lib = _library()
        with ExitStack() as undo, self._errors("connect"):
            self._way = undo.enter_context(self._lib.TCTILdr.parse(checked_tcti(tcti)))
            self._esys = undo.enter_context(self._lib.ESAPI(self._way))
            self._close = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close.close()

    def flush_leftovers(self) -> None:
        """Flushes objects and sessions that nobody holds any more.

        With a resource manager a connection sees only its own. Without one it is the only connection, and loaded
        objects were left by a killed process; three of them fill the TPM.
        """
        for first in (_TRANSIENT, _SESSIONS):
            with self._errors("list handles"):
                _, handles = self._esys.get_capability(self._lib.TPM2_CAP.HANDLES, first, _MAX_HANDLES)
                for handle in handles.data.handles:
                    self._way.transmit(_FLUSH_CONTEXT + int(handle).to_bytes(4, "big"))
                    self._way.receive()

    def measure(self, digest: bytes) -> None:
        """Resets the PCR and extends it with 32 bytes."""
        with self._errors("measure"):
            self._esys.pcr_reset(getattr(self._lib.ESYS_TR, f"PCR{PCR}"))
            self._extend(PCR, digest)

    def boot(self) -> bytes:
        """Measurement of this machine's boot: SHA-256 over the values of `BOOT_PCRS`, in that order, 32 bytes."""
        return sha256(*self._values(BOOT_PCRS))

    def close_boot(self) -> None:
        """Extends `CLOSED_PCR`: nothing that was sealed under `Policy.boot` opens until the machine starts again."""
        with self._errors("measure"):
            self._extend(CLOSED_PCR, sha256(b"variegate/1/tpm/closed"))

    def new_counter(self) -> int:
        """Defines an NV counter under a free index; it starts above all values that a counter of this TPM ever had.

        Returns:
            The index.
        """
        for tries_left in reversed(range(_NV_TRIES)):
            index = _NV_FIRST + secrets.randbelow(_NV_COUNT)
            try:
                with self._errors("define a counter"):
                    handle = self._esys.nv_define_space(None, self._public(index, written=False))
            except _TakenError:
                if not tries_left:
                    raise
                continue
            with self._errors("start a counter"):
                self._esys.nv_increment(handle)
            return index
        raise AssertionError  # pragma: no cover  the loop returns or raises

    def remove_counter(self, index: int) -> None:
        """Undefines an NV counter."""
        with self._errors("remove a counter"):
            self._esys.nv_undefine_space(self._esys.tr_from_tpmpublic(index))

    def value(self, index: int) -> int:
        """Value of an NV counter."""
        with self._errors("read a counter"):
            return self._read(self._counter(index))

    def increment(self, index: int) -> int:
        """Raises an NV counter by one, durable.

        Returns:
            Its value after, which is more than one above the last one read when somebody else raises it too.
        """
        with self._errors("raise a counter"):
            handle = self._counter(index)
            self._esys.nv_increment(handle)
            return self._read(handle)

    def seal(self, secret: bytes, policy: Policy) -> Sealed:
        """Seals at most 128 bytes; they travel encrypted."""
        lib = self._lib
        with self._errors("seal"), self._primary() as parent:
            with self._policy(parent, policy, lib.TPM2_SE.TRIAL) as trial:
                digest = self._esys.policy_get_digest(trial)
            public = lib.TPM2B_PUBLIC(
                publicArea=lib.TPMT_PUBLIC(
                    type=lib.TPM2_ALG.KEYEDHASH,
                    nameAlg=lib.TPM2_ALG.SHA256,
                    # NODA: a refused policy must not lock the whole TPM. No USERWITHAUTH: the policy is the only way.
                    objectAttributes=lib.TPMA_OBJECT.FIXEDTPM | lib.TPMA_OBJECT.FIXEDPARENT | lib.TPMA_OBJECT.NODA,
                    authPolicy=digest,
                    parameters=lib.TPMU_PUBLIC_PARMS(
                        keyedHashDetail=lib.TPMS_KEYEDHASH_PARMS(
                            scheme=lib.TPMT_KEYEDHASH_SCHEME(scheme=lib.TPM2_ALG.NULL)
                        )
                    ),
                )
            )
            sensitive = lib.TPM2B_SENSITIVE_CREATE(lib.TPMS_SENSITIVE_CREATE(data=secret))
            with self._session(parent, lib.TPM2_SE.HMAC) as session:
                self._esys.trsess_set_attributes(session, lib.TPMA_SESSION.DECRYPT | lib.TPMA_SESSION.CONTINUESESSION)
                private, area, *_ = self._esys.create(parent, sensitive, public, session1=session)
            return Sealed(bytes(private.marshal()), bytes(area.marshal()))

    def unseal(self, sealed: Sealed, policy: Policy) -> bytes:
        """Unseals a secret, encrypted on its way here, if the TPM finds that the policy holds."""
        lib = self._lib
        with self._errors("unseal"), self._primary() as parent:
            private, _ = lib.TPM2B_PRIVATE.unmarshal(sealed.private)
            public, _ = lib.TPM2B_PUBLIC.unmarshal(sealed.public)
            with (
                self._flushed(self._esys.load(parent, private, public)) as item,
                self._policy(parent, policy, lib.TPM2_SE.POLICY) as session,
            ):
                self._esys.trsess_set_attributes(session, lib.TPMA_SESSION.ENCRYPT | lib.TPMA_SESSION.CONTINUESESSION)
                return bytes(self._esys.unseal(item, session1=session))

    def _extend(self, pcr: int, digest: bytes) -> None:
        lib = self._lib
        value = lib.TPMT_HA(hashAlg=lib.TPM2_ALG.SHA256, digest=lib.TPMU_HA(sha256=digest))
        self._esys.pcr_extend(getattr(lib.ESYS_TR, f"PCR{pcr}"), lib.TPML_DIGEST_VALUES([value]))

    def _values(self, pcrs: tuple[int, ...]) -> list[bytes]:
        """Values of at most eight PCRs: one command reads no more."""
        with self._errors("read what was measured"):
            _, _, lists = self._esys.pcr_read(_selection(*pcrs))
            values = [bytes(digest) for digest in lists]
        if len(values) != len(pcrs):
            raise DeviceError("the TPM has no SHA-256 bank", hint="swtpm_setup --pcr-banks sha256")
        return values

    def _public(self, index: int, *, written: bool) -> Any:
        lib = self._lib
        # An empty authorisation: whoever reaches the TPM can raise the counter, and so stop the device, as they could
        # by undefining it. They cannot lower it.
        attributes = lib.TPMA_NV.AUTHREAD | lib.TPMA_NV.AUTHWRITE | lib.TPMA_NV.NO_DA | (lib.TPM2_NT.COUNTER << 4)
        if written:
            attributes |= lib.TPMA_NV.WRITTEN
        area = lib.TPMS_NV_PUBLIC(
            nvIndex=index, nameAlg=lib.TPM2_ALG.SHA256, attributes=attributes, dataSize=_COUNTER_BYTES
        )
        return lib.TPM2B_NV_PUBLIC(nvPublic=area)

    def _counter(self, index: int) -> Any:
        """Handle of an index that is such a counter: under the same number anything else could have been defined."""
        handle = self._esys.tr_from_tpmpublic(index)
        if bytes(self._esys.tr_get_name(handle)) != bytes(self._public(index, written=True).get_name()):
            raise DeviceError("the TPM's counter was replaced", hint="replace the chip")
        return handle

    def _read(self, handle: Any) -> int:
        return int.from_bytes(bytes(self._esys.nv_read(handle, _COUNTER_BYTES)), "big")

    @contextmanager
    def _primary(self) -> Iterator[Any]:
        """The storage key that sealed objects lie under: the same for the same template and TPM."""
        lib = self._lib
        may = lib.TPMA_OBJECT
        # NODA again: a TPM counts power cuts as failed tries, and locks indices that are not exempt.
        attributes = may.FIXEDTPM | may.FIXEDPARENT | may.SENSITIVEDATAORIGIN | may.USERWITHAUTH | may.NODA
        template = lib.TPM2B_PUBLIC.parse("ecc", objectAttributes=attributes | may.RESTRICTED | may.DECRYPT)
        primary, *_ = self._esys.create_primary(None, template)
        with self._flushed(primary) as handle:
            yield handle

    @contextmanager
    def _policy(self, parent: Any, policy: Policy, kind: Any) -> Iterator[Any]:
        with self._session(parent, kind) as session:
            before = [*self._values(BOOT_PCRS), bytes(HASH_BYTES)] if policy.boot else []
            pcrs = (*BOOT_PCRS, CLOSED_PCR, PCR) if policy.boot else (PCR,)
            self._esys.policy_pcr(session, sha256(*before, policy.pcr), _selection(*pcrs))
            counter = self._counter(policy.index)
            operand = policy.most.to_bytes(_COUNTER_BYTES, "big")
            self._esys.policy_nv(counter, counter, session, operand, self._lib.TPM2_EO.UNSIGNED_LE)
            yield session

    @contextmanager
    def _session(self, parent: Any, kind: Any) -> Iterator[Any]:
        """A session salted with the storage key, for parameters that are encrypted."""
        lib = self._lib
        cipher = lib.TPMT_SYM_DEF(
            algorithm=lib.TPM2_ALG.AES,
            keyBits=lib.TPMU_SYM_KEY_BITS(aes=128),
            mode=lib.TPMU_SYM_MODE(aes=lib.TPM2_ALG.CFB),
        )
        nobody = lib.ESYS_TR.NONE
        with self._flushed(self._esys.start_auth_session(parent, nobody, kind, cipher, lib.TPM2_ALG.SHA256)) as session:
            yield session

    @contextmanager
    def _flushed(self, handle: Any) -> Iterator[Any]:
        try:
            yield handle
        finally:
            self._esys.flush_context(handle)

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Converts the library's errors into ours, with the TPM's own words."""
        try:
            yield
        except self._lib.TSS2_Exception as error:
            kind = _TakenError if error.error == self._lib.TPM2_RC.NV_DEFINED else DeviceError
            # Not chained: the library's traceback holds the sealed secret.
            raise kind(f"the TPM did not {action}: {error}", hint="is it on, and reachable?") from None
        except (ValueError, TypeError, OverflowError):
            raise DeviceError(f"the TPM did not {action}: the data that the device keeps for it is damaged") from None


def _selection(*pcrs: int) -> str:
    return f"sha256:{','.join(map(str, pcrs))}"


class _TakenError(DeviceError):
    """The NV index is defined already."""


def _library() -> ModuleType:
    # Otherwise libtss2 writes every refusal to the standard error stream besides returning it.
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    try:
        import tpm2_pytss  # noqa: PLC0415  an extra
    except ImportError as error:
        hint = 'pip install "variegate[tpm]" (needs libtss2)'
        raise MisuseError("a device over a TPM needs tpm2-pytss", hint=hint) from error
    module: ModuleType = tpm2_pytss
    return module
