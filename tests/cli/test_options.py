from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from evitseg.cli import app
from evitseg.system.core_library import LIBRARY


def test_info_says_that_the_native_engine_is_there() -> None:
    told = json.loads(CliRunner().invoke(app, ["info", "--json"]).stdout)
    assert told["engines"]["native"] is LIBRARY.is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["eval", "data", "--masks", "m", "--size", "512"], "--masks"),
        (["eval", "data", "--masks", "m", "--engine", "openvino"], "--masks"),
        (["eval", "data", "--masks", "m", "--precision", "float32"], "--masks"),
        (["eval", "data", "--masks", "m", "--threads", "2"], "--masks"),
        (["export", "b0-camvid", "--to", "best", "--weights", "float16"], "tries every number format"),
        (["export", "b0-camvid", "--to", "best", "--int8", "data"], "tries every number format"),
        (["export", "b0-camvid", "--threads", "2"], "applies to --to best only"),
        (["train", "data", "--crop", "3²x64"], "is not HEIGHTxWIDTH"),
        (["train", "data", "--crop", "64x64x64"], "is not HEIGHTxWIDTH"),
        (["train", "data", "--batch", "²"], "neither a number of images"),
    ],
)
def test_an_option_that_would_be_ignored_or_misread_is_a_usage_error(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert sentence in result.output
