"""The context file: the attention sums of an image, to render its regions later."""

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
from evitseg.tiling.network import Arrays, Network
from evitseg.tiling.sums import Sums
from evitseg.tiling.windows import Window, read_window

FORMAT = 2
"""Of context files."""


MAX_CONTEXT_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Context:
    """All that the parts of an image know of each other: enough to render any of them, later, without the rest.

    Attributes:
        sums: one an attention layer.
        model: sha256 of the artefact.
        image, working: (height, width) of the image and of the network's input, in pixels.
        looks: digests of a few parts of the image, by which it is known again; "" for those that could not be read.
        name: of the image's file, for messages.
    """

    sums: tuple[Sums, ...]
    model: str
    image: tuple[int, int]
    working: tuple[int, int]
    looks: tuple[str, ...] = ()
    name: str = ""

    @staticmethod
    def of(sums: tuple[Sums, ...], job: Job) -> Context:
        """Of a finished job."""
        source = job.source.source
        name = Path(source.identity.rsplit(" ", 2)[0]).name
        return Context(sums, job.network.digest, job.plan.image, job.plan.working, looks_of(source), name)

    def check_of(self, source: Source) -> None:
        """Raises: ConfigError for another image than the one it was made with."""
        whose = f"the context is of another image{f' ({self.name})' if self.name else ''}"
        if self.image != source.size:
            raise ConfigError(
                f"{whose}, of {self.image[1]}×{self.image[0]} pixels, not {source.size[1]}×{source.size[0]}; give "
                "the image it was made with."
            )
        # A part that is damaged now or was then says nothing.
        looks = looks_of(source)
        if len(looks) != len(self.looks) or any(
            mine and theirs and mine != theirs for mine, theirs in zip(self.looks, looks, strict=True)
        ):
            raise ConfigError(f"{whose} of the same size; give the image it was made with.")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a .npz file of numbers. Raises: FileError."""
        about = {
            "format": FORMAT, "model": self.model, "image": self.image, "working": self.working,
            "looks": self.looks, "name": self.name,
        }  # fmt: skip
        arrays: Arrays = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
        for i, sums in enumerate(self.sums):
            arrays |= {f"values{i}": sums.values, f"largest{i}": sums.largest, f"tokens{i}": np.array(sums.tokens)}
        with replacing(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # takes arrays alone, by any name

    @staticmethod
    def load(path: str | os.PathLike[str], network: Network) -> Context:
        """Read a file that `save` wrote for this network. Raises: FileError, WeightsError for another network's."""
        strange = FileError(f"{path}: not a context file; --save-context writes one.")
        attentions = network.cut.attentions
        try:
            if Path(path).stat().st_size > MAX_CONTEXT_BYTES:
                raise strange
            with zipfile.ZipFile(path) as stored:
                about = json.loads(_array(stored, "about", None, "uint8").tobytes())
                if about["format"] != FORMAT:
                    raise strange
                sums = tuple(
                    Sums(
                        _array(stored, f"values{i}", (a.heads, a.head_dim + 1, a.head_dim), "float64"),
                        _array(stored, f"largest{i}", (a.heads,), "float64"),
                        float(_array(stored, f"tokens{i}", (), "float64")),
                    )
                    for i, a in enumerate(attentions)
                )
            if about["model"] != network.digest:
                raise WeightsError(f"{path}: of another model than the one given; use the model it was made with.")
            sizes = [(int(height), int(width)) for height, width in (about["image"], about["working"])]
            looks = tuple(str(each) for each in about["looks"])
            if min(min(sizes)) < 1 or not all(np.isfinite(s.values).all() and np.isfinite(s.tokens) for s in sums):
                raise strange
        except OSError as error:
            raise FileError(f"{path}: cannot be read ({error.strerror or error}).") from error
        except (ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise strange from error
        except (NotImplementedError, RuntimeError) as error:  # compressions and encryption that zipfile has not
            raise strange from error
        return Context(sums, network.digest, sizes[0], sizes[1], looks, str(about["name"]))


def _array(stored: zipfile.ZipFile, name: str, shape: tuple[int, ...] | None, dtype: str) -> NDArray[Any]:
    """A member of a .npz file, whose header and size are looked at before any of it is unpacked.

    Args:
        shape: that it must have; None for any of one axis.

    Raises: ValueError, KeyError for a member that is not there.
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
            raise ValueError(f"{name} is not what it says")
        content = file.read(length)
    return np.frombuffer(content, kind, math.prod(found)).reshape(found)


def looks_of(source: Source) -> tuple[str, ...]:
    """Digests of a few windows all over the image; "" for one that cannot be read whole."""
    height, width = source.size
    rows, columns = min(64, height), min(64, width)
    found = []
    for i, j in product(range(4), range(4)):
        window = Window((height - rows) * i // 3, (width - columns) * j // 3, rows, columns)
        pixels, damages = read_window(source, window)
        found.append("" if damages else hashlib.sha256(pixels.tobytes()).hexdigest()[:16])
    return tuple(found)
