"""The one error root of Variegate, and the classes of refusal.

Hostile or wrong data raises `RefusedError`; a caller's own mistake raises `MisuseError`; a device that has
spent its allowance raises `LimitError`; hardware and storage that fail raise `DeviceError`. Nothing else
leaves the public interface.
"""

from __future__ import annotations

from enum import StrEnum


class Refusal(StrEnum):
    """Why data was refused. The test vectors name these values; devices log them and never send them out."""

    TOO_LARGE = "too-large"
    MALFORMED = "malformed"
    SIGNATURE = "signature"
    WRONG_DEVICE = "wrong-device"
    WRONG_CLASS = "wrong-class"
    EXPIRED = "expired"
    ROLLED_BACK = "rolled-back"
    REVOKED = "revoked"
    COMPONENT = "component"
    SEALED = "sealed"
    MODEL = "model"
    CONTRACT = "contract"
    PARITY = "parity"
    INPUT = "input"
    KEY = "key"
    SELF_TEST = "self-test"
    EVIDENCE = "evidence"
    RELEASE = "release"
    """The one answer that a key broker gives outwards; its log has the reason."""
    ARTEFACT = "artefact"
    """The one answer that a device gives outwards; its inner log has the true class."""


class VariegateError(Exception):
    """Root of every error that leaves Variegate.

    Attributes:
        message: One sentence, lower case, without secrets.
        hint: Advice for the person, or None.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class MisuseError(VariegateError):
    """The caller or operator made a mistake (exit status 2)."""


class RefusedError(VariegateError):
    """Data from outside was wrong or hostile, and nothing was done with it (exit status 1).

    Attributes:
        refusal: The class of refusal.
    """

    def __init__(self, refusal: Refusal, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.refusal = refusal

    def __reduce__(self) -> tuple[type[RefusedError], tuple[Refusal, str], dict[str, object]]:
        """Crosses from a worker process whole; by default the class of refusal would be lost."""
        return type(self), (self.refusal, self.message), self.__dict__


class LimitError(VariegateError):
    """The device's policy does not allow this query now, or ever again.

    Attributes:
        retry_after_s: Seconds until a retry can succeed, or None when none ever will.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeviceError(VariegateError):
    """The device's storage or hardware failed, or is in a state that forbids the operation."""
