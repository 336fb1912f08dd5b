from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evitseg.data.dataset import ALL, Dataset, infer_labels
from evitseg.data.layouts import find_dataset, find_pairs, pair_files
from evitseg.data.lists import Pair
from evitseg.errors import DatasetError
from evitseg.labels import LabelClass, LabelSpace, load_labels, numbered
from evitseg.raster.masks import read_truth

RNG = np.random.default_rng(0)


def image(path: Path, size: tuple[int, int] = (8, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return path


def mask(path: Path, ids: int | NDArray[np.uint8] = 3, size: tuple[int, int] = (8, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = ids if isinstance(ids, np.ndarray) else RNG.integers(0, ids, size, np.uint8)
    Image.fromarray(values).save(path)
    return path


def names(dataset: Dataset, split: str) -> list[tuple[str, str]]:
    return [(p.image.name, p.mask.name) for p in dataset.splits[split]]


@pytest.mark.parametrize("suffix", ["", "_mask", "_labelIds", "_L", "-annotated-by-hand"])
def test_images_and_masks_are_paired_by_place_and_stem(suffix: str, tmp_path: Path) -> None:
    for name in ("a", "deep/b", "deep/er/a", "0000012"):
        image(tmp_path / f"images/{name}.jpg")
        mask(tmp_path / f"masks/{name}{suffix}.png")
    dataset = find_dataset(tmp_path)
    assert len(dataset.splits[ALL]) == 4
    assert dataset.unpaired == ()
    for pair in dataset.splits[ALL]:
        assert pair.mask.parent.relative_to(tmp_path / "masks") == pair.image.parent.relative_to(tmp_path / "images")
        assert pair.mask.stem == pair.image.stem + suffix


def test_a_name_that_begins_another_is_not_mistaken_for_it() -> None:
    images = {Path(name): Path(f"{name}.jpg") for name in ("1", "10", "100")}
    masks = {Path(f"{name}_mask"): Path(f"{name}_mask.png") for name in ("1", "10", "100")}
    pairs, alone = pair_files(images, masks)
    assert [(p.image.stem, p.mask.stem) for p in pairs] == [("1", "1_mask"), ("10", "10_mask"), ("100", "100_mask")]
    assert alone == []


def test_a_number_that_begins_another_is_not_its_mask() -> None:
    images = {Path(str(i)): Path(f"{i}.jpg") for i in (1, 2, 3, 4, 11)}
    masks = {Path(str(i)): Path(f"{i}.png") for i in (2, 3, 4, 10, 11, 12)}
    pairs, alone = pair_files(images, masks)
    assert [(p.image.stem, p.mask.stem) for p in pairs] == [("2", "2"), ("3", "3"), ("4", "4"), ("11", "11")]
    assert {p.name for p in alone} == {"1.jpg", "10.png", "12.png"}


def test_nothing_is_left_out_without_a_word(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.jpg", "c_img.jpg", "c.jpg"):
        image(tmp_path / "images" / name)
    for name in ("a.png", "b.bmp", "b.png", "c.png", "b (copy).png"):
        mask(tmp_path / "masks" / name)
    dataset = find_dataset(tmp_path)
    assert {(p.image.name, p.mask.name) for p in dataset.pairs()} == {
        ("a.png", "a.png"),
        ("b.jpg", "b.png"),
        ("c.jpg", "c.png"),
    }
    assert {p.name for p in dataset.unpaired} == {"a.jpg", "b.bmp", "c_img.jpg", "b (copy).png"}


def test_folders_that_are_no_split_are_named(tmp_path: Path) -> None:
    for folder in ("train", "val", "extra"):
        image(tmp_path / "images" / folder / "a.png")
    mask(tmp_path / "masks/train/a.png")
    dataset = find_dataset(tmp_path)
    assert list(dataset.splits) == ["train"]
    assert {p.parent.name for p in dataset.unpaired} == {"val", "extra"}
    mask(tmp_path / "masks/val/a.png")
    mask(tmp_path / "masks/valid/a.png")
    with pytest.raises(DatasetError, match="are both the val split"):
        find_dataset(tmp_path)


def test_a_mask_for_every_class_is_an_error_that_says_so(tmp_path: Path) -> None:
    for i in range(4):
        image(tmp_path / f"images/{i:03}.png")
        for kind in ("cars", "roads", "sky"):
            mask(tmp_path / f"masks/{i:03}_{kind}.png")
    with pytest.raises(DatasetError, match="several masks each .*; merge"):
        find_dataset(tmp_path)


def test_linked_folders_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    image(tmp_path / "elsewhere/x/a.png")
    mask(tmp_path / "masks/x/a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/x").symlink_to(tmp_path / "elsewhere/x")
    (tmp_path / "images/circle").symlink_to(tmp_path / "images")
    assert len(find_dataset(tmp_path).pairs()) == 1


def test_texts_as_other_programs_write_them(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    mask(tmp_path / "b.png")
    (tmp_path / "pairs.csv").write_bytes("\ufeffimage,mask\na.jpg,b.png\n".encode())
    assert find_pairs(tmp_path / "pairs.csv") == (Pair(tmp_path / "a.jpg", tmp_path / "b.png"),)
    (tmp_path / "classes.txt").write_bytes("g\xe4rten\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"classes\.txt: cannot be read as UTF-8"):
        find_dataset(tmp_path / "pairs.csv")


@pytest.mark.parametrize("above", [True, False])
def test_splits_are_found_above_and_below(above: bool, tmp_path: Path) -> None:
    for split in ("train", "valid"):
        for kind, make in (("Images", image), ("labels", mask)):
            parts = (split, kind) if above else (kind, split)
            make(tmp_path.joinpath(*parts, "a.png"))
    dataset = find_dataset(tmp_path)
    assert {split: len(pairs) for split, pairs in dataset.splits.items()} == {"train": 1, "val": 1}
    assert find_pairs(tmp_path, "val") == dataset.splits["val"]
    with pytest.raises(DatasetError, match="no split 'test'; there are train, val"):
        find_pairs(tmp_path, "test")


def test_files_without_a_partner_are_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        image(tmp_path / f"images/{name}.jpg")
    for name in ("a", "b", "d"):
        mask(tmp_path / f"masks/{name}.png")
    dataset = find_dataset(tmp_path)
    assert len(dataset.pairs()) == 2
    assert {p.name for p in dataset.unpaired} == {"c.jpg", "d.png"}


def test_camvid_is_recognised(shared: Callable[[str], Path]) -> None:
    dataset = find_dataset(shared("data/camvid"))
    assert {split: len(pairs) for split, pairs in dataset.splits.items()} == {"train": 367, "val": 101, "test": 233}
    assert dataset.labels == load_labels("camvid")
    assert dataset.unpaired == ()


def test_cityscapes_is_recognised(tmp_path: Path) -> None:
    stem = "aachen_000000_000019"
    for split in ("train", "val", "test"):
        image(tmp_path / f"leftImg8bit/{split}/aachen/{stem}_leftImg8bit.png")
        for kind in ("color", "instanceIds", "labelIds"):
            mask(tmp_path / f"gtFine/{split}/aachen/{stem}_gtFine_{kind}.png", np.full((8, 12), 26, np.uint8))
    dataset = find_dataset(tmp_path)
    assert set(dataset.splits) == {"train", "val"}
    assert names(dataset, "train") == [(f"{stem}_leftImg8bit.png", f"{stem}_gtFine_labelIds.png")]
    assert dataset.unpaired == ()
    assert dataset.labels is not None
    assert (read_truth(dataset.splits["val"][0].mask, dataset.labels) == 13).all()  # 26 is car, train id 13


def test_ade20k_is_recognised(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        image(tmp_path / f"images/{split}/ADE_00000001.jpg")
        mask(tmp_path / f"annotations/{split}/ADE_00000001.png", np.array([[0, 1, 150]], np.uint8))
    dataset = find_dataset(tmp_path)
    assert set(dataset.splits) == {"train", "val"}
    assert dataset.labels is not None
    np.testing.assert_array_equal(read_truth(dataset.splits["train"][0].mask, dataset.labels), [[255, 0, 149]])


@pytest.mark.parametrize("separator", [",", " ", "\t", ", "])
def test_a_list_of_pairs(separator: str, tmp_path: Path) -> None:
    image(tmp_path / "x/a.jpg")
    mask(tmp_path / "y/b.png")
    (tmp_path / "pairs.txt").write_text(f"# image, mask\nx/a.jpg{separator}y/b.png\n\n")
    assert find_pairs(tmp_path / "pairs.txt") == (Pair(tmp_path / "x/a.jpg", tmp_path / "y/b.png"),)
    (tmp_path / "pairs.txt").write_text("only-one.jpg\n")
    with pytest.raises(DatasetError, match="line 1"):
        find_dataset(tmp_path / "pairs.txt")


def test_a_yaml_file_with_a_mapping(tmp_path: Path) -> None:
    for split in ("train", "val"):
        image(tmp_path / f"set/images/{split}/a.jpg")
        mask(tmp_path / f"set/masks/{split}/a.png", np.array([[7, 8, 0, 255]], np.uint8))
    (tmp_path / "data.yaml").write_text(
        "path: set\ntrain: images/train\nval: images/val\nmasks_dir: masks\n"
        "names:\n  0: road\n  1: pavement\nlabel_mapping:\n  0: 255\n  7: 0\n  8: 1\n"
    )
    dataset = find_dataset(tmp_path / "data.yaml")
    assert {split: len(pairs) for split, pairs in dataset.splits.items()} == {"train": 1, "val": 1}
    assert dataset.labels is not None
    assert dataset.labels.names == ("road", "pavement")
    np.testing.assert_array_equal(read_truth(dataset.pairs()[0].mask, dataset.labels), [[0, 1, 255, 255]])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "as YAML"),
        ("train: images", "needs the key masks_dir"),
        ("train: nowhere\nmasks_dir: masks", "is not a folder"),
        ("train: images\nmasks_dir: masks\nnames: {1: a}", "without gaps"),
        ("train: images\nmasks_dir: masks\nnames: {0: a, x: b}", "without gaps"),
        ("train: images\nmasks_dir: masks\nnames: [a]\nlabel_mapping: {3: 7}", "label_mapping must map"),
        ("train: images\nmasks_dir: masks\nlabel_maping: {3: 7}", "did you mean 'label_mapping'"),
        ("train: [images]\nmasks_dir: masks", "must be a single folder"),
    ],
)
def test_a_bad_yaml_file_is_one_sentence(text: str, reason: str, tmp_path: Path) -> None:
    image(tmp_path / "images/a.jpg")
    mask(tmp_path / "masks/a.png")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DatasetError, match=reason) as error:
        find_dataset(tmp_path / "data.yaml")
    assert "\n" not in str(error.value)


def test_what_is_no_dataset_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file or folder"):
        find_dataset(tmp_path / "absent")
    with pytest.raises(DatasetError, match="no images with masks found; arrange them as"):
        find_dataset(tmp_path)
    image(tmp_path / "images/a.jpg")
    mask(tmp_path / "masks/b.png")
    with pytest.raises(DatasetError, match="no image has a mask of the same name"):
        find_dataset(tmp_path)


def test_masks_in_colours_are_read_by_the_classes_colours(tmp_path: Path) -> None:
    labels = LabelSpace("two", (LabelClass("a", (0,), (10, 20, 30)), LabelClass("b", (1,), (200, 0, 0))))
    colors = np.array([[[10, 20, 30], [200, 0, 0], [0, 0, 0]]], np.uint8)
    Image.fromarray(colors).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_truth(tmp_path / "a.png", labels), [[0, 1, 255]])
    Image.fromarray(colors + 1).save(tmp_path / "b.png")
    with pytest.raises(DatasetError, match=r"b\.png: no class .* has the colour \(1, 1, 1\)"):
        read_truth(tmp_path / "b.png", labels)


def test_classes_of_unnamed_masks_are_inferred(tmp_path: Path) -> None:
    pairs = [Pair(tmp_path, mask(tmp_path / "a.png", np.array([[0, 2, 255]], np.uint8)))]
    assert infer_labels(pairs) == numbered(3)
    pairs = [Pair(tmp_path, mask(tmp_path / "b.png", np.array([[0, 255]], np.uint8)))]
    assert infer_labels(pairs).names == ("background", "foreground")
    for ids in ([0, 128, 255], [7, 26000, 26002]):
        pairs = [Pair(tmp_path, mask(tmp_path / "d.png", np.array([ids], np.uint16)))]
        with pytest.raises(DatasetError, match="contain the ids .* --labels FILE"):
            infer_labels(pairs)
    Image.new("RGB", (3, 3), (9, 9, 8)).save(tmp_path / "c.png")
    with pytest.raises(DatasetError, match="a mask in colours"):
        infer_labels([Pair(tmp_path, tmp_path / "c.png")])


def test_classes_beside_the_data_are_taken(tmp_path: Path) -> None:
    image(tmp_path / "images/a.jpg")
    mask(tmp_path / "masks/a.png")
    (tmp_path / "classes.txt").write_text("wheat\nmaize\n\nbare soil\n")
    labels = find_dataset(tmp_path).labels
    assert labels is not None
    assert labels.names == ("wheat", "maize", "bare soil")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("# classes\nsoil\nwheat\nmaize\n", [(0,), (1,), (2,)]),
        ("0 soil\n1 wheat\n2 maize\n", [(0,), (1,), (2,)]),
        ("0: soil\n1: wheat\n2: maize\n", [(0,), (1,), (2,)]),
        ("1, soil\r\n2, wheat\r\n\r\n3, maize\r\n", [(1,), (2,), (3,)]),
        ("2 maize\n0 soil\n1 wheat\n", [(0,), (1,), (2,)]),
        ("3 maize\n1 soil\n2 wheat\n", [(1,), (2,), (3,)]),
    ],
)
def test_comments_are_no_classes_and_numbers_before_names_are_ids(
    text: str, ids: list[tuple[int]], tmp_path: Path
) -> None:
    image(tmp_path / "images/a.jpg")
    mask(tmp_path / "masks/a.png")
    (tmp_path / "classes.txt").write_text(text)
    labels = find_dataset(tmp_path).labels
    assert labels is not None
    assert labels.names == ("soil", "wheat", "maize")
    assert [c.raw_ids for c in labels.classes] == ids


def test_names_that_begin_with_other_numbers_stay(tmp_path: Path) -> None:
    image(tmp_path / "images/a.jpg")
    mask(tmp_path / "masks/a.png")
    (tmp_path / "classes.txt").write_text("1 cent\n2 cent\n5 cent\n")
    labels = find_dataset(tmp_path).labels
    assert labels is not None
    assert labels.names == ("1 cent", "2 cent", "5 cent")


def test_an_accent_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    image(tmp_path / "images" / unicodedata.normalize("NFC", "größe.jpg"))
    mask(tmp_path / "masks" / unicodedata.normalize("NFD", "größe.png"))
    assert len(find_dataset(tmp_path).pairs()) == 1


def test_masks_as_arrays_are_named(tmp_path: Path) -> None:
    image(tmp_path / "images/a.jpg")
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks/a.npy", np.zeros((8, 12), np.uint8))
    with pytest.raises(DatasetError, match=r"skipped: 1 \.npy files, which are not read"):
        find_dataset(tmp_path)


def test_masks_beside_their_images_are_found(tmp_path: Path) -> None:
    for name in ("s1", "s2", "surgical_mask"):  # the last is an image of that name
        image(tmp_path / "train" / f"{name}.jpg")
    for name in ("s1_mask", "s2_mask"):
        mask(tmp_path / "train" / f"{name}.png")
    dataset = find_dataset(tmp_path)
    assert names(dataset, "train") == [("s1.jpg", "s1_mask.png"), ("s2.jpg", "s2_mask.png")]
    assert [p.name for p in dataset.unpaired] == ["surgical_mask.jpg"]
    mask(tmp_path / "train/surgical_mask_mask.png")
    assert ("surgical_mask.jpg", "surgical_mask_mask.png") in names(find_dataset(tmp_path), "train")


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("images", "masks"):
        image(tmp_path / place / "a.png")
        image(tmp_path / place / "closed" / "b.png")
    scandir = os.scandir

    def closed(path: Any) -> Any:
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DatasetError, match=r"images/closed: the folder cannot be read \(Permission denied\)"):
        find_dataset(tmp_path)


def test_an_image_of_the_same_name_comes_before_one_with_a_suffix() -> None:
    images = {Path(name): Path(f"{name}.jpg") for name in ("x", "x_1", "y", "y_1")}
    masks = {Path(name): Path(f"{name}.png") for name in ("x_1", "y_1")}
    pairs, alone = pair_files(images, masks)
    assert [(p.image.stem, p.mask.stem) for p in pairs] == [("x_1", "x_1"), ("y_1", "y_1")]
    assert {p.name for p in alone} == {"x.jpg", "y.jpg"}


def test_a_split_without_masks_is_left_out(tmp_path: Path) -> None:
    for name in ("train/a", "val/b", "test/c"):
        image(tmp_path / f"{name}.jpg")
    for name in ("train/a", "val/b"):
        mask(tmp_path / f"{name}_mask.png")
    dataset = find_dataset(tmp_path)
    assert {split: len(pairs) for split, pairs in dataset.splits.items()} == {"train": 1, "val": 1}
    assert [path.name for path in dataset.unpaired] == ["c.jpg"]


def test_lists_of_splits_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image(tmp_path / f"images/{name}.jpg")
        mask(tmp_path / f"masks/{name}.png")
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "val.txt").write_text("b\n")
    dataset = find_dataset(tmp_path)
    assert list(dataset.splits) == [ALL]
    (note,) = dataset.notes
    assert "are not lists of pairs and are not used" in note
    assert "train.txt, line 1: 'a'" in note
    (tmp_path / "train.txt").write_text("images/a.jpg masks/a.png\n")
    with pytest.raises(DatasetError, match=r"val\.txt, line 1: 'b' is not .* Other lists in .* are of pairs"):
        find_dataset(tmp_path)


def test_names_of_annotation_tools_mean_the_same_in_the_data_and_in_a_list(tmp_path: Path) -> None:
    image(tmp_path / "images/a.jpg")
    mask(tmp_path / "masks/a.png", 1)
    (tmp_path / "classes.txt").write_text("__ignore__\n_background_\ncat\n")
    labels = find_dataset(tmp_path).labels
    assert labels is not None
    assert labels.names == load_labels(tmp_path / "classes.txt").names == ("background", "cat")
