from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.optional import needs

needs("rasterio", "tifffile", "zarr")

import rasterio
import rasterio.shutil
import tifffile
import zarr

from evitseg.errors import FileError, ImageError
from evitseg.labels import numbered
from evitseg.raster import open_mask_writer, open_raster
from evitseg.raster.gdal import quiet_open
from evitseg.raster.masks import read_mask
from tests.raster.samples import CAMVID, SIZE, geotiff, write_all


@pytest.mark.parametrize("num_classes", [11, 300])
@pytest.mark.parametrize("ending", ["png", "tif", "ome.tif", "zarr"])
def test_a_mask_file_holds_every_class(num_classes: int, ending: str, tmp_path: Path) -> None:
    labels = numbered(num_classes)
    mask = np.random.default_rng(6).integers(0, num_classes, SIZE).astype(labels.dtype)
    mask[:40, :50] = labels.ignore_index

    class Like:
        size = SIZE

    path = tmp_path / f"m.{ending}"
    with open_mask_writer(path, Like(), labels) as sink:
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

    with open_mask_writer(tmp_path / f"m.{ending}", Like(), CAMVID, "gray") as sink:
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
    with open_raster(path) as source, interrupted, open_mask_writer(out / f"m.{ending}", source, CAMVID) as sink:
        sink.write(0, 0, np.zeros((min(sink.tile[0], SIZE[0]), min(sink.tile[1], SIZE[1])), np.uint8))
        raise KeyboardInterrupt
    assert [(p.name, p.read_bytes()) for p in out.iterdir()] == before


FULL_DISK = """
import resource, signal, sys
import numpy as np
from evitseg.errors import FileError
from evitseg.labels import load_labels
from evitseg.raster import open_mask_writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))  # no file may grow beyond, as on a full disk

class Image:
    size = (2048, 2048)

noise = np.random.default_rng(0).integers(0, 11, Image.size).astype(np.uint8)
try:
    with open_mask_writer(sys.argv[1], Image(), load_labels("camvid")) as sink:
        for y in range(0, 2048, sink.tile[0]):
            for x in range(0, 2048, sink.tile[1]):
                sink.write(y, x, noise[y : y + sink.tile[0], x : x + sink.tile[1]])
except FileError as error:
    print("FileError", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a limit on the size of files is Unix's")
@pytest.mark.parametrize("ending", ["png", "tif", "ome.tif", "zarr"])
def test_a_full_disk_is_an_error_and_leaves_nothing(ending: str, tmp_path: Path) -> None:
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
from evitseg.raster import open_mask_writer, open_raster

if sys.argv[3] == "whole":
    from PIL import Image
    Image.MAX_IMAGE_PIXELS = None
    np.asarray(Image.open(sys.argv[1]))
else:
    with open_raster(sys.argv[1]) as source:
        if sys.argv[3] == "open":
            source.read(0, 0, 1, 1)
        else:
            with open_mask_writer(sys.argv[2], source, load_labels("camvid")) as sink:
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


def test_a_mask_is_written_in_known_formats_only(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    with open_raster(geotiff(tmp_path / "a.tif", pixels)) as source:
        refused = pytest.raises(ImageError, match="use .tif, .png or .zarr")
        with refused, open_mask_writer(tmp_path / "m.jpg", source, CAMVID):
            pass
        (tmp_path / "m.tif").mkdir()
        with pytest.raises(FileError, match="a folder"), open_mask_writer(tmp_path / "m.tif", source, CAMVID):
            pass
        (tmp_path / "file").touch()
        with (
            pytest.raises(FileError, match="cannot be written"),
            open_mask_writer(tmp_path / "file/m.png", source, CAMVID),
        ):
            pass
