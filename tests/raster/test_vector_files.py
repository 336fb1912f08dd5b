from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.optional import needs

needs("rasterio", "tifffile", "zarr", "pyogrio")


from evitseg.raster import vector_files
from evitseg.raster.polygons import polygonize
from tests.raster.samples import AREAS, georeferenced_mask


def test_geojson_is_in_degrees_and_wound_as_its_standard_says(tmp_path: Path) -> None:
    mask = georeferenced_mask(tmp_path)
    written = polygonize(mask, tmp_path / "p.geojson")  # the mask says what its classes are
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
    polygonize(mask, tmp_path / "p.gpkg")
    about, _, shapes, columns = pyogrio.raw.read(tmp_path / "p.gpkg")
    assert "32633" in about["crs"]
    rows = dict(zip(about["fields"], columns, strict=True))
    assert set(zip(rows["name"], rows["pixels"].tolist(), strict=True)) == AREAS
    bounds = pyogrio.read_bounds(tmp_path / "p.gpkg")[1].T
    bar = rows["pixels"].tolist().index(180)
    assert bounds[bar].tolist() == [500100, 5e6 - 120, 500106, 5e6]
    assert len(shapes) == 7
    assert pyogrio.list_layers(tmp_path / "p.gpkg")[0].tolist() == ["m", "Polygon"]
    polygonize(mask, tmp_path / "none.gpkg", min_pixels=10_000)
    assert pyogrio.read_info(tmp_path / "none.gpkg")["features"] == 0
    assert not list(tmp_path.glob(".evitseg*"))
