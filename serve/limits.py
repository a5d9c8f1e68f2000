"""Limits for clients, in one place. Each is an option of `variegate device serve`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from variegate.keys.errors import MisuseError
from variegate.keys.manifest import Manifest
from variegate.runtime.limits import LIMITS as RUNTIME

_HEADER_ROOM = 16 * 1024
_JSON_CHARACTERS = {"uint8": 5, "float32": 26}
"""The longest a value gets in the JSON of usual encoders, separator and space included."""


def _limit(default: float, text: str) -> float:
    limit: float = field(default=default, metadata={"help": text})
    return limit


def _count(default: int, text: str) -> int:
    limit: int = field(default=default, metadata={"help": text})
    return limit


@dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """Bounds on clients. Times in seconds, sizes in bytes; each field's metadata has its help.

    Raises:
        MisuseError: When a bound is not positive.
    """

    max_batch: int = _count(64, "frames in one query")
    max_json_bytes: int = _count(8 << 20, "JSON in one request; requests are parsed one after another")
    max_buffer_bytes: int = _count(64 << 20, "requests held, as sent and decompressed; two of the largest at least")
    max_head_bytes: int = _count(16 << 10, "request line and headers")
    max_headers: int = _count(64, "headers in one request")
    max_pipelined: int = _count(8, "requests sent ahead on one connection")
    max_connections: int = _count(128, "connections")
    max_peer_connections: int = _count(32, "connections of one address")
    max_queue: int = _count(64, "queries waiting")
    max_peer_queue: int = _count(16, "queries waiting of one peer (client certificate, or else address)")
    handshake_s: float = _limit(5.0, "time for a TLS handshake")
    head_s: float = _limit(5.0, "time for a request's head, and for a new connection to start one")
    body_s: float = _limit(20.0, "time for a request's body")
    answer_s: float = _limit(30.0, "time for an answer, waiting included")
    write_s: float = _limit(10.0, "time for a client to take what was written to it")
    keep_alive_s: int = _count(30, "time that an idle connection stays open")
    drain_s: int = _count(10, "time for answers still due when the server stops")

    def __post_init__(self) -> None:
        for one in fields(self):
            if not getattr(self, one.name) > 0:
                raise MisuseError(f"{one.name.replace('_', '-')} is not positive")
        if self.max_batch > RUNTIME.batch:
            raise MisuseError(f"max-batch is above the runtime's {RUNTIME.batch}")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The frames that one copy takes, and the most at once.

    Attributes:
        shape: Of a frame.
        dtype: Of a frame: "uint8" or "float32".
        classes: Number of classes.
        batch: Most frames in one query: the limit, or the burst of the signed rate where that is lower.
        version: The manifest's sequence number.
        json_bytes: Most JSON in one request.
        body_bytes: Most bytes of one request's body, also once decompressed.
    """

    shape: tuple[int, ...]
    dtype: str
    classes: int
    batch: int
    version: str
    json_bytes: int
    body_bytes: int

    @classmethod
    def of(cls, manifest: Manifest, limits: ServeLimits) -> Spec:
        """The bounds that follow from a manifest."""
        policy = manifest.policy
        batch = limits.max_batch if policy.rate_per_hour is None else min(limits.max_batch, policy.burst)
        values = batch
        for side in manifest.shape:
            values *= side
        text = min(limits.max_json_bytes, _HEADER_ROOM + values * _JSON_CHARACTERS[manifest.dtype])
        item = 1 if manifest.dtype == "uint8" else 4
        return cls(
            shape=manifest.shape,
            dtype=manifest.dtype,
            classes=manifest.classes,
            batch=batch,
            version=str(manifest.sequence),
            json_bytes=text,
            body_bytes=max(text, _HEADER_ROOM + values * item),
        )

    def buffer_bytes(self, limits: ServeLimits) -> int:
        """Most bytes of requests held at one time: never less than one of the largest takes, compressed and opened."""
        return max(limits.max_buffer_bytes, 2 * self.body_bytes)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        size = 1 if self.dtype == "uint8" else 4
        for side in self.shape:
            size *= side
        return size
