"""Targets in `attest`, and the broker's HTTP bodies against a real broker with its books."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from assurance.fuzz import mutation
from assurance.fuzz.target import ACCEPTED, Run, Target, need, pure, verdict
from testbed import artefact_parts as parts
from testbed.attesting import Scene
from variegate.attest import cose, evidence, receipt
from variegate.attest.client import CHALLENGE_PATH, RELEASE_PATH
from variegate.attest.evidence import DebugStatus, Ephemeral, Evidence, ProtectionClaim
from variegate.attest.policy import AppraisalPolicy
from variegate.attest.receipt import Receipt
from variegate.keys import cbor
from variegate.keys.primitives import KEM_CLASSIC
from variegate.serve.broker_app import BrokerApp

_DEVICE = parts.X25519
_PUBLIC = _DEVICE.public.signing_public
_STATUSES = {200, 400, 403, 404, 405, 413, 429, 503}
_EVIDENCE = Evidence(
    nonce=bytes(16),
    ueid=_DEVICE.public.ueid,
    issued_at=1_800_000_000,
    debug=DebugStatus.DISABLED_SINCE_BOOT,
    boot_count=1,
    measurements={"runtime": bytes(32)},
    security_counter=0,
    root=bytes(32),
    model=bytes(32),
    protections=(ProtectionClaim("seccomp", "on", "why"), ProtectionClaim("memory", "off", "")),
    ephemeral=Ephemeral(KEM_CLASSIC, bytes([9]) * 32),
)
_RECEIPT = Receipt(
    ueid=_DEVICE.public.ueid,
    model=bytes(32),
    boot_count=1,
    sequence=1,
    time_s=1_800_000_000,
    frames=bytes(32),
    labels=(1, 2, 3),
)


def _evidence(data: bytes) -> str:
    """Any claims, signed by a device."""

    def call() -> None:
        claims = evidence.verify(cose.sign1(evidence.TYP, data, _DEVICE.sign, _PUBLIC), _PUBLIC)
        need(claims.to_bytes() == data, "not canonical")
        need(evidence.issue(claims, _DEVICE.sign, _PUBLIC) is not None, "cannot be issued")
        AppraisalPolicy.from_toml(AppraisalPolicy.of(claims).to_toml())

    return verdict(call)


def _receipt(data: bytes) -> str:
    """The same of receipts."""

    def call() -> None:
        found = receipt.verify(cose.sign1(receipt.TYP, data, _DEVICE.sign, _PUBLIC), _PUBLIC)
        need(found.to_bytes() == data, "not canonical")

    return verdict(call)


def _token(data: bytes) -> str:
    """Nobody here can sign."""
    found: list[bytes] = []
    said = verdict(lambda: found.append(cose.verify1(evidence.TYP, data, _PUBLIC, limit=1 << 16)))
    need(said != ACCEPTED or found == [_EVIDENCE.to_bytes()], "a token that nobody signed was accepted")
    return f"{said}, {verdict(lambda: evidence.claimed(data))}"


def _tokens() -> list[bytes]:
    return [
        evidence.issue(_EVIDENCE, _DEVICE.sign, _PUBLIC),
        receipt.issue(_RECEIPT, _DEVICE.sign, _PUBLIC),
        cose.sign1(evidence.TYP, _EVIDENCE.to_bytes(), parts.OTHER.sign, parts.OTHER.public.signing_public),
    ]


def _appraisal_policy(data: bytes) -> str:
    def call() -> None:
        policy = AppraisalPolicy.from_toml(data)
        need(AppraisalPolicy.from_toml(policy.to_toml()) == policy, "another policy after writing it")

    return verdict(call)


@contextlib.contextmanager
def _broker(folder: Path) -> Iterator[Run]:
    """The application of the broker, asked as uvicorn would ask it.

    The first byte says how: the path; whether claims are signed by the enrolled device, over a fresh nonce; whether
    the envelope is the good one. What follows is the body, or the claims.
    """
    scene = Scene(folder)
    with scene.store, asyncio.Runner() as runner, contextlib.closing(BrokerApp(scene.broker)) as app:
        turns = itertools.count()

        def run(data: bytes) -> str:
            how, body = (data[0], data[1:]) if data else (0, b"")
            scene.clock.now += 60.0  # nobody asks too often
            path = CHALLENGE_PATH if how & 1 else RELEASE_PATH
            if how & 2:
                token = cose.sign1(evidence.TYP, body, scene.device.sign, scene.device.public.signing_public)
                body = cbor.encode([token, scene.envelope])
            if how & 4 and next(turns) % 64 == 0:
                nonce = scene.broker.challenge()
                body = cbor.encode([scene.token(nonce, Ephemeral(KEM_CLASSIC, bytes([9]) * 32)), scene.envelope])
            status, answer = runner.run(_asked(app, path, body))
            need(status in _STATUSES, f"status {status}")
            said = cbor.decode(answer, limit=1 << 16)
            need(isinstance(said, bytes if status == 200 else str), "an answer of another type")
            if status == 200 and path == RELEASE_PATH:
                need(bool(how & 4), "a share was released for evidence that nobody made")
            return str(status)

        yield run


async def _asked(app: BrokerApp, path: str, body: bytes) -> tuple[int, bytes]:
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app({"type": "http", "path": path, "method": "POST", "headers": []}, receive, send)
    return sent[0]["status"], sent[1]["body"]


def _requests() -> list[bytes]:
    token = _tokens()[0]
    return [b"\x01", b"\x00" + cbor.encode([token, parts.sign(b"x")]), b"\x02" + _EVIDENCE.to_bytes(), b"\x04"]


TARGETS = (
    Target(name="token", opened=pure(_token), seeds=_tokens, mutate=mutation.of_cbor),
    Target(name="evidence", opened=pure(_evidence), seeds=lambda: [_EVIDENCE.to_bytes()], mutate=mutation.of_cbor),
    Target(name="receipt", opened=pure(_receipt), seeds=lambda: [_RECEIPT.to_bytes()], mutate=mutation.of_cbor),
    Target(
        name="appraisal_policy",
        opened=pure(_appraisal_policy),
        seeds=lambda: [AppraisalPolicy.of(_EVIDENCE).to_toml()],
        mutate=mutation.of_toml,
        words=(b"schema", b"profiles", b"measurements", b"require", b'"""', b"'''", b"[[", b"\\U0001F600", b"inf"),
    ),
    Target(
        name="broker",
        opened=_broker,
        seeds=_requests,
        mutate=mutation.behind(1, mutation.of_cbor),
        cap=8192,
        live=True,
    ),
)
