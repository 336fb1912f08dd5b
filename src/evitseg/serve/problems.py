"""What can be wrong with a request, and the answers that say so (problem+json, RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class ProblemKind:
    """A kind of problem.

    Attributes:
        status: HTTP status of the answer.
        title: the problem in a few words, the same for every occurrence.
        remedy: what the client can do, unless the occurrence knows better.
    """

    status: int
    title: str
    remedy: str


PROBLEMS = {
    "malformed-request": ProblemKind(400, "The request is malformed", "Check how the request is put together."),
    "not-an-image": ProblemKind(400, "The image cannot be read", "Send the complete file of an image."),
    "no-key": ProblemKind(
        401, "The API key is missing or wrong", "Send a key of the service: 'Authorization: Bearer KEY'."
    ),
    "not-found": ProblemKind(404, "There is nothing at this address", "See /docs for the addresses."),
    "no-such-image": ProblemKind(404, "The service has no such image", "GET /v1/images lists the images."),
    "no-such-tile": ProblemKind(404, "The image has no such tile", "GET /v1/images/info/NAME describes its tiles."),
    "no-mask": ProblemKind(
        404,
        "The image has no mask",
        "Make its context with the model and precision of the service, for instance mosaic.npz for mosaic.tif: "
        "evitseg predict mosaic.tif --exact --save-context mosaic.npz --out mask.tif.",
    ),
    "no-place": ProblemKind(404, "The image has no place on a map", "Use its Deep Zoom tiles."),
    "no-images": ProblemKind(404, "The service has no images", "Start the service with --root DIR."),
    "unknown-model": ProblemKind(404, "The service does not have this model", "Use the model that /v1/model names."),
    "method-not-allowed": ProblemKind(
        405, "This address does not support the method", "Use a method that the header Allow lists."
    ),
    "not-acceptable": ProblemKind(
        406, "No kind of answer matches the header Accept", "Accept a media type that the detail lists, or */*."
    ),
    "upload-too-slow": ProblemKind(
        408, "The body did not arrive in time", "Send a smaller image, or raise --timeout of the service."
    ),
    "too-many-bytes": ProblemKind(
        413, "The body is too large", "Compress or shrink the image, or raise --max-bytes of the service."
    ),
    "too-many-pixels": ProblemKind(
        413, "The image has too many pixels", "Shrink the image, or raise --max-pixels of the service."
    ),
    "unsupported-type": ProblemKind(
        415,
        "The body has an unsupported type",
        "Send the file as the body with its type, such as 'Content-Type: image/jpeg', or in a multipart form.",
    ),
    "wrong-host": ProblemKind(
        421,
        "The service does not answer for this host name",
        "Use http://127.0.0.1, or start the service with --allowed-host NAME.",
    ),
    "bad-parameter": ProblemKind(422, "A parameter is invalid", "See /docs for the parameters and their values."),
    "header-too-large": ProblemKind(431, "The header is too large", "Send less in the header, such as no cookies."),
    "internal-error": ProblemKind(
        500, "The service failed", "Report it with the request id, under which the service's log has the details."
    ),
    "not-installed": ProblemKind(
        501, "The service lacks a package for this answer", "Install the package that the detail names."
    ),
    "busy": ProblemKind(503, "The service is busy", "Try again after the seconds in the header Retry-After."),
    "not-rendered": ProblemKind(
        503, "The exact mask is being rendered", "Try again later, or leave exact=true out for a preview."
    ),
    "draining": ProblemKind(
        503, "The service is shutting down", "Send the request to another instance, or try again later."
    ),
    "timeout": ProblemKind(
        504, "The work took too long", "Try again later, send a smaller image, or raise --timeout of the service."
    ),
}


class ProblemError(Exception):
    """A request that is answered with a problem.

    Args:
        name: a key of `PROBLEMS`.
        detail: a sentence about this occurrence.
        remedy: what to do, if it differs from the kind's.
        headers: further headers of the answer.
    """

    def __init__(
        self, name: str, detail: str, remedy: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.name = name
        self.kind = PROBLEMS[name]
        self.detail = detail
        self.remedy = remedy or self.kind.remedy
        self.headers = dict(headers or {})

    def content(self, request_id: str, root: str = "") -> dict[str, str | int]:
        """The members of the JSON object; `root` is the path under which a proxy mounts the service."""
        return {
            "type": f"{root}/docs#{self.name}",
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            "remedy": self.remedy,
            "request_id": request_id,
        }

    def response(self, request_id: str, root: str = "", **more: str) -> Response:
        """The answer; `more` are further members of the JSON object."""
        body = json.dumps(self.content(request_id, root) | more, ensure_ascii=False).encode()
        return Response(body, self.kind.status, self.headers, MEDIA_TYPE)
