"""Checks every answer of a serving enclave against the supervisor's own knowledge.

An attacker may control the enclave, so only charged labels may come out of it: nothing else in a token or in the words
of an error. The supervisor knows the content of what the enclave signs beforehand, to the byte; only the signature is
new.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.attest import cose, evidence, receipt
from variegate.isolation import wire
from variegate.isolation.platform_client import Settings
from variegate.isolation.statements import Claims
from variegate.isolation.wire import Kind, Lost
from variegate.keys.errors import DeviceError, Refusal, RefusedError, VariegateError
from variegate.keys.manifest import Manifest
from variegate.runtime.enclave import Protection

_SIGNATURE_BYTES = 64
_REFUSALS: dict[int, dict[Refusal, str]] = {
    Kind.QUERY: {
        Refusal.INPUT: "frames hold values outside of [0, 1]",
        Refusal.EXPIRED: "artefact has expired",
        Refusal.ROLLED_BACK: "artefact is older than what this device has confirmed",
        Refusal.MODEL: "graph does not run",
    },
    Kind.TEST: {Refusal.ARTEFACT: "artefact refused"},
}
"""The refusals of a sound enclave once its copy is open. A choice among several can reveal a label: a query is charged,
and everything that is not charged has one answer."""


class AnswerCheck:
    """Checks the answers of one launch of one copy."""

    def __init__(
        self, settings: Settings, manifest: Manifest, protections: tuple[Protection, ...], public: bytes
    ) -> None:
        """Prepares.

        Args:
            settings: The enclave's settings.
            manifest: The copy's, as the supervisor verified it.
            protections: As the enclave named them when it was ready.
            public: The device's Ed25519 key, 32 bytes.
        """
        self._claims = Claims(settings, manifest, protections)
        self._classes = manifest.classes
        self._public = public

    def labels(self, answer: bytes, number: int, count: int) -> tuple[NDArray[np.int64], bytes]:
        """Labels of the query of this number, one for each frame, and the bytes after them.

        Raises:
            Lost: The answer is none.
        """
        end = wire.LABELS_LAYOUT.size + 8 * count
        if len(answer) < end or wire.LABELS_LAYOUT.unpack_from(answer) != (Kind.LABELS, number, count):
            raise Lost("answer is for another query")
        labels = np.frombuffer(answer, "<i8", count, wire.LABELS_LAYOUT.size).astype(np.int64)
        if labels.view(np.uint64).max() >= self._classes:  # where those below 0 are large
            raise Lost("answer holds a value that is not a class")
        return labels, answer[end:]

    def receipt(self, token: bytes, frames: NDArray[Any], labels: NDArray[np.int64], now: float) -> None:
        """Checks the receipt of a query.

        Args:
            token: Of the enclave.
            frames: The frames shown.
            labels: The answer.
            now: Unix time in seconds, as the query said.

        Raises:
            Lost: It is another than a sound enclave gives.
        """
        wanted = self._claims.receipt(frames, labels, now=now)
        # The signature is not verified: this would double a receipt's time, and whoever has the key can hide something
        # in a good one as well.
        if token != cose.sign1(receipt.TYP, wanted.to_bytes(), lambda _: token[-_SIGNATURE_BYTES:], self._public):
            raise Lost("receipt says something else")

    def evidence(self, token: bytes, nonce: bytes, *, now: float, security: int, used: int) -> None:
        """Checks evidence against the request (`statements.Claims.evidence`).

        Evidence is rare, so its signature is verified; whoever has the key can still hide something in it
        (`evidence_quota`).

        Raises:
            Lost: It is another than a sound enclave gives.
        """
        wanted = self._claims.evidence(nonce, now=now, security=security, used=used)
        try:
            said = cose.verify1(evidence.TYP, token, self._public, limit=evidence.MAX_EVIDENCE_BYTES)
        except RefusedError:
            raise Lost("evidence is not the device's") from None
        if said != wanted.to_bytes():
            raise Lost("evidence says something else")


def passed_on(kind: int, error: VariegateError) -> VariegateError:
    """An enclave's refusal, in the supervisor's words.

    Args:
        kind: The kind of query.
        error: Its error.

    Raises:
        Lost: A serving enclave has no such thing to refuse; budget and rate are not its own.
    """
    words = _REFUSALS.get(kind, {})
    if isinstance(error, RefusedError) and error.refusal in words:
        return RefusedError(error.refusal, words[error.refusal])
    if isinstance(error, DeviceError) and kind == Kind.QUERY:
        return DeviceError("the enclave has not enough memory", hint="raise ram_mib")
    raise Lost("enclave refuses a query that only the supervisor may refuse")
