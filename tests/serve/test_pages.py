"""The pages for people, and the description for programs: complete, and without a request to anywhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.optional import needs

needs("starlette", "httpx2", "uvicorn", "prometheus_client", "python_multipart")

from starlette.routing import Route
from starlette.testclient import TestClient

from evitseg.serve import endpoints, open_inference, pages, tile_endpoints
from evitseg.serve.page_parts import PART_NAMES
from evitseg.serve.parameters import PARAMETERS
from evitseg.serve.problems import PROBLEMS
from evitseg.serve.service import Service, ServiceLimits
from evitseg.web.page_files import PAGE
from tests.serve.serving import client_of, segmenter


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(Service(segmenter(), ServiceLimits())) as client:
        yield client


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: list[str] = []
        self.inline = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.targets += [
            value for name in ("href", "src", "action") if (value := given.get(name)) and value != "data:,"
        ]
        self.ids += [value for value in (given.get("id"),) if value]
        self.inline += "style" in given or tag == "style" or any(name.startswith("on") for name in given)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_needs_nothing_from_elsewhere(path: str, client: TestClient) -> None:
    answer = client.get(path)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    links = Links()
    links.feed(answer.text)
    assert links.targets
    for target in links.targets:
        assert not re.match(r"\w+:|/", target), f"{target} is not relative"
        path, _, anchor = target.removeprefix("./").partition("#")
        assert client.get(f"/{path}").status_code == 200
        assert not anchor or anchor in links.ids
    assert not links.inline, "the content security policy forbids it"


def test_the_scripts_and_styles_name_no_other_place(client: TestClient) -> None:
    texts = [name for name in PART_NAMES if name.endswith((".js", ".css"))]
    assert {"app.js", "engine.js", "theme.css"} < set(texts)
    for name in texts:
        assert not re.search(r"https?://|//\w+\.\w|@import", client.get(f"/{name}").text)


def test_nothing_of_the_page_of_evitseg_web_is_missing_or_served_in_vain(client: TestClient) -> None:
    site = {path.name for path in (PAGE / "site").iterdir()}
    assert site - {name for name in PART_NAMES if "/" not in name} == {"index.html", "service-worker.js"}
    assert client.get("/engine.js").content != (PAGE / "site" / "engine.js").read_bytes()
    assert client.get("/app.js").content == (PAGE / "site" / "app.js").read_bytes()
    assert client.get("/evitseg/index.js").status_code == 404


def test_every_problem_has_an_anchor_that_its_type_points_to(client: TestClient) -> None:
    links = Links()
    links.feed(client.get("/docs").text)
    assert set(PROBLEMS) <= set(links.ids)


def test_the_description_has_every_route_and_no_other(client: TestClient) -> None:
    about = client.get("/openapi.json").json()
    described = {(path, method.upper()) for path, methods in about["paths"].items() for method in methods}
    routes: list[Route] = [*endpoints.ROUTES, *open_inference.ROUTES, *tile_endpoints.ROUTES]
    assert described == {
        (each.path.replace(":path}", "}"), method)
        for each in routes
        for method in (each.methods or ())
        if method != "HEAD"
    }
    assert all(each.path not in about["paths"] for each in pages.ROUTES)


def test_the_description_has_every_parameter_and_problem(client: TestClient) -> None:
    about = client.get("/openapi.json").json()
    operation = about["paths"]["/v1/segment"]["post"]
    assert [each["name"] for each in operation["parameters"]] == list(PARAMETERS)
    statuses = {
        int(status) for methods in about["paths"].values() for each in methods.values() for status in each["responses"]
    }
    assert {
        kind.status for name, kind in PROBLEMS.items() if name not in ("not-found", "method-not-allowed")
    } <= statuses


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, entry in value.items():
            if key == "$ref":
                yield entry
            yield from references(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from references(entry)


def test_the_description_is_sound_json_schema(client: TestClient) -> None:
    about = client.get("/openapi.json").json()
    assert set(references(about)) == {"#/components/schemas/Problem"}
    names = [each["operationId"] for methods in about["paths"].values() for each in methods.values()]
    assert len(names) == len(set(names))
    problem = client.get("/v1/nothing").json()
    assert set(problem) == set(about["components"]["schemas"]["Problem"]["required"])
