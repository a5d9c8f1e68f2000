"""The Open Inference Protocol over real HTTP: Triton's own client, answers, limits and errors."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from testbed.artefacts import SHAPE, frames
from testbed.devices import workplace
from testbed.serving import INFER, Faulty, Http, device_with, infer_binary, infer_json, serving
from tests.support.floats import float_payload
from variegate.keys.errors import DeviceError, MisuseError
from variegate.keys.manifest import Policy
from variegate.runtime.port import LabelPort
from variegate.serve.limits import ServeLimits
from variegate.serve.server import Service


@pytest.fixture(scope="module")
def port() -> Iterator[LabelPort]:
    with workplace() as folder, device_with(folder) as device:
        yield device.boot()


@pytest.fixture(scope="module")
def service(port: LabelPort) -> Iterator[Service]:
    with serving(port) as running:
        yield running


@pytest.fixture(scope="module")
def http(service: Service) -> Http:
    return Http(service)


@pytest.fixture
def client(service: Service) -> Iterator[Any]:
    assert service.address is not None
    with triton.InferenceServerClient(f"{service.address[0]}:{service.address[1]}", concurrency=4) as found:
        yield found


def tensor(shown: NDArray[Any], *, binary: bool = True) -> list[Any]:
    found = triton.InferInput("image", list(shown.shape), "UINT8")
    found.set_data_from_numpy(shown, binary_data=binary)
    return [found]


def test_tritonclient_finds_the_server_and_the_model(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("copy")
    assert client.is_model_ready("copy", "1")
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("copy", "2")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    found = client.get_model_metadata("copy")
    assert found["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, *SHAPE]}]
    assert found["outputs"] == [{"name": "label", "datatype": "INT64", "shape": [-1]}]


def test_metadata_name_neither_buyer_nor_device(http: Http, port: LabelPort) -> None:
    text = b"".join(http.ask("GET", path)[2] for path in ("/v2", "/v2/models/copy", "/metrics"))
    manifest = port.manifest
    for secret in (manifest.buyer, manifest.vendor, manifest.device_class, manifest.ueid.hex()):
        assert secret.encode() not in text


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritonclient_gets_the_direct_labels(
    client: Any, port: LabelPort, binary_in: bool, binary_out: bool | None, compression: str | None
) -> None:
    for count in (1, 5, 64):
        shown = frames(count, seed=count)
        outputs = None if binary_out is None else [triton.InferRequestedOutput("label", binary_data=binary_out)]
        answer = client.infer(
            "copy",
            tensor(shown, binary=binary_in),
            outputs=outputs,
            request_compression_algorithm=compression,
            response_compression_algorithm=compression,
        )
        labels = answer.as_numpy("label")
        assert labels.dtype == np.int64
        assert labels.tolist() == port.classify_batch(shown).tolist()


def test_tritonclient_asynchronously_with_ids_and_versions(client: Any, port: LabelPort) -> None:
    sets = [frames(3, seed=number) for number in range(20)]
    asked = [
        client.async_infer("copy", tensor(shown), model_version="1", request_id=f"q{number}")
        for number, shown in enumerate(sets)
    ]
    for number, (one, shown) in enumerate(zip(asked, sets, strict=True)):
        answer = one.get_result()
        assert answer.get_response()["id"] == f"q{number}"
        assert answer.get_response()["model_version"] == "1"
        assert answer.as_numpy("label").tolist() == port.classify_batch(shown).tolist()


def test_tritonclient_is_told_what_is_not_there(client: Any) -> None:
    scores = [triton.InferRequestedOutput("label", class_count=3)]
    for options in ({"outputs": scores}, {"sequence_id": 7}, {"parameters": {"debug": 1}}, {"priority": 1}):
        with pytest.raises(InferenceServerException, match="not supported") as error:
            client.infer("copy", tensor(frames(1)), **options)
        assert error.value.status() == "400"
    with pytest.raises(InferenceServerException) as error:
        client.infer("other", tensor(frames(1)))
    assert error.value.status() == "404"


def test_json_by_hand_nested_and_flat(http: Http, port: LabelPort) -> None:
    shown = frames(4)
    expected = port.classify_batch(shown).tolist()
    for data in (shown.tolist(), shown.reshape(-1).tolist()):
        status, answer = http.infer(shown, data=data)
        assert status == 200
        assert answer == {
            "model_name": "copy",
            "model_version": "1",
            "outputs": [{"name": "label", "datatype": "INT64", "shape": [4], "data": expected}],
        }


WRONG: list[tuple[str, int, bytes, dict[str, str]]] = [
    ("empty", 400, b"", {}),
    ("not JSON", 400, b"{", {}),
    ("not UTF-8", 400, b'{"inputs": "\xff"}', {}),
    ("UTF-16", 400, infer_json(frames(1)).decode().encode("utf-16"), {}),
    ("deep", 400, b"[" * 15_000, {}),
    ("deep objects", 400, b'{"a":' * 3_000, {}),
    ("array", 400, b"[]", {}),
    ("no inputs", 400, b"{}", {}),
    ("two inputs", 400, b'{"inputs": [{}, {}]}', {}),
    ("duplicate member", 400, b'{"inputs": [], "inputs": []}', {}),
    ("NaN", 400, infer_json(frames(1), data=[float("nan")] * 48), {}),
    ("huge integer", 400, infer_json(frames(1)).replace(b"[[[[", b"[[[[" + b"9" * 5000 + b","), {}),
    ("name", 400, infer_json(frames(1), name="x"), {}),
    ("datatype", 400, infer_json(frames(1), datatype="FP32"), {}),
    ("datatype list", 400, infer_json(frames(1), datatype=["UINT8"]), {}),
    ("shape", 400, infer_json(frames(1), shape=[1, 3, 4, 5]), {}),
    ("shape of floats", 400, infer_json(frames(1), shape=[1.0, 3, 4, 4]), {}),
    ("shape of truths", 400, infer_json(frames(1), shape=[True, 3, 4, 4]), {}),
    ("batch 0", 400, infer_json(frames(1), shape=[0, 3, 4, 4], data=[]), {}),
    ("negative batch", 400, infer_json(frames(1), shape=[-1, 3, 4, 4]), {}),
    ("batch 65", 413, infer_json(frames(65)[:, :, :, :], data=[]), {}),
    ("batch of 1e30", 413, infer_json(frames(1), shape=[10**30, 3, 4, 4]), {}),
    ("256", 400, infer_json(frames(1), data=[256] * 48), {}),
    ("-1", 400, infer_json(frames(1), data=[-1] * 48), {}),
    ("0.5", 400, infer_json(frames(1), data=[0.5] * 48), {}),
    ("true", 400, infer_json(frames(1), data=[True] * 48), {}),
    ("null", 400, infer_json(frames(1), data=[None] * 48), {}),
    ("text", 400, infer_json(frames(1), data="AAAA"), {}),
    ("short", 400, infer_json(frames(1), data=[1] * 47), {}),
    ("ragged", 400, infer_json(frames(1), data=[[[[1] * 4] * 4, [[1] * 4] * 4, [[1] * 4, [1] * 4]]]), {}),
    ("output", 400, infer_json(frames(1))[:-1] + b', "outputs": [{"name": "scores"}]}', {}),
    ("id", 400, infer_json(frames(1))[:-1] + b', "id": 5}', {}),
    ("long id", 400, infer_json(frames(1))[:-1] + b', "id": "' + b"x" * 300 + b'"}', {}),
    ("header length lies", 400, infer_binary(frames(1))[0], {"inference_header_content_length": "9999999"}),
    ("header length short", 400, infer_binary(frames(1))[0], {"inference_header_content_length": "5"}),
    ("header length negative", 400, infer_binary(frames(1))[0], {"inference_header_content_length": "-1"}),
    ("header length 0x10", 400, infer_binary(frames(1))[0], {"inference_header_content_length": "0x10"}),
    ("binary without header", 400, infer_binary(frames(1))[0][: infer_binary(frames(1))[1]], {}),
    ("media type", 415, infer_json(frames(1)), {"content_type": "text/plain"}),
    ("form", 415, infer_json(frames(1)), {"content_type": "application/x-www-form-urlencoded"}),
    ("encoding", 415, infer_json(frames(1)), {"content_encoding": "br"}),
    ("not gzip", 400, infer_json(frames(1)), {"content_encoding": "gzip"}),
    ("cut gzip", 400, gzip.compress(infer_json(frames(1)))[:-3], {"content_encoding": "gzip"}),
    ("after gzip", 400, gzip.compress(infer_json(frames(1))) + b"x", {"content_encoding": "gzip"}),
    ("gzip bomb", 413, gzip.compress(bytes(50 << 20)), {"content_encoding": "gzip"}),
    ("deflate bomb", 413, zlib.compress(bytes(50 << 20)), {"content_encoding": "deflate"}),
    ("web page", 403, infer_json(frames(1)), {"origin": "http://example.com"}),
]


@pytest.mark.parametrize(("status", "body", "headers"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_refuses(http: Http, status: int, body: bytes, headers: dict[str, str]) -> None:
    found, answered, text = http.ask("POST", INFER, body, **headers)
    assert found == status
    assert answered["content-type"] == "application/json"
    assert list(json.loads(text)) == ["error"]
    assert "Traceback" not in text.decode()


@pytest.mark.parametrize(
    ("size", "start", "rest"),
    [(48, 0, b"x"), (47, 0, b""), (-48, 0, b""), (48.0, 0, b""), ("48", 0, b""), (48, 1, b"")],
)
def test_refuses_binary_sizes_that_lie(http: Http, size: object, start: int, rest: bytes) -> None:
    raw = frames(1).tobytes()[start:] + rest
    request = json.loads(infer_json(frames(1)))
    del request["inputs"][0]["data"]
    request["inputs"][0]["parameters"] = {"binary_data_size": size}
    header = json.dumps(request).encode()
    status, _, body = http.ask("POST", INFER, header + raw, inference_header_content_length=str(len(header)))
    assert status == 400, body


def test_refuses_both_kinds_of_data(http: Http) -> None:
    raw = frames(1).tobytes()
    header = infer_json(frames(1), parameters={"binary_data_size": len(raw)})
    status, _, _ = http.ask("POST", INFER, header + raw, inference_header_content_length=str(len(header)))
    assert status == 400
    header = infer_json(frames(1))
    status, _, _ = http.ask("POST", INFER, header + b"x", inference_header_content_length=str(len(header)))
    assert status == 400


def test_paths_and_methods(http: Http) -> None:
    for path in ("/", "/v1", "/v2/", "/v2/models", "/v2/models/copy/", "/v2/models/copy/versions/9/infer", "/v2/../v2"):
        assert http.ask("GET", path)[0] == 404, path
    status, headers, _ = http.ask("GET", INFER)
    assert (status, headers["allow"]) == (405, "POST")
    status, headers, _ = http.ask("POST", "/v2", b"{}")
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert http.ask("HEAD", "/v2/health/live")[0] == 200
    assert "server" not in headers


def test_labels_wanted_from_many_sides_are_all_right(http: Http, port: LabelPort) -> None:
    wrong: list[int] = []

    def ask(seed: int) -> None:
        for number in range(10):
            shown = frames(1 + number, seed=seed * 100 + number)
            status, answer = http.infer(shown)
            if status != 200 or answer["outputs"][0]["data"] != port.classify_batch(shown).tolist():
                wrong.append(status)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_float_frames(tmp_path: Path) -> None:
    with device_with(tmp_path, payload=float_payload(), dtype="float32") as device:
        port = device.boot()
        with serving(port) as service:
            http, shown = Http(service), (frames(3) / np.float32(255)).astype(np.float32)
            expected = port.classify_batch(shown).tolist()
            assert http.infer(shown)[1]["outputs"][0]["data"] == expected
            body, length = infer_binary(shown)
            status, _, text = http.ask("POST", INFER, body, inference_header_content_length=str(length))
            assert (status, json.loads(text)["outputs"][0]["data"]) == (200, expected)
            for value in (1.5, -0.1, 1e300, 10**400):
                assert http.infer(shown[:1], data=[value] * 48)[0] == 400
            bad = shown[:1].copy()
            for odd in (np.nan, np.inf):
                bad[0, 0, 0, 0] = odd
                body, length = infer_binary(bad)
                assert http.ask("POST", INFER, body, inference_header_content_length=str(length))[0] == 400


def test_a_spent_budget_is_forbidden_and_not_for_later(tmp_path: Path) -> None:
    with device_with(tmp_path, policy=Policy(budget=5)) as device, serving(device.boot()) as service:
        http = Http(service)
        assert http.infer(frames(4))[0] == 200
        status, headers, body = http.ask("POST", INFER, infer_json(frames(2)))
        assert (status, json.loads(body)) == (403, {"error": "query budget is spent"})
        assert "retry-after" not in headers
        assert http.infer(frames(1))[0] == 200
        assert http.infer(frames(1))[0] == 403
        assert http.ask("GET", "/v2/health/ready")[0] == 200


def test_an_exceeded_rate_says_when(tmp_path: Path) -> None:
    with device_with(tmp_path, policy=Policy(rate_per_hour=60, burst=3)) as device, serving(device.boot()) as service:
        status, headers, _ = Http(service).ask("POST", INFER, infer_json(frames(1)))
        assert status == 429
        assert 50 <= int(headers["retry-after"]) <= 61
        assert Http(service).infer(frames(4))[0] == 413  # the burst bounds a batch


def test_a_failing_device_answers_with_errors_that_say_nothing(port: LabelPort) -> None:
    faulty = Faulty(port)
    with serving(faulty) as service:
        http = Http(service)
        faulty.error = DeviceError("secret path /fuses")
        status, headers, body = http.ask("POST", INFER, infer_json(frames(1)))
        assert (status, headers["retry-after"]) == (503, "1")
        assert b"secret" not in body
        assert http.ask("GET", "/v2/health/ready")[0] == 503
        assert http.ask("GET", "/v2/health/live")[0] == 200
        faulty.error = ZeroDivisionError("secret")
        status, _, body = http.ask("POST", INFER, infer_json(frames(1)))
        assert status == 503
        assert b"secret" not in body
        faulty.error = None
        assert http.infer(frames(1))[0] == 200
        assert http.ask("GET", "/v2/models/copy/ready")[0] == 200
        faulty.error = MisuseError("enclave is closed")
        assert http.infer(frames(1))[0] == 503
        time.sleep(1.2)  # the status still answers, and a closed port stays closed
        assert http.ask("GET", "/v2/health/ready")[0] == 503


def test_ready_ends_when_the_status_fails_and_comes_back(port: LabelPort) -> None:
    faulty = Faulty(port)
    with serving(faulty) as service:
        http = Http(service)
        assert http.ask("GET", "/v2/health/ready")[0] == 200
        for down, expected in ((True, 503), (False, 200)):
            faulty.down = down
            end = time.monotonic() + 5
            while http.ask("GET", "/v2/health/ready")[0] != expected:
                assert time.monotonic() < end
                time.sleep(0.05)


def test_a_hanging_enclave_stops_neither_health_nor_the_queue(port: LabelPort) -> None:
    faulty = Faulty(port)
    limits = ServeLimits(answer_s=1.0, max_queue=4, max_peer_queue=4)
    with serving(faulty, limits=limits) as service:
        http = Http(service)
        faulty.hang.clear()
        statuses: list[int] = []
        threads = [threading.Thread(target=lambda: statuses.append(http.infer(frames(1))[0])) for _ in range(8)]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        assert http.ask("GET", "/v2/health/live")[0] == 200
        assert time.monotonic() - began < 0.9
        for thread in threads:
            thread.join()
        assert statuses == [503] * 8  # three are too many for the queue, five get no answer in time
        faulty.hang.set()
        end = time.monotonic() + 5
        while http.infer(frames(1))[0] != 200:
            assert time.monotonic() < end
        assert len(faulty.asked) == 2  # those who gave up were never asked, nor charged


def test_metrics_on_a_port_of_their_own(port: LabelPort) -> None:
    with serving(port, metrics_port=0) as service:
        http = Http(service)
        assert http.ask("GET", "/metrics")[0] == 404
        assert http.infer(frames(3))[0] == 200
        assert service.metrics_address is not None
        http.address = service.metrics_address
        status, _, body = http.ask("GET", "/metrics")
        assert status == 200
        assert b"variegate_labels_total 3\n" in body
        assert http.ask("GET", "/v2")[0] == 404


def test_metrics_are_not_told_to_the_network(port: LabelPort) -> None:
    for host in ("0.0.0.0", "127.0.0.1", "localhost"):
        with serving(port, host=host) as service:
            http = Http(service)
            assert http.ask("GET", "/metrics")[0] == (404 if host == "0.0.0.0" else 200)
            assert http.ask("GET", "/v2/health/ready")[0] == 200


def test_other_addresses(port: LabelPort) -> None:
    for host in ("::1", "localhost"):
        try:
            with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
                pass
        except OSError:
            continue  # no IPv6 here
        with serving(port, host=host) as service:
            assert Http(service).infer(frames(1))[0] == 200
    for wrong in ("256.1.1.1", "example.invalid", ""):
        with pytest.raises(MisuseError, match="cannot listen"), serving(port, host=wrong or "\0"):
            pass
