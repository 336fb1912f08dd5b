"""An image file means the same pixels whole and in windows, and what its tags say."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.optional import needs

needs("rasterio", "tifffile", "imagecodecs")

import imagecodecs
import rasterio
import tifffile

from evitseg.errors import EvitsegError, EvitsegWarning, ImageError
from evitseg.image import AS_STATED, ReadOptions
from evitseg.raster import levels, open_raster
from evitseg.raster.bands import Band, choose_bands
from evitseg.raster.files import image_size, read_image, read_reduced

Array = NDArray[Any]
SIZE = (70, 90)


@pytest.fixture
def deep() -> Array:
    """(H, W, 4) of 16 bits."""
    return np.random.default_rng(0).integers(0, 2**16, (*SIZE, 4)).astype(np.uint16)


def windows(path: Path, options: ReadOptions = AS_STATED) -> Array:
    with warnings.catch_warnings(), open_raster(path, options=options) as source:
        pixels = np.empty((*source.size, 3), np.uint8)
        for top in range(0, source.size[0], 41):
            for left in range(0, source.size[1], 57):
                height, width = min(41, source.size[0] - top), min(57, source.size[1] - left)
                pixels[top : top + height, left : left + width] = source.read(top, left, height, width)
    return pixels


def read(path: Path, options: ReadOptions = AS_STATED) -> Array:
    """Whole, having checked that windows give the same."""
    pixels = read_image(path, options)
    np.testing.assert_array_equal(windows(path, options), pixels)
    assert image_size(path, options) == pixels.shape[:2]
    np.testing.assert_array_equal(read_reduced(path.read_bytes(), lambda size: size, "x", options).pixels, pixels)
    return pixels


def refused(path: Path, match: str, options: ReadOptions = AS_STATED) -> None:
    for reader in (read_image, windows):
        with pytest.raises(ImageError, match=match) as error:
            reader(path, options)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)


def write(path: Path, pixels: Array, **options: Any) -> Path:
    tifffile.imwrite(
        path, pixels, **{"photometric": "rgb" if pixels.ndim == 3 else "minisblack", "metadata": None} | options
    )
    return path


def gdal(path: Path, pixels: Array, **options: Any) -> Path:
    """(H, W, bands)."""
    descriptions, nodata = options.pop("descriptions", None), options.pop("nodata", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", height=pixels.shape[0], width=pixels.shape[1], count=pixels.shape[2],
            dtype=pixels.dtype, nodata=nodata, **options,
        ) as dataset:  # fmt: skip
            dataset.write(np.moveaxis(pixels, 2, 0))
            if descriptions is not None:
                dataset.descriptions = descriptions
    return path


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bands", [3, 4])
@pytest.mark.parametrize("tile", [None, (32, 48)])
def test_planar_16_bit_colours_keep_their_upper_eight_bits(
    order: str, bands: int, tile: Any, deep: Array, tmp_path: Path
) -> None:
    extra = {"extrasamples": ["unassalpha"]} if bands == 4 else {}
    planes = np.moveaxis(deep[..., :bands], 2, 0)
    path = write(tmp_path / "a.tif", planes, planarconfig="separate", byteorder=order, tile=tile, **extra)
    np.testing.assert_array_equal(read(path), deep[..., :3] // 256)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "u4", "f4", "f8"])
def test_numbers_without_an_agreed_range_need_one(dtype: str, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(-100, 100, SIZE).astype(dtype)
    path = write(tmp_path / "a.tif", values)
    refused(path, rf"{np.dtype(dtype).name} pixels have no agreed range; .* --range")
    low, high = values.astype(float).min(), values.astype(float).max()
    expected = np.floor((values.astype(float) - low) / (high - low) * 255 + 0.5)
    np.testing.assert_array_equal(read(path, ReadOptions(value_range="auto"))[..., 1], expected)
    fixed = np.clip(np.floor((values.astype(float) + 50) * 255 / 80 + 0.5), 0, 255)
    np.testing.assert_array_equal(read(path, ReadOptions(value_range=(-50.0, 30.0)))[..., 0], fixed)


def test_complex_numbers_are_refused_in_any_case(tmp_path: Path) -> None:
    refused(write(tmp_path / "a.tif", np.zeros(SIZE, np.complex64)), "complex", ReadOptions(value_range="auto"))


def test_what_pillow_does_not_read_goes_to_gdal(deep: Array, tmp_path: Path) -> None:
    eight = (deep // 256).astype(np.uint8)
    grey_alpha = write(tmp_path / "la.tif", deep[..., :2], photometric="minisblack", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read(grey_alpha), np.repeat(eight[..., :1], 3, 2))
    white = write(tmp_path / "w.tif", deep[..., 0], photometric="miniswhite", byteorder=">")
    np.testing.assert_array_equal(read(white)[..., 2], 255 - eight[..., 0])
    with pytest.warns(EvitsegWarning, match=r"bands 1, 2 and 3 of 4 .* does not name .*--bands"):
        pixels = read(gdal(tmp_path / "n.tif", eight, photometric="minisblack"))
    np.testing.assert_array_equal(pixels, eight[..., :3])
    colours = deep[..., :3].astype(np.float32) / 65_535
    pixels = read(write(tmp_path / "f.tif", colours), ReadOptions(value_range=(0.0, 1.0)))
    np.testing.assert_array_equal(pixels, np.floor(colours.astype(np.float64) * 255 + 0.5))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 7, 8, 9, 10, 12, 14, 16])
@pytest.mark.parametrize("bands", [1, 3])
def test_the_bits_that_a_tiff_states_are_the_significant_ones(
    bits: int, bands: int, deep: Array, tmp_path: Path
) -> None:
    values = (deep >> (16 - bits))[..., :bands].astype(np.uint8 if bits <= 8 else np.uint16)
    path = gdal(tmp_path / "a.tif", values, NBITS=bits, interleave="pixel")
    expected = values >> (bits - 8) if bits >= 8 else values.astype(int) * 255 // (2**bits - 1)
    np.testing.assert_array_equal(read(path), np.broadcast_to(expected, (*SIZE, 3)))


@pytest.mark.parametrize("planes", [1, 2])
def test_omes_significant_bits_count(planes: int, deep: Array, tmp_path: Path) -> None:
    values = (deep[..., :planes] >> 4).transpose(2, 0, 1)
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, values, photometric="minisblack", metadata={"axes": "ZYX", "SignificantBits": 12}, ome=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvitsegWarning)
        np.testing.assert_array_equal(read(path)[..., 0], values[0] >> 4)


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_dark_16_bit_data_without_a_stated_range_warns(bands: int, deep: Array, tmp_path: Path) -> None:
    dark = deep[..., :bands] >> 4
    colors = {"photometric": "minisblack" if bands == 1 else "rgb", **({"alpha": "unspecified"} if bands == 4 else {})}
    path = gdal(tmp_path / "a.tif", dark, **colors)
    for reader in (read_image, windows):
        with pytest.warns(EvitsegWarning, match="largest 16-bit value is .* nearly black; --range"):
            np.testing.assert_array_equal(reader(path), np.broadcast_to(dark[..., :3] >> 8, (*SIZE, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", EvitsegWarning)
        read(path, ReadOptions(value_range=(0.0, 4095.0)))
        read(gdal(tmp_path / "b.tif", deep[..., :bands], **colors))  # bright


@pytest.mark.parametrize("kind", ["tif", "png"])
def test_a_16_bit_grey_image_is_stretched_by_its_percentiles(kind: str, deep: Array, tmp_path: Path) -> None:
    values = deep[..., 0] >> 5
    path = tmp_path / f"a.{kind}"
    Image.fromarray(values).save(path)
    low, high = np.percentile(values, [2, 98], method="inverted_cdf").astype(float)
    expected = np.clip(np.floor((values - low) * 255 / (high - low) + 0.5), 0, 255)
    np.testing.assert_array_equal(read(path, ReadOptions(value_range="percentile"))[..., 0], expected)


def png16(pixels: Array) -> bytes:
    """Pillow writes no 16-bit colours."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_colours_in_a_png_are_stretched_by_all_their_bits(deep: Array, tmp_path: Path) -> None:
    values = deep[..., :3] >> 6
    path = tmp_path / "a.png"
    path.write_bytes(png16(values))
    for reader in (read_image, windows):
        with pytest.warns(EvitsegWarning, match="1023 of 65535"):
            reader(path)
    expected = np.floor((values - float(values.min())) * 255 / (float(values.max()) - values.min()) + 0.5)
    np.testing.assert_array_equal(read(path, ReadOptions(value_range="auto")), expected)


def test_a_large_image_has_the_same_range_whole_and_in_windows(
    deep: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "CELL", 8)
    monkeypatch.setattr(levels, "CELLS", 5)
    seen = list(levels.cells(SIZE))
    assert 1 < len(seen) <= 5
    values = deep[..., 0] >> 3
    part = np.concatenate([values[y : y + h, x : x + w].ravel() for y, x, h, w in seen]).astype(float)
    expected = np.clip(np.floor((values - part.min()) * 255 / (part.max() - part.min()) + 0.5), 0, 255)
    whole = write(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(read(whole, ReadOptions(value_range="auto"))[..., 0], expected)
    planar = write(tmp_path / "b.tif", np.stack([values] * 3), planarconfig="separate", tile=(16, 16))
    np.testing.assert_array_equal(read(planar, ReadOptions(value_range="auto"))[..., 0], expected)


@pytest.mark.parametrize("size", [(1, 1), (512, 512), (5000, 3000), (100_000, 700), (700, 100_000), (99_999, 88_888)])
def test_the_cells_that_are_looked_at_lie_inside_and_are_few(size: tuple[int, int]) -> None:
    cells = list(levels.cells(size))
    assert 1 <= len(cells) <= levels.CELLS
    assert len(set(cells)) == len(cells)
    assert all(0 <= y < y + h <= size[0] and 0 <= x < x + w <= size[1] for y, x, h, w in cells)
    if size[0] * size[1] <= levels.SAMPLED_PIXELS and max(size) <= 4096:
        assert sum(h * w for _, _, h, w in cells) == size[0] * size[1]


@pytest.mark.parametrize("how", ["auto", "percentile"])
def test_nodata_and_nan_are_no_part_of_the_range_nor_valid(how: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(300, 20, SIZE).astype(np.float32)
    values[:9], values[9:15] = -9999, np.nan
    path = gdal(tmp_path / "a.tif", values[..., None], nodata=-9999)
    inside = values[15:].astype(np.float64)
    low, high = (inside.min(), inside.max()) if how == "auto" else np.percentile(
        values[15:], [2, 98], method="inverted_cdf"
    ).astype(float)  # fmt: skip
    expected = np.clip(np.floor((inside - low) * 255 / (high - low) + 0.5), 0, 255)
    np.testing.assert_array_equal(read(path, ReadOptions(value_range=how))[15:, :, 0], expected)
    with open_raster(path, options=ReadOptions(value_range=how)) as source:
        valid = source.valid(0, 0, *SIZE)
        assert valid is not None
        np.testing.assert_array_equal(valid, np.broadcast_to(np.arange(SIZE[0])[:, None] >= 15, SIZE))
    hollow = gdal(tmp_path / "b.tif", np.full((*SIZE, 1), 7, np.uint16), nodata=7)
    refused(hollow, "no valid pixel", ReadOptions(value_range=how))


NAMED: dict[tuple[str, ...], tuple[int, ...] | None] = {
    ("blue", "green", "red", "nir"): (2, 1, 0),
    ("Band 1 (Blue)", "Band 2 (GREEN)", "Band 3 (Red)", "Band 4"): (2, 1, 0),
    ("B", "G", "R", "N"): (2, 1, 0),
    ("nir", "red 665 nm", "green_band", "blue"): (1, 2, 3),
    ("B04", "B03", "B02", "B08"): None,
    ("blue", "green", "red", "red"): None,
    ("blue", "green", "red edge", "nir"): None,
    ("blue", "green", "infrared", "nir"): None,
    ("", "", "", ""): None,
}


@pytest.mark.parametrize("names", NAMED)
def test_bands_are_ordered_by_names_that_leave_no_doubt(names: tuple[str, ...], deep: Array, tmp_path: Path) -> None:
    eight = (deep // 256).astype(np.uint8)
    path = gdal(tmp_path / "a.tif", eight, photometric="minisblack", descriptions=names)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", EvitsegWarning)
        pixels = read(path)
    np.testing.assert_array_equal(pixels, eight[..., NAMED[names] or (0, 1, 2)])
    assert bool(told) == (NAMED[names] is None)
    np.testing.assert_array_equal(read(path, ReadOptions(bands=(4, 2, 1))), eight[..., [3, 1, 0]])
    np.testing.assert_array_equal(read(path, ReadOptions(bands=(3,))), np.repeat(eight[..., 2:3], 3, 2))
    refused(path, "asks for band 5, but the file has 4 bands", ReadOptions(bands=(5,)))


def test_names_go_before_an_interpretation_that_a_writer_set_by_default(deep: Array, tmp_path: Path) -> None:
    eight = (deep // 256).astype(np.uint8)
    path = gdal(tmp_path / "a.tif", eight[..., :3], photometric="rgb", descriptions=("blue", "green", "red"))
    with pytest.warns(EvitsegWarning, match="bands 3, 2 and 1, whose names are red, green and blue"):
        np.testing.assert_array_equal(read(path), eight[..., [2, 1, 0]])


def test_a_fourth_band_is_alpha_only_if_the_file_says_so() -> None:
    colours = [Band("red"), Band("green"), Band("blue")]
    assert choose_bands("a", [*colours, Band("alpha")], AS_STATED) == (0, 1, 2)
    assert choose_bands("a", [Band("grey"), Band("alpha")], AS_STATED) == (0,)
    with pytest.raises(ImageError, match="2 bands are neither grey nor RGB"):
        choose_bands("a", [Band("grey"), Band()], AS_STATED)


@pytest.mark.parametrize("by", ["names", "colours"])
def test_omes_channels_are_ordered_by_name_and_colour(by: str, deep: Array, tmp_path: Path) -> None:
    eight = (deep // 256).astype(np.uint8)
    channel = {"Name": ["blue", "green", "red"]} if by == "names" else {"Color": [65_535, 16_711_935, -16_776_961]}
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path, np.moveaxis(eight[..., :3], 2, 0), photometric="minisblack", metadata={"axes": "CYX", "Channel": channel}
    )
    np.testing.assert_array_equal(read(path), eight[..., [2, 1, 0]])
    np.testing.assert_array_equal(read(path, ReadOptions(bands=(1, 2, 3))), eight[..., :3])


def test_imagejs_composites_are_colours_and_its_stacks_have_pages(deep: Array, tmp_path: Path) -> None:
    planes = np.moveaxis((deep // 256).astype(np.uint8), 2, 0)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, planes[:3], imagej=True, metadata={"axes": "CYX", "mode": "composite"})
    np.testing.assert_array_equal(read(path), np.moveaxis(planes[:3], 0, 2))
    tifffile.imwrite(path, planes, imagej=True, metadata={"axes": "ZYX"})
    for reader in (read_image, windows):
        with pytest.warns(EvitsegWarning, match=r"first of 4 images \(4 along Z\); --page"):
            np.testing.assert_array_equal(reader(path)[..., 0], planes[0])
    np.testing.assert_array_equal(read(path, ReadOptions(page=3))[..., 0], planes[2])
    refused(path, "--page 5 does not exist", ReadOptions(page=5))


def test_of_several_pages_the_first_is_read_with_a_warning_or_the_chosen_one(deep: Array, tmp_path: Path) -> None:
    pages = [(deep[..., :3] // 256).astype(np.uint8), (deep[..., 1:] // 256).astype(np.uint8)[:50], deep[..., 2]]
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for page in pages:
            writer.write(page, photometric="rgb" if page.ndim == 3 else "minisblack", metadata=None)
    for reader in (read_image, windows):
        with pytest.warns(EvitsegWarning, match=r"first of 3 pages; --page"):
            np.testing.assert_array_equal(reader(path), pages[0])
    np.testing.assert_array_equal(read(path, ReadOptions(page=2)), pages[1])
    np.testing.assert_array_equal(read(path, ReadOptions(page=3))[..., 0], pages[2] // 256)
    refused(path, "--page 4 does not exist; the file has 3", ReadOptions(page=4))


def test_smaller_copies_thumbnails_and_masks_are_no_pages(deep: Array, tmp_path: Path) -> None:
    eight = (deep[..., :3] // 256).astype(np.uint8)
    path = tmp_path / "a.tif"
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(eight[::7, ::7], subfiletype=1, **options)  # a thumbnail before the image
        writer.write(eight, **options)
        writer.write(eight[::2, ::2], subfiletype=1, **options)
        writer.write(eight[..., 0] > 9, subfiletype=4, photometric="mask", metadata=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EvitsegWarning)
        np.testing.assert_array_equal(read(path), eight)
        with tifffile.TiffWriter(path) as writer:  # a pyramid that does not say so
            for step in (1, 2, 4):
                writer.write(eight[::step, ::step], **options)
        np.testing.assert_array_equal(read(path), eight)
    refused(path, "--page 2 does not exist", ReadOptions(page=2))


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_is_read_with_a_warning_or_the_chosen_one(ending: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"a.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    for reader in (read_image, windows):
        with pytest.warns(EvitsegWarning, match="first of 3 frames"):
            np.testing.assert_array_equal(reader(path)[0, 0], [255, 0, 0])
    np.testing.assert_array_equal(read(path, ReadOptions(page=3))[0, 0], [0, 0, 255])
    refused(path, "--page 4 does not exist", ReadOptions(page=4))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
def test_exif_turns_every_format_whole_and_in_windows(orientation: int, ending: str, tmp_path: Path) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    Image.fromarray(pixels).save(path, exif=exif, lossless=True, subsampling=0, quality=100)
    found = read(path)
    assert found.shape[:2] == ((32, 16) if orientation >= 5 else (16, 32))
    # Where the corner that is stored at the top left belongs, from the EXIF standard.
    top, left = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[
        orientation
    ]
    assert found[top, left].min() > 250
    assert sum(found[y, x].min() > 128 for y in (0, -1) for x in (0, -1)) == 1


def ifd(tag: int, kind: int, value: bytes) -> bytes:
    """EXIF with one entry, whose value follows the directory."""
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", tag, kind, 1, 26) + b"\0\0\0\0" + value


@pytest.mark.parametrize(
    "exif",
    [
        ifd(0x0112, 5, struct.pack("<II", 6, 1)),  # a fraction
        ifd(0x0112, 5, struct.pack("<II", 6, 0)),
        ifd(0x0112, 12, struct.pack("<d", 6.5)),
        ifd(0x0112, 2, b"6\0\0\0"),
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0",
        b"Exif\0\0garbage of no kind",
    ],
)
@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_orientation_that_is_no_whole_number_is_upright(ending: str, exif: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.zeros((16, 32, 3), np.uint8)).save(path, exif=exif)
    assert read(path).shape == (16, 32, 3)


def test_a_georeferenced_image_stays_as_it_is_stored(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (*SIZE, 3), np.uint8)
    place = [(33550, "d", 3, (1.0, 1.0, 0.0), True), (33922, "d", 6, (0.0, 0.0, 0.0, 5.0, 9.0, 0.0), True)]
    path = write(tmp_path / "a.tif", pixels, extratags=[(274, "H", 1, 6, True), *place])
    np.testing.assert_array_equal(read(path), pixels)
    turned = write(tmp_path / "b.tif", pixels, extratags=[(274, "H", 1, 6, True)])
    np.testing.assert_array_equal(read(turned), np.rot90(pixels, -1))


@pytest.mark.parametrize("ending", ["jfif", "jpe", "jif", "gif", "avif", "jp2", "j2k", "apng", "dib"])
def test_the_content_decides_the_format(ending: str, tmp_path: Path) -> None:
    from evitseg.raster.formats import EXTENSIONS

    kinds = {
        "jfif": "JPEG",
        "jpe": "JPEG",
        "jif": "JPEG",
        "jp2": "JPEG2000",
        "j2k": "JPEG2000",
        "apng": "PNG",
        "dib": "BMP",
    }
    image = Image.effect_mandelbrot((90, 70), (-2, -1, 1, 1), 20).convert("RGB")
    path = tmp_path / f"a.{ending}"
    image.save(path, kinds.get(ending, ending.upper()))
    assert f".{ending}" in EXTENSIONS
    with Image.open(path) as expected:
        np.testing.assert_array_equal(read(path), np.asarray(expected.convert("RGB")))


def test_a_jpeg_2000_with_a_wrong_box_ends_with_a_sentence_or_pixels(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (56, 40)).save(content, "JPEG2000")
    whole = content.getvalue()
    place = whole.index(b"colr")
    path = tmp_path / "a.jp2"
    path.write_bytes(whole[: place - 4] + b"\0\0\0\0\x80" + whole[place + 1 :])  # GDAL 3.10 never comes back from it
    for reader in (read_image, windows):
        try:
            reader(path)
        except ImageError as error:
            assert str(path) in str(error)


def test_heic_names_the_package_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    refused(path, "pip install pillow-heif")


def test_a_cameras_raw_file_is_not_read_as_its_thumbnail(deep: Array, tmp_path: Path) -> None:
    refused(write(tmp_path / "a.nef", deep[..., 0]), "camera raw file")
    refused(write(tmp_path / "a.tif", deep[..., 0], extratags=[(50706, "B", 4, (1, 4, 0, 0), True)]), r"\(DNG\)")


@pytest.mark.parametrize("photometric", [8, 9, 32803, 34892, 4])
def test_colours_that_nobody_reads_right_are_refused_by_their_tag(
    photometric: int, deep: Array, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.tif", (deep[..., :3] // 256).astype(np.uint8))
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages.first.tags["PhotometricInterpretation"].overwrite(photometric)
    refused(path, f"PhotometricInterpretation {photometric}")


FORBID = "import sys, warnings; sys.modules.update(rasterio=None, tifffile=None, imagecodecs=None)\n"


def test_without_extras_ordinary_tiffs_are_read_and_others_name_tags_and_extra(deep: Array, tmp_path: Path) -> None:
    eight = (deep // 256).astype(np.uint8)
    files = {
        "grey": write(tmp_path / "grey.tif", eight[..., 0], compression="deflate", tile=(16, 16)),
        "rgb": write(tmp_path / "rgb.tif", eight[..., :3], byteorder=">"),
        "planar": write(tmp_path / "planar.tif", np.moveaxis(eight[..., :3], 2, 0), planarconfig="separate"),
        "premultiplied": write(tmp_path / "a.tif", eight, extrasamples=["assocalpha"]),
        "rgb16": write(tmp_path / "rgb16.tif", deep[..., :3], byteorder=">", compression="lzw"),
        "grey16": write(tmp_path / "grey16.tif", deep[..., 0], byteorder=">", compression="deflate", predictor=True),
        "white": write(tmp_path / "white.tif", eight[..., 0], photometric="miniswhite"),
        "bilevel": write(tmp_path / "bilevel.tif", eight[..., 0] > 99, photometric="miniswhite"),
    }
    palette = np.random.default_rng(4).integers(0, 256, (3, 256)).astype(np.uint16) * 257
    files["palette"] = write(tmp_path / "palette.tif", eight[..., 0], photometric="palette", colormap=palette)
    files["small"] = write(tmp_path / "small.tif", eight[..., 0], photometric="palette", colormap=palette // 257)
    expected = {name: read(path) for name, path in files.items()}
    np.savez(tmp_path / "expected.npz", **expected)  # type: ignore[arg-type]  # numpy's stub knows no names
    planar = write(tmp_path / "planar16.tif", np.moveaxis(deep[..., :3], 2, 0), planarconfig="separate")
    code = FORBID + (
        "import json, numpy as np; from evitseg.raster.files import read_image; from evitseg.errors import ImageError\n"
        f"files, expected = json.loads(sys.argv[1]), np.load({str(tmp_path / 'expected.npz')!r})\n"
        "assert {n for n, p in files.items() if not np.array_equal(read_image(p), expected[n])} == set()\n"
        f"try: read_image({str(planar)!r})\n"
        "except ImageError as error: print(error)\n"
    )
    given = json.dumps({name: str(path) for name, path in files.items()})
    run = subprocess.run([sys.executable, "-c", code, given], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "PlanarConfiguration 2" in run.stdout
    assert "pip install '.[geo]'" in run.stdout


def bmp(width: int, height: int, length: int) -> bytes:
    header = struct.pack("<2sIHHI", b"BM", length, 0, 0, 54) + struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6
    )
    return header + bytes(length - 54)


def test_a_header_that_promises_more_than_the_file_holds_is_refused_at_once(deep: Array, tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    for size in ((4, 50_000_000), (4, -50_000_000), (100_000, 100_000)):
        path.write_bytes(bmp(*size, 254))
        refused(path, "truncated or damaged .*header promises")
        with pytest.raises(ImageError):
            image_size(path)
    tif = write(tmp_path / "a.tif", deep[..., 0], rowsperstrip=10)
    with tifffile.TiffFile(tif, mode="r+") as file:
        file.pages.first.tags["ImageLength"].overwrite(50_000_000)
    refused(tif, "strips or tiles are needed")


def plain_tiff(entries: list[tuple[int, int, int, int]], after: int = 0) -> bytes:
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + body + struct.pack("<I", after) + bytes(64)


_TINY = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 64)]


@pytest.mark.filterwarnings("ignore")  # Pillow's own words about damage
def test_directories_in_a_circle_and_absurd_counts_are_a_sentence_or_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(plain_tiff(_TINY, after=8))  # its own successor
    assert read(path).shape == (8, 8, 3)
    for content in (
        plain_tiff([*_TINY, (270, 2, 2**32 - 1, 8)]),  # a description of 4 GiB
        plain_tiff([*_TINY, (320, 3, 2**31, 8)]),
        plain_tiff([(tag, kind, 2**32 - 1 if tag == 258 else n, value) for tag, kind, n, value in _TINY]),
        plain_tiff([(tag, kind, n, 0 if tag == 257 else value) for tag, kind, n, value in _TINY]),
        b"II*\0\x08\0\0\0\xff\xff" + bytes(100),
        b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**60),
        b"MM\0*\0\0\0\x08",
        b"II*\0",
    ):
        path.write_bytes(content)
        for reader in (read_image, windows, image_size):
            try:
                reader(path)
            except EvitsegError as error:
                assert str(path) in str(error)
                assert "\n" not in str(error)


def test_a_hundred_thousand_pages_are_counted_no_further_than_a_limit(tmp_path: Path) -> None:
    page = plain_tiff(_TINY)[8 : 8 + 2 + 12 * len(_TINY)]
    step = len(page) + 4
    directories = b"".join(page + struct.pack("<I", 8 + (n + 1) * step) for n in range(100_000))
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0\x08\0\0\0" + directories + bytes(200))
    with pytest.warns(EvitsegWarning, match="more than 10000 pages"):
        assert read_image(path).shape == (8, 8, 3)
    assert image_size(path) == (8, 8)


@pytest.mark.parametrize("codec", ["jpeg", "jpeg2000"])
def test_a_slides_tile_that_says_it_is_huge_is_not_decoded(codec: str, tmp_path: Path) -> None:
    pixels = np.full((300, 300, 3), 9, np.uint8)
    path = tmp_path / "a.svs"
    options: dict[str, Any] = {"tile": (256, 256), "compression": codec, "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels, description="Aperio Image Library v12", **options)
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages.first.dataoffsets[0], file.pages.first.databytecounts[0]
    content = bytearray(path.read_bytes())
    tile = content[offset : offset + count]
    if codec == "jpeg":
        place = offset + tile.index(b"\xff\xc0") + 5
        content[place : place + 4] = struct.pack(">HH", 60_000, 60_000)
    else:
        place = offset + tile.index(b"\xff\x4f\xff\x51") + 8
        content[place : place + 8] = struct.pack(">II", 60_000, 60_000)
    path.write_bytes(content)
    with open_raster(path) as source:
        with pytest.raises(ImageError, match="a tile of 256×256 pixels claims 60000×60000"):
            source.read(0, 0, 10, 10)
        assert source.read(280, 280, 10, 10).max() < 20


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    refused(tmp_path / "a.png", "not a regular file")


@pytest.mark.parametrize("kind", ["tif", "planar", "png", "ome.tif"])
def test_a_name_that_is_not_utf_8_is_read_or_a_sentence(kind: str, deep: Array, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xe9." + kind.encode())
    if kind == "png":
        Image.new("RGB", (9, 9)).save(path)
    elif kind == "planar":
        write(path, np.moveaxis(deep[..., :3], 2, 0), planarconfig="separate")
    else:
        tifffile.imwrite(
            path, np.moveaxis(deep[..., :3], 2, 0) if kind == "ome.tif" else deep[..., 0], ome="ome" in kind
        )
    for reader in (read_image, windows):
        try:
            assert reader(path).ndim == 3
        except ImageError as error:
            assert "names are UTF-8; rename" in str(error)


def test_bytes_are_read_as_their_file(deep: Array) -> None:
    content = io.BytesIO()
    tifffile.imwrite(content, np.moveaxis(deep[..., :3], 2, 0), planarconfig="separate", photometric="rgb")
    found = read_reduced(content.getvalue(), lambda size: size, "upload").pixels
    np.testing.assert_array_equal(found, deep[..., :3] // 256)


def test_pixels_are_the_callers_own_to_change(deep: Array, tmp_path: Path) -> None:
    eight = (deep // 256).astype(np.uint8)
    for name, mode in (("rgb", "RGB"), ("rgba", "RGBA"), ("grey", "L"), ("palette", "P"), ("bilevel", "1")):
        for ending in ("png", "tif"):
            path = tmp_path / f"{name}.{ending}"
            Image.fromarray(eight[..., :3]).convert(mode).save(path)
            pixels = read_image(path)
            assert pixels.flags.writeable
            assert pixels.flags.c_contiguous


@pytest.mark.parametrize("bits", [12, 15, 16])
@pytest.mark.parametrize("bands", [1, 3])
def test_a_jpeg_2000_keeps_its_depth(tmp_path: Path, bits: int, bands: int) -> None:
    values = np.tile(np.linspace(0, 2**bits - 1, 90).astype(np.uint16), (32, 1))
    values = np.stack([values, values[:, ::-1], values], -1)[..., :bands].squeeze()
    path = tmp_path / "deep.jp2"
    path.write_bytes(imagecodecs.jpeg2k_encode(values, level=0, bitspersample=bits, reversible=True))
    # Pillow turns white of several bands into black, and shifts a single band up to 16 bits.
    expected = (values >> (bits - 8)).reshape(32, 90, bands).repeat(3 // bands, 2)
    np.testing.assert_array_equal(read(path), expected)
    stretched = np.floor(np.clip(values.reshape(32, 90, bands) / 3000, 0, 1) * 255 + 0.5).repeat(3 // bands, 2)
    np.testing.assert_array_equal(read(path, ReadOptions(value_range=(0, 3000))), stretched)


def test_a_dark_jpeg_2000_of_15_bits_warns_with_its_stored_values(tmp_path: Path) -> None:
    path = tmp_path / "B04.jp2"
    path.write_bytes(imagecodecs.jpeg2k_encode(np.full((32, 32), 2550, np.uint16), level=0, bitspersample=15))
    with pytest.warns(EvitsegWarning, match="its largest 15-bit value is 2550 of 32767"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.avif", "a.bmp"])
def test_a_truncated_header_is_reported_without_objects_in_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.new("RGB", SIZE).save(path)
    path.write_bytes(path.read_bytes()[:20])
    refused(path, "truncated or damaged")
    for reader in (read_image, windows):
        with pytest.raises(ImageError) as error:
            reader(path)
        assert "<" not in str(error.value)


def test_a_jpeg_without_its_last_bytes_is_refused_whole_and_in_windows(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.new("RGB", SIZE).save(path)
    path.write_bytes(path.read_bytes()[:-2])
    refused(path, "truncated or damaged")


def test_a_jpeg_of_12_bits_is_refused_whole_and_in_windows(tmp_path: Path) -> None:
    path = tmp_path / "deep.jpg"
    path.write_bytes(imagecodecs.jpeg8_encode(np.full((*SIZE, 3), 4000, np.uint16), bitspersample=12))
    refused(path, "JPEGs of 12 bits")


def test_a_bmp_with_a_long_header_is_read_in_windows(tmp_path: Path) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (8, 6, 4)).astype(np.uint8)
    masks = struct.pack("<4I", 0xFF, 0xFF00, 0xFF0000, 0xFF000000)
    head = (
        struct.pack("<IiiHHIIiiII", 124, 6, 8, 1, 32, 3, pixels.nbytes, 2835, 2835, 0, 0) + masks + b"BGRs" + bytes(64)
    )
    path = tmp_path / "long.bmp"
    path.write_bytes(b"BM" + struct.pack("<IHHI", 138 + pixels.nbytes, 0, 0, 138) + head + pixels[::-1].tobytes())
    np.testing.assert_array_equal(read(path), pixels[..., :3])


def test_a_palette_with_transparent_colours_is_read_without_a_word(tmp_path: Path) -> None:
    indices = np.random.default_rng(5).integers(0, 4, SIZE).astype(np.uint8)
    palette = np.array([[9, 8, 7], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    path = tmp_path / "clear.png"
    image.save(path, transparency=bytes([0, 128, 255, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read(path), palette[indices])


def test_an_image_that_is_no_frame_of_an_animated_png_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", SIZE, (value, 0, 0)) for value in (10, 20, 30)]
    path = tmp_path / "animated.png"
    Image.new("RGB", SIZE, (99, 0, 0)).save(path, save_all=True, append_images=frames, default_image=True)
    for reader in (read_image, windows):
        with pytest.warns(EvitsegWarning, match="the first of 4 frames"):
            assert reader(path)[0, 0, 0] == 99


def test_a_dark_array_of_16_bits_warns() -> None:
    with pytest.warns(EvitsegWarning, match="is 4095 of 65535"):
        read_image(np.full((4, 4, 3), 4095, np.uint16))


@pytest.mark.parametrize("bands", [1, 3])
def test_nodata_does_not_hide_that_16_bits_are_dark(tmp_path: Path, bands: int) -> None:
    path = tmp_path / "dark.tif"
    values = np.full((bands, 20, 30), 2550, np.uint16)
    values[:, :5] = 65535
    more: dict[str, Any] = {"photometric": "RGB"} if bands == 3 else {}
    more["transform"] = rasterio.Affine(10, 0, 0, 0, -10, 0)
    with rasterio.open(
        path, "w", driver="GTiff", width=30, height=20, count=bands, dtype="uint16", nodata=65535, **more
    ) as file:
        file.write(values)
    for reader in (read_image, windows):
        with pytest.warns(EvitsegWarning, match="its largest 16-bit value is 25[0-9]{2} of 65535"):
            reader(path)


def test_an_infrared_composite_is_read_with_a_warning() -> None:
    bands = [Band("red", "NIR"), Band("green", "Red"), Band("blue", "Green")]
    with pytest.warns(EvitsegWarning, match="as red, green and blue, although their names are NIR, Red, Green"):
        assert choose_bands("a.tif", bands, AS_STATED) == (0, 1, 2)
    with pytest.warns(EvitsegWarning, match="names are NIR, Red, Green"):
        assert choose_bands("a.tif", [Band("", band.name) for band in bands], AS_STATED) == (0, 1, 2)
