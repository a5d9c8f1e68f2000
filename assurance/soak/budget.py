"""A device with a small budget behind the server; several clients ask until the budget is spent, and beyond."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from assurance.soak.clients import Client, Http, LabelSocket, Triton
from assurance.soak.ledger import Answer, Pool, Refused
from assurance.soak.server import Served, served, until
from variegate.device_sim.device import Device
from variegate.runtime.allowance import budget_counter

_SPENT_HTTP, _SPENT_SOCKET = 403, 4
_MOST = 32
_BEYOND = 50
_RESTART_S = 60.0


def exhaust(folder: Path, workplace: Path, pool: Pool, budget: int, clients: int) -> tuple[int, Mapping[str, object]]:
    """Asks until the budget is spent, then continues asking: also after the enclave and the server were started again.

    Args:
        folder: A device that is off, whose copy has answered nothing.
        workplace: Folder for the socket and the server's output.
        pool: Frames with reference labels.
        budget: Signed for that copy.
        clients: How many ask at a time.

    Returns:
        The error: labels answered other than the budget, plus the counter's distance from it, plus answers other
        than that the budget is spent, once it was, plus wrong labels; and what was counted.
    """
    labels, wrong, told = [0] * clients, [0] * clients, Counter[str]()
    with served(folder, workplace / "said", workplace / "small") as server:

        def life(number: int) -> None:
            rng = np.random.default_rng(number)
            client = _client(server, number)
            most = _MOST
            while most:
                query = pool.draw(rng, most)
                (answer,) = client.ask([query])
                if isinstance(answer, Refused):
                    assert answer.status in {_SPENT_HTTP, _SPENT_SOCKET}, answer
                    # All frames of a query are answered or none: a smaller one may still fit.
                    most = len(query.labels) // 2
                else:
                    labels[number] += len(answer)
                    wrong[number] += int(np.count_nonzero(answer != query.labels))
            client.close()

        threads = [threading.Thread(target=life, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _beyond(server, pool, told)
        enclave, before = server.enclave, server.metrics()["enclave_restarts"]
        assert enclave is not None
        os.kill(enclave, signal.SIGKILL)
        assert until(lambda: server.metrics()["enclave_restarts"] > before, _RESTART_S)
        assert until(lambda: server.metrics()["ready"] == 1, _RESTART_S)
        _beyond(server, pool, told)
        server.stop()
    with served(folder, workplace / "said", workplace / "small") as server:
        _beyond(server, pool, told)
        server.stop()
    with Device.open(folder) as device:
        counter = device.counter(budget_counter(0))
    others = sum(count for words, count in told.items() if words != "spent")
    error = abs(sum(labels) - budget) + abs(counter - budget) + others + sum(wrong)
    return error, {
        "budget": budget,
        "answered": labels,
        "wrong": wrong,
        "counter": counter,
        "after": dict(told),
    }


def _client(server: Served, number: int) -> Client:
    if number % 3 == 0:
        return LabelSocket(server.path)
    return Triton(server.address, binary=True) if number % 3 == 1 else Http(server.address, "127.0.0.1")


def _beyond(server: Served, pool: Pool, told: Counter[str]) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        client = _client(server, number)
        for _ in range(_BEYOND):
            (answer,) = client.ask([pool.draw(rng, 4)])
            told[_word(answer)] += 1
        client.close()


def _word(answer: Answer) -> str:
    if not isinstance(answer, Refused):
        return f"{len(answer)} labels"
    spent = answer.status in {_SPENT_HTTP, _SPENT_SOCKET} and not answer.again and not answer.charged
    return "spent" if spent else f"refused with {answer.status}"
