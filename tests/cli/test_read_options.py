"""--bands, --range and --page in check, train, eval and from Python; warnings on the command line."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.optional import needs

needs("tifffile", "torch", "accelerate")

import tifffile

import evitseg
from evitseg.cli import app
from evitseg.errors import ConfigError
from evitseg.image import ReadOptions
from evitseg.manifest import parse_manifest
from evitseg.raster.files import read_image
from evitseg.train import TrainConfig, fit

READING = ReadOptions((3, 2, 1), (0.0, 4095.0))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four bands, blue first, of a 12-bit camera that does not say so; the class is where blue is strong."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for place in ("images", "masks"):
        (folder / place).mkdir()
    (folder / "classes.txt").write_text("land\nwater\n")
    for n in range(4):
        pixels = rng.integers(0, 1500, (64, 96, 4)).astype(np.uint16)
        mask = np.zeros((64, 96), np.uint8)
        mask[:, 20 * n : 20 * n + 30] = 1
        pixels[mask == 1, 0] += 2500
        tifffile.imwrite(
            folder / f"images/{n}.tif", pixels, photometric="minisblack", planarconfig="contig", metadata=None
        )
        Image.fromarray(mask).save(folder / f"masks/{n}.png")
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TrainConfig(epochs=1, batch_size=3, start="none").updated(
        {"data.bands": "3,2,1", "data.value_range": "0,4095", "data.crop": (64, 64), "data.workers": 0}
    )
    return fit(data, config, tmp_path_factory.mktemp("run") / "run").folder


@pytest.mark.filterwarnings("default")
def test_a_model_reads_files_as_those_that_it_was_trained_on(data: Path, run: Path) -> None:
    path = data / "images/2.tif"
    segment = evitseg.load(run / "last.safetensors")
    assert segment.reading == segment.manifest.reading == READING
    expected = np.floor(tifffile.imread(path)[..., [2, 1, 0]] * 255.0 / 4095 + 0.5)
    np.testing.assert_array_equal(read_image(path, segment.reading), expected)
    prediction = segment(path)
    np.testing.assert_array_equal(prediction.image, expected)
    np.testing.assert_array_equal(prediction.mask, segment(expected.astype(np.uint8)).mask)
    other = evitseg.load(run / "last.safetensors", reading=ReadOptions((1,), "auto"))
    assert other.reading == ReadOptions((1,), "auto")
    assert other(path).image[..., 0].max() == 255


@pytest.mark.filterwarnings("default")
def test_eval_reads_as_the_model_was_trained(data: Path, run: Path) -> None:
    command = ["eval", str(data), "--model", str(run / "last.safetensors"), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "warning" not in result.stderr
    settings = json.loads(result.stdout)["settings"]
    assert (settings["bands"], settings["range"]) == ("3,2,1", "0.0,4095.0")


@pytest.mark.filterwarnings("default")
def test_check_warns_of_every_file_once_and_the_options_answer_it(data: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(data), "--workers", "1"])
    assert result.exit_code == 0, result.output
    told = re.findall(r"warning: .*?(\d)\.tif: (.*)", result.stderr)
    assert [(name, "bands 1, 2 and 3 of 4" in why) for name, why in sorted(told)] == [
        (str(n), is_bands) for n in range(4) for is_bands in (False, True)
    ]
    assert all("--range" in why for _, why in told if "bands" not in why)
    result = CliRunner().invoke(app, ["check", str(data), "--workers", "1", "--bands", "3,2,1", "--range", "0,4095"])
    assert result.exit_code == 0
    assert "warning" not in result.stderr
    result = CliRunner().invoke(app, ["check", str(data), "--workers", "1", "--bands", "5"])
    assert result.exit_code == 1
    assert len(re.findall(r"asks for band 5, but the file has 4 bands", result.stderr)) == 4


@pytest.mark.parametrize("verb", ["check", "eval", "train"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--bands", "1,2"), ("--bands", "0"), ("--bands", "red"), ("--bands", "1,2,²"), ("--bands", ""),
        ("--bands", "1,2,3,4"), ("--range", "9"), ("--range", "9,9"), ("--range", "5,1"), ("--range", "nan,1"),
        ("--range", "0,inf"), ("--range", "minmax"), ("--range", "1,2,3"), ("--page", "0"), ("--page", "x"),
    ],
)  # fmt: skip
def test_a_wrong_choice_of_bands_range_or_page_is_a_usage_error(
    verb: str, option: str, value: str, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, [verb, str(tmp_path), option, value])
    assert result.exit_code == 2
    assert option in result.stderr


def test_a_manifest_keeps_how_files_are_read_and_older_ones_have_none() -> None:
    manifest = evitseg.load().manifest
    assert manifest.reading == ReadOptions()
    for reading in (READING, ReadOptions(value_range="percentile", page=2)):
        assert parse_manifest(replace(manifest, reading=reading).to_json(), "x").reading == reading
    content = json.loads(manifest.to_json())
    del content["reading"]
    assert parse_manifest(json.dumps(content), "x") == manifest
    for wrong in ({"bands": [0]}, {"bands": ["1"]}, {"value_range": [5, 1]}, {"value_range": "all"}, {"x": 1}, 7):
        with pytest.raises(ConfigError, match="manifest is invalid"):
            parse_manifest(json.dumps({**content, "reading": wrong}), "x")
