from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.optional import needs

needs("rasterio", "tifffile", "zarr")

import rasterio

from evitseg.errors import ConfigError, ImageError
from evitseg.labels import LabelSpace
from evitseg.raster import ArraySource, Origin, large_overlay, open_mask_writer, open_raster
from evitseg.raster.gdal import quiet_open
from evitseg.raster.large_overlay import write_overlay
from evitseg.raster.png import save_mask
from evitseg.system.authorship import is_ours
from evitseg.visualize import overlay, tinted
from tests.raster.samples import CAMVID, PLACE, broken, geotiff, write_all

RNG = np.random.default_rng(0)
SMOOTH = np.asarray(Image.fromarray(RNG.integers(0, 255, (9, 12, 3), np.uint8)).resize((1400, 1100)))
MASK = np.kron(RNG.integers(0, 11, (11, 14)), np.ones((100, 100))).astype(np.uint8)


@pytest.fixture
def mosaic(tmp_path: Path) -> Path:
    """A georeferenced image and its mask, m.tif; the left 300 columns have no data."""
    geotiff(tmp_path / "a.tif", np.where(np.arange(1400)[:, None] < 300, 0, SMOOTH).astype(np.uint8), nodata=0)
    mask = np.where(np.arange(1400) < 300, np.uint8(255), MASK)
    with open_raster(tmp_path / "a.tif") as source, open_mask_writer(tmp_path / "m.tif", source, CAMVID) as sink:
        write_all(sink, mask)
    return tmp_path


def test_a_pyramid_has_all_pixels_the_georeference_and_overviews(mosaic: Path) -> None:
    done: list[float] = []
    with open_raster(mosaic / "a.tif") as source:
        write_overlay(source, mosaic / "m.tif", mosaic / "o.tif", progress=done.append)
        expected = np.asarray(tinted(source.read(0, 0, 1100, 1400), MASK, CAMVID)).astype(float)
    assert done == sorted(done)
    assert done[-1] == 1
    with rasterio.open(mosaic / "o.tif") as drawn:
        assert (drawn.crs, drawn.transform) == (rasterio.CRS.from_epsg(32633), PLACE)
        assert drawn.profile["tiled"]
        assert drawn.profile["compress"] == "jpeg"
        assert drawn.overviews(1) == [2, 4]
        pixels = np.moveaxis(drawn.read(), 0, 2).astype(float)
        valid = drawn.dataset_mask()
        small = np.moveaxis(drawn.read(out_shape=(3, 275, 350)), 0, 2).astype(float)
    # JPEG blurs colours at the borders of classes, so most pixels are near, not all.
    assert np.median(np.abs(pixels - expected)[:, 320:]) <= 3
    assert np.median(np.abs(small[:, 80:] - expected[::4, ::4][:, 80:])) <= 6
    np.testing.assert_array_equal(valid, np.where(np.arange(1400) < 300, 0, 255) * np.ones((1100, 1)))
    assert is_ours(mosaic / "o.tif")
    assert not list(mosaic.glob(".evitseg*"))


@pytest.mark.parametrize(("ending", "legend"), [(".jpg", True), (".png", False), (".png", True)])
def test_a_reduced_overlay_is_that_of_the_whole_image_made_smaller(
    ending: str, legend: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_overlay, "REDUCED_PIXELS", 1100 * 1400 // 16)
    save_mask(MASK, tmp_path / "m.png", CAMVID)
    write_overlay(ArraySource(SMOOTH), tmp_path / "m.png", tmp_path / f"o{ending}", CAMVID, legend)
    with Image.open(tmp_path / f"o{ending}") as image:
        found = np.asarray(image.convert("RGB")).astype(float)
    expected = np.asarray(tinted(SMOOTH, MASK, CAMVID).reduce(4)).astype(float)
    difference = np.abs(found[:275, :350] - expected)
    assert difference.max() <= 2 if ending == ".png" else np.median(difference) <= 3
    assert (len(found) > 275) == legend
    assert is_ours(tmp_path / f"o{ending}")


def test_a_small_image_is_not_reduced_and_has_the_legend_of_any_overlay(tmp_path: Path) -> None:
    save_mask(MASK[:300, :500], tmp_path / "m.png", CAMVID)
    write_overlay(ArraySource(SMOOTH[:300, :500]), tmp_path / "m.png", tmp_path / "o.png", CAMVID)
    with Image.open(tmp_path / "o.png") as found:
        assert found.tobytes() == overlay(SMOOTH[:300, :500], MASK[:300, :500], CAMVID).tobytes()


def test_damaged_tiles_are_black_or_transparent_and_the_rest_is_drawn(tmp_path: Path) -> None:
    broken(tmp_path / "a.tif", "geotiff", SMOOTH)
    mask = MASK.copy()
    mask[256:512, 512:768] = 255
    with open_raster(tmp_path / "a.tif") as source, open_mask_writer(tmp_path / "m.tif", source, CAMVID) as sink:
        write_all(sink, mask)
    with open_raster(tmp_path / "a.tif") as source:
        write_overlay(source, tmp_path / "m.tif", tmp_path / "o.tif")
        write_overlay(source, tmp_path / "m.tif", tmp_path / "o.png", legend=False)
    with rasterio.open(tmp_path / "o.tif") as drawn:
        np.testing.assert_array_equal(drawn.dataset_mask() == 0, mask == 255)
    with Image.open(tmp_path / "o.png") as image:
        found = np.asarray(image)
    expected = np.asarray(tinted(np.where((mask == 255)[..., None], np.uint8(0), SMOOTH), mask, CAMVID))
    np.testing.assert_array_equal(found, expected)


def test_pixel_sizes_of_slides_are_kept(tmp_path: Path) -> None:
    save_mask(MASK, tmp_path / "m.png", CAMVID)
    source = ArraySource(SMOOTH, origin=Origin("slide", pixel_size_um=(0.5, 0.25)))
    write_overlay(source, tmp_path / "m.png", tmp_path / "o.tif", CAMVID)
    with quiet_open(tmp_path / "o.tif") as drawn:
        tags = drawn.tags()
    assert float(tags["TIFFTAG_YRESOLUTION"]) == pytest.approx(20_000)
    assert float(tags["TIFFTAG_XRESOLUTION"]) == pytest.approx(40_000)
    assert tags["TIFFTAG_RESOLUTIONUNIT"].startswith("3")


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    save_mask(MASK, tmp_path / "m.png", CAMVID)
    whole = ArraySource(SMOOTH)
    with pytest.raises(ConfigError, match="1400×1100 pixels, but the image has 500×300"):
        write_overlay(ArraySource(SMOOTH[:300, :500]), tmp_path / "m.png", tmp_path / "o.png", CAMVID)
    with pytest.raises(ConfigError, match="does not list its classes"):
        write_overlay(whole, tmp_path / "m.png", tmp_path / "o.png")
    with pytest.raises(ImageError, match=r"\.jpg or \.png, reduced, or as \.tif"):
        write_overlay(whole, tmp_path / "m.png", tmp_path / "o.webp", CAMVID)
    with pytest.raises(ConfigError, match="holds"):
        write_overlay(whole, tmp_path / "m.png", tmp_path / "o.png", LabelSpace("x", CAMVID.classes[:2]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.png"]
