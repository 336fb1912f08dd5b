from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evitseg.errors import ImageError
from evitseg.labels import by_index, load_labels, numbered
from evitseg.raster.gdal import quiet_open
from evitseg.raster.masks import is_plain, read_mask, read_mask_file, read_truth
from evitseg.raster.png import save_mask
from tests.optional import needs


def write_tiff(path: Path, pixels: Any, **options: Any) -> None:
    needs("tifffile")
    import tifffile

    tifffile.imwrite(path, pixels, **options)


ROW = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])


def png(path: Path, depth: int, color_type: int, rows: list[bytes], width: int) -> Path:
    """A PNG of any depth, written by hand: Pillow's writer chooses for itself."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, color_type, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(("depth", "row", "levels"), [
    (1, b"\x50", [0, 1, 0, 1]), (2, b"\x1b", [0, 1, 2, 3]), (4, b"\x01\x2f", [0, 1, 2, 15]),
    (8, b"\0\1\2\xff", [0, 1, 2, 255]), (16, b"\0\0\0\1\1\0\xff\xff", [0, 1, 256, 65535]),
])  # fmt: skip
def test_gray_of_any_depth_is_not_stretched(depth: int, row: bytes, levels: list[int], tmp_path: Path) -> None:
    path = png(tmp_path / "m.png", depth, 0, [row, row], 4)
    assert read_mask(path).tolist() == [levels, levels]
    assert is_plain(path) == (depth >= 8)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_tiff_of_few_bits_is_not_stretched(bits: int, tmp_path: Path) -> None:
    needs("rasterio")
    levels = np.random.default_rng(0).integers(0, 2**bits, (5, 7), np.uint8)
    with quiet_open(
        tmp_path / "m.tif", "w", driver="GTiff", height=5, width=7, count=1, dtype="uint8", nbits=bits
    ) as file:
        file.write(levels, 1)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif"), levels)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8"]
)  # fmt: skip
def test_tiffs_of_all_number_types_are_read_or_refused(
    dtype: str, byteorder: Any, compression: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "m.tif"
    options: dict[str, Any] = {"byteorder": byteorder, "compression": compression}
    levels = ROW.astype(dtype)
    for tiled in ({}, {"tile": (16, 16)}):
        write_tiff(path, levels, **options, **tiled)
        if dtype in ("c8", "f2"):  # f2: GDAL reads half floats as float32, older ones not at all
            with pytest.raises(ImageError, match=r"m\.tif: ") if dtype == "c8" else Either():
                np.testing.assert_array_equal(read_mask(path), ROW)
            continue
        np.testing.assert_array_equal(read_mask(path), ROW)
        if dtype[0] == "f":
            write_tiff(path, levels + 0.5, **options, **tiled)
            with pytest.raises(ImageError, match=r"m\.tif: holds 0\.5; class numbers are integers"):
                read_mask(path)
            write_tiff(path, np.full_like(levels, np.nan), **options, **tiled)
            with pytest.raises(ImageError, match="holds nan"):
                read_mask(path)
        if dtype[0] != "u":
            write_tiff(path, levels - 1, **options, **tiled)
            with pytest.raises(ImageError, match="holds -1; class numbers are integers from 0 to 65535"):
                read_mask(path)
        if np.dtype(dtype).itemsize >= 4:
            write_tiff(path, levels + 70_000, **options, **tiled)
            with pytest.raises(ImageError, match="holds 70003"):
                read_mask(path)


class Either:
    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        return kind is None or kind is ImageError


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("bands", [3, 4])
def test_tiff_in_colours_is_read_by_colour(planar: Any, bands: int, tmp_path: Path) -> None:
    labels = numbered(4)
    colors = np.array([c.color for c in labels.classes], np.uint8)[ROW]
    if bands == 4:
        colors = np.dstack([colors, np.full(ROW.shape, 255, np.uint8)])
    extra = {"extrasamples": ["unassalpha"]} if bands == 4 else {}
    pixels = colors if planar == "contig" else np.moveaxis(colors, 2, 0)
    write_tiff(tmp_path / "m.tif", pixels, photometric="rgb", planarconfig=planar, **extra)
    np.testing.assert_array_equal(read_truth(tmp_path / "m.tif", labels), ROW)


def test_smaller_copies_are_no_pages_and_pages_are_refused(tmp_path: Path) -> None:
    needs("rasterio", "tifffile")
    levels = np.kron(ROW, np.ones((128, 128))).astype(np.uint8)
    with quiet_open(
        tmp_path / "cog.tif", "w", driver="COG", height=256, width=512, count=1, dtype="uint8", blocksize=128
    ) as file:
        file.write(levels, 1)
    import tifffile

    with tifffile.TiffFile(tmp_path / "cog.tif") as cog:
        assert len(cog.pages) > 1
    np.testing.assert_array_equal(read_mask(tmp_path / "cog.tif"), levels)
    write_tiff(tmp_path / "pages.tif", np.stack([levels] * 3), photometric="minisblack")
    with pytest.raises(ImageError, match="contains 3 images; a mask file has one"):
        read_mask(tmp_path / "pages.tif")
    frames = [Image.fromarray(levels), Image.fromarray(levels + 1)]
    frames[0].save(tmp_path / "m.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="contains 2 images"):
        read_mask(tmp_path / "m.gif")


@pytest.mark.parametrize(("name", "options"), [
    ("m.jpg", {}), ("m.webp", {"quality": 80}), ("m.tif", {"compression": "jpeg"}),
])  # fmt: skip
def test_lossy_masks_are_refused(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    Image.fromarray(np.kron(ROW, np.ones((8, 8))).astype(np.uint8)).convert("L").save(tmp_path / name, **options)
    with pytest.raises(ImageError, match=r"alters values; .*(PNG|lossless)"):
        read_mask(tmp_path / name)


@pytest.mark.parametrize(("name", "options"), [
    ("m.webp", {"lossless": True}), ("m.gif", {}), ("m.bmp", {}), ("m.png", {"interlace": 1}), ("m.tif", {}),
])  # fmt: skip
def test_lossless_formats_are_read(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    levels = np.kron(ROW, np.ones((8, 8))).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / name, **options)
    np.testing.assert_array_equal(read_truth(tmp_path / name, numbered(4)), levels)


def test_min_is_white_is_refused(tmp_path: Path) -> None:
    write_tiff(tmp_path / "m.tif", ROW.astype(np.uint8), photometric="miniswhite")
    with pytest.raises(ImageError, match="stores white as 0"):
        read_mask(tmp_path / "m.tif")


def test_transparency_counts_only_where_it_says_something(tmp_path: Path) -> None:
    labels = numbered(2)
    colors = np.array([[c.color for c in labels.classes]], np.uint8)
    alpha = np.array([[0, 255]], np.uint8)
    Image.fromarray(np.dstack([colors, alpha])).save(tmp_path / "a.png")
    assert read_truth(tmp_path / "a.png", labels).tolist() == [[0, 1]]
    Image.fromarray(np.dstack([colors[:, :1].repeat(2, 1), alpha])).save(tmp_path / "b.png")
    with pytest.raises(ImageError, match="pixels of the same colour differ in transparency"):
        read_truth(tmp_path / "b.png", labels)
    Image.fromarray(np.dstack([ROW, np.full(ROW.shape, 255)]).astype(np.uint8)).save(tmp_path / "c.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "c.png"), ROW)


def test_colours_of_16_bits_are_refused(tmp_path: Path) -> None:
    png(tmp_path / "m.png", 16, 2, [b"\0\1" * 3], 1)
    with pytest.raises(ImageError, match="16-bit colours are neither class numbers"):
        read_mask(tmp_path / "m.png")


def test_a_mask_is_turned_as_its_file_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ROW.astype(np.uint8)).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), np.rot90(ROW, -1))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read_mask(tmp_path / "m.png")
    assert not is_plain(tmp_path / "m.png")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"II*\0\x08\0\0\0", b"GIF89a", b"BM" + b"\xff" * 60])
def test_a_damaged_mask_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"m\.png: ") as error:
        read_mask_file(tmp_path / "m.png")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mask_format", ["palette", "gray"])
def test_own_masks_come_back_also_from_an_optimiser(mask_format: Any, tmp_path: Path) -> None:
    """What optimisers do without loss: sort the palette, trim it, store grey or a palette, drop what is text."""
    labels = load_labels("camvid")
    mask = np.random.default_rng(0).choice([0, 1, 3, 8, 10], (9, 11)).astype(np.uint8)
    save_mask(mask, tmp_path / "m.png", labels, mask_format)
    classes = by_index(labels)
    np.testing.assert_array_equal(read_mask_file(tmp_path / "m.png").classes(classes), mask)
    with Image.open(tmp_path / "m.png") as image:
        shown = image.convert("RGB")
    colors, order = np.unique(np.asarray(shown).reshape(-1, 3), axis=0, return_inverse=True)
    optimised = Image.fromarray(order.reshape(mask.shape).astype(np.uint8))
    assert not np.array_equal(np.asarray(optimised), mask)
    optimised.putpalette(colors.tobytes())
    optimised.save(tmp_path / "optimised.png", bits=4)
    np.testing.assert_array_equal(read_mask_file(tmp_path / "optimised.png").classes(classes), mask)


def test_a_mask_is_class_indices_with_the_palette(tmp_path: Path) -> None:
    labels = load_labels("camvid")
    mask = np.random.default_rng(0).integers(0, 11, (20, 30), np.uint8)
    mask[0, 0] = labels.ignore_index
    save_mask(mask, tmp_path / "new" / "a.png", labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "new" / "a.png"), mask)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), labels.palette[mask])


def test_a_mask_of_many_classes_is_sixteen_bit(tmp_path: Path) -> None:
    mask = np.array([[0, 299]], np.uint16)
    save_mask(mask, tmp_path / "a.png", numbered(300))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), mask)


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("語" * 78 + "_mask.png")
    save_mask(np.zeros((4, 4), np.uint8), path, numbered(2))
    assert path.exists()


def test_a_mask_cannot_be_written_with_loss(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="use the ending .png"):
        save_mask(np.zeros((4, 4), np.uint8), tmp_path / "a.jpg", numbered(2))


def test_a_gray_mask_holds_the_indices_as_levels(tmp_path: Path) -> None:
    mask = np.array([[0, 1], [10, 255]], np.uint8)
    save_mask(mask, tmp_path / "a.png", load_labels("camvid"), "gray")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), mask)
