"""From an image to its mask: size, engine, argmax."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evitseg import visualize
from evitseg.architecture import LOGIT_STRIDE, STRIDE
from evitseg.engine import Engine, EngineInfo
from evitseg.errors import ConfigError, EngineError, ImageError, WeightsError
from evitseg.image import AS_STATED, ImageArray, Mask, ReadOptions, Reduced, Size
from evitseg.labels import LabelSpace
from evitseg.manifest import Manifest
from evitseg.preprocess import check_size, resampled
from evitseg.raster.files import read_image, read_reduced
from evitseg.raster.masks import MaskFormat, save_mask
from evitseg.runtime.upsample import argmax_upsampled

Source = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
"""An image: a path, a PIL image, or an (H, W, 3) uint8 RGB array."""


@dataclass(frozen=True, repr=False)
class Prediction:
    """An image with its mask.

    Attributes:
        mask: (H, W) class index per pixel, at the image's own size; uint8, or uint16 for more than 255 classes.
        source: the image's file, or its pixels.
        labels: the classes.
        reading: how its file is read.
    """

    mask: Mask
    source: Path | ImageArray
    labels: LabelSpace
    reading: ReadOptions = AS_STATED

    @cached_property
    def image(self) -> ImageArray:
        """(H, W, 3) uint8 RGB, upright. Raises: ImageError where its file has gone since."""
        return self.source if isinstance(self.source, np.ndarray) else read_image(self.source, self.reading)

    def __repr__(self) -> str:
        height, width = self.mask.shape
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.fractions().items())
        return f"Prediction({width}×{height}: {shares})"

    def fractions(self) -> dict[str, float]:
        """Share of the pixels of every class that occurs, largest first: {"road": 0.41, ...}."""
        return visualize.class_fractions(self.mask, self.labels)

    def overlay(self, legend: bool = True) -> Image.Image:
        """The image in the classes' colours, by default with a legend below."""
        draw = visualize.overlay if legend else visualize.tinted
        return draw(self.image, self.mask, self.labels)

    def save(self, path: str | os.PathLike[str], mask_format: MaskFormat = "palette") -> None:
        """Write the mask as a PNG of class indices.

        Args:
            mask_format: "palette" adds the classes' colours as a palette; "gray" writes plain grey levels, for
                programs such as OpenCV that turn a palette into colours.

        Raises: ImageError for another ending than .png, FileError for a place that cannot be written.
        """
        save_mask(self.mask, path, self.labels, mask_format)


TTA_SCALES = (0.75, 1.0, 1.25)
"""Factors of the working size at which test-time augmentation looks at an image."""


class Segmenter:
    """Any engine, made to take any image.

    Args:
        engine: see `evitseg.engine.Engine`.
        size: the short side at which images go through the network, in pixels; "native" for their own; None for
            the rule in the model's manifest.
        reading: how files are read; None for what the model's manifest says.

    Raises: ConfigError for a size no network can work at.
    """

    def __init__(self, engine: Engine, size: Size = None, reading: ReadOptions | None = None) -> None:
        if isinstance(size, str) and size != "native":
            raise ConfigError(f'size {size!r} is unknown; give the short side in pixels, or "native".')
        if size is not None and not isinstance(size, str):
            check_size(size)
        if size is not None and engine.manifest.preprocess.fixed is not None:
            engine.manifest.preprocess.fit((1, 1), size)  # says that there is but one
        self.engine = engine
        self.size = size
        self.reading = engine.manifest.reading if reading is None else reading
        self.loaded_by: Callable[[], Segmenter] | None = None
        """Loads the same segmenter again, in another process; None for an engine of the caller's own."""

    def __reduce__(self) -> tuple[Callable[[], Segmenter], tuple[()]]:
        """For pickle: an engine cannot be copied, so it is loaded again. Raises: EngineError for one's own engine."""
        if self.loaded_by is None:
            raise EngineError(
                "this segmenter was not made by evitseg.load, so it cannot be pickled; load the model in each process."
            )
        return self.loaded_by, ()

    @property
    def info(self) -> EngineInfo:
        """What runs: engine, precision, threads, processor."""
        return self.engine.info

    @property
    def manifest(self) -> Manifest:
        return self.engine.manifest

    @property
    def labels(self) -> LabelSpace:
        return self.engine.manifest.labels

    def logits(self, image: ImageArray) -> NDArray[np.float32]:
        """(classes, h / 8, w / 8), where (h, w) is the working size of this image."""
        network_input = self.engine.manifest.preprocess.apply(image, self.size)
        logits: NDArray[np.float32] = self._logits(network_input[None])[0]
        return logits

    def _logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Of a batch. Raises: WeightsError where they are not finite, which no mask can be made of."""
        return finite(self.engine(images), self.engine.manifest, self.engine.info)

    def mask(self, image: ImageArray) -> Mask:
        """(H, W) class indices of an (H, W, 3) image."""
        return argmax_upsampled(self.logits(image), image.shape[:2])

    def mask_of_file(self, source: str | os.PathLike[str] | bytes, name: str | None = None) -> tuple[Mask, Reduced]:
        """(H, W) class indices of an image file, or of its bytes, and the image as it was decoded for that.

        A JPEG file at least twice as large as what goes through the network is decoded at a half, a quarter or an
        eighth of its size, which takes a fraction of the time.

        Args:
            name: of the image in messages; None for the file's.

        Raises: ImageError for an image that cannot be read.
        """
        fit = self.engine.manifest.preprocess.fit
        reduced = read_reduced(source, lambda size: fit(size, self.size), name, self.reading)
        logits = self._logits(resampled(reduced.pixels, fit(reduced.size, self.size))[None])[0]
        return argmax_upsampled(logits, reduced.size), reduced

    def __call__(self, source: Source) -> Prediction:
        """An image's mask.

        Of a file that is decoded at less than its size (`mask_of_file`) all pixels are read when they are asked for.

        Raises: ImageError for an image that cannot be read.
        """
        if not isinstance(source, (str, os.PathLike)):
            image = read_image(source)
            return Prediction(self.mask(image), image, self.labels)
        mask, reduced = self.mask_of_file(source)
        whole = reduced.pixels.shape[:2] == reduced.size
        return Prediction(mask, reduced.pixels if whole else Path(source), self.labels, self.reading)

    def batch(self, sources: Iterable[Source], size: int = 8) -> Iterator[Prediction]:
        """Predictions in order; up to `size` neighbours of the same working size go through the engine together.

        Raises: ImageError for an image that cannot be read, once those before it are given.
        """
        if size < 1:
            raise ConfigError(f"a batch of {size} is none; give 1 or more.")
        group: list[tuple[ImageArray, ImageArray]] = []
        for source in sources:
            try:
                image = read_image(source, self.reading)
            except ImageError:
                if group:
                    yield from self._run(group)
                raise
            network_input = self.engine.manifest.preprocess.apply(image, self.size)
            if group and (len(group) == size or group[0][1].shape != network_input.shape):
                yield from self._run(group)
                group = []
            group.append((image, network_input))
        if group:
            yield from self._run(group)

    def mask_tta(self, image: ImageArray, scales: Sequence[float] = TTA_SCALES, flip: bool = True) -> Mask:
        """(H, W) class indices from several looks at an image: the mean of the classes' probabilities.

        Args:
            scales: factors of the working size; the probabilities are averaged on the largest one's grid.
            flip: look at the mirrored image, too.
        """
        if not scales:
            raise ConfigError("test-time augmentation needs at least one scale.")
        if self.engine.manifest.preprocess.fixed is not None:
            raise ConfigError("test-time augmentation needs a model for images of any size; this one takes one size.")
        working = self.engine.manifest.preprocess.fit(image.shape[:2], self.size)
        sizes = [tuple(max(1, round(side * scale / STRIDE)) * STRIDE for side in working) for scale in sorted(scales)]
        grid = tuple(side // LOGIT_STRIDE for side in sizes[-1])
        total: NDArray[np.float32] | None = None
        for height, width in sizes:
            resized = resampled(image, (height, width))
            for mirrored in (False, True) if flip else (False,):
                view = np.ascontiguousarray(resized[:, ::-1]) if mirrored else resized
                logits = self._logits(view[None])[0]
                shares = np.exp(logits - logits.max(0))
                shares /= shares.sum(0)
                shares = _resized(shares[:, :, ::-1] if mirrored else shares, grid)
                total = shares.copy() if total is None else total + shares
        assert total is not None
        return argmax_upsampled(total, image.shape[:2])

    def _run(self, group: list[tuple[ImageArray, ImageArray]]) -> Iterator[Prediction]:
        logits = self._logits(np.stack([network_input for _, network_input in group]))
        for (image, _), own in zip(group, logits, strict=True):
            yield Prediction(argmax_upsampled(own, image.shape[:2]), image, self.labels)


def finite(logits: NDArray[np.float32], manifest: Manifest, info: EngineInfo) -> NDArray[np.float32]:
    """The logits. Raises: WeightsError where some are not finite."""
    # A sum is finite only if all are, and is several times as fast; it may also be too large.
    if not np.isfinite(logits.sum()) and not np.isfinite(logits).all():
        raise WeightsError(
            f"the model {manifest.name!r} gives scores that are not finite (NaN or infinite) in {info.precision}: its "
            "weights are damaged, or too large for this precision; export it again, or take float32."
        )
    return logits


def _resized(maps: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    """(classes, h, w) to another (h, w), bilinearly."""
    if maps.shape[1:] == size:
        return maps
    height, width = size
    return np.stack([np.asarray(Image.fromarray(m).resize((width, height), Image.Resampling.BILINEAR)) for m in maps])
