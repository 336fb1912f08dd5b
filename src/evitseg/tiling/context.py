"""The context of an image: its attention sums, from which any region of its mask can be rendered later."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
import zlib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ConfigError, FileError, WeightsError
from evitseg.raster.window import Source
from evitseg.system.files import replacing
from evitseg.tiling.job import Job
from evitseg.tiling.network import Network, Sums
from evitseg.tiling.windows import Window, read_window

FORMAT = 4
"""Version of context files."""
MAX_CONTEXT_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Context:
    """Everything that a region of the mask depends on, apart from the model and the pixels around it.

    Attributes:
        sums: the image's sums, one per attention layer.
        model: sha256 of the model's program.
        arithmetic: what the bits of the sums depend on, as in `Network.arithmetic`.
        image, working: (height, width) of the image and of the network's input, in pixels.
        samples: digests of a few parts of the image, to recognise it; "" for parts that could not be read.
        name: name of the image's file, for messages.
    """

    sums: tuple[Sums, ...]
    model: str
    arithmetic: str
    image: tuple[int, int]
    working: tuple[int, int]
    samples: tuple[str, ...] = ()
    name: str = ""

    @staticmethod
    def of(sums: tuple[Sums, ...], job: Job) -> Context:
        """The context of a finished job."""
        source = job.source.source
        name = Path(source.identity.rsplit(" ", 2)[0]).name
        network = job.network
        return Context(
            sums, network.digest, network.arithmetic, job.plan.image, job.plan.working, sample_digests(source), name
        )

    def check_image(self, source: Source) -> None:
        """Raises: ConfigError if the context was made with another image."""
        name = f" ({self.name})" if self.name else ""
        if self.image != source.size:
            raise ConfigError(
                f"the context belongs to another image{name}, of {self.image[1]}×{self.image[0]} pixels, not "
                f"{source.size[1]}×{source.size[0]}; give the image that it was made with."
            )
        # A part that is damaged, now or then, proves nothing.
        samples = sample_digests(source)
        if len(samples) != len(self.samples) or any(
            mine and theirs and mine != theirs for mine, theirs in zip(self.samples, samples, strict=True)
        ):
            raise ConfigError(
                f"the context belongs to another image{name} of the same size; give the image that it was made with."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the context as a .npz file of numbers. Raises: FileError."""
        about = {
            "format": FORMAT, "model": self.model, "arithmetic": self.arithmetic, "image": self.image,
            "working": self.working, "samples": self.samples, "name": self.name,
        }  # fmt: skip
        arrays = {f"sums{i}": sums for i, sums in enumerate(self.sums)}
        with replacing(path) as file:
            np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)  # type: ignore[arg-type]

    @staticmethod
    def load(path: str | os.PathLike[str], network: Network) -> Context:
        """Read a file that `save` wrote. Raises: FileError, WeightsError for a context of another model."""
        invalid = FileError(f"{path}: not a context file of this version of evitseg; --save-context writes one.")
        lengths = [segment.sums for segment in network.core.segments if segment.sums]
        try:
            if Path(path).stat().st_size > MAX_CONTEXT_BYTES:
                raise invalid
            with zipfile.ZipFile(path) as stored:
                about = json.loads(_array(stored, "about", None, "uint8").tobytes())
                if about["format"] != FORMAT:
                    raise invalid
                if about["model"] != network.digest:
                    raise WeightsError(f"{path}: made with another model; use the model that it was made with.")
                if about["arithmetic"] != network.arithmetic:
                    raise ConfigError(
                        f"{path}: made in {about['arithmetic']}, and this run is in {network.arithmetic}; make both "
                        "with the same --precision, on different machines with float32."
                    )
                sums = tuple(_array(stored, f"sums{i}", (length,), "float32") for i, length in enumerate(lengths))
            sizes = [(int(height), int(width)) for height, width in (about["image"], about["working"])]
            samples = tuple(str(each) for each in about["samples"])
            if min(min(sizes)) < 1 or not all(np.isfinite(each).all() for each in sums):
                raise invalid
        except OSError as error:
            raise FileError(f"{path}: cannot be read ({error.strerror or error}).") from error
        except (ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise invalid from error
        except (NotImplementedError, RuntimeError) as error:  # compression and encryption that zipfile does not support
            raise invalid from error
        return Context(sums, network.digest, network.arithmetic, sizes[0], sizes[1], samples, str(about["name"]))


def _array(stored: zipfile.ZipFile, name: str, shape: tuple[int, ...] | None, dtype: str) -> NDArray[Any]:
    """An array of a .npz file. Its header and size are checked before anything is unpacked.

    Args:
        shape: required shape; None for any with one axis.

    Raises: ValueError, KeyError for a missing array.
    """
    about = stored.getinfo(f"{name}.npy")
    if about.file_size > MAX_CONTEXT_BYTES:
        raise ValueError(f"{name} claims {about.file_size:,} bytes")
    with stored.open(about) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{name} has version {version}")
        found, by_columns, kind = np.lib.format.read_array_header_1_0(file)
        if kind != np.dtype(dtype) or (len(found) != 1 if shape is None else found != shape):
            raise ValueError(f"{name} is {kind} of {found}")
        length = math.prod(found) * kind.itemsize
        if length > about.file_size or (by_columns and len(found) > 1):
            raise ValueError(f"{name} does not match its header")
        content = file.read(length)
    return np.frombuffer(content, kind, math.prod(found)).reshape(found)


def sample_digests(source: Source) -> tuple[str, ...]:
    """Digests of sixteen small windows spread over the image; "" for one with damage."""
    height, width = source.size
    rows, columns = min(64, height), min(64, width)
    found = []
    for i, j in product(range(4), range(4)):
        window = Window((height - rows) * i // 3, (width - columns) * j // 3, rows, columns)
        pixels, damages = read_window(source, window)
        found.append("" if damages else hashlib.sha256(pixels.tobytes()).hexdigest()[:16])
    return tuple(found)
