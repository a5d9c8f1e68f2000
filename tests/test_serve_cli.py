"""`variegate device serve` as a process: an isolated enclave behind it, killed and stopped."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton

from testbed.artefacts import frames
from testbed.devices import workplace
from testbed.serving import device_with
from tests.support.processes import heed_interrupts
from variegate.cli.main import main
from variegate.device_sim.device import Device
from variegate.device_sim.hosting import POLICY_FILE, policy_of


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with workplace() as place:
        with device_with(place):
            pass
        yield place / "device"


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[int]:
    with Device.open(folder) as device:
        return [int(label) for label in device.boot().classify_batch(frames(50))]


SERVE = (sys.executable, "-m", "variegate.cli.main", "device", "serve")
"""In a process of its own: it closes itself for good before it serves."""


def refused(folder: Path, *options: str) -> tuple[int, str]:
    """Exit status and what was said."""
    done = subprocess.run([*SERVE, str(folder), *options], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@contextmanager
def served(
    folder: Path, *options: str, before: tuple[str, ...] = ()
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The running command, the address of HTTP, and what it said on the way."""
    command = [*before, *SERVE, str(folder), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    assert process.stderr is not None
    said: list[str] = []
    try:
        while not (said and re.match("serving at|label socket", said[-1])):
            line = process.stderr.readline()
            assert line, said
            said.append(line.rstrip())
        yield process, said[-1].rpartition("/")[2], said
    finally:
        process.kill()
        process.communicate()


def infer(client: triton.InferenceServerClient, count: int) -> list[int]:
    wanted = triton.InferInput("image", [count, 3, 4, 4], "UINT8")
    wanted.set_data_from_numpy(frames(50)[:count])
    labels = client.infer("copy", [wanted]).as_numpy("label")
    assert labels is not None
    return [int(label) for label in np.asarray(labels)]


def test_serves_and_stops_in_order(folder: Path, expected: list[int]) -> None:
    with served(folder) as (process, address, said):
        with triton.InferenceServerClient(address) as client:
            assert client.is_server_ready()
            assert infer(client, 50) == expected
        text = "\n".join(said)
        assert re.search(r"^isolation +on ", text, re.MULTILINE)
        assert re.search(r"^tls +OFF +HTTP in the clear", text, re.MULTILINE)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert process.wait(15) == 0
        assert process.stderr.read() == "stopped\n"
    with Device.open(folder):  # nobody holds it any more
        pass


def test_a_killed_enclave_is_started_again(folder: Path, expected: list[int]) -> None:
    with served(folder) as (process, address, _), triton.InferenceServerClient(address) as client:
        assert infer(client, 3) == expected[:3]
        tasks = [int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir()]
        found = {
            int(one) for task in tasks for one in Path(f"/proc/{process.pid}/task/{task}/children").read_text().split()
        }
        assert found
        for one in found:
            os.kill(one, signal.SIGKILL)
        end = time.monotonic() + 60
        while True:
            try:
                assert infer(client, 5) == expected[:5]
                break
            except triton.InferenceServerException as error:
                assert error.status() == "503"  # noqa: PT017 - the one error there may be
                assert time.monotonic() < end
        with socket.create_connection((address.partition(":")[0], int(address.partition(":")[2]))) as sock:
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = b""
            while part := sock.recv(65536):
                text += part
        assert b"variegate_enclave_restarts 1\n" in text
        assert client.is_server_ready()


def test_only_a_socket(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels"
    with served(folder, "--no-http", "--socket", str(path), "--socket-mode", "660") as (process, _, said):
        assert not any("serving at" in line for line in said)
        assert path.stat().st_mode & 0o777 == 0o660
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
    assert not path.exists()


def test_a_port_in_use_leaves_nothing_behind(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, said = refused(folder, "--port", port)
    assert status == 2
    assert "address already in use" in said
    with Device.open(folder):
        pass


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--no-http"], "neither a host nor a socket"),
        (["--tls-cert", "x"], "certificate and its key"),
        (["--tls-client-ca", "x"], "need TLS"),
        (["--port", "99999"], "give a port, 0 to 65535"),
        (["--max-batch", "0"], "max-batch is not positive"),
        (["--head-s", "nan"], "head-s is not positive"),
    ],
)
def test_wrong_usage(folder: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "serve", str(folder), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_strict_policy_serves_nothing_less(folder: Path) -> None:
    policy = policy_of(folder)
    before = (folder / POLICY_FILE).read_bytes()
    try:
        (folder / POLICY_FILE).write_bytes(replace(policy, strict=True, require=("unheard of",)).to_toml())
        status, said = refused(folder, "--port", "0")
    finally:
        (folder / POLICY_FILE).write_bytes(before)
    assert status == 1
    assert "requires protections that are not on: unheard of" in said


_LOOKS = """
import os, sys
for name, look in {
    "mem": lambda path: open(path, "rb").close(),
    "maps": lambda path: open(path, "rb").read(),
    "fd/2": lambda path: os.close(os.open(path, os.O_WRONLY)),
    "environ": lambda path: open(path, "rb").read(),
}.items():
    try:
        look(f"/proc/{sys.argv[1]}/{name}")
    except OSError as error:
        print(name, error.strerror)
"""
_LESS = "-sys_ptrace,-sys_admin,-perfmon"
"""The right to trace; from Linux 6.16 on, the other two show `maps` and `environ` as well."""
_WITHOUT_PTRACE = ("setpriv", f"--bounding-set={_LESS}", f"--inh-caps={_LESS}")


def _closed_to_root(pid: int) -> list[str]:
    """What root cannot look into without the right to trace."""
    command = [*_WITHOUT_PTRACE, sys.executable, "-c", _LOOKS, str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: looks as root without one right does")
def test_the_serving_process_is_closed_to_root_without_the_right_to_trace(folder: Path) -> None:
    policy = policy_of(folder)
    with served(folder, before=_WITHOUT_PTRACE) as (process, address, said):
        refusals = [f"{name} Permission denied" for name in ("mem", "maps", "fd/2", "environ")]
        assert _closed_to_root(process.pid) == refusals
        assert re.search(r"^supervisor +on ", "\n".join(said), re.MULTILINE)
        assert "host: this machine stops root from reaching other processes: " in "\n".join(said)
        assert re.search(r"^Max core file size +0 +0 ", Path(f"/proc/{process.pid}/limits").read_text(), re.MULTILINE)
        with triton.InferenceServerClient(address) as client:
            infer(client, 3)
    before = (folder / POLICY_FILE).read_bytes()
    try:  # the control, and what a debugger needs
        (folder / POLICY_FILE).write_bytes(replace(policy, debug=True).to_toml())
        with served(folder, before=_WITHOUT_PTRACE) as (process, _, said):
            assert _closed_to_root(process.pid) == []
            assert re.search(r"^supervisor +OFF ", "\n".join(said), re.MULTILINE)
    finally:
        (folder / POLICY_FILE).write_bytes(before)


def test_the_bare_installation_says_what_is_missing(folder: Path) -> None:
    code = (
        "import sys\n"
        "class Gone:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'uvicorn', 'httptools'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        "from variegate.cli.main import main\n"
        f"main(['device', 'status', {str(folder)!r}])\n"
        f"sys.exit(main(['device', 'serve', {str(folder)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'pip install "variegate[serve]"' in done.stderr
    assert "security counter" in done.stdout


def test_help_has_every_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "serve", "--help"]) == 0
    text = capsys.readouterr().out
    for option in (
        "--max-batch",
        "--max-peer-connections",
        "--handshake-s",
        "--tls-client-ca",
        "--socket",
        "--metrics-port",
    ):
        assert option in text
