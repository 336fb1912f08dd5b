"""Segment images with an engine: resize, run the network, and take the best class of every pixel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evitseg import visualize
from evitseg.architecture import LOGIT_STRIDE, STRIDE
from evitseg.engine import Engine, EngineInfo
from evitseg.errors import ConfigError, EngineError, ImageError, WeightsError
from evitseg.image import AS_STATED, ImageArray, Mask, ReadOptions, Reduced, Size
from evitseg.labels import Color, LabelSpace, recolored
from evitseg.manifest import Manifest
from evitseg.preprocess import check_size, resampled
from evitseg.raster.files import BinaryFile, ImageSource, file_or_bytes, read_image, read_reduced
from evitseg.raster.png import MaskFormat, save_mask
from evitseg.runtime.native import NativeEngine
from evitseg.runtime.upsample import argmax_upsampled

if TYPE_CHECKING:
    from evitseg.raster.polygons import PolygonFeature

Logits: TypeAlias = NDArray[np.float32]
_AnySource = TypeVar("_AnySource", bound=ImageSource)  # so that a list[Path] is a list of sources


@dataclass(frozen=True, repr=False)
class Prediction:
    """An image with its mask.

    Attributes:
        mask: (H, W) class index per pixel, at the image's own size; uint8, or uint16 for more than 255 classes.
        source: the image's file, the bytes of one, or its pixels.
        labels: the classes.
        reading: how the file is read.
        logits: (classes, h / 8, w / 8), where (h, w) is the working size; None if they were not kept. They take about
            4 bytes per class and 64 pixels of the working size.
    """

    mask: Mask
    source: Path | bytes | ImageArray
    labels: LabelSpace
    reading: ReadOptions = AS_STATED
    logits: Logits | None = field(default=None, compare=False)

    @cached_property
    def image(self) -> ImageArray:
        """(H, W, 3) uint8 RGB, upright. Raises: ImageError if its file has been moved or deleted."""
        return self.source if isinstance(self.source, np.ndarray) else read_image(self.source, self.reading)

    def __repr__(self) -> str:
        height, width = self.mask.shape
        fractions = ", ".join(f"{name} {fraction:.0%}" for name, fraction in self.fractions().items())
        return f"Prediction({width}×{height}: {fractions})"

    def fractions(self) -> dict[str, float]:
        """Fraction of the image's pixels for every class that occurs, largest first: {"road": 0.41, ...}."""
        return visualize.class_fractions(self.mask, self.labels)

    def probabilities(self) -> NDArray[np.float32]:
        """(classes, h / 8, w / 8) probability of every class, the softmax of the logits; (h, w) is the working size.

        Raises: ConfigError for the frame of a video, which keeps no logits.
        """
        if self.logits is None:
            raise ConfigError("this prediction keeps no logits; segment its image: segment(prediction.image).")
        return softmax(self.logits)

    def polygons(
        self, min_pixels: int = 1, classes: Iterable[str] | None = None, simplify: float = 0.0
    ) -> list[PolygonFeature]:
        """Every region of a class as a polygon with its holes, in pixel coordinates; see `polygonize` for files.

        Each is a GeoJSON feature with the properties `class` (its index), `name` and `pixels` (its area).

        Args:
            min_pixels: leaves out smaller regions, which remain as holes in the regions around them.
            classes: names of the classes to return; None for all.
            simplify: leaves out corners that span less area than a square with this side in pixels, as in `polygonize`.

        Raises: ConfigError for an unknown class, MissingPackageError without the extra `geo`.
        """
        from evitseg.raster.polygons import polygon_features

        return polygon_features(self.mask, self.labels, classes, min_pixels, simplify)

    def overlay(
        self,
        legend: bool = True,
        opacity: float = visualize.OPACITY,
        palette: Mapping[str, Color] | Sequence[Color] | None = None,
    ) -> Image.Image:
        """The image tinted with the classes' colours.

        Args:
            legend: adds the classes that occur and their fractions below the image.
            opacity: of the colours, 0 to 1.
            palette: other RGB colours, 0 to 255: by class name, or one for each class in their order.

        Raises: ConfigError.
        """
        if not 0 <= opacity <= 1:
            raise ConfigError(f"opacity is {opacity}; it must be between 0 and 1.")
        labels = self.labels if palette is None else recolored(self.labels, palette)
        draw = visualize.overlay if legend else visualize.tinted
        return draw(self.image, self.mask, labels, opacity)

    def save(self, path: str | os.PathLike[str], mask_format: MaskFormat = "palette") -> None:
        """Write the mask as a PNG of class indices.

        Args:
            mask_format: "palette" adds the classes' colours as a palette; "gray" writes plain grey levels, for
                programs such as OpenCV that turn a palette into colours.

        Raises: ImageError for a name that does not end in .png, FileError for a path that cannot be written.
        """
        save_mask(self.mask, path, self.labels, mask_format)


TTA_SCALES = (0.75, 1.0, 1.25)
"""Factors of the working size for test-time augmentation."""


class Segmenter:
    """An engine behind an interface that takes any image; `evitseg.load` makes one.

    Args:
        engine: see `evitseg.engine.Engine`.
        size: the working size: the short side, in pixels, at which images go through the network; "native" for each
            image's own size; None for the rule in the model's manifest.
        reading: how files are read; None for the model's manifest.

    Raises: ConfigError for a size at which no network can work.
    """

    def __init__(self, engine: Engine, size: Size = None, reading: ReadOptions | None = None) -> None:
        if isinstance(size, str) and size != "native":
            raise ConfigError(f'size {size!r} is unknown; give the short side in pixels, or "native".')
        if size is not None and not isinstance(size, str):
            check_size(size)
        if size is not None and engine.manifest.preprocess.fixed is not None:
            engine.manifest.preprocess.fit((1, 1), size)  # raises: the model has only one size
        self.engine = engine
        self.size = size
        self.reading = engine.manifest.reading if reading is None else reading
        self.loaded_by: Callable[[], Segmenter] | None = None
        """Loads the same segmenter again, in another process; None if the caller made the engine."""
        self.source: str | None = None
        """Name of a model on the hub, with its commit and file: hf://owner/name@commit/file; None for other models."""

    def __reduce__(self) -> tuple[Callable[[], Segmenter], tuple[()]]:
        """Pickles the call that loads the segmenter, because an engine cannot be copied.

        Raises: EngineError if the caller made the engine.
        """
        if self.loaded_by is None:
            raise EngineError(
                "this segmenter was not made by evitseg.load, so it cannot be pickled; load the model in each process."
            )
        return self.loaded_by, ()

    @property
    def info(self) -> EngineInfo:
        """The engine, with its version, precision, threads and device."""
        return self.engine.info

    @property
    def manifest(self) -> Manifest:
        """The model's manifest: its classes, training, accuracy and preprocessing."""
        return self.engine.manifest

    @property
    def labels(self) -> LabelSpace:
        """The classes, in the order of the logits' channels."""
        return self.engine.manifest.labels

    def logits(self, image: ImageArray) -> Logits:
        """(classes, h / 8, w / 8), where (h, w) is the working size of this image."""
        network_input = self.engine.manifest.preprocess.apply(image, self.size)
        logits: Logits = self._logits(network_input[None])[0]
        return logits

    def decoded(self, source: str | os.PathLike[str] | bytes, name: str | None = None) -> Reduced:
        """The image in a file, or in its bytes, with no more pixels than the network needs (`mask_of_file`).

        Raises: ImageError for an image that cannot be read.
        """
        fit = self.engine.manifest.preprocess.fit
        return read_reduced(source, lambda size: fit(size, self.size), name, self.reading)

    def logits_of(self, reduced: Reduced) -> Logits:
        """(classes, h / 8, w / 8), where (h, w) is the working size of the image that was decoded."""
        fitting = self.engine.manifest.preprocess.fit(reduced.size, self.size)
        logits: Logits = self._logits(resampled(reduced.pixels, fitting)[None])[0]
        return logits

    def _logits(self, images: NDArray[np.uint8]) -> Logits:
        """Logits of a batch. Raises: WeightsError if they are not finite, because they give no mask then."""
        logits = self.engine(images)
        if isinstance(self.engine, NativeEngine):  # the core has checked them
            return logits
        return finite(logits, self.engine.manifest, self.engine.info)

    def mask_of(self, logits: Logits, size: tuple[int, int]) -> Mask:
        """(H, W) class indices of an image of this (height, width) from its logits."""
        core = self.engine.core if isinstance(self.engine, NativeEngine) else None
        return argmax_upsampled(logits, size, core=core)

    def mask(self, image: ImageArray) -> Mask:
        """(H, W) class indices of an (H, W, 3) image."""
        return self.mask_of(self.logits(image), image.shape[:2])

    def mask_of_file(self, source: str | os.PathLike[str] | bytes, name: str | None = None) -> tuple[Mask, Reduced]:
        """(H, W) class indices of an image file, or of its bytes, and the image as it was decoded for that.

        A JPEG at least twice as large as the working size is decoded at a half, a quarter or an eighth of its size,
        which takes a fraction of the time.

        Args:
            name: of the image in messages; None for the file's.

        Raises: ImageError for an image that cannot be read.
        """
        reduced = self.decoded(source, name)
        return self.mask_of(self.logits_of(reduced), reduced.size), reduced

    @overload
    def __call__(self, source: ImageSource) -> Prediction: ...

    @overload
    def __call__(self, source: list[_AnySource] | tuple[_AnySource, ...]) -> list[Prediction]: ...

    @overload
    def __call__(self, source: Iterator[ImageSource]) -> Iterator[Prediction]: ...

    def __call__(
        self, source: ImageSource | list[_AnySource] | tuple[_AnySource, ...] | Iterator[ImageSource]
    ) -> Prediction | list[Prediction] | Iterator[Prediction]:
        """Segment an image, or several: the mask, with all that can be made of it.

        Args:
            source: an image: a path, the bytes of a file, an open binary file, a PIL image, or an array (H, W, 3),
                uint8, in RGB order (OpenCV's are BGR: `image[..., ::-1]`). A list or tuple of images gives a list of
                predictions, and a generator or another iterator gives an iterator that segments each image when its
                prediction is asked for.

        A large JPEG is decoded at a reduced size (`mask_of_file`); `Prediction.image` then reads all its pixels.

        Raises: ImageError for an image that cannot be read.
        """
        if isinstance(source, (list, tuple)):
            return [self._predicted(image) for image in source]
        if isinstance(source, Iterator) and not isinstance(source, BinaryFile):
            return map(self._predicted, source)
        return self._predicted(source)

    def _predicted(self, source: ImageSource) -> Prediction:
        if isinstance(source, (np.ndarray, Image.Image)):
            image = read_image(source)
            logits = self.logits(image)
            return Prediction(self.mask_of(logits, image.shape[:2]), image, self.labels, logits=logits)
        encoded, name = file_or_bytes(source)
        reduced = self.decoded(encoded, name)
        logits = self.logits_of(reduced)
        is_whole = reduced.pixels.shape[:2] == reduced.size
        kept = encoded if isinstance(encoded, bytes) else Path(encoded)
        mask = self.mask_of(logits, reduced.size)
        return Prediction(mask, reduced.pixels if is_whole else kept, self.labels, self.reading, logits)

    def batch(self, sources: Iterable[ImageSource], size: int = 8) -> Iterator[Prediction]:
        """Predictions in order; up to `size` neighbours of the same working size go through the engine together.

        In bfloat16 a mask can differ by a few pixels from the one that the image gets on its own, because an engine
        may sum a batch in another order.

        Raises: ImageError for an image that cannot be read, after the predictions before it.
        """
        if size < 1:
            raise ConfigError(f"a batch of {size} is empty; give 1 or more.")
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
        """(H, W) class indices by test-time augmentation: the classes' mean probabilities over several views.

        Args:
            scales: factors of the working size; the probabilities are averaged on the largest one's grid.
            flip: adds the mirrored image at every scale.
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
            for is_mirrored in (False, True) if flip else (False,):
                view = np.ascontiguousarray(resized[:, ::-1]) if is_mirrored else resized
                probs = softmax(self._logits(view[None])[0])
                probs = _resized(probs[:, :, ::-1] if is_mirrored else probs, grid)
                total = probs.copy() if total is None else total + probs
        assert total is not None
        return self.mask_of(total, image.shape[:2])

    def _run(self, group: list[tuple[ImageArray, ImageArray]]) -> Iterator[Prediction]:
        logits = self._logits(np.stack([network_input for _, network_input in group]))
        for (image, _), own in zip(group, logits, strict=True):
            # A copy: a view would keep the whole batch in memory for as long as one prediction lives.
            yield Prediction(self.mask_of(own, image.shape[:2]), image, self.labels, logits=own.copy())


def softmax(logits: Logits) -> NDArray[np.float32]:
    """Probabilities over the first axis."""
    probs: NDArray[np.float32] = np.exp(logits - logits.max(0))
    probs /= probs.sum(0)
    return probs


def finite(logits: Logits, manifest: Manifest, info: EngineInfo) -> Logits:
    """The logits. Raises: WeightsError if some are not finite."""
    # A finite sum, which is quick to compute, proves that all are finite; an infinite one can be an overflow.
    if not np.isfinite(logits.sum()) and not np.isfinite(logits).all():
        raise WeightsError(
            f"the model {manifest.name!r} gives logits that are not finite (NaN or infinite) in {info.precision}: its "
            "weights are damaged, or too large for this precision; export it again, or use float32."
        )
    return logits


def _resized(maps: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    """(classes, h, w) to another (h, w), bilinearly."""
    if maps.shape[1:] == size:
        return maps
    height, width = size
    return np.stack([np.asarray(Image.fromarray(m).resize((width, height), Image.Resampling.BILINEAR)) for m in maps])
