"""Who may use the service, what it writes down, and what it counts."""

from __future__ import annotations

import io
import json

import pytest

from tests.optional import needs

needs("starlette", "httpx2", "uvicorn", "prometheus_client", "python_multipart")

from starlette.testclient import TestClient

from evitseg.serve.app import create_app
from evitseg.serve.exchange import OPEN_PATHS, AccessRules, RequestLog
from evitseg.serve.service import Service, ServiceLimits
from tests.serve.serving import client_of, photo, segmenter

KEYS = ("first-key-of-the-service", "second-key-of-the-service")


def test_a_request_needs_one_of_the_keys() -> None:
    with client_of(Service(segmenter(), ServiceLimits()), AccessRules(keys=KEYS)) as client:
        for path in ("/v1/model", "/metrics", "/v2", "/v1/nothing"):
            answer = client.get(path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["type"] == "/docs#no-key"
        for key in ("", "first", KEYS[0][:-1], KEYS[0] + "x", "ключ"):
            headers = [(b"Authorization", f"Bearer {key}".encode())]
            assert client.get("/v1/model", headers=headers).status_code == 401
        assert client.get("/v1/model", headers={"Authorization": f"Basic {KEYS[0]}"}).status_code == 401
        assert client.post("/v1/segment", content=photo()).status_code == 401
        for key in KEYS:
            assert client.get("/v1/model", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert client.get("/v1/model", headers={"X-API-Key": KEYS[1]}).status_code == 200
        for path in OPEN_PATHS:
            assert client.get(path).status_code == 200
        assert "security" in client.get("/openapi.json").json()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.", "[::2]:80"])
def test_a_web_page_cannot_reach_the_service_through_a_name_of_its_own(host: str) -> None:
    rules = AccessRules(hosts=("localhost", "127.0.0.1", "::1"))
    with client_of(Service(segmenter(), ServiceLimits()), rules) as client:
        answer = client.get("/healthz", headers={"Host": host})
        assert answer.status_code == 421
        for own in ("localhost:8000", "127.0.0.1:9", "LOCALHOST", "[::1]:8000"):
            assert client.get("/healthz", headers={"Host": own}).status_code == 200


def test_other_web_pages_may_use_the_service_only_if_they_are_listed() -> None:
    app = create_app(Service(segmenter(), ServiceLimits()), AccessRules(keys=KEYS), ["https://ours.example"])
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with TestClient(app) as client:
        allowed = client.options("/v1/segment", headers={"Origin": "https://ours.example"} | ask)
        assert allowed.headers["access-control-allow-origin"] == "https://ours.example"
        refused = client.get("/v1/model", headers={"Origin": "https://ours.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://ours.example"  # so that the page can read it
        other = client.options("/v1/segment", headers={"Origin": "https://other.example"} | ask)
        assert "access-control-allow-origin" not in other.headers


def test_every_request_is_a_line_of_json_without_secrets() -> None:
    stream = io.StringIO()
    service = Service(segmenter(), ServiceLimits())
    with client_of(service, AccessRules(keys=KEYS), RequestLog(stream)) as client:
        headers = {"Authorization": f"Bearer {KEYS[0]}", "X-Request-ID": "seven"}
        client.post("/v1/segment?size=64", content=photo(), headers=headers)
        client.get("/no%22such%0apath", headers=headers)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    first, second = lines
    assert (first["request_id"], first["path"], first["status"]) == ("seven", "/v1/segment", 200)
    assert set(first["stages_ms"]) == {"queue", "decode", "network", "mask", "encode"}
    assert (second["status"], second["problem"]) == (404, "not-found")
    assert KEYS[0] not in stream.getvalue()


def test_a_quiet_log_has_only_warnings_and_errors() -> None:
    errors = io.StringIO()
    log = RequestLog(None, errors)
    log.write("info", "request")
    log.write("error", "broken")
    assert [json.loads(line)["event"] for line in errors.getvalue().splitlines()] == ["broken"]


def test_metrics_count_requests_by_route_and_stages() -> None:
    with client_of(Service(segmenter(), ServiceLimits())) as client:
        for _ in range(3):
            client.post("/v1/segment", content=photo())
        client.post("/v1/segment", content=b"nothing")
        for i in range(5):
            client.get(f"/made-up-{i}")
        text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['evitseg_requests_total{endpoint="/v1/segment",status="200"}'] == "3.0"
    assert values['evitseg_requests_total{endpoint="/v1/segment",status="400"}'] == "1.0"
    assert values['evitseg_requests_total{endpoint="other",status="404"}'] == "5.0"
    assert values['evitseg_stage_seconds_count{stage="network"}'] == "3.0"
    assert float(values["evitseg_pixels_total"]) >= 3 * 96 * 64
    assert "made-up" not in text
