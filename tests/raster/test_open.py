from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.optional import needs

needs("rasterio", "tifffile", "zarr", "pyogrio")

import tifffile
import zarr

from evitseg.errors import ImageError
from evitseg.raster import open_raster
from evitseg.raster.files import read_image
from evitseg.raster.gdal import quiet_open
from tests.raster.samples import broken, geotiff, read_at_random, slide


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_upright(orientation: int, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels[:300, :400]).save(tmp_path / "a.jpg", exif=exif, subsampling=0)
    with open_raster(tmp_path / "a.jpg") as source:
        expected = read_image(tmp_path / "a.jpg")
        assert source.size == expected.shape[:2]
        for top, left, height, width in ((0, 0, *source.size), (20, 130, 100, 60)):
            difference = (
                source.read(top, left, height, width).astype(int) - expected[top : top + height, left : left + width]
            )
            assert np.abs(difference).max() <= 4  # two libraries' rounding of the same JPEG


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
    with open_raster(path, scratch=tmp_path) as source:
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


@pytest.mark.parametrize(("kind", "name"), [("geotiff", "a.tif"), ("slide", "a.ome.tif"), ("zarr", "a.zarr")])
def test_a_damaged_tile_is_reported_and_the_rest_is_read(
    kind: str, name: str, tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    path = tmp_path / name
    broken(path, kind, pixels)
    with open_raster(path) as source:
        assert source.tile == (256, 256)
        for _ in range(2):
            with pytest.raises(ImageError, match=rf"{name}: the window of 100×50 pixels at x 600, y 300 cannot"):
                source.read(300, 600, 50, 100)
            for window in ((0, 0, 256, 1400), (256, 0, 256, 512), (256, 768, 300, 632), (512, 0, 588, 1400)):
                top, left, height, width = window
                np.testing.assert_array_equal(source.read(*window), pixels[top : top + height, left : left + width])


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_photograph_is_read_down_to_its_damage(kind: str, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, {"png": "PNG", "jpg": "JPEG"}[kind])
    path = tmp_path / f"a.{kind}"
    half = content.getvalue()[: len(content.getvalue()) // 2]
    # A JPEG without its end is refused: its decoder would give grey below without a word.
    path.write_bytes(half + b"\xff\xd9" * (kind == "jpg"))
    with open_raster(path) as source:
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
    refused = pytest.raises(ImageError, match="1000000×1000000 pixels, more than the limit of 100,000,000,000")
    for name in ("a.tif", "b.svs", "c.zarr"):
        with refused, open_raster(tmp_path / name):
            pass
    zarr.create_array(tmp_path / "d.zarr", shape=(60000, 60000), chunks=(60000, 60000), dtype=np.uint8)
    geotiff(tmp_path / "e.tif", np.zeros((10, 10), np.uint8))
    with quiet_open(
        tmp_path / "e.tif", "w", driver="GTiff", height=20000, width=20000, count=1, dtype="uint8", tiled=True,
        sparse_ok=True, compress="deflate", blockxsize=20000, blockysize=20000,
    ):  # fmt: skip
        pass
    for name in ("d.zarr", "e.tif"):
        with (
            pytest.raises(ImageError, match="blocks of .* more than the limit of 268,435,456"),
            open_raster(tmp_path / name),
        ):
            pass


def test_other_files_and_folders_are_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "mosaic.vrt").write_text("<VRTDataset rasterXSize='9' rasterYSize='9'></VRTDataset>")
    (tmp_path / "mosaic.tif").write_text("<VRTDataset rasterXSize='9' rasterYSize='9'></VRTDataset>")
    (tmp_path / "text.tif").write_text("hello")
    (tmp_path / "cut.tif").write_bytes(b"II*\0\x08\0\0\0\xff\xff")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 30)
    (tmp_path / "folder").mkdir()
    sentences = {
        "mosaic.vrt": "gdal_translate", "mosaic.tif": "gdal_translate", "text.tif": "not in a supported",
        "cut.tif": "truncated or damaged", "cut.png": "truncated or damaged", "folder": "a folder",
        "absent.tif": "no such file", "vsicurl/http/a.tif": "no such file",
    }  # fmt: skip
    for name, sentence in sentences.items():
        with pytest.raises(ImageError, match=sentence), open_raster(tmp_path / name):
            pass
    for name in ("/vsicurl/http://127.0.0.1:9/a.tif", "zip://a.zip!a.tif", "GTIFF_DIR:1:a.tif", "http://127.0.0.1/a"):
        with pytest.raises(ImageError, match="no such file"), open_raster(name):
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
def test_a_missing_package_is_reported_with_its_extra(
    package: str, name: str, extra: str, tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    geotiff(tmp_path / "a.tif", pixels[..., 0] % 3)
    zarr.create_array(tmp_path / "a.zarr", data=pixels)
    slide(tmp_path / "a.svs", pixels)
    work = f"with open_raster({str(tmp_path / name)!r}): pass"
    if not name:
        work = f"polygonize({str(tmp_path / 'a.tif')!r}, {str(tmp_path / 'o.gpkg')!r}, numbered(3))"
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from evitseg.raster import open_raster; from evitseg.raster.polygons import polygonize\n"
        f"from evitseg.labels import numbered\n{work}"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("evitseg.errors.MissingPackageError"), run.stderr
    assert f"pip install '.[{extra}" in last
