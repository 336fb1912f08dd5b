from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.optional import needs

needs("rasterio", "tifffile", "zarr")

import rasterio
import rasterio.shutil
import tifffile

from evitseg.errors import EvitsegWarning, ImageError
from evitseg.raster import open_mask_writer, open_raster
from evitseg.raster.files import read_image
from evitseg.raster.gdal import quiet_open
from tests.raster.samples import CAMVID, PLACE, SIZE, broken, geotiff, read_at_random, write_all


def test_a_geotiffs_place_is_kept_to_the_bit(
    tmp_path: Path, pixels: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> None:
    path = geotiff(tmp_path / "a.tif", pixels, overviews=(2, 4))
    out = tmp_path / "new/folder/mask.tif"
    with open_raster(path) as source, open_mask_writer(out, source, CAMVID) as sink:
        read_at_random(source, pixels)
        write_all(sink, mask, seed=3)
    with rasterio.open(path) as before, rasterio.open(out) as after:
        assert after.crs == before.crs
        assert after.transform == before.transform == PLACE
        assert after.nodata == 255
        assert after.block_shapes == [(512, 512)]
        assert after.compression.name == "deflate"
        assert after.overviews(1) == [2, 4]
        np.testing.assert_array_equal(after.read(1), mask)
        assert after.colormap(1)[3] == (*CAMVID.classes[3].color, 255)
        reduced = after.read(1, out_shape=(SIZE[0] // 2, SIZE[1] // 2))
        np.testing.assert_array_equal(reduced, mask[::2, ::2])  # a mean of indices would be a class nobody saw
    assert sorted(p.name for p in out.parent.iterdir()) == ["mask.tif", "mask.tif.aux.xml"]
    assert "<Category>pavement</Category>" in (out.parent / "mask.tif.aux.xml").read_text()


def test_control_points_and_the_meaning_of_a_pixel_are_kept(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    points = [
        rasterio.control.GroundControlPoint(row=r, col=c, x=11 + c / 1e4, y=48 - r / 1e4, z=0.0)
        for r, c in ((0, 0), (0, 1400), (1100, 0), (1100.5, 1400.25))
    ]
    path = geotiff(tmp_path / "a.tif", pixels, crs=None, transform=None)
    with quiet_open(path, "r+") as dataset:
        dataset.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    placed = geotiff(tmp_path / "b.tif", pixels)
    with rasterio.open(placed, "r+") as dataset:
        dataset.update_tags(AREA_OR_POINT="Point")
    for name in ("a", "b"):
        with (
            open_raster(tmp_path / f"{name}.tif") as source,
            open_mask_writer(tmp_path / f"{name}_m.tif", source, CAMVID),
        ):
            pass
    with quiet_open(tmp_path / "a_m.tif") as after:
        assert [(p.row, p.col, p.x, p.y) for p in after.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in points]
        assert after.gcps[1].to_epsg() == 4326
        assert (after.read(1) == 255).all()  # nothing was written: no class anywhere
    with rasterio.open(tmp_path / "b_m.tif") as after:
        assert after.tags()["AREA_OR_POINT"] == "Point"
        assert after.transform == PLACE


def test_a_cog_gives_a_cog(tmp_path: Path, pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    geotiff(tmp_path / "a.tif", pixels)
    rasterio.shutil.copy(tmp_path / "a.tif", tmp_path / "cog.tif", driver="COG", compress="deflate", blocksize=256)
    with rasterio.open(tmp_path / "cog.tif") as dataset:
        before = dataset.overviews(1)
        assert before == [2, 4, 8]
    with open_raster(tmp_path / "cog.tif") as source, open_mask_writer(tmp_path / "out/m.tif", source, CAMVID) as sink:
        read_at_random(source, pixels)
        write_all(sink, mask, seed=0)
    with rasterio.open(tmp_path / "out/m.tif") as after:
        assert after.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert after.overviews(1) == before
        assert after.transform == PLACE
        np.testing.assert_array_equal(after.read(1), mask)
        assert after.colormap(1)[3] == (*CAMVID.classes[3].color, 255)
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize("how", ["one for all", "by band", "alpha", "mask"])
def test_nodata_pixels_are_not_valid(how: str, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    pixels = np.maximum(pixels, 1)
    hole = (slice(100, 400), slice(200, 500))
    if how in ("one for all", "by band"):
        pixels = pixels.copy()
        pixels[hole] = 0
        pixels[0, 0] = (0, 0, 9)  # a colour, though two of its bands are 0
    if how == "alpha":
        alpha = np.full(SIZE, 255, np.uint8)
        alpha[hole] = 0
        path = geotiff(tmp_path / "a.tif", np.dstack([pixels, alpha]), photometric="rgb", alpha="yes")
    else:
        path = geotiff(tmp_path / "a.tif", pixels, nodata=0 if how == "one for all" else None)
    if how == "by band":
        bands = "".join(
            f'<VRTRasterBand dataType="Byte" band="{b}"><NoDataValue>0</NoDataValue></VRTRasterBand>' for b in (1, 2, 3)
        )
        (tmp_path / "a.tif.aux.xml").write_text(
            "<PAMDataset>" + bands.replace("VRTRasterBand", "PAMRasterBand") + "</PAMDataset>"
        )
    if how == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
            valid = np.full(SIZE, 255, np.uint8)
            valid[hole] = 0
            dataset.write_mask(valid)
    with open_raster(path) as source:
        np.testing.assert_array_equal(source.read(0, 0, 50, 50), pixels[:50, :50])
        found = source.valid(50, 150, 400, 400)
        assert found is not None
        expected = np.full(SIZE, True)
        expected[hole] = False
        np.testing.assert_array_equal(found, expected[50:450, 150:550])
        assert source.valid(0, 0, 90, 90) is None


def test_without_nodata_all_is_valid(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    with open_raster(geotiff(tmp_path / "a.tif", pixels)) as source:
        assert source.valid(0, 0, *SIZE) is None


def test_bands_are_those_that_are_called_red_green_and_blue(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    infrared = np.full((*SIZE, 1), 77, np.uint8)
    path = geotiff(tmp_path / "a.tif", np.dstack([infrared, pixels[..., ::-1]]))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("undefined", "blue", "green", "red")]
    with open_raster(path) as source:
        np.testing.assert_array_equal(source.read(5, 6, 70, 80), pixels[5:75, 6:86])
    unnamed = geotiff(tmp_path / "b.tif", np.dstack([pixels, infrared, infrared]), photometric="minisblack")
    with pytest.warns(EvitsegWarning, match="bands 1, 2 and 3 of 5 as red"), open_raster(unnamed) as source:
        np.testing.assert_array_equal(source.read(5, 6, 70, 80), pixels[5:75, 6:86])


@pytest.mark.parametrize("what", ["grey", "16 bits", "palette", "1 bit", "white is 0", "planes apart", "turned"])
def test_a_tiff_is_read_as_when_it_is_read_whole(what: str, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    path = tmp_path / "a.tif"
    if what == "grey":
        geotiff(path, pixels[..., 0], crs=None, transform=None)
    elif what == "16 bits":
        geotiff(path, pixels[..., 0].astype(np.uint16) * 257 - 3, crs=None, transform=None)
    elif what == "palette":
        image = Image.fromarray(pixels[..., 0], "L").convert("P")
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
        image.save(path)
    elif what == "1 bit":
        Image.fromarray(pixels[..., 0] > 100).save(path)
    elif what == "white is 0":
        tifffile.imwrite(path, pixels[..., 0], photometric="miniswhite", tile=(256, 256), metadata=None)
    elif what == "planes apart":
        tifffile.imwrite(
            path, np.moveaxis(pixels, 2, 0), photometric="rgb", planarconfig="separate", tile=(256, 256), metadata=None
        )
    else:
        tifffile.imwrite(path, pixels, tile=(256, 256), metadata=None, extratags=[(274, "H", 1, 6, True)])
    with open_raster(path) as source:
        # Orientation 6 is undone by a quarter turn clockwise.
        read_at_random(source, np.rot90(pixels, -1) if what == "turned" else read_image(path))


@pytest.mark.parametrize(
    ("bands", "dtype", "sentence"),
    [(2, "uint8", "2 bands are neither"), (3, "float32", "float32 pixels"), (1, "int16", "int16 pixels")],
)
def test_bands_without_a_meaning_are_refused(bands: int, dtype: str, sentence: str, tmp_path: Path) -> None:
    path = geotiff(tmp_path / "a.tif", np.zeros((50, 60, bands), dtype))
    with pytest.raises(ImageError, match=sentence), open_raster(path):
        pass


def test_wide_compressed_strips_are_decoded_once(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(1, 256, (90, 9000, 3), dtype=np.uint8)
    noise[20:30, 100:200] = 0
    path = tmp_path / "a.tif"
    geotiff(path, noise, tiled=False, blockysize=7, blockxsize=None, nodata=0)
    with open_raster(path, scratch=tmp_path) as source:
        assert type(source).__name__ == "DecodedCopy"
        read_at_random(source, noise)
        valid = source.valid(15, 90, 20, 120)
        assert valid is not None
        assert (~valid).sum() == 10 * 100
        assert source.valid(0, 0, 15, 9000) is None


def test_where_a_damaged_tile_lies_there_is_no_data(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    holes = np.maximum(pixels, 1)
    holes[:10] = 0
    broken(tmp_path / "a.tif", "geotiff", holes)
    with quiet_open(tmp_path / "a.tif", "r+") as dataset:
        dataset.nodata = 0
    with open_raster(tmp_path / "a.tif") as source:
        expected = np.full(SIZE, True)
        expected[:10] = expected[256:512, 512:768] = False
        np.testing.assert_array_equal(source.valid(0, 0, *SIZE), expected)
        np.testing.assert_array_equal(source.valid(200, 600, 90, 70), expected[200:290, 600:670])
