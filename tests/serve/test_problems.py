"""What is wrong with a request is said with a status, a sentence and a remedy."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import pytest

from tests.optional import needs

needs("starlette", "httpx2", "uvicorn", "prometheus_client", "python_multipart")

from httpx2 import Response
from PIL import Image
from starlette.testclient import TestClient

from evitseg.serve.problems import PROBLEMS
from evitseg.serve.service import Service, ServiceLimits
from tests.serve.serving import client_of, photo, segmenter

PHOTO = photo()
MAX_BYTES, MAX_PIXELS = 40_000, 20_000


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(segmenter(), ServiceLimits(max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS, network_pixels=MAX_PIXELS))


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with client_of(service) as client:
        yield client
    assert service.uploads.held == 0
    assert service.open_requests == 0


def send(
    client: TestClient, body: bytes = PHOTO, query: str = "", kind: str = "image/jpeg", accept: str = "*/*"
) -> Response:
    return client.post(f"/v1/segment{query}", content=body, headers={"Content-Type": kind, "Accept": accept})


def check(answer: Response, name: str, *words: str) -> None:
    """The answer is this problem, complete, and its detail has these words."""
    content = answer.json()
    kind = PROBLEMS[name]
    assert (answer.status_code, content["status"]) == (kind.status, kind.status), content
    assert answer.headers["content-type"] == "application/problem+json"
    assert content["type"] == f"/docs#{name}"
    assert content["title"] == kind.title
    assert content["remedy"].endswith(".")
    assert content["request_id"] == answer.headers["x-request-id"]
    for word in words:
        assert word in content["detail"]


def huge_png(width: int, height: int) -> bytes:
    """The start of a PNG that promises these sides."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize("body", [b"%PDF-1.7 nothing", b"<svg/>", b"\0" * 100, b"GIF89a", PHOTO[:20]])
def test_what_is_no_image_is_refused(body: bytes, client: TestClient) -> None:
    check(send(client, body), "not-an-image", "the image")


def test_an_empty_body_is_no_image(client: TestClient) -> None:
    check(send(client, b""), "not-an-image", "empty")


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_a_truncated_image_is_refused(name: str, client: TestClient) -> None:
    body = photo((90, 60), name)
    check(send(client, body[: len(body) // 2]), "not-an-image", "truncated or damaged")


def test_pixels_are_counted_in_the_header_before_anything_is_decoded(client: TestClient) -> None:
    check(send(client, huge_png(20_000, 20_000)), "too-many-pixels", "more than 178,956,970 pixels")
    check(send(client, huge_png(200, 101)), "too-many-pixels", "200×101", "20,000")
    check(send(client, huge_png(200, 100)), "not-an-image", "truncated")


def test_pixels_that_only_the_network_would_see_are_counted(client: TestClient) -> None:
    answer = send(client, query="?size=512")
    check(answer, "too-many-pixels", "768×512")
    assert "?size=512" in answer.json()["remedy"]


def test_bytes_are_counted_with_and_without_a_declared_length(client: TestClient) -> None:
    check(send(client, b"x" * (MAX_BYTES + 1)), "too-many-bytes", f"{MAX_BYTES:,}")

    def parts() -> Iterator[bytes]:
        for _ in range(MAX_BYTES // 1000 + 1):
            yield b"x" * 1000

    answer = client.post("/v1/segment", content=parts(), headers={"Content-Type": "image/jpeg"})
    check(answer, "too-many-bytes", f"{MAX_BYTES:,}")
    assert send(client, PHOTO + b"x" * (MAX_BYTES - len(PHOTO))).status_code == 200


def test_bytes_of_a_form_are_counted(client: TestClient) -> None:
    check(client.post("/v1/segment", files={"file": b"x" * (MAX_BYTES + 5000)}), "too-many-bytes")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "video/mp4", "nonsense"])
def test_a_body_of_another_type_is_refused(kind: str, client: TestClient) -> None:
    answer = send(client, kind=kind)
    check(answer, "unsupported-type", kind)
    assert "Content-Type: image/jpeg" in answer.json()["remedy"]


def test_a_compressed_body_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/segment", content=zlib.compress(PHOTO), headers={"Content-Encoding": "deflate"})
    check(answer, "unsupported-type", "deflate")


@pytest.mark.parametrize(
    ("query", "accept", "words"),
    [
        ("?size=31", "*/*", "size: size 31 is out of range"),
        ("?size=1e3", "*/*", "not a whole number"),
        ("?size=", "*/*", "not a whole number"),
        ("?size=64&size=64", "*/*", "twice"),
        ("?sise=64", "*/*", "did you mean 'size'"),
        ("?classes=raod", "*/*", "did you mean 'road'"),
        ("?mask=rle", "image/png", "applies to json"),
        ("?mask=zip", "application/json", "none of png, rle, none"),
        ("?mask=png&compat=roboflow", "application/json", "mask does not apply"),
        ("?opacity=2", "image/jpeg", "from 0 to 1"),
        ("?opacity=nan", "image/jpeg", "from 0 to 1"),
        ("?legend=yes", "image/jpeg", "none of true, false"),
        ("?min_pixels=0", "application/geo+json", "1 or more"),
        ("?classes=road", "application/octet-stream", "does not apply"),
    ],
)
def test_a_wrong_parameter_is_named_and_never_ignored(query: str, accept: str, words: str, client: TestClient) -> None:
    check(send(client, query=query, accept=accept), "bad-parameter", words)


def test_an_answer_that_nobody_makes_is_not_acceptable(client: TestClient) -> None:
    check(send(client, accept="text/html"), "not-acceptable", "application/geo+json")


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"nonsense", "multipart/form-data; boundary=x", "cannot be read"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", "no file"),
        (b"", "multipart/form-data", "boundary"),
        (b"--x\r\nA: b\r\n\r\n1\r\n--x--\r\n", "multipart/form-data; boundary=x", "name"),
    ],
)
def test_a_damaged_form_is_malformed(content: bytes, kind: str, words: str, client: TestClient) -> None:
    check(send(client, content, kind=kind), "malformed-request", words)


def test_a_form_with_a_field_that_would_be_ignored_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/segment", files={"file": PHOTO}, data={"size": "64"})
    check(answer, "malformed-request", "'size'", "?name=value")
    check(client.post("/v1/segment", files=[("file", PHOTO), ("file", PHOTO)]), "malformed-request", "Too many files")


def test_unknown_addresses_and_methods_are_problems_too(client: TestClient) -> None:
    check(client.get("/v1/segmnt"), "not-found", "/v1/segmnt")
    answer = client.put("/v1/segment")
    check(answer, "method-not-allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "path", ["/../pyproject.toml", "/page/index.html", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd"]
)
def test_no_path_leads_to_a_file(path: str, client: TestClient) -> None:
    check(client.get(path), "not-found")


def test_a_request_id_comes_from_the_client_if_it_is_a_plain_word(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "job-7.a"}).headers["x-request-id"] == "job-7.a"
    for bad in ("two words", "x" * 65, 'a"b'):
        own = client.get("/healthz", headers={"X-Request-ID": bad}).headers["x-request-id"]
        assert own != bad
        assert len(own) == 32


def test_an_image_that_the_service_cannot_read_for_want_of_a_package_is_not_its_failure(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.init()  # or Pillow loads the plugin at the first image that no other one reads
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    answer = send(client, b"\0\0\0\x20ftypavif" + b"\0" * 40)
    check(answer, "not-an-image", "AVIF")


def test_an_unexpected_error_has_no_details_in_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from evitseg.serve.exchange import RequestLog

    stream = io.StringIO()
    service = Service(segmenter(), ServiceLimits())
    with client_of(service, log=RequestLog(stream)) as client:
        monkeypatch.setattr(service, "predict", lambda *given: 1 / 0)
        answer = send(client)
    check(answer, "internal-error", "an unexpected error occurred")
    assert "ZeroDivision" not in answer.text
    first, second = stream.getvalue().splitlines()
    assert "ZeroDivisionError" in first
    assert answer.headers["x-request-id"] in first
    assert '"status": 500' in second
