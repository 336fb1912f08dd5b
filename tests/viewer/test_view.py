"""The mask that pages get: that of predict, whatever it is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import evitseg
from evitseg.errors import ConfigError, EvitsegError, ImageError
from evitseg.labels import load_labels
from evitseg.raster.png import save_mask
from evitseg.viewer.mask_sources import ModelSettings
from evitseg.viewer.pyramid import Rectangle
from evitseg.viewer.view import View
from evitseg.viewer.view_request import ViewRequest
from tests.optional import needs

CAMVID = load_labels("camvid")


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def opened(image: Path, cache: Path, **settings: Any) -> Iterator[View]:
    with View(ViewRequest(image, cache=cache, **settings)) as view:
        view.wait_until_open()
        yield view


def ended(view: View) -> dict[str, Any]:
    until(lambda: view.status()["phase"] in ("ready", "failed"))
    return view.status()


def mask_of(view: View, level: int = 0) -> tuple[NDArray[np.integer], bool]:
    return view.mask_part(level, Rectangle(0, 0, *view.size_of(level)))


def test_a_photograph_gets_the_mask_of_predict(street: Path, tmp_path: Path) -> None:
    expected = evitseg.load()(street)
    with opened(street, tmp_path) as view:
        status = ended(view)
        mask, is_exact = mask_of(view)
        assert is_exact
        np.testing.assert_array_equal(mask, expected.mask)
        assert status["fractions"] == pytest.approx(expected.fractions())
        assert (status["fractions_are_preview"], status["exact"]) == (False, 1.0)
        about = view.about()
        assert (about["width"], about["height"], about["levels"], about["crs"]) == (480, 270, 1, None)
        assert [each["name"] for each in about["classes"]] == list(CAMVID.names)
        np.testing.assert_array_equal(view.image_tile(0, 0, 0), expected.image)
    with opened(street, tmp_path, size=512) as view:
        ended(view)
        np.testing.assert_array_equal(mask_of(view)[0], evitseg.load(size=512)(street).mask)


@pytest.fixture(scope="module")
def mosaic(photograph: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GeoTIFF that is too large for the network to see it whole."""
    needs("rasterio")
    import rasterio

    pixels = np.tile(photograph.repeat(4, 0).repeat(4, 1), (2, 2, 1))[:2100, :2200]
    path = tmp_path_factory.mktemp("mosaic") / "mosaic.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=2100, width=2200, count=3, dtype="uint8", tiled=True, crs="EPSG:32633",
        transform=rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_800_000),
    ) as dataset:  # fmt: skip
        dataset.write(np.moveaxis(pixels, 2, 0))
    return path


@pytest.fixture(scope="module")
def segmented(mosaic: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[NDArray[np.integer], Path]:
    """The mask of the mosaic, and its context."""
    from evitseg.raster import open_raster
    from evitseg.raster.window import ArraySink
    from evitseg.tiling.stream import segment_large

    folder = tmp_path_factory.mktemp("context")
    with open_raster(mosaic) as source:
        sink = ArraySink(source.size)
        result = segment_large(None, source, sink, scratch=folder)
    assert result.context is not None
    result.context.save(folder / "mosaic.npz")
    return sink.mask, folder / "mosaic.npz"


def test_a_preview_comes_first_and_the_exact_mask_follows(
    mosaic: Path, segmented: tuple[NDArray[np.integer], Path], tmp_path: Path
) -> None:
    with opened(mosaic, tmp_path) as view:
        until(lambda: view.status()["phase"] == "segmenting")
        status = view.status()
        first, is_exact = view.mask_tile(2, 0, 0)
        assert first is not None
        assert not is_exact
        assert sum(status["fractions"].values()) == pytest.approx(1)
        assert status["fractions_are_preview"]
        assert view.mask_tile(2, 0, 0, with_preview=False) == (None, False)
        assert ended(view)["exact"] == 1
        mask, is_exact = mask_of(view)
        assert is_exact
        np.testing.assert_array_equal(mask, segmented[0])
        # The preview sees the same scene, reduced.
        assert (first == mask_of(view, 2)[0][: first.shape[0], : first.shape[1]]).mean() > 0.7
        assert mask_of(view, 2)[1]
        # 10 pixels of 0.5 m to the right and 4 down, in UTM zone 33.
        place = view.place(10, 4)
        assert (place["x"], place["y"]) == (400_005, 5_799_998)
        assert place["longitude"] == pytest.approx(13.53, abs=0.01)
        assert place["latitude"] == pytest.approx(52.34, abs=0.01)
        assert view.about()["crs"] == "EPSG:32633"
        assert view.about()["meters_per_pixel"] == 0.5
    with opened(mosaic, tmp_path) as view:  # the next one has it all at once
        until(lambda: view.status()["phase"] != "opening")
        assert view.status()["exact"] == 1
        np.testing.assert_array_equal(mask_of(view)[0], segmented[0])


def test_tiles_are_rendered_from_a_context_exactly(
    mosaic: Path, segmented: tuple[NDArray[np.integer], Path], tmp_path: Path
) -> None:
    expected, context = segmented
    with opened(mosaic, tmp_path, context=context) as view:
        until(lambda: view.status()["has_context"])
        tile, is_exact = view.mask_tile(0, 3, 2)  # at once, not after all others
        assert is_exact
        np.testing.assert_array_equal(tile, expected[3 * 512 : 4 * 512, 2 * 512 : 3 * 512])
        status = ended(view)
        np.testing.assert_array_equal(mask_of(view)[0], expected)
        counts = np.bincount(expected.ravel())
        road = CAMVID.names.index("road")
        assert status["fractions"]["road"] == pytest.approx(counts[road] / expected.size)


def test_a_context_of_another_image_leaves_the_preview(
    street: Path, segmented: tuple[NDArray[np.integer], Path], tmp_path: Path
) -> None:
    with opened(street, tmp_path, context=segmented[1]) as view:
        status = ended(view)
        assert status["phase"] == "failed"
        assert "another image (mosaic.tif)" in status["problem"]
        mask, is_exact = mask_of(view)
        assert mask.shape == (270, 480)
        assert not is_exact


def test_a_view_that_is_closed_while_it_computes_stops_and_the_next_one_resumes(
    mosaic: Path, segmented: tuple[NDArray[np.integer], Path], tmp_path: Path
) -> None:
    with opened(mosaic, tmp_path) as view:
        until(lambda: view.status()["fraction"] > 0 and view.status()["phase"] == "segmenting")
    assert view.status()["phase"] == "segmenting"
    assert view.status()["exact"] < 1
    with opened(mosaic, tmp_path) as view:
        assert ended(view)["phase"] == "ready"
        np.testing.assert_array_equal(mask_of(view)[0], segmented[0])


def test_a_mask_file_is_shown_as_it_is(street: Path, tmp_path: Path) -> None:
    needs("rasterio")
    mask = np.random.default_rng(0).integers(0, 11, (270, 480)).astype(np.uint8)
    mask[:20] = CAMVID.ignore_index
    save_mask(mask, tmp_path / "m.png", CAMVID)
    with opened(street, tmp_path / "cache", mask=tmp_path / "m.png", labels=CAMVID) as view:
        assert ended(view)["phase"] == "ready"
        found, is_exact = mask_of(view)
        assert is_exact
        np.testing.assert_array_equal(found, mask)
        assert (view.about()["mask"], view.about()["model"]) == ("m.png", "")


def error_of(image: Path, cache: Path, **settings: Any) -> Exception:
    with View(ViewRequest(image, cache=cache, **settings)) as view:
        assert view.wait(60)
        with pytest.raises(EvitsegError) as error:
            view.about()
        assert view.error is error.value
        assert view.status()["problem"] == str(error.value)
        return error.value


def test_what_cannot_be_shown_is_an_error(street: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no image")
    assert isinstance(error_of(tmp_path / "a.txt", tmp_path), ImageError)
    assert "no-such-model" in str(error_of(street, tmp_path, model=ModelSettings("no-such-model")))
    needs("rasterio")
    save_mask(np.zeros((100, 200), np.uint8), tmp_path / "m.png", CAMVID)
    error = error_of(street, tmp_path, mask=tmp_path / "m.png", labels=CAMVID)
    assert isinstance(error, ConfigError)
    assert "has 200×100 pixels, but the image has 480×270" in str(error)
    save_mask(np.zeros((270, 480), np.uint8), tmp_path / "m.png", CAMVID, "gray")
    assert "--labels" in str(error_of(street, tmp_path, mask=tmp_path / "m.png"))
