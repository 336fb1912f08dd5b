"""Tiles of large images over HTTP: exactly the mask of predict, and nothing outside the folder."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.optional import needs

needs("starlette", "httpx2", "uvicorn", "prometheus_client", "python_multipart", "rasterio")

import rasterio
from rasterio.warp import transform
from starlette.testclient import TestClient

import evitseg
from evitseg.raster.window import ArraySink
from evitseg.runtime.segmenter import Segmenter
from evitseg.serve.image_shelf import MOST_OPEN, ImageShelf
from evitseg.serve.service import Service, ServiceLimits
from evitseg.visualize import tinted
from tests.serve.serving import client_of, segmenter
from tests.serve.test_problems import check

HEIGHT, WIDTH = 1100, 1300
MOSAIC = "a b/mosaic.tif"


@pytest.fixture(scope="module")
def segment() -> Segmenter:
    return segmenter()


@pytest.fixture(scope="module")
def pixels(photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.tile(photograph.repeat(3, 0).repeat(3, 1), (2, 2, 1))[:HEIGHT, :WIDTH]


def write_tiff(path: Path, pixels: NDArray[np.uint8], side_m: float = 2.0) -> None:
    height, width = pixels.shape[:2]
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=3, dtype="uint8", tiled=True, crs="EPSG:32633",
        transform=rasterio.Affine(side_m, 0, 400_000, 0, -side_m, 5_800_000),
    ) as dataset:  # fmt: skip
        dataset.write(np.moveaxis(pixels, 2, 0))


@pytest.fixture(scope="module")
def mask(pixels: NDArray[np.uint8], root: Path) -> NDArray[np.integer]:
    mask: NDArray[np.integer] = np.load(root.parent / "mask.npy")
    return mask


@pytest.fixture(scope="module")
def root(
    segment: Segmenter,
    pixels: NDArray[np.uint8],
    photograph: NDArray[np.uint8],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with a mosaic and its context, a photograph, and what must not be reached."""
    parent = tmp_path_factory.mktemp("images")
    root = parent / "root"
    (root / "a b").mkdir(parents=True)
    write_tiff(root / MOSAIC, pixels)
    sink = ArraySink((HEIGHT, WIDTH))
    result = evitseg.segment_large(segment, root / MOSAIC, sink)
    assert result.context is not None
    result.context.save(root / "a b/mosaic.npz")
    np.save(parent / "mask.npy", sink.mask)
    Image.fromarray(photograph).save(root / "street.png")
    Image.fromarray(photograph).save(parent / "secret.png")
    (root / "link.png").symlink_to(parent / "secret.png")
    (root / "up").symlink_to(parent)
    (root / "loop.png").symlink_to(root / "loop.png")
    Image.fromarray(photograph).save(root / ".hidden.png")
    (root / "notes.txt").write_text("no image")
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    return root


@contextmanager
def serving(root: Path | None, segment: Segmenter, cache: Path, is_busy: bool = False) -> Iterator[TestClient]:
    shelf = ImageShelf(root, segment, cache) if root is not None else None
    service = Service(segment, ServiceLimits(), images=shelf)
    if shelf is not None and is_busy:
        shelf.is_busy = lambda: True
    with client_of(service) as client:
        yield client


@pytest.fixture(scope="module")
def client(root: Path, segment: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(root, segment, tmp_path_factory.mktemp("cache")) as client:
        yield client


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def tile(client: TestClient, address: str, mode: str | None = None) -> tuple[NDArray[np.uint8], str]:
    """The pixels of a tile, and whether its mask is exact."""
    answer = client.get(f"/v1/images/{address}")
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(answer.content)) as image:
        return np.asarray(image if mode is None else image.convert(mode)), answer.headers.get("x-evitseg-mask", "")


def test_the_list_has_images_with_and_without_masks_and_nothing_from_outside(client: TestClient) -> None:
    assert client.get("/v1/images").json() == {
        "images": [
            {"name": "broken.png", "has_mask": False},
            {"name": "street.png", "has_mask": False},
            {"name": MOSAIC, "has_mask": True},
        ]
    }


def test_an_image_is_described_with_the_addresses_of_its_tiles(client: TestClient) -> None:
    about = client.get(f"/v1/images/info/{MOSAIC}").json()
    assert (about["width"], about["height"], about["crs"]) == (WIDTH, HEIGHT, "EPSG:32633")
    assert list(about["dzi"]) == list(about["xyz"]) == ["image", "mask", "overlay"]
    for address in about["dzi"].values():
        size = ElementTree.fromstring(client.get(address).text)[0]
        assert size.attrib == {"Width": str(WIDTH), "Height": str(HEIGHT)}
    about = client.get("/v1/images/info/street.png").json()
    assert (list(about["dzi"]), about["xyz"], about["mask"]) == (["image"], None, None)


def test_tiles_at_full_size_have_the_mask_of_predict(
    client: TestClient, pixels: NDArray[np.uint8], mask: NDArray[np.integer], segment: Segmenter
) -> None:
    for row, column in ((0, 0), (1, 2), (2, 1)):
        place = slice(512 * row, 512 * row + 512), slice(512 * column, 512 * column + 512)
        address = f"{MOSAIC}_files/11/{column}_{row}.png"
        found, kind = tile(client, f"dzi/mask/{address}")
        assert kind == "exact"
        np.testing.assert_array_equal(found, mask[place])
        np.testing.assert_array_equal(tile(client, f"dzi/image/{address}")[0], pixels[place])
        expected = tinted(np.ascontiguousarray(pixels[place]), mask[place], segment.labels, 0.3)
        found, kind = tile(client, f"dzi/overlay/{address}?opacity=0.3&exact=true")
        assert kind == "exact"
        np.testing.assert_array_equal(found, np.asarray(expected))


def test_levels_halve_down_to_a_single_pixel(client: TestClient, mask: NDArray[np.integer]) -> None:
    until(lambda: tile(client, f"dzi/mask/{MOSAIC}_files/9/0_0.png")[1] == "exact")
    full, _ = tile(client, f"dzi/mask/{MOSAIC}_files/10/0_0.png")
    blocks = mask[:1024, :1024].reshape(512, 2, 512, 2).swapaxes(1, 2).reshape(512, 512, 4)
    alike = (blocks == blocks[..., :1]).all(-1)
    assert alike.mean() > 0.8
    np.testing.assert_array_equal(full[alike], blocks[alike][:, 0])
    for level in range(11):
        size = tuple(-(-side // 2 ** (11 - level)) for side in (HEIGHT, WIDTH))
        shape = tuple(min(512, side) for side in size)
        for layer, ending in (("image", "jpg"), ("mask", "png"), ("overlay", "jpg")):
            found, _ = tile(client, f"dzi/{layer}/{MOSAIC}_files/{level}/0_0.{ending}")
            assert found.shape[:2] == shape


def test_map_tiles_show_the_pixels_that_lie_there(client: TestClient, mask: NDArray[np.integer]) -> None:
    (x,), (y,) = transform("EPSG:32633", "EPSG:3857", [400_000 + 800], [5_800_000 - 700])
    zoom, half = 15, 20_037_508.342789244
    side = 2 * half / 2**zoom
    column, row = int((x + half) / side), int((half - y) / side)
    found, kind = tile(client, f"xyz/mask/{MOSAIC}/{zoom}/{column}/{row}.png")
    assert kind == "exact"
    assert found.shape == (256, 256)
    steps = (np.arange(256) + 0.5) * side / 256
    eastings, northings = np.meshgrid(column * side - half + steps, half - row * side - steps)
    x_m, y_m = transform("EPSG:3857", "EPSG:32633", eastings.ravel(), northings.ravel())
    columns = np.floor((np.array(x_m) - 400_000) / 2).astype(int)
    rows = np.floor((5_800_000 - np.array(y_m)) / 2).astype(int)
    inside = (rows >= 3) & (rows < HEIGHT - 3) & (columns >= 3) & (columns < WIDTH - 3)
    assert inside.mean() > 0.3
    rows, columns, values = rows[inside], columns[inside], found.ravel()[inside]
    # GDAL's warp is off by up to an eighth of a pixel; compare away from borders of classes.
    around = np.stack([mask[rows + i, columns + j] for i in (-3, 0, 3) for j in (-3, 0, 3)])
    alike = (around == around[0]).all(0)
    assert alike.mean() > 0.5
    assert (values[alike] == around[0][alike]).mean() > 0.999
    overlay, _ = tile(client, f"xyz/overlay/{MOSAIC}/{zoom}/{column}/{row}.png", "RGBA")
    assert set(np.unique(overlay[..., 3])) <= {0, 255}
    world, kind = tile(client, f"xyz/image/{MOSAIC}/0/0/0.png", "RGBA")
    assert (kind, world.shape) == ("", (256, 256, 4))


@pytest.mark.parametrize(
    "name",
    [
        "link.png", "up/secret.png", "loop.png", ".hidden.png", "notes.txt", "a b/mosaic.npz", "a b", "none.png",
        "%2e%2e/secret.png", "..%2fsecret.png", "a b/%2e%2e/%2e%2e/secret.png", "%2fetc/passwd", "a b//mosaic.tif",
        "..%5csecret.png", "street.png%00", "x" * 5000 + ".png", "broken.png",
    ],
)  # fmt: skip
def test_nothing_but_images_below_the_folder_is_shown(name: str, client: TestClient, root: Path) -> None:
    for address in (f"info/{name}", f"dzi/image/{name}.dzi", f"xyz/image/{name}/0/0/0.png"):
        answer = client.get(f"/v1/images/{address}")
        check(answer, "no-such-image")
        assert str(root.parent) not in answer.text


def test_tiles_that_do_not_exist_are_refused(client: TestClient) -> None:
    for address in (
        "dzi/image/street.png_files/10/0_0.png", "dzi/image/street.png_files/9/1_0.png",
        "dzi/image/street.png_files/9/0_0.gif",
        "dzi/mask/street.png_files/9/0_0.jpg", "dzi/clouds/street.png_files/9/0_0.jpg", "dzi/clouds/street.png.dzi",
        f"dzi/image/street.png_files/{'9' * 5000}/0_0.png", "dzi/image/street.png_files/-1/0_0.png",
        f"xyz/image/{MOSAIC}/31/0/0.png", f"xyz/image/{MOSAIC}/1/2/0.png", f"xyz/image/{MOSAIC}/8/0/0.png",
    ):  # fmt: skip
        check(client.get(f"/v1/images/{address}"), "no-such-tile")
    check(client.get("/v1/images/xyz/image/street.png/0/0/0.png"), "no-place")
    check(client.get("/v1/images/dzi/mask/street.png_files/9/0_0.png"), "no-mask", "context")
    for address in ("dzi/image/street.png.dzi?opacity=1", "dzi/overlay/street.png_files/9/0_0.jpg?opacity=2", "?all=1",
                    "dzi/mask/street.png_files/9/0_0.png?exact=1", f"info/{MOSAIC}?exact=true"):  # fmt: skip
        check(client.get(f"/v1/images/{address}".replace("/?", "?")), "bad-parameter")


def test_a_service_without_a_folder_has_no_images(segment: Segmenter, tmp_path: Path) -> None:
    with serving(None, segment, tmp_path) as client:
        check(client.get("/v1/images"), "no-images")


def test_previews_are_marked_while_the_service_has_other_work(
    root: Path, segment: Segmenter, tmp_path: Path, mask: NDArray[np.integer]
) -> None:
    with serving(root, segment, tmp_path, is_busy=True) as client:
        coarse = f"/v1/images/dzi/mask/{MOSAIC}_files/9/0_0.png"
        answer = client.get(coarse)
        assert (answer.headers["x-evitseg-mask"], answer.headers["cache-control"]) == ("preview", "no-store")
        check(client.get(f"{coarse}?exact=true"), "not-rendered", "0% of the mask")
        assert client.get(f"{coarse}?exact=true").headers["retry-after"] == "5"
        found, kind = tile(client, f"dzi/mask/{MOSAIC}_files/11/0_0.png")
        assert kind == "exact"
        np.testing.assert_array_equal(found, mask[:512, :512])


def test_a_replaced_image_is_opened_anew_and_its_old_context_refused(
    root: Path, segment: Segmenter, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    write_tiff(folder / "m.tif", pixels)
    (folder / "m.tif.npz").write_bytes((root / "a b/mosaic.npz").read_bytes())
    with serving(folder, segment, tmp_path / "cache") as client:
        assert tile(client, "dzi/mask/m.tif_files/11/0_0.png")[1] == "exact"
        write_tiff(folder / "m.tif", 255 - pixels)
        found, _ = tile(client, "dzi/image/m.tif_files/11/0_0.png")
        np.testing.assert_array_equal(found, 255 - pixels[:512, :512])
        check(client.get("/v1/images/dzi/mask/m.tif_files/11/0_0.png"), "no-mask", "another image")


def test_a_damaged_context_is_named_without_its_folder(
    segment: Segmenter, photograph: NDArray[np.uint8], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(photograph).save(folder / "m.png")
    (folder / "m.npz").write_bytes(b"no context")
    with serving(folder, segment, tmp_path / "cache") as client:
        about = client.get("/v1/images/info/m.png").json()
        assert about["mask"]["problem"].startswith("m.npz: not a context file")
        answer = client.get("/v1/images/dzi/mask/m.png_files/9/0_0.png")
        check(answer, "no-mask", "m.npz: not a context file")
        assert str(folder) not in answer.text


def test_few_images_stay_open(segment: Segmenter, photograph: NDArray[np.uint8], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(MOST_OPEN + 3):
        Image.fromarray(photograph).save(folder / f"{i}.png")
    with serving(folder, segment, tmp_path / "cache") as client:
        before = sum(thread.name == "evitseg-view" for thread in threading.enumerate())
        for i in range(MOST_OPEN + 3):
            assert client.get(f"/v1/images/dzi/image/{i}.png_files/9/0_0.jpg").status_code == 200
        until(lambda: sum(each.name == "evitseg-view" for each in threading.enumerate()) - before <= MOST_OPEN)
    assert sum(each.name == "evitseg-view" for each in threading.enumerate()) <= before
