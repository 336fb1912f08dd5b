from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from tests.optional import needs

needs("rasterio", "tifffile", "zarr", "pyogrio")

import rasterio
import rasterio.shutil
import tifffile
import zarr

from evitseg.cli import app
from evitseg.errors import ConfigError, EvitsegWarning, FileError, ImageError
from evitseg.image import ReadOptions
from evitseg.labels import LabelSpace, load_labels, numbered
from evitseg.raster import Sink, Source, mask_bands, open_sink, open_source, vector_files
from evitseg.raster.files import read_image
from evitseg.raster.geotiff import quiet_open
from evitseg.raster.masks import read_mask
from evitseg.raster.polygons import polygons, whole_regions

CAMVID = load_labels("camvid")
SIZE = (1100, 1400)
PLACE = rasterio.Affine(0.1234567891, 0, 500000.1, 0, -0.1234567891, 5000000.7)


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """Noise over a slope: no two windows are alike, and JPEG keeps them apart."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 200, SIZE[0])[:, None, None] + np.linspace(0, 30, SIZE[1])[None, :, None]
    return (slope + rng.integers(0, 25, (*SIZE, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def mask() -> NDArray[np.uint8]:
    rng = np.random.default_rng(1)
    return np.kron(rng.integers(0, 11, (44, 56)), np.ones((25, 25))).astype(np.uint8)


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


def test_a_geotiffs_place_is_kept_to_the_bit(
    tmp_path: Path, pixels: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> None:
    path = geotiff(tmp_path / "a.tif", pixels, overviews=(2, 4))
    out = tmp_path / "new/folder/mask.tif"
    with open_source(path) as source, open_sink(out, source, CAMVID) as sink:
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
        with open_source(tmp_path / f"{name}.tif") as source, open_sink(tmp_path / f"{name}_m.tif", source, CAMVID):
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
    with open_source(tmp_path / "cog.tif") as source, open_sink(tmp_path / "out/m.tif", source, CAMVID) as sink:
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
def test_what_is_nodata_is_told(how: str, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
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
    with open_source(path) as source:
        np.testing.assert_array_equal(source.read(0, 0, 50, 50), pixels[:50, :50])
        found = source.valid(50, 150, 400, 400)
        assert found is not None
        expected = np.full(SIZE, True)
        expected[hole] = False
        np.testing.assert_array_equal(found, expected[50:450, 150:550])
        assert source.valid(0, 0, 90, 90) is None


def test_without_nodata_all_is_valid(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    with open_source(geotiff(tmp_path / "a.tif", pixels)) as source:
        assert source.valid(0, 0, *SIZE) is None


def test_bands_are_those_that_are_called_red_green_and_blue(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    infrared = np.full((*SIZE, 1), 77, np.uint8)
    path = geotiff(tmp_path / "a.tif", np.dstack([infrared, pixels[..., ::-1]]))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("undefined", "blue", "green", "red")]
    with open_source(path) as source:
        np.testing.assert_array_equal(source.read(5, 6, 70, 80), pixels[5:75, 6:86])
    unnamed = geotiff(tmp_path / "b.tif", np.dstack([pixels, infrared, infrared]), photometric="minisblack")
    with pytest.warns(EvitsegWarning, match="bands 1, 2 and 3 of 5 are read"), open_source(unnamed) as source:
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
    with open_source(path) as source:
        # Orientation 6 is undone by a quarter turn clockwise.
        read_at_random(source, np.rot90(pixels, -1) if what == "turned" else read_image(path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_upright(orientation: int, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels[:300, :400]).save(tmp_path / "a.jpg", exif=exif, subsampling=0)
    with open_source(tmp_path / "a.jpg") as source:
        expected = read_image(tmp_path / "a.jpg")
        assert source.size == expected.shape[:2]
        for top, left, height, width in ((0, 0, *source.size), (20, 130, 100, 60)):
            difference = (
                source.read(top, left, height, width).astype(int) - expected[top : top + height, left : left + width]
            )
            assert np.abs(difference).max() <= 4  # two libraries' rounding of the same JPEG


@pytest.mark.parametrize(
    ("bands", "dtype", "sentence"),
    [(2, "uint8", "2 bands are neither"), (3, "float32", "float32 pixels"), (1, "int16", "int16 pixels")],
)
def test_strange_bands_are_said(bands: int, dtype: str, sentence: str, tmp_path: Path) -> None:
    path = geotiff(tmp_path / "a.tif", np.zeros((50, 60, bands), dtype))
    with pytest.raises(ImageError, match=sentence), open_source(path):
        pass


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


def test_a_slide_is_read_at_its_full_size_and_gives_a_pyramid(
    tmp_path: Path, pixels: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> None:
    path = slide(tmp_path / "a.svs", pixels)
    with tifffile.TiffFile(path) as file:
        assert file.is_svs
        expected = file.series[0].asarray()
        levels = len(file.series[0].levels)
    with open_source(path) as source, open_sink(tmp_path / "out/m.ome.tif", source, CAMVID) as sink:
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
    with open_source(tmp_path / "a.ome.tif") as source:
        read_at_random(source, expected)


def test_of_a_stack_the_first_plane_is_read_with_a_warning_or_the_chosen_one(
    tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    stack = np.stack([pixels[..., 0] // 4 * n for n in range(1, 5)])
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.warns(EvitsegWarning, match=r"first of 4 images \(4 along Z\)"), open_source(path) as source:
        np.testing.assert_array_equal(source.read(0, 0, *SIZE)[..., 1], stack[0])
    with open_source(path, options=ReadOptions(page=3)) as source:
        np.testing.assert_array_equal(source.read(0, 0, *SIZE)[..., 1], stack[2])
    with pytest.raises(ImageError, match="no page 5"), open_source(path, options=ReadOptions(page=5)):
        pass


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("layout", ["HWC", "CHW", "HW", "tczyx"])
def test_zarr_gives_zarr_of_the_same_kind(
    version: Literal[2, 3], layout: str, tmp_path: Path, pixels: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> None:
    path, out = tmp_path / "a.zarr", tmp_path / "out/m.zarr"
    content: NDArray[Any] = {
        "HWC": pixels, "CHW": np.moveaxis(pixels, 2, 0), "HW": pixels[..., 1].astype(np.uint16) << 8,
        "tczyx": np.moveaxis(pixels, 2, 0)[None, :, None],
    }[layout]  # fmt: skip
    if layout == "tczyx":
        datasets = [
            {
                "path": str(level),
                "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1, 0.5 * 2**level, 0.5 * 2**level]}],
            }
            for level in (0, 1)
        ]
        axes = [{"name": name, "type": "space" if name in "zyx" else "channel"} for name in layout]
        entry: dict[str, Any] = {"axes": axes, "datasets": datasets}
        if version == 2:
            about: dict[str, Any] = {"multiscales": [{"version": "0.4", **entry}]}
        else:
            about = {"ome": {"version": "0.5", "multiscales": [entry]}}
        group = zarr.create_group(path, zarr_format=version, attributes=about)
        for level in (0, 1):
            part = content[..., :: 2**level, :: 2**level]
            group.create_array(str(level), data=part, chunks=(1, 1, 1, 256, 256))
    else:
        zarr.create_array(path, data=content, chunks=tuple(min(200, n) for n in content.shape), zarr_format=version)
    expected = np.repeat(pixels[..., 1:2], 3, axis=2) if layout == "HW" else pixels
    with open_source(path) as source, open_sink(out, source, CAMVID) as sink:
        read_at_random(source, expected)
        write_all(sink, mask, seed=5)
    result: Any = zarr.open(out, mode="r")
    assert result.metadata.zarr_format == version
    if layout != "tczyx":
        assert isinstance(result, zarr.Array)
        np.testing.assert_array_equal(result[:], mask)
    else:
        said: Any = result.attrs["ome"] if version == 3 else result.attrs
        scales = [d["coordinateTransformations"][0]["scale"] for d in said["multiscales"][0]["datasets"]]
        assert scales == [[1, 1, 1, 0.5, 0.5], [1, 1, 1, 1.0, 1.0]]
        assert said["image-label"]["properties"][3] == {"label-value": 3, "class": "road"}
        for level in (0, 1):
            array: Any = result[str(level)]
            np.testing.assert_array_equal(array[0, 0, 0], mask[:: 2**level, :: 2**level])
    with pytest.raises(FileError, match="exists already"), open_source(path) as source, open_sink(out, source, CAMVID):
        pass


@pytest.mark.parametrize("kind", ["png", "grey png", "16-bit png", "palette png", "interlaced png", "jpg", "bmp"])
def test_a_photograph_is_read_as_when_it_is_read_whole(kind: str, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    path = tmp_path / f"a.{kind.split()[-1]}"
    image = Image.fromarray(pixels)
    if kind == "grey png":
        image = image.convert("L")
    elif kind == "16-bit png":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256 + 99)
    elif kind == "palette png":
        image = image.convert("P")
    if kind == "interlaced png":
        path.write_bytes(interlaced(pixels[:90, :70]))
    else:
        image.save(path, subsampling=0)
    expected = read_image(path)
    with open_source(path, scratch=tmp_path) as source:
        if kind == "jpg":
            difference = source.read(100, 200, 300, 400).astype(int) - expected[100:400, 200:600]
            assert np.abs(difference).max() <= 1
        else:
            read_at_random(source, expected)
        assert source.valid(0, 0, 5, 5) is None
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def interlaced(pixels: NDArray[np.uint8]) -> bytes:
    """Adam7, which Pillow does not write."""
    height, width = pixels.shape[:2]
    lines = b""
    for y, x, dy, dx in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        for row in pixels[y::dy, x::dx]:
            lines += b"\0" + row.tobytes()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("num_classes", [11, 300])
@pytest.mark.parametrize("ending", ["png", "tif", "ome.tif", "zarr"])
def test_a_mask_file_holds_every_class(num_classes: int, ending: str, tmp_path: Path) -> None:
    labels = numbered(num_classes)
    mask = np.random.default_rng(6).integers(0, num_classes, SIZE).astype(labels.dtype)
    mask[:40, :50] = labels.ignore_index

    class Like:
        size = SIZE

    path = tmp_path / f"m.{ending}"
    with open_sink(path, Like(), labels) as sink:
        assert SIZE[0] % sink.tile[0]  # the last windows are smaller
        write_all(sink, mask, seed=7)
    if ending == "zarr":
        written: Any = np.asarray(zarr.open(path, mode="r"))
    else:
        written = tifffile.imread(path) if ending == "ome.tif" else read_mask(path)
    np.testing.assert_array_equal(written, mask)
    assert written.dtype == labels.dtype
    if ending == "png" and num_classes == 11:
        with Image.open(path) as image:
            assert image.mode == "P"
            assert image.getpalette()[3:6] == list(labels.classes[1].color)


@pytest.mark.parametrize("ending", ["png", "tif", "ome.tif"])
def test_a_gray_mask_file_has_no_palette(ending: str, tmp_path: Path) -> None:
    mask = np.random.default_rng(6).integers(0, 11, SIZE).astype(np.uint8)

    class Like:
        size = SIZE

    with open_sink(tmp_path / f"m.{ending}", Like(), CAMVID, "gray") as sink:
        write_all(sink, mask, seed=7)
    with quiet_open(tmp_path / f"m.{ending}") as dataset:
        assert [i.name for i in dataset.colorinterp] == ["gray"]
        np.testing.assert_array_equal(dataset.read(1), mask)


@pytest.mark.parametrize("ending", ["png", "tif", "ome.tif", "zarr"])
def test_interrupted_writing_leaves_nothing(ending: str, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    path, out = geotiff(tmp_path / "a.tif", pixels, overviews=(2,)), tmp_path / "out"
    out.mkdir()
    if ending != "zarr":
        (out / f"m.{ending}").write_bytes(b"the old one")
    before = [(p.name, p.read_bytes()) for p in out.iterdir()]
    interrupted = pytest.raises(KeyboardInterrupt)
    with open_source(path) as source, interrupted, open_sink(out / f"m.{ending}", source, CAMVID) as sink:
        sink.write(0, 0, np.zeros((min(sink.tile[0], SIZE[0]), min(sink.tile[1], SIZE[1])), np.uint8))
        raise KeyboardInterrupt
    assert [(p.name, p.read_bytes()) for p in out.iterdir()] == before


FULL_DISK = """
import resource, signal, sys
import numpy as np
from evitseg.errors import FileError
from evitseg.labels import load_labels
from evitseg.raster import open_sink
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))  # no file may grow beyond, as on a full disk

class Image:
    size = (2048, 2048)

noise = np.random.default_rng(0).integers(0, 11, ImageArray.size).astype(np.uint8)
try:
    with open_sink(sys.argv[1], ImageArray(), load_labels("camvid")) as sink:
        for y in range(0, 2048, sink.tile[0]):
            for x in range(0, 2048, sink.tile[1]):
                sink.write(y, x, noise[y : y + sink.tile[0], x : x + sink.tile[1]])
except FileError as error:
    print("FileError", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a limit on the size of files is Unix's")
@pytest.mark.parametrize("ending", ["png", "tif", "ome.tif", "zarr"])
def test_a_full_disk_is_said_and_leaves_nothing(ending: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / f"m.{ending}")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("FileError"), run.stderr
    assert list(tmp_path.iterdir()) == []


PEAK = """
import sys
import numpy as np
from evitseg.labels import load_labels
from evitseg.raster import open_sink, open_source

if sys.argv[3] == "whole":
    from PIL import Image
    Image.MAX_IMAGE_PIXELS = None
    np.asarray(Image.open(sys.argv[1]))
else:
    with open_source(sys.argv[1]) as source:
        if sys.argv[3] == "open":
            source.read(0, 0, 1, 1)
        else:
            with open_sink(sys.argv[2], source, load_labels("camvid")) as sink:
                height, width = source.size
                rows, columns = sink.tile
                for y in range(0, height, rows):
                    for x in range(0, width, columns):
                        window = source.read(y, x, min(rows, height - y), min(columns, width - x))
                        sink.write(y, x, window[..., 0] % 11)
print(next(int(line.split()[1]) // 1024 for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""


def peak_mib(*arguments: object) -> int:
    run = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems measure memory in other units")
def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    height, width = 3000, 20000
    noise = np.random.default_rng(0).integers(0, 256, (100, width, 3), dtype=np.uint8)
    with quiet_open(
        tmp_path / "a.tif", "w", driver="GTiff", height=height, width=width, count=3, dtype="uint8", photometric="rgb"
    ) as dataset:
        for top in range(0, height, 100):
            window = rasterio.windows.Window(0, top, width, 100)
            dataset.write(np.moveaxis(np.roll(noise, top, 1), 2, 0), window=window)
    rasterio.shutil.copy(tmp_path / "a.tif", tmp_path / "a.png", driver="PNG", zlevel=1)
    small = geotiff(tmp_path / "small.tif", noise[:, :100], crs=None, transform=None)
    rasterio.shutil.copy(small, tmp_path / "small.png", driver="PNG")
    base = peak_mib(tmp_path / "small.png", "", "open")
    windowed = peak_mib(tmp_path / "a.png", tmp_path / "m.png", "windows")
    whole = peak_mib(tmp_path / "a.png", "", "whole")
    # 180 MB of pixels. Windows may take GDAL's cache, 64 MiB, and a few buffers of 8 MiB.
    assert windowed < base + 150
    assert whole > base + 300
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png")[:100], noise[..., 0] % 11)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png")[-100:], np.roll(noise, 2900, 1)[..., 0] % 11)


def test_wide_compressed_strips_are_decoded_once(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(1, 256, (90, 9000, 3), dtype=np.uint8)
    noise[20:30, 100:200] = 0
    path = tmp_path / "a.tif"
    geotiff(path, noise, tiled=False, blockysize=7, blockxsize=None, nodata=0)
    with open_source(path, scratch=tmp_path) as source:
        assert type(source).__name__ == "Decoded"
        read_at_random(source, noise)
        valid = source.valid(15, 90, 20, 120)
        assert valid is not None
        assert (~valid).sum() == 10 * 100
        assert source.valid(0, 0, 15, 9000) is None


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


@pytest.mark.parametrize(("kind", "name"), [("geotiff", "a.tif"), ("slide", "a.ome.tif"), ("zarr", "a.zarr")])
def test_a_damaged_tile_is_named_and_the_rest_is_read(
    kind: str, name: str, tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    path = tmp_path / name
    broken(path, kind, pixels)
    with open_source(path) as source:
        assert source.tile == (256, 256)
        for _ in range(2):
            with pytest.raises(ImageError, match=rf"{name}: the window of 100×50 pixels at x 600, y 300 cannot"):
                source.read(300, 600, 50, 100)
            for window in ((0, 0, 256, 1400), (256, 0, 256, 512), (256, 768, 300, 632), (512, 0, 588, 1400)):
                top, left, height, width = window
                np.testing.assert_array_equal(source.read(*window), pixels[top : top + height, left : left + width])


def test_where_a_damaged_tile_lies_there_is_no_data(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    holes = np.maximum(pixels, 1)
    holes[:10] = 0
    broken(tmp_path / "a.tif", "geotiff", holes)
    with quiet_open(tmp_path / "a.tif", "r+") as dataset:
        dataset.nodata = 0
    with open_source(tmp_path / "a.tif") as source:
        expected = np.full(SIZE, True)
        expected[:10] = expected[256:512, 512:768] = False
        np.testing.assert_array_equal(source.valid(0, 0, *SIZE), expected)
        np.testing.assert_array_equal(source.valid(200, 600, 90, 70), expected[200:290, 600:670])


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_photograph_is_read_down_to_its_damage(kind: str, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, {"png": "PNG", "jpg": "JPEG"}[kind])
    path = tmp_path / f"a.{kind}"
    half = content.getvalue()[: len(content.getvalue()) // 2]
    # A JPEG without its end is refused: its decoder would give grey below without a word.
    path.write_bytes(half + b"\xff\xd9" * (kind == "jpg"))
    with open_source(path) as source:
        source.read(0, 0, 100, 1400)
        with pytest.raises(ImageError, match="x 0, y 1000 cannot be read: truncated or damaged"):
            source.read(1000, 0, 100, 100)


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    with quiet_open(
        tmp_path / "a.tif", "w", driver="GTiff", height=10**6, width=10**6, count=1, dtype="uint8", tiled=True,
        sparse_ok=True, bigtiff="yes", blockxsize=16384, blockysize=16384,
    ):  # fmt: skip
        pass
    zarr.create_array(tmp_path / "c.zarr", shape=(10**6, 10**6), chunks=(512, 512), dtype=np.uint8)
    slide(tmp_path / "b.svs", np.zeros((500, 600, 3), np.uint8))
    with tifffile.TiffFile(tmp_path / "b.svs", mode="r+") as file:
        for tag in ("ImageWidth", "ImageLength"):
            file.pages.first.tags[tag].overwrite(10**6)
    refused = pytest.raises(ImageError, match="1000000×1000000 pixels, more than 100,000,000,000")
    for name in ("a.tif", "b.svs", "c.zarr"):
        with refused, open_source(tmp_path / name):
            pass
    zarr.create_array(tmp_path / "d.zarr", shape=(60000, 60000), chunks=(60000, 60000), dtype=np.uint8)
    geotiff(tmp_path / "e.tif", np.zeros((10, 10), np.uint8))
    with quiet_open(
        tmp_path / "e.tif", "w", driver="GTiff", height=20000, width=20000, count=1, dtype="uint8", tiled=True,
        sparse_ok=True, compress="deflate", blockxsize=20000, blockysize=20000,
    ):  # fmt: skip
        pass
    for name in ("d.zarr", "e.tif"):
        with pytest.raises(ImageError, match="pieces of .* more than 268,435,456"), open_source(tmp_path / name):
            pass


def test_what_is_no_image_is_said(tmp_path: Path) -> None:
    (tmp_path / "mosaic.vrt").write_text("<VRTDataset rasterXSize='9' rasterYSize='9'></VRTDataset>")
    (tmp_path / "mosaic.tif").write_text("<VRTDataset rasterXSize='9' rasterYSize='9'></VRTDataset>")
    (tmp_path / "text.tif").write_text("hello")
    (tmp_path / "cut.tif").write_bytes(b"II*\0\x08\0\0\0\xff\xff")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 30)
    (tmp_path / "folder").mkdir()
    sentences = {
        "mosaic.vrt": "gdal_translate", "mosaic.tif": "gdal_translate", "text.tif": "not in a format",
        "cut.tif": "truncated or damaged", "cut.png": "truncated or damaged", "folder": "a folder",
        "absent.tif": "no such file", "vsicurl/http/a.tif": "no such file",
    }  # fmt: skip
    for name, sentence in sentences.items():
        with pytest.raises(ImageError, match=sentence), open_source(tmp_path / name):
            pass
    for name in ("/vsicurl/http://127.0.0.1:9/a.tif", "zip://a.zip!a.tif", "GTIFF_DIR:1:a.tif", "http://127.0.0.1/a"):
        with pytest.raises(ImageError, match="no such file"), open_source(name):
            pass


def test_a_mask_is_written_in_known_formats_only(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    with open_source(geotiff(tmp_path / "a.tif", pixels)) as source:
        refused = pytest.raises(ImageError, match="written as .tif, .png or .zarr")
        with refused, open_sink(tmp_path / "m.jpg", source, CAMVID):
            pass
        (tmp_path / "m.tif").mkdir()
        with pytest.raises(FileError, match="a folder"), open_sink(tmp_path / "m.tif", source, CAMVID):
            pass
        (tmp_path / "file").touch()
        with pytest.raises(FileError, match="cannot be written"), open_sink(tmp_path / "file/m.png", source, CAMVID):
            pass


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [
        ("rasterio", "a.tif", "geo"),
        ("tifffile", "a.svs", "geo,slides"),
        ("zarr", "a.zarr", "zarr"),
        ("pyogrio", "", "geo"),
        ("imagecodecs", "a.svs", "slides"),
    ],
)
def test_what_is_not_installed_is_named(
    package: str, name: str, extra: str, tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    geotiff(tmp_path / "a.tif", pixels[..., 0] % 3)
    zarr.create_array(tmp_path / "a.zarr", data=pixels)
    slide(tmp_path / "a.svs", pixels)
    work = f"with open_source({str(tmp_path / name)!r}): pass"
    if not name:
        work = f"polygons({str(tmp_path / 'a.tif')!r}, {str(tmp_path / 'o.gpkg')!r}, numbered(3))"
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from evitseg.raster import open_source; from evitseg.raster.polygons import polygons, whole_regions\n"
        f"from evitseg.labels import numbered\n{work}"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("evitseg.errors.MissingPackageError"), run.stderr
    assert f"pip install '.[{extra}" in last


# Polygons.

THREE = LabelSpace("three", tuple(numbered(3).classes))


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


@pytest.mark.parametrize("band_rows", [1, 7, 13, 60])
def test_polygons_have_the_areas_that_are_counted_by_hand(
    band_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_bands, "BAND_BYTES", band_rows * 80)
    Image.fromarray(drawn()).save(tmp_path / "m.png")
    written = polygons(tmp_path / "m.png", tmp_path / "out/p.geojson", THREE)
    assert written.in_pixels
    assert written.polygons == {"class 0": 3, "class 1": 2, "class 2": 2}
    content = json.loads((tmp_path / "out/p.geojson").read_text())
    features = content["features"]
    assert {(f["properties"]["name"], f["properties"]["pixels"]) for f in features} == AREAS
    ring = next(f for f in features if f["properties"]["pixels"] == 176)
    outside, hole = (set(map(tuple, points)) for points in ring["geometry"]["coordinates"])
    assert outside == {(5, 10), (25, 10), (25, 20), (5, 20)}
    assert hole == {(10, 13), (16, 13), (16, 17), (10, 17)}
    assert not list(tmp_path.glob("out/.*"))


@pytest.mark.parametrize("band_rows", [1, 2, 3, 8])
def test_regions_across_bands_are_those_of_the_whole(band_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # GDAL's own outlines of the whole mask, drawn again and counted, are what the pieces must add up to.
    from rasterio.features import rasterize, shapes

    rng = np.random.default_rng(band_rows)
    for number in range(12):
        mask = rng.choice([0, 1, 2, 255], rng.integers(1, 30, 2), p=[0.5, 0.3, 0.1, 0.1]).astype(np.uint8)
        mask = np.kron(mask, np.ones((1 + number % 3, 1 + number % 2))).astype(np.uint8)
        monkeypatch.setattr(mask_bands, "BAND_BYTES", band_rows * mask.shape[1])
        view = mask_bands.Mask("m", mask.shape, lambda top, rows, m=mask: m[top : top + rows], THREE)  # type: ignore[misc]
        found = list(whole_regions(view, THREE, (0, 1, 2), lambda share: None))
        whole = list(shapes(mask, mask=mask < 3, connectivity=4))
        assert len(found) == len(whole)
        polygon = [({"type": "Polygon", "coordinates": [r.tolist() for r in rings]}, v) for v, rings in found]
        np.testing.assert_array_equal(rasterize(polygon, mask.shape, fill=255), mask)
        for _, rings in found:
            for ring in rings:
                assert len({tuple(point) for point in ring}) == len(ring) - 1  # simple: no corner twice


def test_small_regions_and_other_classes_are_left_out(tmp_path: Path) -> None:
    Image.fromarray(drawn()).save(tmp_path / "m.png")
    written = polygons(tmp_path / "m.png", tmp_path / "p.geojson", THREE, ["class 1", "class 2"], minimum_pixels=2)
    assert written.polygons == {"class 1": 2, "class 2": 0}
    with pytest.raises(ConfigError, match="did you mean 'class 1'"):
        polygons(tmp_path / "m.png", tmp_path / "p.geojson", THREE, ["clas 1"])
    with pytest.raises(ConfigError, match="holds 2, which is no class"):
        polygons(tmp_path / "m.png", tmp_path / "q.geojson", numbered(2))
    with pytest.raises(ConfigError, match="does not say what its classes are"):
        polygons(tmp_path / "m.png", tmp_path / "q.geojson")
    with pytest.raises(ImageError, match="as .geojson or .gpkg"):
        polygons(tmp_path / "m.png", tmp_path / "q.shp", THREE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.png", "p.geojson"]


def georeferenced_mask(folder: Path) -> Path:
    geotiff(folder / "a.tif", np.zeros((60, 80, 3), np.uint8), transform=rasterio.Affine(2, 0, 500000, 0, -2, 5e6))
    with open_source(folder / "a.tif") as source, open_sink(folder / "m.tif", source, THREE) as sink:
        sink.write(0, 0, drawn())
    return folder / "m.tif"


def test_geojson_is_in_degrees_and_wound_as_its_standard_says(tmp_path: Path) -> None:
    mask = georeferenced_mask(tmp_path)
    written = polygons(mask, tmp_path / "p.geojson")  # the mask says what its classes are
    assert not written.in_pixels
    assert written.polygons == {"class 0": 3, "class 1": 2, "class 2": 2}
    features = json.loads((tmp_path / "p.geojson").read_text())["features"]
    bar = next(f for f in features if f["properties"]["pixels"] == 180)
    # UTM 33N: its middle meridian is 15° east; 2 m a pixel, 50 pixels east of it, at 5000 km north: 45.15°.
    x, y = np.array(bar["geometry"]["coordinates"][0]).T
    assert x.min() == pytest.approx(15 + 100 / (111320 * np.cos(np.radians(45.15))), abs=2e-6)
    assert y.max() == pytest.approx(45.15, abs=0.01)
    for feature in features:
        for number, ring in enumerate(feature["geometry"]["coordinates"]):
            x, y = (np.array(ring) - ring[0]).T
            assert (np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) > 0) == (number == 0)


@pytest.mark.parametrize("batch", [1, 200_000])
def test_a_geopackage_is_in_the_masks_own_coordinates(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyogrio

    monkeypatch.setattr(vector_files, "_BATCH_POINTS", batch)
    mask = georeferenced_mask(tmp_path)
    polygons(mask, tmp_path / "p.gpkg")
    about, _, shapes, columns = pyogrio.raw.read(tmp_path / "p.gpkg")
    assert "32633" in about["crs"]
    rows = dict(zip(about["fields"], columns, strict=True))
    assert set(zip(rows["name"], rows["pixels"].tolist(), strict=True)) == AREAS
    bounds = pyogrio.read_bounds(tmp_path / "p.gpkg")[1].T
    bar = rows["pixels"].tolist().index(180)
    assert bounds[bar].tolist() == [500100, 5e6 - 120, 500106, 5e6]
    assert len(shapes) == 7
    assert pyogrio.list_layers(tmp_path / "p.gpkg")[0].tolist() == ["m", "Polygon"]
    polygons(mask, tmp_path / "none.gpkg", minimum_pixels=10_000)
    assert pyogrio.read_info(tmp_path / "none.gpkg")["features"] == 0
    assert not list(tmp_path.glob(".evitseg*"))


@pytest.mark.parametrize("ending", ["tif", "ome.tif", "zarr"])
def test_a_mask_says_its_classes(ending: str, tmp_path: Path) -> None:
    geotiff(tmp_path / "a.tif", np.zeros((60, 80, 3), np.uint8), crs=None, transform=None)
    with open_source(tmp_path / "a.tif") as source, open_sink(tmp_path / f"m.{ending}", source, CAMVID) as sink:
        sink.write(0, 0, drawn())
    written = polygons(tmp_path / f"m.{ending}", tmp_path / "p.geojson")
    assert {name: n for name, n in written.polygons.items() if n} == {"sky": 3, "building": 2, "pole": 2}


def test_the_verb_outlines_a_mask(tmp_path: Path) -> None:
    mask = georeferenced_mask(tmp_path)
    run = CliRunner().invoke(app, ["polygons", str(mask), "--out", str(tmp_path / "p.geojson"), "--class", "class 1"])
    assert run.exit_code == 0, run.output
    assert "class 1 2; in coordinates on earth" in run.output
    run = CliRunner().invoke(app, ["polygons", str(tmp_path / "absent.tif"), "--out", str(tmp_path / "p.gpkg")])
    assert run.exit_code == 1
    assert "no such file" in run.output


def test_polygons_of_a_mask_are_those_of_its_optimised_copy(tmp_path: Path) -> None:
    """An optimiser sorts and cuts the palette; the colours still say the classes."""
    from evitseg.raster.masks import save_mask

    mask = np.kron(np.random.default_rng(0).choice([0, 1, 3, 8, 10], (6, 5)), np.ones((9, 9))).astype(np.uint8)
    save_mask(mask, tmp_path / "m.png", CAMVID)
    with Image.open(tmp_path / "m.png") as image:
        shown = np.asarray(image.convert("RGB"))
    colors, indices = np.unique(shown.reshape(-1, 3), axis=0, return_inverse=True)
    optimised = Image.fromarray(indices.reshape(mask.shape).astype(np.uint8))
    optimised.putpalette(colors.tobytes())
    optimised.save(tmp_path / "o.png", bits=4)
    save_mask(np.full((4, 4), 1, np.uint8), tmp_path / "gray.png", CAMVID)  # building is grey 70
    Image.new("L", (4, 4), 70).save(tmp_path / "gray_o.png")
    for name, other in (("m", "o"), ("gray", "gray_o")):
        found = [json.loads(outlined(tmp_path / f"{n}.png", tmp_path / "p.geojson")) for n in (name, other)]
        assert found[0]["features"]
        assert found[0]["features"] == found[1]["features"]


def outlined(mask: Path, out: Path) -> str:
    polygons(mask, out, CAMVID)
    return out.read_text()


def test_polygons_of_a_mask_of_0_and_255_are_refused_not_empty(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "m.png")
    stated = '{"name": "x", "classes": [{"name": "bg"}, {"name": "fg", "raw_ids": [255]}]}'
    bare = '{"name": "x", "classes": [{"name": "bg"}, {"name": "fg"}]}'
    for text, reason in ((stated, "holds 255, the raw id of 'fg'"), (bare, "holds 255 and never 1")):
        (tmp_path / "labels.json").write_text(text)
        with pytest.raises(ConfigError, match=reason):
            polygons(tmp_path / "m.png", tmp_path / "p.geojson", load_labels(tmp_path / "labels.json"))
