"""The Open Inference Protocol: pixels as JSON or as bytes, logits and mask back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.optional import needs

needs("starlette", "httpx2", "uvicorn", "prometheus_client", "python_multipart")

from httpx2 import Response
from starlette.testclient import TestClient

from evitseg.serve.service import Service, ServiceLimits
from tests.serve.serving import client_of, segmenter

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
INFER = "/v2/models/b0-camvid/infer"
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(Service(segmenter(), ServiceLimits(max_pixels=10_000))) as client:
        yield client


def tensor(**changes: Any) -> dict[str, Any]:
    return {
        "name": "image", "shape": [1, 48, 80, 3], "datatype": "UINT8", "data": PIXELS.ravel().tolist()
    } | changes  # fmt: skip


def binary(client: TestClient, request: dict[str, Any], pixels: bytes, length: str | None = None) -> Response:
    head = json.dumps(request).encode()
    return client.post(INFER, content=head + pixels, headers={LENGTH: length or str(len(head))})


def test_json_in_gives_json_out(client: TestClient) -> None:
    answer = client.post(INFER, json={"id": "7", "inputs": [tensor()]})
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert (content["id"], content["model_name"]) == ("7", "b0-camvid")
    outputs = {each["name"]: each for each in content["outputs"]}
    segment = segmenter()
    logits = segment.logits(PIXELS)
    assert outputs["logits"]["shape"] == [1, *logits.shape]
    np.testing.assert_array_equal(np.array(outputs["logits"]["data"], np.float32), logits.ravel())
    assert outputs["mask"]["datatype"] == "UINT8"
    np.testing.assert_array_equal(np.reshape(outputs["mask"]["data"], (48, 80)), segment.mask(PIXELS))


def test_nested_data_is_the_same_as_flat_data(client: TestClient) -> None:
    wanted = [{"name": "mask"}]
    flat = client.post(INFER, json={"inputs": [tensor()], "outputs": wanted}).json()
    nested = client.post(INFER, json={"inputs": [tensor(data=PIXELS[None].tolist())], "outputs": wanted}).json()
    assert flat == nested


def test_bytes_in_give_bytes_out(client: TestClient) -> None:
    request = {
        "inputs": [tensor(data=None, parameters={"binary_data_size": PIXELS.size})],
        "outputs": [{"name": "logits", "parameters": {"binary_data": True}}, {"name": "mask"}],
        "parameters": {"binary_data_output": False},
    }
    answer = binary(client, request, PIXELS.tobytes())
    assert answer.status_code == 200, answer.text
    end = int(answer.headers[LENGTH])
    content = json.loads(answer.content[:end])
    logits, mask = content["outputs"]
    segment = segmenter()
    found = np.frombuffer(answer.content[end:], "<f4").reshape(logits["shape"])
    np.testing.assert_array_equal(found[0], segment.logits(PIXELS))
    assert logits["parameters"] == {"binary_data_size": found.nbytes}
    np.testing.assert_array_equal(np.reshape(mask["data"], (48, 80)), segment.mask(PIXELS))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "picture"}, "must be 'image'"),
        ({"datatype": "FP32"}, "must be UINT8"),
        ({"shape": [2, 48, 80, 3]}, "must be [1, height, width, 3]"),
        ({"shape": [1, 48, 80, 4]}, "must be [1, height, width, 3]"),
        ({"shape": [1, -48, -80, 3]}, "positive whole numbers"),
        ({"shape": "big"}, "positive whole numbers"),
        ({"data": [1, 2, 3]}, "11,520 whole numbers"),
        ({"data": [0.5] * 11_520}, "whole numbers"),
        ({"data": [256] * 11_520}, "from 0 to 255"),
        ({"data": [10**30] * 11_520}, "from 0 to 255"),
        ({"data": [[1], [2, 3]]}, "flat or nested"),
        ({"data": None}, "must be a list"),
        ({"parameters": 5}, "parameters must be an object"),
        ({"parameters": {"binary_data_size": 11_520}}, "0 bytes follow"),
    ],
)
def test_a_wrong_tensor_is_refused_with_the_reason(changes: dict[str, Any], words: str, client: TestClient) -> None:
    answer = client.post(INFER, json={"inputs": [tensor(**changes)]})
    assert answer.status_code == 400
    assert words in answer.json()["error"] == answer.json()["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"inputs": []}', b"[" * 100_000, b'{"inputs": [1]}', b"\xff"])
def test_what_is_no_request_is_refused(body: bytes, client: TestClient) -> None:
    answer = client.post(INFER, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


@pytest.mark.parametrize("changes", [{"outputs": None}, {"outputs": []}, {"outputs": [{"name": "x"}]}, {"id": None}])
def test_null_is_not_the_same_as_left_out(changes: dict[str, Any], client: TestClient) -> None:
    answer = client.post(INFER, json={"inputs": [tensor()]} | changes)
    assert answer.status_code == 400
    assert answer.json()["error"]


@pytest.mark.parametrize("length", ["-1", "99999999", "x", "1" * 30])
def test_a_wrong_header_length_is_refused(length: str, client: TestClient) -> None:
    answer = binary(client, {"inputs": [tensor(data=None)]}, b"", length)
    assert answer.status_code == 400
    assert LENGTH in answer.json()["error"]


def test_pixels_are_limited_before_they_are_read(client: TestClient) -> None:
    answer = client.post(INFER, json={"inputs": [tensor(shape=[1, 30_000, 30_000, 3], data=[])]})
    assert answer.status_code == 413


def test_another_model_is_unknown(client: TestClient) -> None:
    for ask in (client.get, client.post):
        path = "/v2/models/b9" + "/infer" * (ask == client.post)
        answer = ask(path)
        assert answer.status_code == 404
        assert "'b0-camvid'" in answer.json()["error"]


def test_metadata_and_health(client: TestClient) -> None:
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/b0-camvid/ready").json() == {"name": "b0-camvid", "ready": True}
    about = client.get("/v2/models/b0-camvid").json()
    assert about["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [1, -1, -1, 3]}]
    assert about["outputs"][1] == {"name": "logits", "datatype": "FP32", "shape": [1, 11, -1, -1]}
