"""`evitseg predict` on images that go in tiles: kinds of files, places on earth, damage, interruptions."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from tests.optional import needs

needs("rasterio", "tifffile", "zarr", "pyogrio")

import rasterio
import tifffile
import zarr

import evitseg
from evitseg.cli import app
from evitseg.labels import load_labels
from evitseg.raster import open_mask_writer, open_raster
from evitseg.system.leftovers import find_leftovers
from evitseg.tiling.memory_model import whole_memory
from evitseg.tiling.network import Network
from evitseg.tiling.sliding_window import sliding_window

IGNORE = 255
UTM = "EPSG:32633"
HELD = {"tif": 220, "slide": 195, "zarr": 135}
"""MiB that the process and what reads a kind of image hold beside bands."""


def exact(kind: str, mib: int = 60) -> tuple[str, ...]:
    """Bands of a fraction of the image."""
    return ("--exact", "--precision", "float32", "--memory", f"{HELD[kind] + mib}MiB")


TRANSFORM = rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000)


def predict(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "evitseg", "predict", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "100"}
    )


@pytest.fixture(scope="module")
def street(photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(photograph).resize((700, 580)))


@pytest.fixture(scope="module")
def whole(street: NDArray[np.uint8]) -> NDArray[np.integer]:
    """The mask of the image in memory."""
    mask: NDArray[np.integer] = evitseg.load(precision="float32", size="native").mask(street)
    return mask


def write_geotiff(path: Path, image: NDArray[np.uint8], nodata: int | None = None, **options: object) -> None:
    height, width, _ = image.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=3, dtype="uint8", crs=UTM, transform=TRANSFORM,
        tiled=True, blockxsize=128, blockysize=128, compress="deflate", nodata=nodata, photometric="rgb", **options,
    ) as file:  # fmt: skip
        file.write(np.moveaxis(image, 2, 0))
        file.build_overviews([2, 4])


def read_geotiff(path: Path) -> NDArray[np.integer]:
    with rasterio.open(path) as file:
        mask: NDArray[np.integer] = file.read(1)
        return mask


def damage(path: Path) -> None:
    """The tile of 128×128 pixels at x 256, y 128."""
    with rasterio.open(path) as file:
        place, size = (int(file.get_tag_item(f"BLOCK_{what}_2_1", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE"))
    content = bytearray(path.read_bytes())
    content[place : place + size] = bytes(size)
    path.write_bytes(content)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".evitseg-*")]


def test_a_geotiff_becomes_a_geotiff_of_the_whole_images_mask(
    street: NDArray[np.uint8], whole: NDArray[np.integer], tmp_path: Path
) -> None:
    # A pixel without data here and there: every token still has some, so that the sums are the whole image's.
    image = street.clip(1)
    image[::7, ::9] = 0
    expected = evitseg.load(precision="float32", size="native").mask(image)
    expected[::7, ::9] = IGNORE
    write_geotiff(tmp_path / "field.tif", image, nodata=0)
    run = predict("field.tif", *exact("tif"), "--out", "mask.tif", "--polygons", "fields.gpkg", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    rows = [line.split("%")[0].split() for line in run.stdout.splitlines() if "%" in line]
    assert rows[-1] == ["no", "data", f"{100 * (expected == IGNORE).mean():.1f}"]
    assert sum(float(row[-1]) for row in rows) == pytest.approx(100)
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert (mask.crs, mask.transform, mask.nodata) == (rasterio.CRS.from_string(UTM), TRANSFORM, IGNORE)
        assert (mask.overviews(1), mask.block_shapes[0], mask.compression.name) == ([2, 4], (512, 512), "deflate")
        found = mask.read(1)
    np.testing.assert_array_equal(found == IGNORE, expected == IGNORE)
    assert (found != expected).mean() < 1e-4
    import pyogrio

    assert pyogrio.read_info(tmp_path / "fields.gpkg")["crs"] == UTM
    assert not leftovers(tmp_path)


def test_without_exact_a_mask_file_is_what_predict_gives(photograph: NDArray[np.uint8], tmp_path: Path) -> None:
    """The model's own working size, where the image fits."""
    write_geotiff(tmp_path / "a.tif", photograph[:200, :300])
    common = ("--precision", "float32", "--no-overlay")
    for out in ("o", "mask.tif"):
        run = predict("a.tif", *common, "--out", out, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
    np.testing.assert_array_equal(read_geotiff(tmp_path / "o/a_mask.tif"), read_geotiff(tmp_path / "mask.tif"))


def test_a_slide_becomes_a_pyramid_of_the_whole_images_mask(
    street: NDArray[np.uint8], whole: NDArray[np.integer], tmp_path: Path
) -> None:
    about = "Aperio Image Library v12.0\r\n700x580 [0,0 700x580] (240x240) |AppMag = 20|MPP = 0.4990"
    options: dict[str, Any] = {"tile": (240, 240), "compression": "deflate", "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "slide.svs") as file:
        file.write(street, description=about, **options)
        file.write(street[::4, ::4], description=about, photometric="rgb", metadata=None)  # the thumbnail
        file.write(street[::2, ::2], description=about, **options)
    run = predict("slide.svs", *exact("slide"), "--out", "mask.ome.tif", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    with tifffile.TiffFile(tmp_path / "mask.ome.tif") as result:
        mask = result.series[0].asarray()
        assert len(result.series[0].levels) == 2
        assert 'PhysicalSizeX="0.499"' in result.ome_metadata
    assert (mask != whole).mean() < 1e-4
    assert not leftovers(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_photograph_beyond_pillows_limit_goes_in_bands_by_itself(street: NDArray[np.uint8], tmp_path: Path) -> None:
    """Of 208 megapixels, with sides that strides divide; Pillow refuses more than 179."""
    image = Image.fromarray(np.tile(street, (32, 16, 1)))
    assert image.width * image.height > 178_956_970
    image.save(tmp_path / "huge.jpg", quality=90)
    run = predict("huge.jpg", "--memory", "1GiB", "--out", "mask.tif", "--json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert (mask.height, mask.width) == image.size[::-1]
        # Eight copies further a copy lies alike to the network's strides and to the JPEG's blocks.
        one, other = (
            mask.read(1, window=((580 * i, 580 * (i + 1)), (700 * j, 700 * (j + 1)))) for i, j in ((8, 4), (16, 12))
        )
    assert (one == other).mean() > 0.999
    assert len(np.unique(one)) > 4
    assert not leftovers(tmp_path)


def test_zarr_becomes_zarr(street: NDArray[np.uint8], whole: NDArray[np.integer], tmp_path: Path) -> None:
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=street.shape, chunks=(256, 256, 3), dtype="uint8")
    array[:] = street
    run = predict("a.zarr", *exact("zarr"), "--out", "o", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    mask = np.asarray(zarr.open_array(str(tmp_path / "o/a_mask.zarr"), mode="r")[:])
    assert (mask != whole).mean() < 1e-4
    run = predict("a.zarr", *exact("zarr"), "--out", "o", cwd=tmp_path)
    assert run.returncode == 1
    assert "folders are never replaced" in run.stderr
    assert not leftovers(tmp_path)


@pytest.mark.slow
def test_killed_five_times_and_resumed_the_command_writes_the_same_file(
    street: NDArray[np.uint8], tmp_path: Path
) -> None:
    write_geotiff(tmp_path / "a.tif", np.tile(street, (12, 5, 1)))
    (tmp_path / "work").mkdir()
    command = [
        sys.executable, "-m", "evitseg", "predict", "a.tif", *exact("tif", 12), "--json", "--out",
    ]  # fmt: skip
    assert subprocess.run([*command, "once.tif"], cwd=tmp_path, capture_output=True, check=False).returncode == 0
    rng = random.Random(5)
    for _ in range(5):
        with subprocess.Popen([*command, "mask.tif", "--scratch", "work"], cwd=tmp_path, stdout=-3) as process:
            before = tiles_done(tmp_path)
            while tiles_done(tmp_path) == before and process.poll() is None:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
        assert not (tmp_path / "mask.tif").exists()
    run = subprocess.run([*command, "mask.tif", "--scratch", "work"], cwd=tmp_path, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["images"][0]["resumed_bands"] >= 5
    assert (tmp_path / "mask.tif").read_bytes() == (tmp_path / "once.tif").read_bytes()
    assert not leftovers(tmp_path)


def tiles_done(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("work/*/done_*"))


def test_a_region_from_its_context_is_that_part_of_the_mask_in_its_place(
    street: NDArray[np.uint8], tmp_path: Path
) -> None:
    write_geotiff(tmp_path / "a.tif", street)
    run = predict("a.tif", *exact("tif"), "--save-context", "a.npz", "--out", "mask.tif", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    region = ("--context", "a.npz", "--region", "310,50,200,120", "--out", "region.tif")
    run = predict("a.tif", "--precision", "float32", *region, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    with rasterio.open(tmp_path / "region.tif") as mask:
        assert (mask.transform.c, mask.transform.f) == (400_000 + 310 / 2, 5_000_000 - 50 / 2)
        assert (mask.read(1) != read_geotiff(tmp_path / "mask.tif")[50:170, 310:510]).mean() < 1e-4


PEAK = """
import sys
from evitseg.system.machine import peak_mib
from evitseg.cli import app
try:
    app(sys.argv[1:])
finally:
    print(peak_mib())
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(HELD))
def test_the_memory_is_kept_whatever_reads_the_image(kind: str, street: NDArray[np.uint8], tmp_path: Path) -> None:
    image = np.tile(street, (6, 5, 1))
    name = {"tif": "a.tif", "slide": "a.ome.tif", "zarr": "a.zarr"}[kind]
    if kind == "tif":
        write_geotiff(tmp_path / name, image)
    elif kind == "slide":
        with tifffile.TiffWriter(tmp_path / name, ome=True) as file:
            file.write(image, tile=(256, 256), compression="deflate", photometric="rgb")
    else:
        zarr.create_array(str(tmp_path / name), data=image, chunks=(256, 256, 3))
    memory = HELD[kind] + (80 if kind == "zarr" else 40)  # the mask is read with GDAL, for the overlay
    command = ["predict", name, "--exact", "--memory", f"{memory}MiB", "--out", "mask.png"]
    run = subprocess.run(
        [sys.executable, "-c", PEAK, *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert memory - 100 < float(run.stdout.splitlines()[-1]) < memory


@pytest.mark.parametrize(
    "how", [exact("tif"), ("--sliding-window", "256", "--precision", "float32")], ids=["exact", "blend"]
)
def test_a_damaged_tile_is_named_left_out_and_the_status_is_1(
    how: tuple[str, ...], street: NDArray[np.uint8], tmp_path: Path
) -> None:
    write_geotiff(tmp_path / "a.tif", street)
    damage(tmp_path / "a.tif")
    run = predict("a.tif", *how, "--out", "mask.tif", cwd=tmp_path)
    assert run.returncode == 1
    assert run.stderr.count("error: ") == 1
    assert "error: a.tif: the window of 128×128 pixels at x 256, y 128 cannot be read" in run.stderr
    expected = np.zeros(street.shape[:2], np.bool_)
    expected[128:256, 256:384] = True
    np.testing.assert_array_equal(read_geotiff(tmp_path / "mask.tif") == IGNORE, expected)


def test_a_damaged_tile_in_a_region_or_around_it_is_named(street: NDArray[np.uint8], tmp_path: Path) -> None:
    write_geotiff(tmp_path / "a.tif", street)
    assert predict("a.tif", *exact("tif"), "--save-context", "c.npz", "--out", "m.tif", cwd=tmp_path).returncode == 0
    about = (tmp_path / "a.tif").stat()
    damage(tmp_path / "a.tif")
    os.utime(tmp_path / "a.tif", ns=(about.st_atime_ns, about.st_mtime_ns))
    region = ("--precision", "float32", "--context", "c.npz", "--region", "200,100,300,200", "--out", "r.tif")
    run = predict("a.tif", *region, cwd=tmp_path)
    assert run.returncode == 1
    assert "x 256, y 128" in run.stderr
    expected = np.zeros((200, 300), np.bool_)
    expected[28:156, 56:184] = True
    np.testing.assert_array_equal(read_geotiff(tmp_path / "r.tif") == IGNORE, expected)


def test_in_a_folder_only_what_does_not_fit_goes_in_bands(street: NDArray[np.uint8], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    Image.fromarray(street[:64, :96]).save(tmp_path / "data/a.png")
    write_geotiff(tmp_path / "data/a.tif", np.tile(street, (7, 7, 1)))
    (tmp_path / "data/torn.tif").write_bytes(b"II*\0" + bytes(20))
    network = Network(evitseg.bundled.bundled_models()["b0-camvid"])
    features = network.engine.memory((608, 736))
    limit = whole_memory(network.manifest.model, (4060, 4900), (608, 736), features) - 1
    run = predict("data", "--size", "608", "--memory", limit, "--out", "o", cwd=tmp_path)
    assert run.returncode == 1
    assert "error: data/torn.tif: truncated or damaged" in run.stderr
    names = sorted(path.name for path in (tmp_path / "o").iterdir())
    assert "a.tif: no overlay." in run.stdout
    assert names == ["a_png_mask.png", "a_png_overlay.jpg", "a_tif_mask.tif", "a_tif_mask.tif.aux.xml"]
    assert read_geotiff(tmp_path / "o/a_tif_mask.tif").shape == (4060, 4900)
    run = predict("data", "--skip-existing", "--out", "o", cwd=tmp_path)
    assert "1 input has results already" in run.stdout  # the other now has memory for its overlay


def test_blended_windows_keep_place_and_nodata_and_are_what_python_gives(
    street: NDArray[np.uint8], tmp_path: Path
) -> None:
    image = street.clip(1)
    image[:100, :200] = 0
    write_geotiff(tmp_path / "a.tif", image, nodata=0)
    common = ("--sliding-window", "128", "--precision", "float32")
    run = predict("a.tif", *common, "--out", "mask.tif", "--polygons", "p.gpkg", "--json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    network = Network(evitseg.bundled.bundled_models()["b0-camvid"], "float32")
    with (
        open_raster(tmp_path / "a.tif") as source,
        open_mask_writer(tmp_path / "b.tif", source, network.labels) as sink,
    ):
        found = sliding_window(network, source, sink, 128)
    assert (tmp_path / "mask.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert (file.crs, file.transform, file.nodata) == (rasterio.CRS.from_string(UTM), TRANSFORM, IGNORE)
        assert file.overviews(1) == [2, 4]
        mask = file.read(1)
    np.testing.assert_array_equal(mask == IGNORE, (image == 0).all(2))
    (told,) = json.loads(run.stdout)["images"]
    assert told["fractions"] == {
        name: pytest.approx((mask == i).mean()) for i, name in enumerate(network.labels.names) if found.counts[i]
    }
    assert "car" in told["fractions"]
    assert list(told["fractions"].values()) == sorted(told["fractions"].values(), reverse=True)
    import pyogrio

    assert pyogrio.read_info(tmp_path / "p.gpkg")["crs"] == UTM
    assert not leftovers(tmp_path)


def test_every_kind_of_image_in_a_folder_is_blended_at_its_own_size_but_those_that_are_done(
    street: NDArray[np.uint8], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    Image.fromarray(street).save(tmp_path / "data/a.png")
    write_geotiff(tmp_path / "data/b.tif", street)
    array = zarr.create_array(str(tmp_path / "data/c.zarr"), shape=street.shape, chunks=(256, 256, 3), dtype="uint8")
    array[:] = street
    about = "Aperio Image Library v12.0\r\n700x580 [0,0 700x580] (240x240) |AppMag = 20|MPP = 0.4990"
    tifffile.imwrite(tmp_path / "data/d.svs", street, tile=(240, 240), description=about, metadata=None)
    (tmp_path / "data/torn.tif").write_bytes(b"II*\0" + bytes(20))
    common = ("data", "--sliding-window", "192", "--precision", "float32", "--memory", "1GiB", "--out", "o")
    run = predict(*common, cwd=tmp_path)
    assert run.returncode == 1
    assert "error: data/torn.tif: truncated or damaged" in run.stderr
    assert "tifffile" not in run.stderr
    assert "a.png, 700×580, in sliding windows" in run.stdout
    with Image.open(tmp_path / "o/a_mask.png") as image:
        mask = np.asarray(image)
    for other in (
        read_geotiff(tmp_path / "o/b_mask.tif"),
        np.asarray(zarr.open_array(str(tmp_path / "o/c_mask.zarr"), mode="r")[:]),
        tifffile.imread(tmp_path / "o/d_mask.tif"),
    ):
        np.testing.assert_array_equal(other, mask)
    (tmp_path / "o/b_mask.tif").unlink()
    run = predict(*common, "--skip-existing", "--size", "128", cwd=tmp_path)
    assert "3 inputs have results already" in run.stdout
    assert 0.01 < (read_geotiff(tmp_path / "o/b_mask.tif") != mask).mean() < 0.6
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("beside", "sentence"),
    [
        *((option, f"{option[0]}: cannot be combined with --sliding-window") for option in (
            ("--exact",), ("--context-window", "960"), ("--save-context", "a.npz"), ("--context", "a.npz"),
            ("--region", "0,0,9,9"), ("--verify",), ("--ray", "auto"),
        )),
        (("--engine", "onnxruntime"), "needs the native engine"),
        (("--sliding-window", "1000"), "a window of 1000 pixels does not fit the network; give a multiple of 64."),
    ],
)  # fmt: skip
def test_beside_blended_windows_what_they_cannot_do_is_refused(
    beside: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    command = ["predict", str(tmp_path / "a.tif"), "--sliding-window", "1024", *beside, "--out", str(out)]
    run = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
    assert run.exit_code == 2
    assert sentence in run.output
    assert not out.exists()


def test_too_little_memory_for_blended_windows_leaves_no_mask(street: NDArray[np.uint8], tmp_path: Path) -> None:
    write_geotiff(tmp_path / "a.tif", street)
    run = predict("a.tif", "--sliding-window", "512", "--memory", "90MiB", "--out", "mask.tif", cwd=tmp_path)
    assert run.returncode == 1
    assert run.stderr.startswith("error: a.tif: 90 MiB of memory is not enough: windows of 512 pixels ")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
def test_an_interrupt_leaves_nothing_of_a_mask_of_blended_windows(street: NDArray[np.uint8], tmp_path: Path) -> None:
    write_geotiff(tmp_path / "a.tif", np.tile(street, (6, 6, 1)))
    command = [sys.executable, "-m", "evitseg", "predict", "a.tif", "--sliding-window", "128", "--out", "mask.tif"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not leftovers(tmp_path) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "interrupted; mask.tif was not written. The same command starts over."
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_a_large_image_gets_a_reduced_overlay_or_a_pyramid_in_its_place(
    street: NDArray[np.uint8], tmp_path: Path
) -> None:
    write_geotiff(tmp_path / "a.tif", street)
    run = predict("a.tif", *exact("tif"), "--overlay", "--save-context", "c.npz", "--out", "o", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    with rasterio.open(tmp_path / "o/a_overlay.tif") as drawn, rasterio.open(tmp_path / "o/a_mask.tif") as mask:
        assert (drawn.crs, drawn.transform, drawn.shape) == (mask.crs, mask.transform, mask.shape)
    region = ("--context", "c.npz", "--region", "310,50,200,120", "--precision", "float32", "--no-legend")
    run = predict("a.tif", *region, "--out", "r", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    with Image.open(tmp_path / "r/a_x310_y50_200x120_overlay.jpg") as part:
        assert part.size == (200, 120)
        shown = np.asarray(part).astype(float)
    expected = Image.fromarray(street[50:170, 310:510])
    mask_of_part = read_geotiff(tmp_path / "r/a_x310_y50_200x120_mask.tif")
    colors = load_labels("camvid").palette[mask_of_part]
    assert np.median(np.abs(shown - np.asarray(Image.blend(expected, Image.fromarray(colors), 0.55)))) <= 3
    run = predict("a.tif", *exact("tif"), "--overlay", "--legend", "--out", "o", cwd=tmp_path)
    assert run.returncode == 1
    assert "has no legend" in run.stderr


def test_interrupted_work_lies_next_to_the_mask_where_clean_finds_it(
    street: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evitseg.cli.tiled_results import Followed

    def interrupt(self: Followed, progress: object) -> None:
        raise KeyboardInterrupt

    write_geotiff(tmp_path / "a.tif", street)
    monkeypatch.setattr("evitseg.tiling.stream._plan_in_memory", lambda *arguments: None)
    with monkeypatch.context() as patch:
        patch.setattr(Followed, "progress", interrupt)
        run = CliRunner().invoke(app, ["predict", str(tmp_path / "a.tif"), "--exact", "--out", str(tmp_path / "o")])
    assert run.exit_code != 0
    assert f"from hidden files in {tmp_path / 'o'}" in run.output
    (left,) = find_leftovers(tmp_path)
    assert (left.state, left.path.parent, left.image) == ("resumable", tmp_path / "o", str(tmp_path / "a.tif"))
    run = CliRunner().invoke(app, ["predict", str(tmp_path / "a.tif"), "--exact", "--out", str(tmp_path / "o")])
    assert run.exit_code == 0, run.output
    assert not find_leftovers(tmp_path)
    again = [
        "predict",
        str(tmp_path / "a.tif"),
        "--exact",
        "--overlay",
        "--skip-existing",
        "--out",
        str(tmp_path / "o"),
    ]
    assert CliRunner().invoke(app, again).exit_code == 0  # the reduced overlay is not the pyramid that is asked for
    assert (tmp_path / "o/a_overlay.tif").exists()


def test_an_overlay_that_needs_more_memory_is_refused_or_left_out(
    street: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_geotiff(tmp_path / "a.tif", street)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evitseg.tiling.memory_model.overlay_memory", lambda *arguments: 2**40)
    command = ["predict", "a.tif", "--exact", "--memory", "1GiB", "--out", "mask.tif"]
    run = CliRunner().invoke(app, [*command, "--overlay"])
    assert run.exit_code == 1
    assert "1024 MiB of memory is not enough: the overlay needs 1048576 MiB" in run.output
    assert not (tmp_path / "mask.tif").exists()
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0
    assert "a.tif: no overlay. 1024 MiB of memory is not enough" in run.output
    assert (tmp_path / "mask.tif").exists()
