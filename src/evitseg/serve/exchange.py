"""What surrounds every request: its id, access rules, headers, the log and the counters."""

from __future__ import annotations

import hmac
import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TextIO

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evitseg.serve.page_parts import PART_NAMES
from evitseg.serve.problems import ProblemError
from evitseg.serve.service import Service, Stages

_KEY = "evitseg.exchange"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
OPEN_PATHS = frozenset(
    {
        "/",
        *(f"/{name}" for name in PART_NAMES),
        "/docs",
        "/openapi.json",
        "/healthz",
        "/readyz",
        "/v2/health/live",
        "/v2/health/ready",
    }
)
"""Paths that need no API key."""
_CLIENT_LEFT = 499
"""Status in the log for a client that left before its answer, as nginx has it."""
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


@dataclass
class Exchange:
    """A request on its way through the service, and its answer.

    Attributes:
        request_id: from the client's header X-Request-ID, or a new one.
        endpoint: the route, for counters; "other" for unknown addresses, so that their number stays small.
        stages: where the time went.
        problem: the kind of problem that is the answer, if it is one.
    """

    request_id: str
    endpoint: str = "other"
    status: int = _CLIENT_LEFT
    stages: Stages = field(default_factory=Stages)
    problem: str = ""
    sent_bytes: int = 0


def exchange_of(connection: HTTPConnection) -> Exchange:
    """The exchange of a request."""
    found: Exchange = connection.scope[_KEY]
    return found


class RequestLog:
    """Writes a JSON object per line.

    Args:
        stream: None to write nothing but warnings and errors.
    """

    def __init__(self, stream: TextIO | None, errors: TextIO | None = None) -> None:
        self._stream = stream
        self._errors = stream or errors

    def write(self, level: str, event: str, **fields: object) -> None:
        """Write a line with a time, a level, an event and more fields."""
        stream = self._stream if level == "info" else self._errors
        if stream is not None:
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            print(json.dumps({"time": now, "level": level, "event": event} | fields), file=stream, flush=True)


class JsonHandler(logging.Handler):
    """Writes the records of Python's logging into a `RequestLog`."""

    def __init__(self, log: RequestLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, object] = {"logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        self._log.write(record.levelname.lower(), record.getMessage().strip(), **fields)


@dataclass(frozen=True)
class AccessRules:
    """Who may use the service.

    Attributes:
        keys: API keys of which a request must have one; empty if none is needed.
        hosts: host names that requests may be sent to; empty for any. Without keys, this keeps web pages from reaching
            a service on this machine through a host name of theirs (DNS rebinding).
    """

    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    def check(self, scope: Scope) -> None:
        """Raises: ProblemError for a request that breaks the rules."""
        headers = Headers(scope=scope)
        if self.hosts:
            name = re.sub(r":[0-9]*$", "", headers.get("host", "")).strip("[]").lower()
            if name not in self.hosts:
                raise ProblemError("wrong-host", f"the request is for the host {name[:100]!r}.")
        if self.keys and scope["path"] not in OPEN_PATHS and scope["method"] != "OPTIONS":
            scheme, _, given = headers.get("authorization", "").partition(" ")
            given = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
            # Every key is compared, so that the time tells nothing about them.
            matches: Sequence[bool] = [hmac.compare_digest(given.encode(), key.encode()) for key in self.keys]
            if not any(matches):
                raise ProblemError(
                    "no-key",
                    "the service needs an API key, and the request has none or a wrong one.",
                    headers={"WWW-Authenticate": "Bearer"},
                )


class Guard:
    """A layer that lets only requests through that keep the rules."""

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._rules.check(scope)
            except ProblemError as problem:
                exchange: Exchange = scope[_KEY]
                exchange.problem = problem.name
                await problem.response(exchange.request_id, scope.get("root_path", ""))(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Envelope:
    """The outermost layer of the application. An unexpected error becomes an answer without details, and a log line."""

    def __init__(self, app: ASGIApp, service: Service, log: RequestLog) -> None:
        self._app = app
        self._service = service
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        exchange = Exchange(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        scope[_KEY] = exchange
        has_begun = False

        async def sent(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                exchange.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = exchange.request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if exchange.stages.seconds:
                    headers["Server-Timing"] = ", ".join(
                        f"{name};dur={value:.2f}" for name, value in exchange.stages.milliseconds.items()
                    )
            exchange.sent_bytes += len(message.get("body", b""))
            await send(message)

        self._service.open_requests += 1
        try:
            await self._app(scope, receive, sent)
        except Exception as error:
            exchange.problem = "internal-error"
            self._log.write(
                "error",
                "unexpected error",
                request_id=exchange.request_id,
                traceback="".join(traceback.format_exception(error)),
            )
            if not has_begun:
                unexpected = ProblemError("internal-error", "an unexpected error occurred.")
                await unexpected.response(exchange.request_id, scope.get("root_path", ""))(scope, receive, sent)
        finally:
            self._service.open_requests -= 1
            self._finish(scope, exchange, time.perf_counter() - start)

    def _finish(self, scope: Scope, exchange: Exchange, seconds: float) -> None:
        instruments = self._service.instruments
        instruments.requests.labels(exchange.endpoint, str(exchange.status)).inc()
        instruments.request_seconds.labels(exchange.endpoint).observe(seconds)
        client = scope.get("client")
        self._log.write(
            "info",
            "request",
            request_id=exchange.request_id,
            client=client[0] if client else None,
            method=scope["method"][:20],
            path=scope["path"][:200],
            status=exchange.status,
            ms=round(1000 * seconds, 2),
            bytes=exchange.sent_bytes,
            problem=exchange.problem or None,
            stages_ms={name: round(value, 2) for name, value in exchange.stages.milliseconds.items()} or None,
        )
