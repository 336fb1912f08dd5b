"""What a viewer shows, and where it keeps what it computes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from evitseg._version import __version__
from evitseg.errors import FileError
from evitseg.image import ReadOptions, Size
from evitseg.labels import LabelSpace
from evitseg.raster.window import Source, identity_of
from evitseg.system.files import file_sha256
from evitseg.viewer.mask_sources import ModelSettings
from evitseg.viewer.mask_tiles import DEFAULT_BYTES


@dataclass(frozen=True)
class ViewRequest:
    """What to show.

    Attributes:
        image: the image file.
        model: makes the mask; unused if there is a mask.
        size: working size, as in `evitseg.load`. None for the image's own size if it is a TIFF, slide or Zarr, or
            larger than the network may see whole; for other images, None follows the model's rule.
        reading: how the image is read; None for the model's manifest.
        context: a context file of the image.
        mask: a mask file of the image.
        labels: the classes of the mask; None uses those that its file lists.
        cache: folder for mask tiles; None for the user's.
        cache_bytes: largest size of that folder.
        with_mask: whether a mask is made; False shows the image alone.
    """

    image: Path
    model: ModelSettings = field(default_factory=ModelSettings)
    size: Size = None
    reading: ReadOptions | None = None
    context: Path | None = None
    mask: Path | None = None
    labels: LabelSpace | None = None
    cache: Path | None = None
    cache_bytes: int = DEFAULT_BYTES
    with_mask: bool = True

    def key(self, source: Source, size: Size, reading: ReadOptions) -> str:
        """A digest of everything that the mask depends on. Raises: EvitsegError."""
        about: list[object] = [__version__, source.identity, repr(reading)]
        if self.mask is not None:
            about += [identity_of(self.mask.absolute()), repr(self.labels)]
        else:
            about += [self.model.digest(), self.model.precision, size]
        if self.context is not None:
            try:
                about.append(file_sha256(self.context))
            except OSError as error:
                raise FileError(f"{self.context}: cannot be read ({error.strerror or error}).") from error
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]
