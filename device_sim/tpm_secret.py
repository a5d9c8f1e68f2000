"""A short-lived process that unseals a TPM's root secret: `python -m variegate.device_sim.tpm_secret`.

It reads one `Job` from its standard input and writes one answer to its standard output, a pipe that the other process
reads or passes on. So the root secret, and the secrets encrypted under it, are never in the memory of the serving
process.

    root     32 random bytes, sealed (`tpm.Policy`)
    state    HKDF(root, "variegate/1/tpm/state"): encrypts the chip's state (`tpm_state`)
    keep     HKDF(root, "variegate/1/tpm/keep"): AES-256-GCM, nonce (12, random) || ciphertext, the name as data beside
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import dataclass, field, replace
from enum import StrEnum

from cryptography.exceptions import InvalidTag

from variegate.device_sim.tpm import Policy, Sealed, Tpm
from variegate.isolation.lockdown import undumpable
from variegate.keys import cbor
from variegate.keys.errors import DeviceError, VariegateError
from variegate.keys.primitives import KEY_BYTES, TAG_BYTES, aead, hkdf

MAX_SECRET_BYTES = 16 * 1024
"""Far below the capacity of a pipe, so that the process ends before its answer is read."""
_MAX_JOB_BYTES = 64 * 1024
_MAX_ANSWER_BYTES = 32 * 1024
_TIMEOUT_S = 60.0
_NONCE_BYTES = 12
_STATE, _KEEP = b"variegate/1/tpm/state", b"variegate/1/tpm/keep"
_REFUSED = 3
"""Exit status with a line of ours; any other is Python's, and its traceback stays where it is."""


class Action(StrEnum):
    """A request."""

    MAKE = "make"
    """A new root secret. Answer: CBOR [private, public, the answer to `STATE_KEY`]."""
    STATE_KEY = "state-key"
    """Answer: 32 bytes."""
    RESEAL = "reseal"
    """The same root secret for `Job.most + 1`. Answer: CBOR [private, public]."""
    BIND = "bind"
    """As `RESEAL`, from then on for this boot of the machine alone, and for `Job.data` in PCR 23."""
    ENCRYPT = "encrypt"
    """Answer: `Job.data` encrypted."""
    DECRYPT = "decrypt"
    """Answer: `Job.data` decrypted."""


@dataclass(frozen=True)
class Job:
    """One question.

    Attributes:
        action: The action.
        tcti: How the TPM is reached.
        policy: That the root secret is sealed under.
        sealed: The root secret; None for `MAKE`.
        name: Of the secret that `data` is.
        data: Plaintext or ciphertext.
    """

    action: Action
    tcti: str
    policy: Policy
    sealed: Sealed | None = None
    name: str = ""
    data: bytes = field(default=b"", repr=False)

    def ask(self) -> bytes:
        """Runs the process.

        Returns:
            Its answer.

        Raises:
            DeviceError: The TPM refused, was not reached, or did not answer in time.
        """
        with os.fdopen(self.descriptor(), "rb") as file:
            return file.read(_MAX_ANSWER_BYTES)

    def descriptor(self) -> int:
        """As `ask`, the answer being in a pipe that can be read once; the caller closes it."""
        read, write = os.pipe()
        try:
            self._run(write)
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        return read

    def _run(self, output: int) -> None:
        try:
            done = subprocess.run(  # noqa: S603  this very module
                [sys.executable, "-I", "-B", "-m", __name__],
                input=self._to_bytes(),
                stdout=output,
                stderr=subprocess.PIPE,
                env={},
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"the TPM did not answer in {_TIMEOUT_S:.0f} s", hint="does another program use it?"
            ) from None
        except OSError as error:
            raise DeviceError(f"the unsealing process did not start: {error.strerror}") from error
        if done.returncode == _REFUSED:
            raise DeviceError(_said(done.stderr))
        if done.returncode != 0:
            raise DeviceError("the unsealing process failed")

    def _to_bytes(self) -> bytes:
        sealed = None if self.sealed is None else [self.sealed.private, self.sealed.public]
        policy = [self.policy.pcr, self.policy.index, self.policy.most, self.policy.boot]
        return cbor.encode([str(self.action), self.tcti, policy, sealed, self.name, self.data])


def _read(data: bytes) -> Job:
    match cbor.decode(data, limit=_MAX_JOB_BYTES):
        case [str(action), str(tcti), [bytes(pcr), int(index), int(most), bool(boot)], sealed, str(name), bytes(rest)]:
            policy = Policy(pcr, index, most, boot)
            match sealed:
                case None:
                    return Job(Action(action), tcti, policy, None, name, rest)
                case [bytes(private), bytes(public)]:
                    return Job(Action(action), tcti, policy, Sealed(private, public), name, rest)
    raise DeviceError("a job for the TPM is not in the format")


def _done(job: Job) -> bytes:
    with Tpm(job.tcti) as tpm:
        tpm.flush_leftovers()
        root = os.urandom(KEY_BYTES) if job.sealed is None else tpm.unseal(job.sealed, job.policy)
        if job.action in (Action.MAKE, Action.RESEAL, Action.BIND):
            policy = job.policy if job.action is Action.MAKE else replace(job.policy, most=job.policy.most + 1)
            if job.action is Action.BIND:
                policy = replace(policy, pcr=job.data, boot=True)
            blob = tpm.seal(root, policy)
            own = [hkdf(root, _STATE)] if job.action is Action.MAKE else []
            return cbor.encode([blob.private, blob.public, *own])
    if job.action is Action.STATE_KEY:
        return hkdf(root, _STATE)
    cipher, beside = aead(hkdf(root, _KEEP)), job.name.encode()
    if job.action is Action.ENCRYPT:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + cipher.encrypt(nonce, job.data, beside)
    if len(job.data) < _NONCE_BYTES + TAG_BYTES:
        raise DeviceError("what the chip keeps encrypted is damaged")
    try:
        return cipher.decrypt(job.data[:_NONCE_BYTES], job.data[_NONCE_BYTES:], beside)
    except InvalidTag:
        raise DeviceError("what the chip keeps encrypted is damaged") from None


def made_from(answer: bytes) -> tuple[Sealed, bytes]:
    """Reads the answer to `MAKE`: the root secret, sealed, and the state's key.

    Raises:
        DeviceError: It is none.
    """
    match cbor.decode(answer, limit=_MAX_ANSWER_BYTES):
        case [bytes(private), bytes(public), bytes(key)]:
            return Sealed(private, public), key
    raise DeviceError("the process that seals gave no answer")


def resealed_from(answer: bytes) -> Sealed:
    """Reads the answer to `RESEAL` or `BIND`.

    Raises:
        DeviceError: It is none.
    """
    match cbor.decode(answer, limit=_MAX_ANSWER_BYTES):
        case [bytes(private), bytes(public)]:
            return Sealed(private, public)
    raise DeviceError("the process that seals gave no answer")


def main() -> int:
    """Answers one job. Exit status 3 and a line on the standard error stream where it cannot."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    undumpable()  # nobody of this user opens the pipe that the answer goes to
    try:
        answer = _done(_read(sys.stdin.buffer.read(_MAX_JOB_BYTES + 1)))
    except VariegateError as error:
        sys.stderr.write(f"{error.message}\n")
        return _REFUSED
    sys.stdout.buffer.write(answer)
    return 0


def _said(stream: bytes) -> str:
    """The line that the process said; unprintable characters are left out."""
    return "".join(c for c in stream.decode("utf-8", "replace") if c.isprintable())[:200]


if __name__ == "__main__":
    sys.exit(main())
