"""A mask lies where its image lies: at any size, whole or in parts, in GeoTIFF and beside a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.optional import needs

needs("rasterio")

import rasterio
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from evitseg.cli import app
from evitseg.raster import Georeference, open_raster
from evitseg.raster.places import shifted, upright
from evitseg.raster.window import origin_of

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
IGNORE = 255
TRANSFORM = rasterio.Affine(0.5, 0.1, 400_000, 0.2, -0.5, 5_000_000)
UTM = rasterio.CRS.from_epsg(32633)
POINTS = [GroundControlPoint(row, col, 10 + col / 64, 50 - row / 64) for row in (0, 96) for col in (0, 128)]
RATIONAL = RPC(
    height_off=0, height_scale=1, lat_off=50, lat_scale=1, line_off=40, line_scale=48, long_off=10, long_scale=1,
    samp_off=60, samp_scale=64, line_den_coeff=[1.0] * 20, line_num_coeff=[2.0] * 20, samp_den_coeff=[3.0] * 20,
    samp_num_coeff=[4.0] * 20,
)  # fmt: skip
SMALL = ("--precision", "float32", "--size", "64")
PIXELS = np.random.default_rng(0).integers(1, 255, (96, 128, 3), np.uint8)


def geotiff(path: Path, nodata: int | None = None, pixels: Any = PIXELS, **place: Any) -> Path:
    profile = {k: v for k, v in place.items() if k in ("crs", "transform")}
    with rasterio.open(
        path, "w", driver="GTiff", height=96, width=128, count=3, dtype="uint8", nodata=nodata, photometric="rgb",
        **profile,
    ) as file:  # fmt: skip
        file.write(np.moveaxis(pixels, 2, 0))
        if "gcps" in place:
            file.gcps = place["gcps"], rasterio.CRS.from_epsg(4326)
        if "rpcs" in place:
            file.rpcs = place["rpcs"]
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predict(*arguments: object) -> str:
    run = CliRunner().invoke(app, ["predict", *map(str, arguments)], env={"COLUMNS": "400"})
    assert run.exit_code == 0, run.output
    return str(run.output)


PLACES: dict[str, dict[str, Any]] = {
    "transform": {"crs": UTM, "transform": TRANSFORM},
    "points": {"gcps": POINTS},
    "rational polynomials": {"rpcs": RATIONAL},
}


def assert_same_place(mask: Path, image: Path, top: int = 0, left: int = 0) -> None:
    """As `gdal_translate -srcwin` moves them."""
    with rasterio.open(mask) as found, rasterio.open(image) as source:
        assert found.crs == source.crs
        has_transform = source.transform != rasterio.Affine.identity()
        corner = source.transform @ (left, top) if has_transform else (0, 0)
        np.testing.assert_allclose(
            found.transform[:6], (rasterio.Affine.translation(*corner) @ linear(source.transform))[:6], rtol=1e-12
        )
        assert [(p.row, p.col, p.x, p.y) for p in found.gcps[0]] == [
            (p.row - top, p.col - left, p.x, p.y) for p in source.gcps[0]
        ]
        assert found.gcps[1] == source.gcps[1]
        if source.rpcs is not None:
            moved = source.rpcs.to_dict() | {"line_off": source.rpcs.line_off - top}
            assert found.rpcs.to_dict() == moved | {"samp_off": source.rpcs.samp_off - left}


def linear(transform: Any) -> Any:
    return rasterio.Affine(transform.a, transform.b, 0, transform.d, transform.e, 0)


@pytest.mark.parametrize("how", [(), ("--exact",), ("--sliding-window", "64")], ids=["whole", "exact", "blend"])
@pytest.mark.parametrize("place", PLACES)
def test_a_mask_of_a_georeferenced_image_is_a_geotiff_in_its_place(
    place: str, how: tuple[str, ...], here: Path
) -> None:
    geotiff(here / "a.tif", **PLACES[place])
    predict("a.tif", *SMALL, *how, "--out", "o")
    assert_same_place(here / "o/a_mask.tif", here / "a.tif")
    predict("a.tif", *SMALL, *how, "--out", "m.png")
    assert_same_place(here / "m.png", here / "a.tif")


@pytest.mark.parametrize("ending", [".tif", ".png"])
@pytest.mark.parametrize("place", PLACES)
def test_a_region_lies_where_it_is_cut_out(place: str, ending: str, here: Path) -> None:
    geotiff(here / "a.tif", **PLACES[place])
    predict("a.tif", *SMALL, "--save-context", "c.npz", "--out", "m.tif")
    predict("a.tif", "--precision", "float32", "--context", "c.npz", "--region", "32,16,64,48", "--out", f"r{ending}")
    assert_same_place(here / f"r{ending}", here / "a.tif", top=16, left=32)


@pytest.mark.parametrize("how", [(), ("--exact",)], ids=["whole", "exact"])
def test_nodata_has_no_class_and_counts_as_none(how: tuple[str, ...], here: Path) -> None:
    pixels = PIXELS.copy()
    pixels[:48] = 0
    geotiff(here / "a.tif", 0, pixels, crs=UTM, transform=TRANSFORM)
    predict("a.tif", *SMALL, *how, "--out", "m.tif", "--json")
    with rasterio.open(here / "m.tif") as mask:
        assert mask.nodata == IGNORE
        np.testing.assert_array_equal(mask.read(1) == IGNORE, (pixels == 0).all(2))


def test_nodata_counts_also_without_a_place(here: Path) -> None:
    pixels = PIXELS.copy()
    pixels[:, :30] = 0
    geotiff(here / "a.tif", 0, pixels)
    predict("a.tif", *SMALL, "--out", "o")
    with Image.open(here / "o/a_mask.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask) == IGNORE, (pixels == 0).all(2))


@pytest.mark.parametrize("how", [(), ("--exact",)], ids=["whole", "exact"])
@pytest.mark.parametrize(("name", "world"), [("a.png", "a.pgw"), ("a.jpg", "a.jgw"), ("a.png", "a.wld")])
def test_a_world_file_gets_a_world_file(name: str, world: str, how: tuple[str, ...], here: Path) -> None:
    Image.fromarray(PIXELS).save(here / name)
    (here / world).write_text("0.5\n0\n0\n-0.25\n1000.25\n1999.875\n")
    predict(name, *SMALL, *how, "--out", "o")
    assert [float(line) for line in (here / "o/a_mask.pgw").read_text().split()] == [
        0.5,
        0,
        0,
        -0.25,
        1000.25,
        1999.875,
    ]
    with rasterio.open(here / "o/a_mask.png") as mask:
        assert mask.transform[:6] == (0.5, 0, 1000, 0, -0.25, 2000)


def test_a_photograph_gets_nothing_beside_its_mask(here: Path) -> None:
    Image.fromarray(PIXELS).save(here / "a.png")
    predict("a.png", *SMALL, "--no-overlay", "--out", "o")
    assert [p.name for p in (here / "o").iterdir()] == ["a_mask.png"]


def test_without_rasterio_a_sentence_says_what_the_mask_lacks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    geotiff(here / "a.tif", **PLACES["transform"])
    import evitseg.raster.geotiff_read as geotiff_read
    from evitseg.errors import MissingPackageError

    def missing() -> Any:
        raise MissingPackageError("reading GeoTIFF", "geo")

    monkeypatch.setattr(geotiff_read, "import_rasterio", missing)
    said = predict("a.tif", *SMALL, "--no-overlay", "--out", "o")
    assert "a.tif: the mask gets no georeference and no nodata; reading GeoTIFF needs packages" in said
    assert "evitseg[geo]" not in said  # which pip does not find
    assert (here / "o/a_mask.png").exists()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_place_is_turned_with_the_image(orientation: int) -> None:
    """Every upright pixel keeps the coordinates of the stored one; the turn itself is Pillow's."""
    from PIL import ImageOps

    height, width = 3, 5
    stored = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = orientation
    turned = np.asarray(ImageOps.exif_transpose(image))
    points = [GroundControlPoint(row + 0.5, col + 0.5, row, col) for row in range(height) for col in range(width)]
    place = upright(Georeference(UTM, TRANSFORM, (points, UTM)), orientation, (height, width))
    for (row, column), value in np.ndenumerate(turned):
        y, x = divmod(int(value), width)
        np.testing.assert_allclose(place.transform @ (column + 0.5, row + 0.5), TRANSFORM @ (x + 0.5, y + 0.5))
        point = next(p for p in place.gcps[0] if (p.x, p.y) == (y, x))
        assert (point.row, point.col) == (row + 0.5, column + 0.5)


def test_a_shift_leaves_the_given_place_as_it_is() -> None:
    place = Georeference(rpcs=RATIONAL, gcps=(POINTS, UTM))
    shifted(place, 7, 9)
    assert (RATIONAL.line_off, POINTS[0].row) == (40, 0)


def test_a_context_belongs_to_one_image(here: Path) -> None:
    geotiff(here / "a.tif", **PLACES["transform"])
    geotiff(here / "b.tif", pixels=PIXELS[::-1], **PLACES["transform"])
    (here / "copy.tif").write_bytes((here / "a.tif").read_bytes())
    predict("a.tif", *SMALL, "--save-context", "c.npz", "--out", "m.tif")
    common = ("--precision", "float32", "--context", "c.npz", "--region", "0,0,64,48", "--out")
    predict("copy.tif", *common, "copy_mask.tif")
    run = CliRunner().invoke(app, ["predict", "b.tif", *common, "r.tif"])
    assert run.exit_code == 1
    assert "b.tif: the context belongs to another image" in run.output
    assert not (here / "r.tif").exists()


def test_a_size_that_is_not_the_contexts_is_refused(here: Path) -> None:
    geotiff(here / "a.tif", **PLACES["transform"])
    predict("a.tif", *SMALL, "--save-context", "c.npz", "--out", "m.tif")
    common = ("predict", "a.tif", "--context", "c.npz", "--region", "0,0,64,48", "--precision", "float32")
    run = CliRunner().invoke(app, [*common, "--size", "128", "--out", "r.tif"])
    assert run.exit_code == 1
    assert "leave --size out" in run.output
    assert CliRunner().invoke(app, [*common, "--size", "64", "--out", "r.tif"]).exit_code == 0


def test_the_origin_of_a_png_in_windows_is_its_world_files(here: Path) -> None:
    Image.fromarray(PIXELS).save(here / "a.png")
    (here / "a.pgw").write_text("2\n0\n0\n-2\n1\n-1\n")
    with open_raster(here / "a.png") as source:
        place = origin_of(source).georeference
    assert place is not None
    assert place.transform[:6] == (2, 0, 0, 0, -2, 0)
