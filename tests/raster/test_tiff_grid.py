"""Every kind of TIFF is read as the stated rule says or refused with a sentence, and the same in every verb."""

from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from tests.optional import needs

needs("rasterio", "tifffile", "imagecodecs")

from evitseg.cli import app
from evitseg.errors import EvitsegError, EvitsegWarning, MissingPackageError
from evitseg.image import ReadOptions
from evitseg.raster import open_raster
from evitseg.raster.files import image_size, read_image, read_reduced
from tests.raster.tiff_kinds import (
    BITS,
    COLORS,
    COMPRESSION,
    HEIGHT,
    PHOTOMETRIC,
    WIDTH,
    Kind,
    Reading,
    TiffKind,
    expected,
    is_what_was_written,
    raw_values,
    stretched,
    values_of,
    write_tiff,
)

KINDS: tuple[Kind, ...] = ("unsigned", "signed", "float")
STORAGES = list(itertools.product((False, True), (False, True), COMPRESSION))
WINDOW = (5, 9, 12, 30)
"""Crosses tiles and strips."""


def kinds_of(bits: int, kind: Kind) -> Iterator[TiffKind]:
    """Every meaning that values of this type can have, each in one way to store it; usual ones in five ways.

    Which ways is a matter of counting, so that over the grid every meaning's parts meet every way.
    """
    rng = np.random.default_rng((bits, KINDS.index(kind)))
    for bands, photometric, planar in itertools.product(range(1, 6), PHOTOMETRIC, (False, True)):
        if planar and bands == 1:
            continue
        extras = (None, 0, 1, 2) if bands > COLORS[photometric] else (None,)
        is_usual = kind == "unsigned" and bits <= 16 and photometric in ("miniswhite", "minisblack", "rgb")
        ways = [
            TiffKind(bits, kind, bands, photometric, planar, *storage, extra)
            for storage in STORAGES
            for extra in extras
        ]
        ways = [way for way in ways if way.exists()]
        for number in rng.choice(len(ways), min(len(ways), 5 if is_usual else 1), replace=False):
            yield ways[number]


def refused(error: EvitsegError, path: Path) -> str:
    """The refusal, which must be a sentence that names the file and no package that is installed."""
    assert not isinstance(error, MissingPackageError), error
    sentence = str(error)
    assert path.name in sentence, sentence
    assert sentence.endswith("."), sentence
    assert "\n" not in sentence, sentence
    return sentence


def read_everywhere(path: Path, options: ReadOptions) -> dict[str, NDArray[np.uint8] | str]:
    """The image, or the sentence that refuses it, by how it is read."""
    results: dict[str, NDArray[np.uint8] | str] = {}
    try:
        results["whole"] = read_image(path, options)
    except EvitsegError as error:
        results["whole"] = refused(error, path)
    try:
        results["reduced"] = read_reduced(path, lambda size: size, options=options).pixels
    except EvitsegError as error:
        results["reduced"] = refused(error, path)
    try:
        with open_raster(path, options=options) as source:
            image = results["windows"] = source.read(0, 0, *source.size)
            top, left, height, width = WINDOW
            np.testing.assert_array_equal(source.read(*WINDOW), image[top : top + height, left : left + width])
    except EvitsegError as error:
        results["windows"] = refused(error, path)
    return results


def fault(path: Path, kind: TiffKind, reading: Reading, options: ReadOptions) -> str:
    """What is wrong in how a file is read; "" if nothing is."""
    results = read_everywhere(path, options)
    whole = results["whole"]
    for name, result in results.items():
        if isinstance(result, str) != isinstance(whole, str):
            return f"{kind}: {name} gives {_short(result)}, whole gives {_short(whole)}"
        if not isinstance(result, str) and not np.array_equal(result, whole):
            return f"{kind}: {name} gives {_short(result)}, whole gives {_short(whole)}"
    if isinstance(whole, str):
        return "" if reading.may_refuse else f"{kind}: refused: {whole}"
    if image_size(path, options) != whole.shape[:2]:
        return f"{kind}: size {image_size(path, options)} of an image of {whole.shape}"
    if not reading.images:
        return f"{kind}: read, but must be refused: {_short(whole)}"
    if not reading.accepts(whole):
        return f"{kind}: gives {_short(whole)}, right is {' or '.join(map(_short, reading.images))}"
    return ""


def _short(result: NDArray[np.uint8] | str) -> str:
    return result if isinstance(result, str) else f"{result[0, :2].tolist()}..."


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", BITS)
def test_every_kind_of_tiff_is_read_by_the_rule_or_refused(bits: int, kind: Kind, tmp_path: Path) -> None:
    faults, read = [], 0
    for number, tiff in enumerate(kinds_of(bits, kind)):
        values = values_of(tiff)
        path = write_tiff(tmp_path / f"{number}.tif", values, tiff)
        stored = raw_values(path, tiff)
        if stored is not None and tiff.photometric != "ycbcr":
            assert is_what_was_written(stored, values, tiff), f"the test's writer is wrong: {tiff}"
        reading = expected(stored, tiff)
        read += not reading.may_refuse
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bands that are left out, ranges that are not used
            faults.append(fault(path, tiff, reading, ReadOptions()))
            if (kind != "unsigned" or bits > 16) and tiff.photometric in ("miniswhite", "minisblack", "rgb"):
                span = _span(tiff)
                faults.append(fault(path, tiff, expected(stored, tiff, span), ReadOptions(value_range=span)))
        path.unlink()
    assert (read > 20) == (kind == "unsigned" and bits <= 16)  # else a reader that refuses everything would pass
    faults = [sentence for sentence in faults if sentence]
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:40])


def _span(tiff: TiffKind) -> tuple[float, float]:
    """A range that cuts off values at both ends."""
    if tiff.kind == "float":
        return -0.5, 1.5
    if tiff.kind == "signed":
        return -(2.0 ** (tiff.bits - 2)), 2.0 ** (tiff.bits - 2)
    return 2.0 ** (tiff.bits - 3), 2.0 ** (tiff.bits - 1)


READ = (
    TiffKind(1, photometric="miniswhite", compression="packbits"),
    TiffKind(4, tiled=True, compression="lzw"),
    TiffKind(2, photometric="palette"),
    TiffKind(8, bands=4, photometric="rgb", planar=True, extra=0),
    TiffKind(8, bands=2, extra=2, compression="zstd"),
    TiffKind(10, bands=3, photometric="rgb", compression="deflate"),
    TiffKind(12, big_endian=True),
    TiffKind(12, bands=3, photometric="rgb", planar=True),
    TiffKind(16, bands=3, photometric="rgb", planar=True, big_endian=True),
    TiffKind(16, photometric="miniswhite", tiled=True, compression="deflate"),
    TiffKind(16, bands=5, big_endian=True, compression="lzw"),
    TiffKind(8, bands=3, photometric="ycbcr", compression="jpeg", tiled=True),
)
REFUSED = (
    TiffKind(8, "signed"),
    TiffKind(16, "signed", bands=3, photometric="rgb"),
    TiffKind(32, "float", bands=3, photometric="rgb"),
    TiffKind(32),
    TiffKind(64, "float", compression="deflate"),
    TiffKind(8, bands=2, extra=0),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tif` and `png` hold the same images and masks, `refused` images that no verb takes."""
    root = tmp_path_factory.mktemp("grid")
    mask = Image.fromarray((np.indices((HEIGHT, WIDTH)).sum(0) % 3).astype(np.uint8))
    for folder, kinds in (("tif", READ), ("refused", REFUSED)):
        for part in ("images", "masks"):
            for name in (folder, "png"):
                (root / name / part).mkdir(parents=True, exist_ok=True)
        for number, kind in enumerate(kinds):
            values = values_of(kind)
            if kind.extra == 2:
                values[..., -1] |= 1  # what is fully transparent has no class in a GeoTIFF
            path = write_tiff(root / folder / f"images/i{number:02}.tif", values, kind)
            mask.save(root / folder / f"masks/i{number:02}.png")
            if folder == "tif":
                [image] = expected(raw_values(path, kind), kind).images
                Image.fromarray(image).save(root / f"png/images/i{number:02}.png")
                mask.save(root / f"png/masks/i{number:02}.png")
    return root


def run(*arguments: str | Path) -> tuple[int, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("how", [["--no-overlay"], ["--exact"]], ids=["whole", "exact"])
def test_predict_gives_the_mask_of_the_image_that_the_rule_says(how: list[str], folders: Path, tmp_path: Path) -> None:
    chosen = range(0, len(READ), 3 if "--exact" in how else 1)  # a second for each
    for folder in ("tif", "png"):
        images = [folders / folder / f"images/i{number:02}.{folder}" for number in chosen]
        status, output = run("predict", *images, *how, "--out", tmp_path / folder)
        assert status == 0, output
    for number, kind in ((number, READ[number]) for number in chosen):
        found = [next((tmp_path / folder).glob(f"i{number:02}_mask.*[gf]")) for folder in ("tif", "png")]
        first, second = (np.asarray(Image.open(path)) for path in found)
        if kind.compression != "jpeg":
            np.testing.assert_array_equal(first, second, err_msg=str(kind))


@pytest.mark.parametrize("how", [["--no-overlay"], ["--exact"]], ids=["whole", "exact"])
def test_predict_refuses_what_has_no_agreed_range_and_takes_a_stated_one(
    how: list[str], folders: Path, tmp_path: Path
) -> None:
    status, output = run("predict", folders / "refused/images", *how, "--out", tmp_path / "a")
    assert status == 1
    for number in range(len(REFUSED)):
        assert output.count(f"i{number:02}.tif: ") == 1, output
    assert "Traceback" not in output
    assert not list(tmp_path.glob("a/*"))

    low, high = -0.5, 1.5
    number, kind = next((n, k) for n, k in enumerate(REFUSED) if k.kind == "float" and k.bands == 3)
    Image.fromarray(stretched(values_of(kind), (low, high))).save(tmp_path / "right.png")
    source = folders / f"refused/images/i{number:02}.tif"
    for path, options in ((source, ["--range", f"{low},{high}"]), (tmp_path / "right.png", [])):
        status, output = run("predict", path, *how, *options, "--out", tmp_path / "b")
        assert status == 0, output
    first, second = (np.asarray(Image.open(path)) for path in (tmp_path / "b").glob("*_mask.*[gf]"))
    np.testing.assert_array_equal(first, second)


def test_check_reads_the_same_and_names_what_it_cannot_read(folders: Path, tmp_path: Path) -> None:
    status, output = run("check", folders / "tif", "--json")
    assert status == 0, output
    data = shutil.copytree(folders / "refused", tmp_path / "data")
    for part in ("images", "masks"):
        shutil.copy(folders / "png" / part / "i01.png", data / part / "good.png")
    status, output = run("check", data)
    assert status == 1
    for number in range(len(REFUSED)):
        assert f"i{number:02}.tif: " in output, output


def test_training_sees_the_same_pixels(folders: Path) -> None:
    from evitseg.data.layouts import find_pairs
    from evitseg.labels import numbered
    from evitseg.train.config import TrainConfig
    from evitseg.train.crops import Crops

    config = TrainConfig(batch_size=1).updated(
        {"data.crop": (32, 64), "augment.scale": (1, 1), "augment.color_jitter": 0}
    )
    crops = [Crops(find_pairs(folders / f), numbered(3), config) for f in ("tif", "png")]
    assert len(crops[0]) == len(crops[1]) == len(READ)
    for number, kind in enumerate(READ):
        if kind.compression != "jpeg":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", EvitsegWarning)  # of bands that are left out
                first, second = (data[0, number][0].numpy() for data in crops)
            assert first.any()
            np.testing.assert_array_equal(first, second, err_msg=str(kind))
