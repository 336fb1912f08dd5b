"""Read the bodies of requests within limits of type, size, time and memory."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from evitseg.serve.problems import ProblemError

MAX_BATCH = 64
"""Most images in a batch."""
BATCH_BODIES = 8
"""A batch may have this many times the bytes of one image."""
_MAX_FIELD_BYTES = 4096


class UploadMemory:
    """The bytes of bodies that may be in memory at the same time, for all requests together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def take(self, count: int) -> None:
        """Count bytes in. Raises: ProblemError if they are too many."""
        if self.held + count > self.limit:
            raise ProblemError(
                "busy",
                f"the bodies of other requests hold {self.held:,} bytes, about all that the service allows.",
                headers={"Retry-After": "2"},
            )
        self.held += count

    def give(self, count: int) -> None:
        """Count bytes out."""
        self.held -= count


@dataclass(frozen=True)
class UploadLimits:
    """Limits of one body.

    Attributes:
        max_bytes: most bytes of an image.
        timeout_s: longest time for the whole body, in seconds.
    """

    max_bytes: int
    timeout_s: float


class Upload:
    """The body of a request, whose bytes count as held until the block of `uploading` ends."""

    def __init__(self, request: Request, memory: UploadMemory, limits: UploadLimits) -> None:
        self.request = request
        self.limits = limits
        self._memory = memory
        self._arrived, self._held = 0, 0
        self.kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()

    def _count(self, count: int, limit: int, is_held: bool = True) -> None:
        self._arrived += count
        if self._arrived > limit:
            raise _too_large(limit)
        if is_held:
            self._memory.take(count)
            self._held += count

    def _check_headers(self, limit: int) -> None:
        coding = self.request.headers.get("content-encoding", "identity")
        if coding.strip().lower() not in ("", "identity"):
            raise ProblemError(
                "unsupported-type", f"Content-Encoding {coding[:40]!r} is not supported.", "Send the body as it is."
            )
        declared = self.request.headers.get("content-length", "")
        if re.fullmatch("[0-9]{1,18}", declared) and int(declared) > limit:
            raise _too_large(limit)

    async def body(self) -> bytes:
        """The whole body. Raises: ProblemError."""
        limit = self.limits.max_bytes
        self._check_headers(limit)
        chunks = []
        async with self._in_time():
            async for chunk in self.request.stream():
                self._count(len(chunk), limit)
                chunks.append(chunk)
        return b"".join(chunks)

    async def form(self, files: int) -> FormData:
        """The multipart form that the body holds, with at most this many files. Raises: ProblemError."""
        limit = self.limits.max_bytes * (BATCH_BODIES if files > 1 else 1) + files * _MAX_FIELD_BYTES
        self._check_headers(limit)
        receive = self.request.receive

        async def counted() -> Message:
            message = await receive()
            # The form keeps at most a mebibyte of a file in memory; a batch is read from disk image by image.
            self._count(len(message.get("body", b"")), limit, is_held=files == 1)
            return message

        async with self._in_time():
            form = Request(self.request.scope, counted)
            try:
                return await form.form(max_files=files, max_fields=8, max_part_size=_MAX_FIELD_BYTES)
            except HTTPException as error:
                raise ProblemError("malformed-request", f"the multipart form cannot be read: {error.detail}") from error
            except OSError as error:
                raise ProblemError(
                    "busy", "there is no space for temporary files.", headers={"Retry-After": "60"}
                ) from error
            except (UnicodeDecodeError, ValueError) as error:  # of the parser, for a damaged boundary
                raise ProblemError("malformed-request", "the multipart form cannot be read.") from error

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            with anyio.fail_after(self.limits.timeout_s):
                yield
        except TimeoutError as error:
            raise ProblemError(
                "upload-too-slow",
                f"the body took longer than {self.limits.timeout_s:g} s.",
                headers={"Connection": "close"},
            ) from error

    async def image(self) -> bytes:
        """The one image that the body is, or that its form holds. Raises: ProblemError."""
        if self.kind == "multipart/form-data":
            async with _closing(await self.form(files=1)) as files:
                if len(files) != 1:
                    raise ProblemError("malformed-request", "the form has no file; send the image as the field 'file'.")
                content = await files[0].read()
        elif not self.kind or self.kind.startswith("image/") or self.kind == "application/octet-stream":
            content = await self.body()
        else:
            raise ProblemError("unsupported-type", f"the body is {self.kind[:60]!r}, not an image.")
        if not content:
            raise ProblemError("not-an-image", "the image is empty: it has no bytes.")
        return content

    @asynccontextmanager
    async def images(self) -> AsyncIterator[list[UploadFile]]:
        """The files of a batch, open. Raises: ProblemError."""
        if self.kind != "multipart/form-data":
            raise ProblemError(
                "unsupported-type",
                f"a batch is a multipart form, not {self.kind[:60]!r}.",
                "Send the images as files of a multipart form (multipart/form-data), each as a field 'file'.",
            )
        async with _closing(await self.form(files=MAX_BATCH)) as files:
            if not files:
                raise ProblemError("malformed-request", "the form has no files; send each image as a field 'file'.")
            yield files

    def release(self) -> None:
        """Count the body's bytes out."""
        self._memory.give(self._held)
        self._held = 0


def _too_large(limit: int) -> ProblemError:
    return ProblemError("too-many-bytes", f"the body has more than {limit:,} bytes, the most that is accepted.")


@asynccontextmanager
async def _closing(form: FormData) -> AsyncIterator[list[UploadFile]]:
    """The files of a form, closed at the end. Raises: ProblemError for other fields, which would be ignored."""
    try:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise ProblemError(
                    "malformed-request",
                    f"the form's field {name[:60]!r} is not a file; parameters belong into the query (?name=value).",
                )
        yield [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    finally:
        await form.close()


@asynccontextmanager
async def uploading(request: Request, memory: UploadMemory, limits: UploadLimits) -> AsyncIterator[Upload]:
    """The body of a request, to be read in the block."""
    upload = Upload(request, memory, limits)
    try:
        yield upload
    finally:
        upload.release()
