"""Rasters, slides and masks for the tests, and windows of all kinds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.optional import needs

needs("rasterio", "tifffile", "zarr")

import rasterio
import rasterio.shutil
import tifffile
import zarr

from evitseg.labels import LabelSpace, load_labels, numbered
from evitseg.raster import Sink, Source, open_mask_writer, open_raster
from evitseg.raster.gdal import quiet_open

CAMVID = load_labels("camvid")
SIZE = (1100, 1400)
PLACE = rasterio.Affine(0.1234567891, 0, 500000.1, 0, -0.1234567891, 5000000.7)
THREE = LabelSpace("three", tuple(numbered(3).classes))


def geotiff(path: Path, pixels: NDArray[Any], overviews: tuple[int, ...] = (), **options: Any) -> Path:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    profile: dict[str, Any] = {
        "driver": "GTiff", "height": pixels.shape[0], "width": pixels.shape[1], "count": pixels.shape[2],
        "dtype": pixels.dtype.name, "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate",
        "crs": "EPSG:32633", "transform": PLACE,
    }  # fmt: skip
    with quiet_open(path, "w", **(profile | options)) as dataset:
        dataset.write(np.moveaxis(pixels, 2, 0))
        if overviews:
            dataset.build_overviews(overviews, rasterio.enums.Resampling.average)
    return path


def slide(path: Path, pixels: NDArray[np.uint8]) -> Path:
    """As Aperio's scanners write: the image, a thumbnail, reduced ones, all in tiles of JPEG."""
    about = "Aperio Image Library v12.0\r\n1400x1100 [0,0 1400x1100] (240x240) JPEG/RGB Q=70|AppMag = 20|MPP = 0.4990"
    options: dict[str, Any] = {"tile": (240, 240), "compression": "jpeg", "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels, description=about, **options)
        writer.write(pixels[::4, ::4], description=about, photometric="rgb", metadata=None)
        writer.write(pixels[::2, ::2], description=about, **options)
        writer.write(pixels[::4, ::4], description=about, **options)
    return path


def broken(path: Path, kind: str, pixels: NDArray[np.uint8]) -> None:
    """A file whose piece at rows 256 to 511, columns 512 to 767 is overwritten."""
    if kind == "geotiff":
        geotiff(path, pixels)
        with rasterio.open(path) as dataset:
            place = int(dataset.get_tag_item("BLOCK_OFFSET_2_1", "TIFF", bidx=1))
    elif kind == "slide":
        tifffile.imwrite(path, pixels, tile=(256, 256), compression="zlib", photometric="rgb", metadata={"axes": "YXS"})
        with tifffile.TiffFile(path) as file:
            place = file.pages.first.dataoffsets[6 + 2]
    else:
        array = zarr.create_array(path, data=pixels, chunks=(256, 256, 3))
        chunk = path / "c/1/2/0"
        chunk.write_bytes(b"not a chunk" * 20)
        assert array.shape == pixels.shape
        return
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(b"not a tile" * 50)


def drawn() -> NDArray[np.uint8]:
    """Class 0 but for: a ring of class 1 with a hole, 20 by 10 without 6 by 4; two pixels of class 2 that touch in a
    corner; a bar of class 1 over all rows; a part without class."""
    mask = np.zeros((60, 80), np.uint8)
    mask[10:20, 5:25] = 1
    mask[13:17, 10:16] = 0
    mask[30, 30] = mask[31, 31] = 2
    mask[:, 50:53] = 1
    mask[40:, 60:] = 255
    return mask


AREAS = {
    ("class 1", 20 * 10 - 6 * 4), ("class 1", 60 * 3), ("class 2", 1), ("class 0", 6 * 4),
    ("class 0", 60 * 50 - 20 * 10 - 2), ("class 0", 60 * 27 - 20 * 20),
}  # fmt: skip


def georeferenced_mask(folder: Path, crs: str = "EPSG:32633") -> Path:
    """The mask of `drawn`, with pixels of two units, on the middle meridian if the system is UTM."""
    corner = (10, 50) if crs == "EPSG:4326" else (500000, 5e6)
    place = rasterio.Affine(2, 0, corner[0], 0, -2, corner[1])
    geotiff(folder / "a.tif", np.zeros((60, 80, 3), np.uint8), crs=crs, transform=place)
    with open_raster(folder / "a.tif") as source, open_mask_writer(folder / "m.tif", source, THREE) as sink:
        sink.write(0, 0, drawn())
    return folder / "m.tif"


def write_all(sink: Sink, mask: NDArray[Any], seed: int | None = None) -> None:
    """Every window, shuffled where the sink lets us."""
    rows, columns = sink.tile
    corners = [(y, x) for y in range(0, mask.shape[0], rows) for x in range(0, mask.shape[1], columns)]
    if not sink.ordered and seed is not None:
        np.random.default_rng(seed).shuffle(corners)
    for y, x in corners:
        sink.write(y, x, mask[y : y + rows, x : x + columns])


def read_at_random(source: Source, expected: NDArray[np.uint8]) -> None:
    """Windows of all kinds, in any order, from four threads, against the image read whole."""
    height, width = source.size
    assert expected.shape == (height, width, 3)
    rng = np.random.default_rng(2)
    windows = [(0, 0, 1, 1), (height - 1, width - 1, 1, 1), (0, 0, height, width)]
    for _ in range(40):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        windows.append((top, left, int(rng.integers(height - top)) + 1, int(rng.integers(width - left)) + 1))

    def one(window: tuple[int, int, int, int]) -> None:
        top, left, h, w = window
        content = source.read(*window)
        assert content.dtype == np.uint8
        np.testing.assert_array_equal(content, expected[top : top + h, left : left + w])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, windows))
