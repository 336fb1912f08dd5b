"""The addresses of the service: masks, batches, the model, health and metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from evitseg._version import __version__
from evitseg.serve.accept import chosen
from evitseg.serve.answers import ANSWER_OF, ANSWERS
from evitseg.serve.exchange import exchange_of
from evitseg.serve.parameters import AnswerOptions, parsed
from evitseg.serve.problems import ProblemError
from evitseg.serve.service import ClientLeftError, Service, Stages
from evitseg.serve.uploads import uploading

NDJSON = "application/x-ndjson"
Endpoint = Callable[[Request], Awaitable[Response]]


def service_of(request: Request) -> Service:
    """The service behind the application."""
    found: Service = request.app.state.service
    return found


def route(path: str, endpoint: Endpoint, method: str, name: str | None = None) -> Route:
    """A route whose requests are counted under its path."""

    async def counted(request: Request) -> Response:
        exchange_of(request).endpoint = name or path
        return await endpoint(request)

    return Route(path, counted, methods=[method])


def accept_of(request: Request) -> str:
    """The header Accept, which may come in several lines."""
    return ", ".join(request.headers.getlist("accept"))


async def _segment(request: Request) -> Response:
    service, exchange = service_of(request), exchange_of(request)
    media_type = chosen(accept_of(request), list(ANSWER_OF))
    name = ANSWER_OF[media_type]
    options = parsed(request.query_params.multi_items(), name, service.labels)
    service.check_open()
    async with uploading(request, service.uploads, service.upload_limits) as upload:
        image = await upload.image()
        work = partial(service.answer, image, ANSWERS[name], options, exchange.stages)
        del image
        answer = await service.run(work, exchange.stages, request)
    headers = {"X-Evitseg-Model": service.model.header, "Vary": "Accept"} | answer.headers
    return Response(answer.body, headers=headers, media_type=media_type)


async def _batch(request: Request) -> Response:
    service = service_of(request)
    chosen(accept_of(request), [NDJSON, "application/json"])
    options = parsed(request.query_params.multi_items(), "json", service.labels)
    service.check_open()
    lines = _batch_lines(request, options)
    first = await anext(lines, b"")  # what is wrong with the whole batch has its own status
    return StreamingResponse(_chained(first, lines), media_type=NDJSON)


async def _chained(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with aclosing(rest):
        yield first
        async for line in rest:
            yield line


async def _batch_lines(request: Request, options: AnswerOptions) -> AsyncGenerator[bytes, None]:
    """A line of JSON for every image of a batch, as each is done."""
    service = service_of(request)
    with service.batch():
        async with uploading(request, service.uploads, service.upload_limits) as upload, upload.images() as files:
            places = asyncio.Semaphore(service.queue.threads)

            async def line(index: int, file: UploadFile) -> bytes:
                about = {"index": index, "file": (file.filename or "")[:255]}
                async with places:
                    try:
                        content = await _batch_image(request, file, options)
                    except ProblemError as problem:
                        root = request.scope.get("root_path", "")
                        content = {"error": problem.content(exchange_of(request).request_id, root)}
                return json.dumps(about | content, ensure_ascii=False).encode() + b"\n"

            tasks = [asyncio.ensure_future(line(index, file)) for index, file in enumerate(files)]
            try:
                for done in asyncio.as_completed(tasks):
                    yield await done
            except ClientLeftError:
                return
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


async def _batch_image(request: Request, file: UploadFile, options: AnswerOptions) -> dict[str, Any]:
    service = service_of(request)
    if (file.size or 0) > service.limits.max_bytes:
        raise ProblemError(
            "too-many-bytes", f"the image has {file.size:,} bytes; at most {service.limits.max_bytes:,} are accepted."
        )
    stages = Stages()
    work = partial(service.answer, await file.read(), ANSWERS["json"], options, stages)
    answer = await service.run(work, stages, request, beyond_limit=True)
    content: dict[str, Any] = json.loads(answer.body)
    return content


async def _model(request: Request) -> Response:
    service = service_of(request)
    manifest = json.loads(service.segment.manifest.to_json())
    info = service.segment.info
    return JSONResponse(
        {
            "name": service.model.name,
            "sha256": service.model.sha256,
            "classes": [
                {"id": index, "name": c.name, "color": list(c.color)} for index, c in enumerate(service.labels.classes)
            ],
            "engine": {
                "name": info.engine,
                "version": info.version,
                "precision": info.precision,
                "threads": info.threads,
                "streams": info.streams,
                "device": info.device,
            },
            "size": service.segment.size,
            "limits": {
                "bytes": service.limits.max_bytes,
                "pixels": service.limits.max_pixels,
                "network_pixels": service.limits.network_pixels,
                "queue": service.limits.queue,
                "timeout_s": service.limits.timeout_s,
            },
            "answers": list(ANSWER_OF),
            "manifest": manifest,
            "evitseg_version": __version__,
        }
    )


async def _live(request: Request) -> Response:
    return JSONResponse({"status": "alive"})


async def _ready(request: Request) -> Response:
    service = service_of(request)
    status = "ready" if service.is_ready else "draining" if service.draining else "starting"
    return JSONResponse({"status": status, "waiting": service.queue.waiting}, 200 if service.is_ready else 503)


async def _metrics(request: Request) -> Response:
    return Response(
        service_of(request).instruments.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    )


async def left(request: Request, error: Exception) -> Response:
    """The answer to a client that has left; nobody receives it."""
    assert isinstance(error, ClientLeftError) or type(error).__name__ == "ClientDisconnect"
    return Response(status_code=499)


ROUTES = [
    route("/v1/segment", _segment, "POST"),
    route("/v1/segment/batch", _batch, "POST"),
    route("/v1/model", _model, "GET"),
    route("/healthz", _live, "GET"),
    route("/readyz", _ready, "GET"),
    route("/metrics", _metrics, "GET"),
]
