from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from evitseg.data.layouts import find_dataset
from evitseg.errors import DatasetError
from tests.work_done import lines_run

HEAD = "path: .\ntrain: images\nmasks_dir: masks\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place in ("images", "masks"):
        (tmp_path / place).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / place / "a.png")
    return tmp_path


@pytest.mark.parametrize(
    "names",
    [
        "names: [no, road, 1.50]",
        "names:\n  - no\n  - road\n  - 1.50\n",
        "names: {0: no, 1: road, 2: 1.50}",
        "names:\n  0: no\n  1: 'road'\n  2: 1.50\nnc: 3\n",
        'names: {2: "1.50", 1: road, 0: no}',
    ],
)
def test_names_are_the_text_as_written(names: str, folder: Path) -> None:
    (folder / "data.yaml").write_text(HEAD + names)
    labels = find_dataset(folder / "data.yaml").labels
    assert labels is not None
    assert labels.names == ("no", "road", "1.50")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 20_000, "is nested more than"),
        (HEAD + "names: " + "{0: " * 500 + "a" + "}" * 500, "is nested more than"),
        (HEAD + "download: [&a [x], *a]", "line 4: aliases"),
        (HEAD + "names: &n [a, *n]", "aliases"),
        (HEAD + "names: {0.0: a, 1: b}", "without gaps"),
        (HEAD + "names: {0: a, 0: b}", "line 4: the key 0 occurs twice"),
        (HEAD + "names: [[a], b]", "line 4: a list or mapping instead of a single value"),
        (HEAD + "names: [a, b]\nnc: 3", "nc is 3, but there are 2 names"),
        (HEAD + "names: [a]\nlabel_mapping: {0: 2001-99-99}", "label_mapping must map"),
        (HEAD + "names: [a]\nlabel_mapping: {0: .inf}", "label_mapping must map"),
        (HEAD + f"names: [a]\nlabel_mapping: {{0: {'9' * 5000}}}", "label_mapping must map"),
        ("path: " + "9" * 5000 + "\ntrain: images\nmasks_dir: masks", "is not a folder"),
        (HEAD + "train: images", "the key train occurs twice"),
        ("path: [a]\ntrain: images\nmasks_dir: masks", "path must be a single value"),
        (HEAD + "\tnames: [a]", "cannot be read as YAML"),
        (HEAD + "names: [a\0b]", "as YAML|UTF-16"),
        (HEAD + "---\nnames: [a]", "cannot be read as YAML"),
        ("", "needs the key masks_dir"),
    ],
    ids=range(18),
)
def test_a_hostile_yaml_is_one_sentence_after_little_work(text: str, reason: str, folder: Path) -> None:
    (folder / "data.yaml").write_text(text)

    def read() -> None:
        with pytest.raises(DatasetError, match=reason) as error:
            find_dataset(folder / "data.yaml")
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 1000

    assert lines_run(read) < 20_000_000  # PyYAML looks 1024 characters ahead at every bracket


def test_dates_and_infinities_are_text_where_text_is_meant(folder: Path) -> None:
    (folder / "data.yaml").write_text(HEAD + "names: [2001-99-99, .inf, 0x10, ~, '']\n".replace(", ''", ""))
    labels = find_dataset(folder / "data.yaml").labels
    assert labels is not None
    assert labels.names == ("2001-99-99", ".inf", "0x10", "~")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_yaml_of_windows_is_read(encoding: str, folder: Path) -> None:
    (folder / "data.yaml").write_bytes((HEAD + "names: [größe, b]\n").replace("\n", "\r\n").encode(encoding))
    labels = find_dataset(folder / "data.yaml").labels
    assert labels is not None
    assert labels.names == ("größe", "b")


def test_yaml_in_utf_16_is_one_sentence(folder: Path) -> None:
    (folder / "data.yaml").write_text(HEAD, encoding="utf-16")
    with pytest.raises(DatasetError, match="UTF-16.; save it as UTF-8"):
        find_dataset(folder / "data.yaml")
