from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.optional import needs

needs("rasterio", "tifffile", "zarr")


import tifffile
from numpy.typing import NDArray

from evitseg.cli import app
from evitseg.errors import ConfigError, ImageError
from evitseg.labels import load_labels, numbered
from evitseg.raster import mask_bands, open_mask_writer, open_raster
from evitseg.raster import whole_regions as module
from evitseg.raster.polygons import polygon_features, polygonize
from evitseg.raster.whole_regions import whole_regions
from tests.raster.samples import AREAS, CAMVID, THREE, drawn, georeferenced_mask, geotiff


@pytest.mark.parametrize("band_rows", [1, 7, 13, 60])
def test_polygons_have_the_areas_that_are_counted_by_hand(
    band_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BAND_BYTES", band_rows * 80)
    Image.fromarray(drawn()).save(tmp_path / "m.png")
    written = polygonize(tmp_path / "m.png", tmp_path / "out/p.geojson", THREE)
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
        monkeypatch.setattr(module, "BAND_BYTES", band_rows * mask.shape[1])
        view = mask_bands.MaskBands("m", mask.shape, lambda top, rows, m=mask: m[top : top + rows], THREE)  # type: ignore[misc]
        found = list(whole_regions(view, THREE, (0, 1, 2), lambda share: None))
        whole = list(shapes(mask, mask=mask < 3, connectivity=4))
        assert len(found) == len(whole)
        polygon = [({"type": "Polygon", "coordinates": [r.tolist() for r in rings]}, v) for v, _, rings in found]
        np.testing.assert_array_equal(rasterize(polygon, mask.shape, fill=255), mask)
        for *_, rings in found:
            for ring in rings:
                assert len({tuple(point) for point in ring}) == len(ring) - 1  # simple: no corner twice


def smooth_mask(seed: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Regions of three classes and of none with slanting borders, islands, and single pixels."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.choice([0, 60, 120, 180], (size[0] // 8 + 1, size[1] // 8 + 1)).astype(np.uint8))
    levels = np.asarray(small.resize(size[::-1], Image.Resampling.BICUBIC))
    mask: NDArray[np.uint8] = np.digitize(levels, [30, 90, 150]).astype(np.uint8)
    mask[rng.random(size) < 0.01] = 1
    return np.where(mask == 3, np.uint8(255 if seed % 2 else 0), mask)


@pytest.mark.parametrize("tolerance", [0.5, 2.0, 6.0])
def test_simplified_regions_share_their_borders_and_cover_the_same_area(
    tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("shapely")
    import shapely

    for seed, rows in ((0, 90), (1, 13), (2, 1), (3, 30), (4, 7)):
        mask = smooth_mask(seed, (90, 70))
        monkeypatch.setattr(module, "BAND_BYTES", rows * mask.shape[1])
        view = mask_bands.MaskBands("m", (90, 70), lambda top, rows, m=mask: m[top : top + rows], THREE)  # type: ignore[misc]
        exact = list(whole_regions(view, THREE, (0, 1, 2), lambda share: None))
        found = list(whole_regions(view, THREE, (0, 1, 2), lambda share: None, tolerance))
        assert sorted((value, pixels) for value, pixels, _ in found) == sorted((v, p) for v, p, _ in exact)
        assert [sum(p for v, p, _ in found if v == value) for value in range(3)] == np.bincount(
            mask.ravel(), minlength=3
        )[:3].tolist()
        shapes = np.array([shapely.Polygon(rings[0], rings[1:]) for *_, rings in found])
        assert shapely.is_valid(shapes).all()
        assert shapely.coverage_is_valid(shapes)  # no overlaps, and the same points on both sides of every border
        if not (mask == 255).any():
            assert shapely.area(shapes).sum() == mask.size
        if rows == 90 and tolerance > 1:
            before = sum(len(ring) for *_, rings in exact for ring in rings)
            assert sum(len(ring) for *_, rings in found for ring in rings) < before / 2


def test_a_slanting_border_becomes_a_straight_line_for_both_neighbours() -> None:
    needs("shapely")
    mask = (np.arange(40)[:, None] > np.arange(60) // 2 + 4).astype(np.uint8)  # two pixels across, one down
    above, below = polygon_features(mask, THREE, simplify=2)
    assert above["geometry"]["coordinates"][0][:-1] != below["geometry"]["coordinates"][0][:-1]
    shared = {tuple(point) for point in above["geometry"]["coordinates"][0]} & {
        tuple(point) for point in below["geometry"]["coordinates"][0]
    }
    assert len(shared) <= 4
    assert {above["properties"]["pixels"], below["properties"]["pixels"]} == {int(mask.sum()), int((1 - mask).sum())}
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="simplify is"):
            polygon_features(mask, THREE, simplify=bad)


def test_a_subset_of_the_classes_has_the_outlines_that_all_classes_have() -> None:
    needs("shapely")
    mask = smooth_mask(0, (60, 50))
    every = polygon_features(mask, THREE, simplify=3)
    assert polygon_features(mask, THREE, ["class 1"], simplify=3) == [
        each for each in every if each["properties"]["name"] == "class 1"
    ]


def test_small_regions_and_other_classes_are_left_out(tmp_path: Path) -> None:
    Image.fromarray(drawn()).save(tmp_path / "m.png")
    written = polygonize(tmp_path / "m.png", tmp_path / "p.geojson", THREE, ["class 1", "class 2"], min_pixels=2)
    assert written.polygons == {"class 1": 2, "class 2": 0}
    with pytest.raises(ConfigError, match="did you mean 'class 1'"):
        polygonize(tmp_path / "m.png", tmp_path / "p.geojson", THREE, ["clas 1"])
    with pytest.raises(ConfigError, match="holds 2, which is not a class"):
        polygonize(tmp_path / "m.png", tmp_path / "q.geojson", numbered(2))
    with pytest.raises(ConfigError, match="does not list its classes"):
        polygonize(tmp_path / "m.png", tmp_path / "q.geojson")
    with pytest.raises(ImageError, match=".geojson, .gpkg or .parquet"):
        polygonize(tmp_path / "m.png", tmp_path / "q.shp", THREE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.png", "p.geojson"]


@pytest.mark.parametrize("ending", ["tif", "ome.tif", "zarr"])
def test_a_mask_says_its_classes(ending: str, tmp_path: Path) -> None:
    geotiff(tmp_path / "a.tif", np.zeros((60, 80, 3), np.uint8), crs=None, transform=None)
    with open_raster(tmp_path / "a.tif") as source, open_mask_writer(tmp_path / f"m.{ending}", source, CAMVID) as sink:
        sink.write(0, 0, drawn())
    written = polygonize(tmp_path / f"m.{ending}", tmp_path / "p.geojson")
    assert {name: n for name, n in written.polygons.items() if n} == {"sky": 3, "building": 2, "pole": 2}


def test_the_verb_writes_polygons(tmp_path: Path) -> None:
    mask = georeferenced_mask(tmp_path)
    run = CliRunner().invoke(app, ["polygons", str(mask), "--out", str(tmp_path / "p.geojson"), "--class", "class 1"])
    assert run.exit_code == 0, run.output
    assert "2 of class 1" in run.output
    run = CliRunner().invoke(app, ["polygons", str(tmp_path / "absent.tif"), "--out", str(tmp_path / "p.gpkg")])
    assert run.exit_code == 1
    assert "no such file" in run.output


def test_polygons_of_a_mask_are_those_of_its_optimised_copy(tmp_path: Path) -> None:
    """An optimiser sorts and cuts the palette; the colours still say the classes."""
    from evitseg.raster.png import save_mask

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
    polygonize(mask, out, CAMVID)
    return out.read_text()


def test_polygons_of_a_mask_of_0_and_255_are_refused_not_empty(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "m.png")
    stated = '{"name": "x", "classes": [{"name": "bg"}, {"name": "fg", "raw_ids": [255]}]}'
    bare = '{"name": "x", "classes": [{"name": "bg"}, {"name": "fg"}]}'
    for text, reason in ((stated, "holds 255, the raw id of 'fg'"), (bare, "holds 255 but no 1")):
        (tmp_path / "labels.json").write_text(text)
        with pytest.raises(ConfigError, match=reason):
            polygonize(tmp_path / "m.png", tmp_path / "p.geojson", load_labels(tmp_path / "labels.json"))


def test_entities_in_a_masks_metadata_are_not_expanded(tmp_path: Path) -> None:
    """A "billion laughs" document: nine entities, each ten times the one before, would be 10 GB."""
    entities = '<!ENTITY a0 "aaaaaaaaaa">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    xml = f'<?xml version="1.0"?><!DOCTYPE x [{entities}]><x><Description>&a9;</Description></x>'
    mask = np.zeros((16, 16), np.uint8)
    tifffile.imwrite(tmp_path / "m.tif", mask, description=xml, metadata=None)
    with pytest.raises(ConfigError, match="does not list its classes"):
        polygonize(tmp_path / "m.tif", tmp_path / "p.geojson")
    assert polygonize(tmp_path / "m.tif", tmp_path / "p.geojson", THREE).polygons["class 0"] == 1
