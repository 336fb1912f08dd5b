from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.optional import needs

needs("rasterio", "tifffile", "zarr", "pyogrio")


from evitseg.errors import ConfigError
from evitseg.raster import vector_files
from evitseg.raster.polygons import polygonize
from evitseg.system.authorship import is_ours
from tests.raster.samples import AREAS, THREE, drawn, georeferenced_mask


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


def test_a_projected_mask_gives_areas_in_its_unit(tmp_path: Path) -> None:
    import pyogrio

    mask = georeferenced_mask(tmp_path)  # pixels of 2 m
    written = polygonize(mask, tmp_path / "p.gpkg", min_area=24 * 4)
    assert written.area_field == "area_m2"
    about, _, _, columns = pyogrio.raw.read(tmp_path / "p.gpkg")
    rows = dict(zip(about["fields"], columns, strict=True))
    assert list(rows) == ["class", "name", "pixels", "area_m2"]
    assert set(zip(rows["name"], rows["area_m2"] / 4, strict=True)) == {area for area in AREAS if area[1] >= 24}
    polygonize(mask, tmp_path / "p.geojson")
    features = json.loads((tmp_path / "p.geojson").read_text())["features"]
    assert sum(feature["properties"]["area_m2"] for feature in features) == 4 * (60 * 80 - 400)


@pytest.mark.parametrize(("crs", "field"), [("EPSG:4326", None), ("EPSG:2263", "area_ft2"), ("EPSG:32633", "area_m2")])
def test_the_area_field_names_the_unit(crs: str, field: str | None, tmp_path: Path) -> None:
    mask = georeferenced_mask(tmp_path, crs)
    assert polygonize(mask, tmp_path / "p.gpkg").area_field == field
    if field is None:
        with pytest.raises(ConfigError, match="no projected coordinate system"):
            polygonize(mask, tmp_path / "q.gpkg", min_area=5)
        assert not (tmp_path / "q.gpkg").exists()


@pytest.mark.parametrize("batch", [1, 200_000])
def test_a_geoparquet_has_the_polygons_and_the_metadata_of_its_standard(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("pyarrow", "shapely")
    import shapely
    from pyarrow import parquet

    monkeypatch.setattr(vector_files, "_BATCH_POINTS", batch)
    mask = georeferenced_mask(tmp_path)
    polygonize(mask, tmp_path / "p.parquet")
    file = parquet.ParquetFile(tmp_path / "p.parquet")
    about = json.loads(file.metadata.metadata[b"geo"])
    assert about["version"] == "1.1.0"
    column = about["columns"][about["primary_column"]]
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon"])
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32633}
    assert column["bbox"] == [500000, 5e6 - 120, 500160, 5e6]
    table = file.read().to_pydict()
    assert set(zip(table["name"], table["pixels"], strict=True)) == AREAS
    shapes = shapely.from_wkb(table["geometry"])
    assert shapely.is_valid(shapes).all()
    assert shapely.area(shapes).tolist() == table["area_m2"]
    assert is_ours(tmp_path / "p.parquet")
    polygonize(mask, tmp_path / "none.parquet", min_pixels=10_000)
    assert parquet.read_table(tmp_path / "none.parquet").num_rows == 0


def test_polygons_in_pixels_have_no_coordinate_system_in_geoparquet(tmp_path: Path) -> None:
    needs("pyarrow")
    from pyarrow import parquet

    Image.fromarray(drawn()).save(tmp_path / "m.png")
    polygonize(tmp_path / "m.png", tmp_path / "p.geoparquet", THREE)
    file = parquet.ParquetFile(tmp_path / "p.geoparquet")
    assert json.loads(file.metadata.metadata[b"geo"])["columns"]["geometry"]["crs"] is None
    assert file.schema_arrow.names == ["geometry", "class", "name", "pixels"]
