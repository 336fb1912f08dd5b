"""The service behind the addresses: a model, the queue in front of it, and limits."""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from PIL import Image
from starlette.requests import Request

from evitseg._version import __version__
from evitseg.errors import (
    ConfigError,
    EngineError,
    FileError,
    ImageError,
    MissingPackageError,
    UnreadableHereError,
    WeightsError,
    collected_warnings,
)
from evitseg.image import Size, TooManyPixelsError
from evitseg.labels import LabelSpace
from evitseg.raster.whole import size_whole
from evitseg.runtime.native import NativeEngine
from evitseg.runtime.segmenter import Prediction, Segmenter
from evitseg.serve.answers import ANSWERS, Answer, AnswerKind, ModelIdentity, Segmented, with_classes
from evitseg.serve.image_shelf import ImageShelf
from evitseg.serve.instruments import Instruments
from evitseg.serve.parameters import AnswerOptions
from evitseg.serve.problems import ProblemError
from evitseg.serve.uploads import UploadLimits, UploadMemory
from evitseg.serve.work_queue import QueueFullError, WorkQueue
from evitseg.system.machine import free_memory
from evitseg.tiling.memory_model import BASE_BYTES, unfused_bytes, whole_memory

T = TypeVar("T")
MAX_PIXELS = 50_000_000
"""Most pixels of an image by default."""
MAX_BATCHES = 4
"""Batches that are worked on at the same time."""
_UPLOADS_IN_MEMORY = 16
"""Bodies of the largest size that may be in memory at the same time."""
_TILE_THREADS = 4
"""Tiles that are made at the same time. Some wait for an image to be opened, or for a thread of the network."""
_TILES_WAITING = 256
_IMAGE_BYTES = 8
"""Bytes per pixel of an image that is decoded and masked."""


@dataclass(frozen=True)
class ServiceLimits:
    """What the service accepts.

    Attributes:
        queue: most images that wait.
        max_bytes: most bytes of an image file.
        max_pixels: most pixels of an image.
        network_pixels: most pixels of an image as the network sees it.
        timeout_s: longest time for a body to arrive, and longest time to wait and to be worked on, in seconds.
    """

    queue: int = 32
    max_bytes: int = 32 * 2**20
    max_pixels: int = MAX_PIXELS
    network_pixels: int = MAX_PIXELS
    timeout_s: float = 30.0


def limits_for(segment: Segmenter, limits: ServiceLimits, pixels_are_given: bool) -> ServiceLimits:
    """The limits, lowered so that as many images as are worked on at the same time fit in the free memory.

    Args:
        pixels_are_given: `max_pixels` is not lowered, because somebody chose it.
    """
    share = free_memory() * 3 // 4 // (segment.info.streams + 1)
    side = 1024
    config, engine = segment.manifest.model, segment.engine
    features = engine.memory((side, side)) if isinstance(engine, NativeEngine) else unfused_bytes(config, (side, side))
    per_pixel = (whole_memory(config, (side, side), (side, side), features) - BASE_BYTES) // side**2
    max_pixels = limits.max_pixels if pixels_are_given else min(limits.max_pixels, share // _IMAGE_BYTES)
    return replace(
        limits, max_pixels=max_pixels, network_pixels=max(side**2, min(limits.network_pixels, share // per_pixel))
    )


class Stages:
    """Seconds that an image spent in each stage of its way through the service."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @property
    def milliseconds(self) -> dict[str, float]:
        return {name: 1000 * seconds for name, seconds in self.seconds.items()}


class Service:
    """A model that answers requests.

    Args:
        segment: the model; its engine's streams are the images that the network works on at the same time.
        sha256: of the model's file.
        images: the images whose tiles the service has; None for none.

    Attributes:
        draining: whether new work is refused, because the service is about to end.
    """

    def __init__(
        self, segment: Segmenter, limits: ServiceLimits, sha256: str = "", images: ImageShelf | None = None
    ) -> None:
        self.segment = segment
        self.limits = limits
        self.images = images
        self.model = ModelIdentity(segment.manifest.name, sha256 or segment.manifest.checkpoint_sha256)
        # One more than the network runs at a time: another image is decoded or encoded meanwhile.
        self.queue = WorkQueue(segment.info.streams + 1, limits.queue)
        self.tile_queue = WorkQueue(_TILE_THREADS, _TILES_WAITING)
        if images is not None:
            images.is_busy = lambda: self.queue.running + self.queue.waiting > 0
        self.upload_limits = UploadLimits(limits.max_bytes, limits.timeout_s)
        self.uploads = UploadMemory(_UPLOADS_IN_MEMORY * limits.max_bytes)
        self.instruments = Instruments()
        self.instruments.waiting.set_function(lambda: self.queue.waiting)
        self.instruments.running.set_function(lambda: self.queue.running)
        self.instruments.upload_bytes.set_function(lambda: self.uploads.held)
        self.instruments.describe(
            {
                "version": __version__,
                "model": self.model.name,
                "engine": segment.info.engine,
                "precision": segment.info.precision,
            }
        )
        self.draining = False
        self.is_warm = False
        self.batches = 0
        self.open_requests = 0
        self._work_seconds = 0.1

    @property
    def labels(self) -> LabelSpace:
        """The classes."""
        return self.segment.labels

    @property
    def is_ready(self) -> bool:
        """Whether the model has run once and requests are accepted. A full queue does not count: it is no fault."""
        return self.is_warm and not self.draining

    def start(self) -> None:
        """Start the threads and answer once, so that the first request is as fast as the others."""
        self.queue.start()
        self.tile_queue.start()
        content = io.BytesIO()
        Image.new("RGB", (64, 64)).save(content, "JPEG")
        image = content.getvalue()
        warm_up = partial(self.answer, image, ANSWERS["png"], AnswerOptions(), Stages())
        self.queue.submit(warm_up, beyond_limit=True).result()
        self.is_warm = True

    def close(self) -> None:
        """End the threads after the images that they work on."""
        if self.images is not None:
            self.images.close()
        self.tile_queue.close()
        self.queue.close()

    def check_open(self, queue: WorkQueue | None = None) -> None:
        """Refuse a request before its body is read. Raises: ProblemError if work would be refused now.

        Args:
            queue: that the work is for; None for that of images that are sent.
        """
        if self.draining:
            self.instruments.shed.labels("draining").inc()
            raise ProblemError(
                "draining", "the service finishes its last images.", headers={"Retry-After": "5", "Connection": "close"}
            )
        queue = queue or self.queue
        if queue.is_full:
            raise self._busy(queue)

    def _busy(self, queue: WorkQueue) -> ProblemError:
        self.instruments.shed.labels("queue_full").inc()
        wait_s = math.ceil(self._work_seconds * (1 + queue.waiting / queue.threads))
        return ProblemError(
            "busy",
            f"{queue.waiting} images wait, as many as may wait.",
            headers={"Retry-After": str(min(60, max(1, wait_s)))},
        )

    async def run(
        self,
        work: Callable[[], T],
        stages: Stages,
        request: Request,
        beyond_limit: bool = False,
        queue: WorkQueue | None = None,
    ) -> T:
        """The result of work in a thread of a queue. It is dropped if the client leaves before it begins.

        Args:
            queue: None for that of images that are sent.

        Raises: ProblemError, ClientLeftError, and what the work raises.
        """
        submitted, queue = time.perf_counter(), queue or self.queue

        def timed() -> T:
            begun = time.perf_counter()
            stages.seconds["queue"] = begun - submitted
            try:
                return work()
            finally:
                self._work_seconds += 0.1 * (time.perf_counter() - begun - self._work_seconds)

        try:
            future = queue.submit(timed, beyond_limit)
        except QueueFullError:
            raise self._busy(queue) from None
        answer = await self._awaited(future, request)
        for name, seconds in stages.seconds.items():
            self.instruments.stage_seconds.labels(name).observe(seconds)
        return answer

    async def _awaited(self, future: Future[T], request: Request) -> T:
        result = asyncio.wrap_future(future)
        left = asyncio.ensure_future(_departure(request))
        waiting: set[asyncio.Future[T] | asyncio.Future[None]] = {result, left}
        try:
            await asyncio.wait(waiting, timeout=self.limits.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            if left.done():
                raise ClientLeftError
            raise ProblemError("timeout", f"the image waited and was worked on for {self.limits.timeout_s:g} s.")
        finally:
            left.cancel()
            if not result.done():
                self.instruments.dropped.inc()
                result.cancel()

    def answer(self, image: bytes, kind: AnswerKind, options: AnswerOptions, stages: Stages) -> Answer:
        """Segment an image file and encode the answer; in a thread of the queue.

        Raises: ProblemError.
        """
        with self.translated(), collected_warnings() as warnings:
            prediction = self.predict(image, options.size, stages)
            prediction = with_classes(prediction, options.classes)
            segmented = Segmented(prediction, self.model, stages.milliseconds, warnings)
            with stages("encode"):
                return kind.encode(segmented, options)

    def predict(self, image: bytes, size: Size, stages: Stages) -> Prediction:
        """Segment an image file. Raises: ProblemError, EvitsegError."""
        segment = self.segment if size is None else Segmenter(self.segment.engine, size, self.segment.reading)
        with stages("decode"):
            self.check_pixels(size_whole(image, "the image", segment.reading), segment)
            reduced = segment.decoded(image, "the image")
        with stages("network"):
            logits = segment.logits_of(reduced)
        with stages("mask"):
            mask = segment.mask_of(logits, reduced.size)
        self.instruments.pixels.inc(mask.size)
        source = reduced.pixels if reduced.pixels.shape[:2] == reduced.size else image
        return Prediction(mask, source, segment.labels, segment.reading, logits)

    def check_pixels(self, size: tuple[int, int], segment: Segmenter) -> None:
        """Raises: ProblemError for an image of this (height, width) if it is too large, here or for the network."""
        height, width = size
        if height * width > self.limits.max_pixels:
            raise ProblemError(
                "too-many-pixels",
                f"the image has {width}×{height} pixels; at most {self.limits.max_pixels:,} are accepted.",
            )
        down, across = segment.manifest.preprocess.fit(size, segment.size)
        if down * across > self.limits.network_pixels:
            raise ProblemError(
                "too-many-pixels",
                f"the network would see {across}×{down} pixels; the service's memory allows "
                f"{self.limits.network_pixels:,}.",
                "Ask for a smaller size, such as ?size=512.",
            )

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what the package raises about an image or a request into a ProblemError."""
        try:
            yield
        except TooManyPixelsError as error:
            raise ProblemError("too-many-pixels", str(error)) from error
        except UnreadableHereError as error:
            raise ProblemError("unsupported-type", str(error), "Send another format.") from error
        except ImageError as error:
            raise ProblemError("not-an-image", str(error)) from error
        except MissingPackageError as error:
            raise ProblemError("not-installed", str(error)) from error
        except ConfigError as error:
            raise ProblemError("bad-parameter", str(error)) from error
        except (WeightsError, EngineError, FileError) as error:
            raise ProblemError("internal-error", str(error)) from error
        except MemoryError as error:
            raise ProblemError(
                "busy", "the service has not enough memory for this image now.", headers={"Retry-After": "5"}
            ) from error

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Count a batch. Raises: ProblemError if as many as are allowed are at work."""
        if self.batches >= MAX_BATCHES:
            self.instruments.shed.labels("batches").inc()
            raise ProblemError("busy", f"{MAX_BATCHES} batches are at work.", headers={"Retry-After": "5"})
        self.batches += 1
        try:
            yield
        finally:
            self.batches -= 1


class ClientLeftError(Exception):
    """The client closed its connection before the answer."""


async def _departure(request: Request) -> None:
    """Return when the client of a request, whose body has been read, closes its connection."""
    receive: Callable[[], Awaitable[object]] = request.receive
    while True:
        message = await receive()
        if isinstance(message, dict) and message.get("type") == "http.disconnect":
            return
