from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evitseg.errors import ConfigError, DatasetError
from evitseg.labels import distinct_color, load_labels, named_label_spaces, numbered
from evitseg.raster.masks import read_truth


@pytest.mark.parametrize(("name", "classes"), [("camvid", 11), ("cityscapes", 19), ("ade20k", 150)])
def test_shipped_label_spaces_are_whole(name: str, classes: int) -> None:
    assert name in named_label_spaces()
    labels = load_labels(name)
    assert len(labels.names) == len(set(labels.names)) == classes
    assert len({c.color for c in labels.classes}) == classes


def test_raw_ids_become_class_indices(tmp_path: Path) -> None:
    raw = np.array([[7, 33], [0, 26]], np.uint8)  # road, bicycle, unlabelled, car
    Image.fromarray(raw).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_truth(tmp_path / "mask.png", load_labels("cityscapes")), [[0, 18], [255, 13]])


def test_a_raw_id_outside_the_label_space_is_reported(tmp_path: Path) -> None:
    Image.fromarray(np.array([[7, 34]], np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(DatasetError, match=r"mask\.png: id 34 is not in label space 'cityscapes'"):
        read_truth(tmp_path / "mask.png", load_labels("cityscapes"))


def test_neighbouring_colours_differ() -> None:
    colors = np.array([distinct_color(i) for i in range(150)])
    assert len({tuple(color) for color in colors}) == 150
    assert np.abs(np.diff(colors, axis=0)).sum(1).min() > 60


def test_a_file_may_leave_out_ids_and_colours(tmp_path: Path) -> None:
    path = tmp_path / "fields.json"
    path.write_text(
        json.dumps({"name": "fields", "classes": [{"name": "wheat"}, {"name": "maize", "color": [1, 2, 3]}]})
    )
    labels = load_labels(path)
    assert labels.names == ("wheat", "maize")
    assert labels.classes[1].raw_ids == (1,)
    assert labels.classes[1].color == (1, 2, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not json", "not a label space"),
        ("[]", "not a label space"),
        ('{"name": "a", "classes": []}', "has no classes"),
        ('{"name": "a", "classes": [{"nmae": "b"}]}', "nmae"),
        ('{"name": "a", "classes": [{"name": "b"}, {"name": "b"}]}', "class name 'b' occurs twice"),
        (
            '{"name": "a", "classes": [{"name": "b", "raw_ids": [255]}], "ignored_ids": [255]}',
            "raw id 255 occurs twice",
        ),
        ('{"name": "a", "classes": [{"name": "b", "color": [1, 2, 300]}]}', "levels from 0 to 255"),
        ('{"name": "a", "classes": [{"name": "b", "raw_ids": [-1]}]}', "from 0 to 65535"),
        ('{"name": "a", "classes": [{"name": "b", "raw_ids": [100000000000000]}]}', "from 0 to 65535"),
        ('{"name": "a", "classes": [{"name": "b", "raw_ids": [1e999]}]}', "whole numbers"),
        ('{"name": "a", "classes": [{"name": "b", "raw_ids": "23"}]}', "whole numbers"),
        ('{"name": "a", "classes": [{"name": "b", "raw_ids": [2.7]}]}', "whole numbers"),
        ('{"name": "a", "classes": [{"name": null}]}', "printable"),
        ('{"name": "a", "classes": [{"name": "b\\u001b[31m"}]}', "printable"),
        ("[" * 100_000, "not a label space"),
    ],
)
def test_a_bad_file_is_one_sentence(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=reason):
        load_labels(path)


def test_an_unknown_name_is_an_error_that_names_near_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cityscapes'"):
        load_labels("cityscape")


def test_more_than_255_classes_need_another_number_for_ignored() -> None:
    assert numbered(255).ignore_index == 255
    assert numbered(256).ignore_index == 65_535


def test_a_text_file_with_one_name_per_line_is_a_label_space(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("# of the model\nsky\nroad\n")
    labels = load_labels(tmp_path / "labels.txt")
    assert (labels.name, labels.names) == ("labels", ("sky", "road"))
    with pytest.raises(ConfigError, match=r"none\.txt: cannot be read"):
        load_labels(tmp_path / "none.txt")


def test_names_of_annotation_tools_are_background_or_no_class(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nsky\nroad\n")
    assert load_labels(tmp_path / "labels.txt").names == ("background", "sky", "road")
    (tmp_path / "numbered.txt").write_text("1 sky\n2 ignore\n3 road\n")
    labels = load_labels(tmp_path / "numbered.txt")
    assert [(c.name, c.raw_ids) for c in labels.classes] == [("sky", (1,)), ("road", (3,))]
    assert labels.ignored_ids == (255, 2)
