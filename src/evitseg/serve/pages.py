"""The pages for people: one to try the model, and a description of the addresses. Nothing comes from elsewhere."""

from __future__ import annotations

import asyncio
import html
import json
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from evitseg.serve.endpoints import route, service_of
from evitseg.serve.openapi import description
from evitseg.serve.page_parts import PART_NAMES, docs_template, part
from evitseg.serve.problems import PROBLEMS

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' blob: data:; media-src 'self' blob:; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self)",
}


async def _part(name: str, request: Request) -> Response:
    body, kind = await asyncio.to_thread(part, name)
    return Response(body, headers={"Content-Type": kind} | _HEADERS)


async def _index(request: Request) -> Response:
    body, kind = part()
    return Response(body, headers={"Content-Type": kind} | _HEADERS)


def _described(request: Request) -> dict[str, Any]:
    service = service_of(request)
    root = request.scope.get("root_path", "")
    return description(service.model.name, service.labels.names, request.app.state.needs_key, root)


async def _openapi(request: Request) -> Response:
    return JSONResponse(_described(request))


async def _docs(request: Request) -> Response:
    return Response(docs_page(_described(request)), headers=_HEADERS, media_type="text/html; charset=utf-8")


def docs_page(about: dict[str, Any]) -> str:
    """A page about every address, made from the OpenAPI description."""
    operations = "\n".join(
        _operation(path, method, operation)
        for path, methods in about["paths"].items()
        for method, operation in methods.items()
    )
    problems = "\n".join(
        f'<tr id="{name}"><td><code>{name}</code></td><td>{kind.status}</td><td>{html.escape(kind.title)}.</td>'
        f"<td>{html.escape(kind.remedy)}</td></tr>"
        for name, kind in PROBLEMS.items()
    )
    template = docs_template()
    parts = {
        "about": html.escape(f"{about['info']['description']} evitseg {about['info']['version']}."),
        "operations": operations,
        "problems": problems,
    }
    for name, content in parts.items():
        template = template.replace(f"<!-- {name} -->", content)
    return template


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{html.escape(each['name'])}</code></td><td>{html.escape(_values(each['schema']))}</td>"
        f"<td>{html.escape(each.get('description', ''))}</td></tr>"
        for each in operation.get("parameters", [])
    ]
    parameters = (
        f"<table><tr><th>parameter</th><th>values</th><th>meaning</th></tr>{''.join(rows)}</table>" if rows else ""
    )
    body = operation.get("requestBody")
    sent = f"<p>Body: {_media_types(body)}.</p>" if body else ""
    ok = operation["responses"]["200"]
    answers = "".join(
        f"<tr><td><code>{html.escape(media_type)}</code></td>"
        f"<td>{html.escape(content['schema'].get('description', ok['description']))}</td></tr>"
        for media_type, content in ok["content"].items()
    )
    others = ", ".join(status for status in operation["responses"] if status != "200")
    return (
        f'<section><h2 id="{operation["operationId"]}"><code>{method.upper()} {html.escape(path)}</code></h2>'
        f"<p>{html.escape(operation['summary'])}. {html.escape(operation.get('description', ''))}</p>"
        f"{sent}{parameters}<table><tr><th>answer</th><th>meaning</th></tr>{answers}</table>"
        f'<p>Other statuses: {others}; see <a href="#problems">problems</a>.</p></section>'
    )


def _media_types(holder: dict[str, Any]) -> str:
    return ", ".join(f"<code>{html.escape(name)}</code>" for name in holder.get("content", {}))


def _values(schema: dict[str, Any]) -> str:
    if schema.get("type") == "array":
        return "names separated by commas: " + ", ".join(schema["items"]["enum"])
    if "oneOf" in schema:
        return " or ".join(_values(each) for each in schema["oneOf"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " or ".join(map(json.dumps, schema["enum"]))
    limits = f" {schema['minimum']} to {schema['maximum']}" if "minimum" in schema and "maximum" in schema else ""
    return str(schema.get("type", "")) + limits


ROUTES: list[Route] = [
    route("/", _index, "GET"),
    *(route(f"/{name}", partial(_part, name), "GET", "page") for name in PART_NAMES),
    route("/docs", _docs, "GET"),
    route("/openapi.json", _openapi, "GET"),
]
