"""Several images in one request, and a line of JSON for each."""

from __future__ import annotations

import json
from typing import Any

from tests.optional import needs

needs("starlette", "httpx2", "uvicorn", "prometheus_client", "python_multipart")

from httpx2 import Response

from evitseg.serve.service import MAX_BATCHES, Service, ServiceLimits
from tests.serve.serving import client_of, photo, segmenter


def form(*images: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("file", (f"{i}.jpg", image, "image/jpeg")) for i, image in enumerate(images)]


def lines(answer: Response) -> dict[int, dict[str, Any]]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    found = [json.loads(line) for line in answer.text.splitlines()]
    return {line["index"]: line for line in found}


def test_every_image_has_a_line_and_a_bad_one_does_not_spoil_the_others() -> None:
    good = photo()
    service = Service(segmenter(), ServiceLimits(max_bytes=len(good) + 100))
    with client_of(service) as client:
        alone = client.post("/v1/segment?mask=rle", content=good, headers={"Accept": "application/json"}).json()
        answer = client.post("/v1/segment/batch?mask=rle", files=form(good, b"nothing", good, good + bytes(200)))
        found = lines(answer)
        assert service.uploads.held == service.batches == 0
    assert sorted(found) == [0, 1, 2, 3]
    for index in (0, 2):
        assert found[index]["file"] == f"{index}.jpg"
        assert found[index]["mask"] == alone["mask"]
        assert found[index]["classes"] == alone["classes"]
    assert found[1]["error"]["status"] == 400
    assert found[1]["error"]["request_id"] == answer.headers["x-request-id"]
    assert found[3]["error"]["type"] == "/docs#too-many-bytes"


def test_a_batch_may_be_longer_than_the_queue() -> None:
    service = Service(segmenter(), ServiceLimits(queue=0))
    with client_of(service) as client:
        found = lines(client.post("/v1/segment/batch?mask=none", files=form(*[photo()] * 20)))
    assert sorted(found) == list(range(20))
    assert not any("error" in line for line in found.values())


def test_what_is_wrong_with_the_whole_batch_has_its_own_status() -> None:
    service = Service(segmenter(), ServiceLimits())
    with client_of(service) as client:
        assert client.post("/v1/segment/batch", content=photo()).status_code == 415
        assert client.post("/v1/segment/batch?opacity=1", files=form(photo())).status_code == 422
        assert client.post("/v1/segment/batch", files=form(*[b"x"] * 65)).status_code == 400
        service.batches = MAX_BATCHES
        answer = client.post("/v1/segment/batch", files=form(photo()))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
