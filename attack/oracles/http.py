"""A device behind the Open Inference Protocol v2 over HTTP, with the standard library only.

No query is repeated unseen. If a server says that it did not accept a query (429, or 503 with Retry-After), the client
waits as `Patience` allows. Any other failure is raised, and the query counts if it may have been answered.
"""

from __future__ import annotations

import math
import threading
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracles import oip
from variegate.attack.oracles.frames import MAX_CLASSES, check_frames
from variegate.attack.oracles.http_line import Answer, Line, Trust, parsed
from variegate.attack.oracles.patience import NONE, Patience
from variegate.keys.errors import DeviceError, LimitError, MisuseError, Refusal, RefusedError, VariegateError

TIMEOUT_S = 60.0
"""Most seconds of one exchange, and of connecting before it."""
BATCH = 64
"""Most frames of one call where neither the server nor the caller says."""
_MAX_METADATA_BYTES = 64 << 10
_ANSWER_ROOM, _LABEL_BYTES = 4096, 24
_OK, _INPUT, _FORBIDDEN, _TOO_LARGE, _TOO_MANY, _UNAVAILABLE = 200, 400, 403, 413, 429, 503
_REFUSED = {_INPUT, 401, _FORBIDDEN, 404, 405, _TOO_LARGE, 415, _TOO_MANY, 431}
"""The statuses that mean that nothing was answered."""
_WAIT_S = 1.0
"""Before a server is asked again that answers 429 and does not say when (RFC 6585, section 4)."""
_CHARGED, _SPENT = "may have been charged", "budget is spent"
"""How our server's sentences say it; 503 and 403 alone do not."""


class HttpOracle:
    """A device behind HTTP (`attack.oracle.Oracle`). Thread-safe: queries take turns on one connection.

    Attributes:
        shape: Of a frame, (C, H, W).
        dtype: Of a frame: "uint8" or "float32".
        classes: Number of classes.
        batch: Most frames of one call.
        asked: Frames that the device was charged for, or may have been.
    """

    def __init__(
        self,
        url: str,
        *,
        patience: Patience = NONE,
        trust: Trust | None = None,
        classes: int | None = None,
        batch: int | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Reads the format of the device's frames.

        Args:
            url: `http://host[:port][/model]` or `https://…`; the model is "copy" by default.
            patience: How long a rate or a busy server is waited for.
            trust: For https.
            classes: Number of classes, where the server does not say.
            batch: Most frames of one call; the server's, or 64, by default.
            timeout_s: Most seconds of one exchange.

        Raises:
            MisuseError: The address, a file or a number cannot be used, or nobody says how many classes there are.
            LimitError: It is busy for longer than patience lasts.
            DeviceError: The server cannot be reached, or has no such model.
            RefusedError: `MALFORMED` for a server that speaks otherwise, `CONTRACT` for a model that takes no pictures.
        """
        if not 0 < timeout_s < math.inf:
            raise MisuseError("the time of an exchange is a positive number of seconds")
        if (classes is not None and not 1 <= classes <= MAX_CLASSES) or (batch is not None and batch < 1):
            raise MisuseError(f"classes and batch must be at least 1, and classes at most {MAX_CLASSES}")
        address, self._path = parsed(url)
        if trust is not None and not address.secured:
            raise MisuseError("certificates are for an https:// address")
        context = (trust or Trust()).context() if address.secured else None
        self._line = Line(address, context, timeout_s)
        self._patience, self._lock = patience, threading.Lock()
        self.asked = 0
        try:
            self._binary = oip.has_binary(self._get("/v2"))
            self._model = model = oip.model_of(self._get(self._path))
        except BaseException:
            self._line.close()
            raise
        known = classes or model.classes
        if known is None:
            self._line.close()
            raise MisuseError("the server does not say how many classes there are", hint="give them: ?classes=N")
        self.shape, self.dtype, self.classes = model.shape, model.dtype, known
        most = model.batch or batch or BATCH
        self.batch = min(batch or most, most)

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """Labels, int64 (N,), of frames (N, *shape) of `dtype`.

        Raises:
            LimitError: The budget is spent, or the rate or a busy server allows it later than patience does.
            RefusedError: Frames that the device refuses; `MALFORMED` for an answer that is none.
            DeviceError: No answer. The query counts where it may have been charged, and is not asked again.
        """
        check_frames(frames, self)
        body, split = oip.infer_request(frames, self._model, binary=self._binary)
        return self._patience.asked(lambda: self._once(body, split, len(frames)))

    def close(self) -> None:
        """Leaves; a later query connects again."""
        with self._lock:
            self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, path: str) -> bytes:
        return self._patience.asked(lambda: self._got(path))

    def _got(self, path: str) -> bytes:
        with self._lock:
            self._line.ready()
            answer = self._line.exchange("GET", path, b"", {}, _MAX_METADATA_BYTES)
        if answer.status == _OK:
            return answer.body
        raise _error(answer)

    def _once(self, body: bytes, split: int | None, count: int) -> NDArray[np.int64]:
        headers = {"Content-Type": "application/json"}
        if split is not None:
            headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(split)}
        with self._lock:
            self._line.ready()
            self.asked += count
            limit = _ANSWER_ROOM + _LABEL_BYTES * count
            answer = self._line.exchange("POST", f"{self._path}/infer", body, headers, limit)
            if answer.status != _OK:
                error = _error(answer)
                if answer.status in _REFUSED or isinstance(error, LimitError):
                    self.asked -= count
                raise error
        return oip.labels_of(answer.body, answer.split, count, self._model, self.classes)


def _error(answer: Answer) -> VariegateError:
    """What a status means to the attacker."""
    text = oip.error_text(answer.body)
    hint = f"the server says: {text}" if text else None
    wait = answer.retry_after_s
    if answer.status == _TOO_MANY:
        return LimitError("the device's query rate is exceeded", retry_after_s=_WAIT_S if wait is None else wait)
    if answer.status == _UNAVAILABLE and wait is not None and _CHARGED not in text:
        return LimitError("the server is busy", retry_after_s=wait)
    if answer.status == _FORBIDDEN and _SPENT in text:
        return LimitError("the device's query budget is spent")
    if answer.status in (_INPUT, _TOO_LARGE):
        refusal = Refusal.INPUT if answer.status == _INPUT else Refusal.TOO_LARGE
        return RefusedError(refusal, "the device refuses these frames", hint=hint)
    return DeviceError(f"the server answered with status {answer.status}", hint=hint)
