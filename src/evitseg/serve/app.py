"""The ASGI application of the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from evitseg.serve import endpoints, open_inference, pages, tile_endpoints
from evitseg.serve.exchange import AccessRules, Envelope, Guard, RequestLog, exchange_of
from evitseg.serve.problems import ProblemError
from evitseg.serve.service import ClientLeftError, Service

_EXPOSED = (
    "X-Request-ID", "X-Evitseg-Model", "X-Evitseg-Fractions", "X-Evitseg-Shape", "X-Evitseg-Dtype", "X-Evitseg-Mask",
    "Server-Timing", "Retry-After",
)  # fmt: skip
_OF_STATUS = {404: "not-found", 405: "method-not-allowed"}


async def _problem(request: Request, error: Exception) -> Response:
    exchange = exchange_of(request)
    if isinstance(error, HTTPException):
        name = _OF_STATUS.get(error.status_code, "malformed-request")
        detail = f"{request.method} {request.url.path[:200]} is not known."
        error = ProblemError(name, detail, headers=error.headers)
    assert isinstance(error, ProblemError)
    exchange.problem = error.name
    return error.response(exchange.request_id, request.scope.get("root_path", ""))


async def _unexpected(request: Request, error: Exception) -> Response:
    """The answer to an error of ours; Starlette raises the error again, for the log."""
    return await _problem(request, ProblemError("internal-error", "an unexpected error occurred."))


def create_app(
    service: Service, rules: AccessRules | None = None, origins: Sequence[str] = (), log: RequestLog | None = None
) -> ASGIApp:
    """The application that answers for a service; it starts the service and closes it.

    Args:
        origins: web pages that may use the service (CORS), such as "https://example.org", or "*".
        log: gets a line for every request; None for no log.
    """
    rules = rules or AccessRules()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start)
        yield
        await asyncio.to_thread(service.close)

    app = Starlette(
        routes=[*endpoints.ROUTES, *open_inference.ROUTES, *tile_endpoints.ROUTES, *pages.ROUTES],
        exception_handlers={
            ProblemError: _problem,
            HTTPException: _problem,
            ClientLeftError: endpoints.left,
            ClientDisconnect: endpoints.left,
            Exception: _unexpected,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.needs_key = bool(rules.keys)
    layers: ASGIApp = Guard(app, rules)
    if origins:
        layers = CORSMiddleware(
            layers,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "X-Request-ID", "Inference-Header-Content-Length"],
            expose_headers=_EXPOSED,
        )
    return Envelope(layers, service, log or RequestLog(None))
