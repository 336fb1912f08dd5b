from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evitseg.errors import FileError, ImageError
from evitseg.raster.files import image_size, read_image, save_image
from evitseg.raster.orientation import orientation_of_file
from tests.optional import needs

Array = NDArray[np.uint8]


@pytest.fixture
def pixels() -> Array:
    return np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "webp"])
def test_lossless_files_come_back_as_they_were(ending: str, pixels: Array, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(pixels).save(path, lossless=True)
    np.testing.assert_array_equal(read_image(path), pixels)


def test_jpeg_comes_back_nearly(photograph: Array, tmp_path: Path) -> None:
    Image.fromarray(photograph).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - photograph).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, pixels: Array, tmp_path: Path) -> None:
    # How the stored image must be turned, from the EXIF standard, in numpy's words.
    turns: dict[int, Callable[[Array], Array]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
        8: np.rot90,
    }
    upright = turns[orientation](pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), upright)
    assert image_size(tmp_path / "a.png") == upright.shape[:2]


def test_a_pil_image_is_left_as_it_was(pixels: Array) -> None:
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = 6
    assert read_image(image).shape == (14, 9, 3)
    assert image.size == (14, 9)


def test_grey_palette_bilevel_and_alpha_become_rgb(pixels: Array, tmp_path: Path) -> None:
    grey = pixels[..., 0]
    path = tmp_path / "a.png"
    Image.fromarray(grey).save(path)
    np.testing.assert_array_equal(read_image(path), np.stack([grey] * 3, -1))

    palette = Image.fromarray((grey % 4).astype(np.uint8))
    palette.putpalette([0, 0, 0, 250, 10, 20, 30, 240, 50, 60, 70, 230])
    palette.save(path)
    expected = np.array([[0, 0, 0], [250, 10, 20], [30, 240, 50], [60, 70, 230]], np.uint8)[grey % 4]
    np.testing.assert_array_equal(read_image(path), expected)

    Image.fromarray(grey > 127).save(path)
    np.testing.assert_array_equal(read_image(path)[..., 1], np.where(grey > 127, 255, 0))

    alpha = np.concatenate([pixels, pixels[..., :1]], -1)
    Image.fromarray(alpha).save(path)
    np.testing.assert_array_equal(read_image(path), pixels)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0, 0], [255, 0, 0])
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg")[0, 0].astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_keep_their_upper_eight(ending: str, tmp_path: Path) -> None:
    levels = np.array([[0, 255, 256, 65_535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{ending}")[0, :, 0], [0, 0, 1, 255])


def test_sixteen_bit_colours_in_a_png_keep_their_upper_eight(tmp_path: Path) -> None:
    levels = np.array([[[0x1234, 0xABCD, 0xFF00]]], ">u2")
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + levels.tobytes())) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, 0], [0x12, 0xAB, 0xFF])


def bomb() -> bytes:
    """A PNG header of 40000×40000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + data + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def jpeg(pixels: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def test_every_bad_file_is_one_sentence_with_its_name(photograph: Array, tmp_path: Path) -> None:
    cases = {
        "bomb.png": (bomb(), "limit that guards against decompression bombs"),
        "truncated.jpg": (jpeg(photograph)[:3000], "truncated or damaged"),
        "text.jpg": (b"this is a text file\n" * 20, "not in a supported image format"),
        "empty.png": (b"", "an empty file"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=reason) as error:
            read_image(tmp_path / name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(ImageError, match="a folder"):
        read_image(tmp_path)
    needs("tifffile")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ImageError, match="float32 pixels have no agreed range; .* --range"):
        read_image(tmp_path / "float.tif")


@pytest.mark.filterwarnings("ignore")  # Pillow's own words about damage
def test_every_cut_and_every_flipped_byte_is_an_image_or_a_sentence(photograph: Array, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for ending, options in {"jpg": {}, "png": {}, "webp": {}, "tif": {"compression": "tiff_lzw"}, "bmp": {}}.items():
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "a camera"
        image = Image.fromarray(photograph[:40, :60])
        image.save(file, Image.registered_extensions()[f".{ending}"], **options, exif=exif)
        whole = file.getvalue()
        for _ in range(40):
            content = bytearray(whole[: rng.integers(1, len(whole))] if rng.random() < 0.5 else whole)
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
            path = tmp_path / f"a.{ending}"
            path.write_bytes(content)
            try:
                assert read_image(path).shape[2] == 3
            except ImageError as error:
                assert path.name in str(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0", b"Exif\0\0", b"Exif\0\0garbage of no kind at all", b"\0" * 9])
@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
def test_a_whole_image_with_damaged_exif_is_read(ending: str, exif: bytes, photograph: Array, tmp_path: Path) -> None:
    Image.fromarray(photograph).save(tmp_path / f"a.{ending}", exif=exif)
    assert read_image(tmp_path / f"a.{ending}").shape == photograph.shape


def test_a_format_that_needs_an_outside_program_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="not in a supported image format"):
        read_image(tmp_path / "a.jpg")


def test_pil_images_are_guarded_as_files_are(photograph: Array, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        read_image(Image.new("RGB", (0, 5)))
    (tmp_path / "cut.jpg").write_bytes(jpeg(photograph)[:3000])
    with Image.open(tmp_path / "cut.jpg") as image, pytest.raises(ImageError, match="truncated"):
        read_image(image)
    for nothing in (None, [photograph], 3):
        with pytest.raises(ImageError, match="is not an image; give a path"):
            read_image(nothing)  # type: ignore[arg-type]


def test_several_threads_read_and_leave_the_process_as_it_was(photograph: Array, tmp_path: Path) -> None:
    Image.fromarray(photograph).save(tmp_path / "a.jpg")
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(read_image, [tmp_path / "a.jpg"] * 80))) == 80
    assert warnings.filters == before


def test_arrays_that_are_no_images_are_refused(pixels: Array) -> None:
    arrays: list[NDArray[Any]] = [
        pixels.astype(np.float32),
        pixels[..., :2],
        np.zeros((0, 4, 3), np.uint8),
        pixels[0, 0],
    ]
    for array in arrays:
        with pytest.raises(ImageError):
            read_image(array)
    np.testing.assert_array_equal(read_image(pixels[..., 0])[..., 2], pixels[..., 0])


def test_a_full_disk_is_one_sentence_and_leaves_nothing(photograph: Array, tmp_path: Path) -> None:
    # A limit on the size of files does what a full disk does, in a process of its own.
    code = (
        "import resource, signal, sys; from PIL import Image; from evitseg.raster.files import save_image;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000));"
        f"save_image(Image.effect_noise((400, 400), 90), {str(tmp_path / 'a.jpg')!r})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "FileError" in run.stderr
    assert "a.jpg: cannot be written (File too large)" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_image_wider_than_a_jpeg_can_be_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="write a PNG"):
        save_image(Image.new("RGB", (70_000, 2)), tmp_path / "a.jpg")


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match=r"b\.png: cannot be written"):
        save_image(Image.new("RGB", (4, 4)), tmp_path / "file" / "b.png")


@pytest.mark.parametrize("ending", ["tif", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_that_is_stored_turned_is_turned_once(orientation: int, ending: str, tmp_path: Path) -> None:
    stored = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / f"a.{ending}", exif=exif)
    # By TIFF's definition: which side of what is seen the stored rows and columns begin at.
    upright = [
        stored, stored[:, ::-1], stored[::-1, ::-1], stored[::-1],
        stored.T, stored[::-1].T, stored[::-1, ::-1].T, stored[:, ::-1].T,
    ][orientation - 1]  # fmt: skip
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{ending}")[..., 0], upright)
    assert image_size(tmp_path / f"a.{ending}") == upright.shape


@pytest.mark.parametrize("shape", [(5,), (4, 4, 3, 1), (0, 4), (4, 4, 2)])
def test_an_array_of_another_shape_is_refused_whatever_its_numbers(shape: tuple[int, ...]) -> None:
    for dtype in (np.uint8, np.uint16):
        with pytest.raises(ImageError, match="is not an image"):
            read_image(np.zeros(shape, dtype))


@pytest.mark.parametrize(("exif", "expected"), [(None, 6), (1, 1), (3, 3), (9, 6)])
def test_the_orientation_of_xmp_counts_only_if_exif_states_none(
    exif: int | None, expected: int, tmp_path: Path
) -> None:
    block = Image.Exif()
    if exif is not None:
        block[0x0112] = exif
    xmp = b'<x:xmpmeta><r:D tiff:Orientation="6"/></x:xmpmeta>'
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=block, xmp=xmp)
    assert orientation_of_file(tmp_path / "a.jpg") == expected
