"""Reduced windows, from which small copies of large images are made for display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.optional import needs

needs("rasterio", "tifffile", "zarr")

import rasterio
import tifffile
import zarr

from evitseg.raster import ArraySource, Source, open_raster
from tests.raster.samples import geotiff, slide

LARGE, SMALL = 90, 200


def with_other_levels(kind: str, folder: Path) -> Path:
    """An image of 1000×800 pixels of one grey whose level of half the size has another grey."""
    sides = (800, 1000), (400, 500)
    whole, half = (np.full((*size, 3), grey, np.uint8) for size, grey in zip(sides, (LARGE, SMALL), strict=True))
    if kind == "tif":
        path = geotiff(folder / "a.tif", whole, overviews=(2,))
        with rasterio.open(path, "r+", overview_level=0) as dataset:
            dataset.write(np.moveaxis(half, 2, 0))
    elif kind == "ome.tif":
        path = folder / "a.ome.tif"
        with tifffile.TiffWriter(path, ome=True) as file:
            file.write(whole, subifds=1, tile=(256, 256), photometric="rgb")
            file.write(half, subfiletype=1, tile=(256, 256), photometric="rgb")
    else:
        path = folder / "a.zarr"
        group = zarr.open_group(path, mode="w", zarr_format=3)
        axes = [{"name": axis, "type": "space"} for axis in "yx"]
        axes.append({"name": "c", "type": "channel"})
        datasets: list[Any] = []
        for name, content in (("0", whole), ("1", half)):
            group.create_array(name, data=content, chunks=(256, 256, 3))
            scale = {"type": "scale", "scale": [1.0 if name == "0" else 2.0] * 2 + [1.0]}
            datasets.append({"path": name, "coordinateTransformations": [scale]})
        ome: dict[str, Any] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
        group.attrs["ome"] = ome
    return path


@pytest.mark.parametrize("kind", ["tif", "ome.tif", "zarr"])
def test_a_smaller_level_of_the_file_is_used(kind: str, tmp_path: Path) -> None:
    with open_raster(with_other_levels(kind, tmp_path)) as source:
        whole, less, window = (source.reduced(0, 0, 800, 1000, factor) for factor in (1, 2, 8))
        part = source.reduced(100, 50, 501, 303, 4)
    assert (whole.shape, less.shape, window.shape) == ((800, 1000, 3), (400, 500, 3), (100, 125, 3))
    assert part.shape == (126, 76, 3)
    assert [int(values.mean()) for values in (whole, less, window, part)] == [LARGE, SMALL, SMALL, SMALL]


@pytest.mark.parametrize("kind", ["array", "tif", "svs", "zarr", "png", "turned.jpg"])
def test_a_reduced_window_looks_like_the_window(kind: str, tmp_path: Path) -> None:
    y, x = np.mgrid[:601, :803]
    smooth = np.dstack([y * 255 // 601, x * 255 // 803, (y + x) * 255 // 1402]).astype(np.uint8)
    path = tmp_path / f"a.{kind}"
    if kind == "tif":
        geotiff(path, smooth)
    elif kind == "svs":
        slide(path, smooth)
    elif kind == "zarr":
        zarr.create_array(path, data=smooth, chunks=(128, 128, 3))
    elif kind != "array":
        exif = Image.Exif()
        exif[0x0112] = 6 if kind == "turned.jpg" else 1
        Image.fromarray(smooth).save(path, exif=exif, quality=95)

    def check(source: Source) -> None:
        height, width = source.size
        for factor, window in ((1, (0, 0, 5, 7)), (4, (8, 16, 101, 203)), (16, (0, 0, height, width))):
            found = source.reduced(*window, factor)
            expected = source.read(*window)[::factor, ::factor]
            assert found.shape == expected.shape
            assert found.dtype == np.uint8
            # Pixels of a cell of 16×16 differ by up to 6; JPEG adds errors near edges.
            assert np.abs(found.astype(int) - expected).mean() <= 6

    if kind == "array":
        check(ArraySource(smooth))
    else:
        with open_raster(path) as source:
            check(source)


def test_a_source_of_ones_own_needs_no_code_for_it(pixels: NDArray[np.uint8]) -> None:
    class Mine(Source):
        size = (pixels.shape[0], pixels.shape[1])

        def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
            return pixels[top : top + height, left : left + width]

        def valid(self, top: int, left: int, height: int, width: int) -> None:
            return None

    np.testing.assert_array_equal(Mine().reduced(3, 5, 60, 70, 7), pixels[3:63:7, 5:75:7])
