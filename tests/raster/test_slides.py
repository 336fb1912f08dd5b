from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.optional import needs

needs("rasterio", "tifffile", "zarr")

import tifffile

from evitseg.errors import EvitsegWarning, ImageError
from evitseg.image import ReadOptions
from evitseg.raster import open_mask_writer, open_raster
from tests.raster.samples import CAMVID, SIZE, read_at_random, slide, write_all


def test_a_slide_is_read_at_its_full_size_and_gives_a_pyramid(
    tmp_path: Path, pixels: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> None:
    path = slide(tmp_path / "a.svs", pixels)
    with tifffile.TiffFile(path) as file:
        assert file.is_svs
        expected = file.series[0].asarray()
        levels = len(file.series[0].levels)
    with open_raster(path) as source, open_mask_writer(tmp_path / "out/m.ome.tif", source, CAMVID) as sink:
        read_at_random(source, expected)
        assert source.valid(0, 0, 9, 9) is None
        write_all(sink, mask, seed=4)
    with tifffile.TiffFile(tmp_path / "out/m.ome.tif") as file:
        assert file.is_ome
        page = file.pages.first
        assert page.is_tiled
        assert page.photometric.name == "PALETTE"
        assert tuple(page.colormap[:, 3] >> 8) == CAMVID.classes[3].color
        assert file.ome_metadata.count("0.499") == 2
        assert len(file.series[0].levels) == levels == 3
        for level, series in enumerate(file.series[0].levels):
            np.testing.assert_array_equal(series.asarray(), mask[:: 2**level, :: 2**level])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["m.ome.tif"]


@pytest.mark.parametrize("axes", ["YXS", "CYX", "TCZYX", "YX"])
@pytest.mark.parametrize("storage", ["tiles", "strips", "one strip"])
def test_an_ome_tiff_is_read_whatever_its_axes(
    axes: str, storage: str, tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    contents: dict[str, NDArray[Any]] = {
        "YXS": pixels, "CYX": np.moveaxis(pixels, 2, 0), "TCZYX": np.moveaxis(pixels, 2, 0)[None, :, None],
        "YX": pixels[..., 0].astype(np.uint16) * 256 + 200,
    }  # fmt: skip
    stored: dict[str, dict[str, Any]] = {
        "tiles": {"tile": (128, 256), "compression": "zlib"}, "strips": {"rowsperstrip": 33, "compression": "lzw"},
        "one strip": {},
    }  # fmt: skip
    kind = "rgb" if axes == "YXS" else "minisblack"
    tifffile.imwrite(
        tmp_path / "a.ome.tif", contents[axes], photometric=kind, metadata={"axes": axes}, **stored[storage]
    )
    expected = np.repeat(pixels[..., :1], 3, axis=2) if axes == "YX" else pixels
    with open_raster(tmp_path / "a.ome.tif") as source:
        read_at_random(source, expected)


def test_of_a_stack_the_first_plane_is_read_with_a_warning_or_the_chosen_one(
    tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    stack = np.stack([pixels[..., 0] // 4 * n for n in range(1, 5)])
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.warns(EvitsegWarning, match=r"first of 4 images \(4 along Z\)"), open_raster(path) as source:
        np.testing.assert_array_equal(source.read(0, 0, *SIZE)[..., 1], stack[0])
    with open_raster(path, options=ReadOptions(page=3)) as source:
        np.testing.assert_array_equal(source.read(0, 0, *SIZE)[..., 1], stack[2])
    with pytest.raises(ImageError, match="--page 5 does not exist"), open_raster(path, options=ReadOptions(page=5)):
        pass
