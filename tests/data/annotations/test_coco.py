from __future__ import annotations

import errno
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from evitseg.cli import app
from evitseg.data.annotations.coco import images_of
from evitseg.data.annotations.conversion import Conversion, mask_names, write_masks
from evitseg.data.annotations.objects import Annotations
from evitseg.data.annotations.reading import read_annotations
from evitseg.data.inspect import inspect
from evitseg.data.layouts import find_dataset
from evitseg.errors import DatasetError
from evitseg.raster.masks import read_truth
from tests.optional import needs
from tests.work_done import lines_run

SIZE = (6, 8)


def square(top: int, left: int, bottom: int, right: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def runs(region: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Uncompressed run lengths, column by column, beginning with zeros."""
    flat, counts, value = region.T.ravel().tolist(), [0], False
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(region.shape), "counts": counts}


def write(
    folder: Path,
    annotations: list[dict[str, Any]],
    names: tuple[str, ...] = ("deep/a.png",),
    size: tuple[int, int] = SIZE,
    **changes: Any,
) -> Path:
    """A COCO file; images have the ids 7, 8, ..., annotations 100, 101, ... and image 7 unless they say otherwise."""
    for name in names:
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size[::-1]).save(folder / "photos" / name)
    content = {
        "images": [
            {"id": 7 + i, "file_name": name, "height": size[0], "width": size[1]} for i, name in enumerate(names)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}],
        "annotations": [{"id": 100 + i, "image_id": 7, "category_id": 3} | a for i, a in enumerate(annotations)],
    }
    (folder / "coco.json").write_text(json.dumps(content | changes))
    return folder / "coco.json"


def convert(folder: Path, **options: Any) -> Conversion:
    return write_masks(read_annotations(folder / "coco.json", folder / "photos"), folder / "out", **options)


def truth_of(folder: Path, **options: Any) -> np.ndarray[Any, Any]:
    convert(folder, **options)
    dataset = find_dataset(folder / "out/pairs.txt")
    assert dataset.labels is not None
    assert inspect(dataset, 0).problems == []
    return read_truth(dataset.pairs()[0].mask, dataset.labels)


@pytest.mark.parametrize("form", ["polygon", "runs", "compressed"])
def test_a_region_is_drawn_where_it_is(form: str, tmp_path: Path) -> None:
    region = np.zeros(SIZE, bool)
    region[1:4, 2:7] = True
    segmentation: Any = {"polygon": square(1, 2, 4, 7), "runs": runs(region)}.get(form)
    if form == "compressed":
        needs("pycocotools")
        from pycocotools import mask

        segmentation = mask.encode(np.asfortranarray(region.astype(np.uint8)))
        segmentation["counts"] = segmentation["counts"].decode()
    write(tmp_path, [{"category_id": 90, "segmentation": segmentation}])
    np.testing.assert_array_equal(truth_of(tmp_path), np.where(region, 2, 0))


def test_the_smaller_object_lies_above_and_background_can_be_ignored(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            {"category_id": 90, "segmentation": square(2, 2, 4, 4)},
            {"category_id": 3, "segmentation": square(1, 1, 6, 8)},
        ],
    )
    expected = np.full(SIZE, 255)
    expected[1:6, 1:8] = 0
    expected[2:4, 2:4] = 1
    np.testing.assert_array_equal(truth_of(tmp_path, ignore_background=True), expected)


BAD = [
    ({"segmentation": [[float("nan"), 1, 20, 20, 30, 5]]}, "not finite"),
    ({"segmentation": [[float("inf"), 1, 20, 20, 30, 5]]}, "not finite"),
    ({"segmentation": [[1e300, 1, 20, 20, 30, 5]]}, "far outside"),
    ({"segmentation": [[100000000, 1, 20, 20, 30, 5]]}, "far outside"),
    ({"segmentation": [[10, 10, 30, 10, 30, 30, 10]]}, "7 numbers"),
    ({"segmentation": [[0, 0]]}, "no area"),
    ({"segmentation": [[1, 1, 3, 3]]}, "no area"),  # pycocotools takes four numbers for a box
    ({"segmentation": [{}]}, "not a list of numbers"),
    ({"segmentation": []}, "no polygon"),
    ({"segmentation": None}, "neither polygons nor run lengths"),
    ({"segmentation": "nothing"}, "neither polygons nor run lengths"),
    ({"segmentation": {"size": [6, 8], "counts": [1, 2]}}, "add up to 3 pixels"),
    ({"segmentation": {"size": [6, 8], "counts": [-1, 49]}}, "negative"),
    ({"segmentation": {"size": [6, 8], "counts": "zzzzz~~~"}}, "invalid characters"),
    ({"segmentation": {"size": [6, 8], "counts": "0"}}, "add up to 0 pixels"),
    ({"segmentation": {"size": [6, 8], "counts": 5}}, "neither a list nor text"),
    ({"segmentation": {"size": [600, 8], "counts": [4800]}}, "run lengths for"),
    ({"segmentation": {"counts": [48]}}, "run lengths for"),
    ({"segmentation": square(1, 1, 3, 3), "category_id": 5}, "category_id 5"),
    ({"segmentation": square(1, 1, 3, 3), "category_id": None}, "category_id None"),
    ({"segmentation": square(1, 1, 3, 3), "category_id": [3]}, "category_id"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=range(len(BAD)))
def test_a_damaged_annotation_is_reported_by_its_id_and_the_others_are_drawn(
    bad: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    good = {"category_id": 90, "segmentation": square(1, 2, 4, 7)}
    write(tmp_path, [good, bad, good | {"image_id": 8}], ("a.png", "b.png"))
    done = convert(tmp_path)
    (problem,) = done.problems
    assert "annotation 101 (a.png) has" in problem
    assert reason in problem
    assert "\n" not in problem
    assert (done.objects, done.pairs) == (2, 2)
    whole, partial = (np.asarray(Image.open(tmp_path / f"out/masks/{name}.png")) for name in "ba")
    expected = np.zeros(SIZE)
    expected[1:4, 2:7] = 2
    np.testing.assert_array_equal(whole, expected)
    # Some of the other pixels belong to the damaged object; as background they would be wrong.
    np.testing.assert_array_equal(partial, np.where(expected, 2, 255))


def test_the_command_reports_what_it_leaves_out_with_status_1(tmp_path: Path) -> None:
    needs("pycocotools")
    good, bad = {"segmentation": square(1, 2, 4, 7)}, {"segmentation": [[1, 1, 2]]}
    source = write(tmp_path, [good, *[bad] * 30])
    run = CliRunner().invoke(app, ["convert", str(source), "--out", str(tmp_path / "out")])
    assert run.exit_code == 1, run.output
    assert "annotation 101 (deep/a.png) has a polygon of 3 numbers" in run.output
    assert "and 10 more" in run.output
    assert "1 object in 1 image" in run.output
    again = CliRunner().invoke(app, ["check", str(tmp_path / "out/pairs.txt"), "--workers", "1"])
    assert "cat" in again.output


def test_images_are_found_near_the_annotations(tmp_path: Path) -> None:
    source = write(tmp_path, [{"segmentation": square(1, 2, 4, 7)}])
    for place in ("annotations/instances_train2017.json", "photos/_annotations.coco.json"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(source.read_text())
    (tmp_path / "train2017").symlink_to(tmp_path / "photos")
    for i, place in enumerate(("coco.json", "annotations/instances_train2017.json", "photos/_annotations.coco.json")):
        found = read_annotations(tmp_path / place)
        assert found.images[0].file is not None, place
        assert found.images[0].split == ("train" if i == 1 else "all")
        assert write_masks(found, tmp_path / f"out{i}").pairs == 1


def test_two_images_never_share_a_mask(tmp_path: Path) -> None:
    names = ("a.jpg", "a.png", "A.jpeg", "a.jpg.jpg", "b.png", "d/a.png")
    write(
        tmp_path,
        [
            {"image_id": 7 + i, "category_id": 3 if i % 2 else 90, "segmentation": square(0, 0, 6, 1 + i)}
            for i in range(6)
        ],
        names,
    )
    assert convert(tmp_path).pairs == 6
    pairs = find_dataset(tmp_path / "out/pairs.txt").pairs()
    assert len({str(pair.mask).lower() for pair in pairs}) == 6
    for pair in pairs:
        i = names.index(str(pair.image.resolve().relative_to((tmp_path / "photos").resolve())))
        mask = np.asarray(Image.open(pair.mask))
        assert set(np.unique(mask[:, : 1 + i])) == {1 if i % 2 else 2}, names[i]
        assert set(np.unique(mask[:, 1 + i :])) == {0}, names[i]


def test_ids_as_text_are_matched_and_strangers_reported(tmp_path: Path) -> None:
    shape = {"segmentation": square(1, 2, 4, 7)}
    write(tmp_path, [shape | {"image_id": "7", "category_id": "90"}, shape | {"image_id": 99}])
    done = convert(tmp_path)
    assert ["annotation 101 has the image_id 99" in problem for problem in done.problems] == [True]
    assert any("text" in note for note in done.notes)
    assert np.asarray(Image.open(tmp_path / "out/masks/deep/a.png"))[2, 3] == 2


def test_an_id_of_two_images_leaves_both_out(tmp_path: Path) -> None:
    size: dict[str, Any] = {"height": SIZE[0], "width": SIZE[1]}
    images = [{"id": 7, "file_name": n} | size for n in ("a.png", "b.png")] + [{"id": 9, "file_name": "c.png"} | size]
    shape = {"segmentation": square(1, 2, 4, 7)}
    write(tmp_path, [shape, shape | {"image_id": 9}], ("a.png", "b.png", "c.png"), images=images)
    done = convert(tmp_path)
    assert any("image id 7 is shared by 'a.png' and 'b.png'" in problem for problem in done.problems)
    assert [p.name for p in (tmp_path / "out/masks").iterdir()] == ["c.png"]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"file_name": "../a.png"}, "outside the folder"),
        ({"file_name": "/etc/a.png"}, "outside the folder"),
        ({"file_name": "C:\\a.png"}, "outside the folder"),
        ({"file_name": "deep/../../a.png"}, "outside the folder"),
        ({"file_name": ""}, "outside the folder"),
        ({"file_name": 5}, "not text"),
        ({"file_name": None}, "not text"),
        ({"file_name": "a\ud800.png"}, "cannot be printed"),
        ({"file_name": "a\0.png"}, "cannot be printed"),
        ({"file_name": "x" * 5000}, "too long"),
        ({"file_name": "absent.png"}, "was not found"),
        ({"height": float("inf")}, "not a number"),
        ({"height": 6.5}, "not a whole number"),
        ({"height": 10**30}, "not a number"),
        ({"height": -6, "width": -8}, "impossible"),
        ({"height": 10**9}, "impossible"),
        ({"height": 0}, "impossible"),
        ({"height": None}, "not a number"),
        ({"height": 12, "width": 16}, "for 16×12 pixels, but the image has 8×6"),
        ({"id": None}, "not a number"),
        ({"id": []}, "not a number"),
    ],
)
def test_an_image_that_cannot_be_used_is_reported_and_the_others_are_done(
    entry: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    size = {"height": SIZE[0], "width": SIZE[1]}
    images = [{"id": 8, "file_name": "b.png"} | size | entry, {"id": 7, "file_name": "a.png"} | size, 5]
    write(tmp_path, [{"segmentation": square(1, 2, 4, 7)}], ("a.png", "b.png"), images=images)
    done = convert(tmp_path)
    assert any(reason in problem for problem in done.problems), done.problems
    assert all("\n" not in problem for problem in done.problems)
    assert [p.name for p in (tmp_path / "out/masks").iterdir()] == ["a.png"]
    assert not (tmp_path / "a.png").exists()


def test_a_damaged_category_or_annotation_entry_is_reported(tmp_path: Path) -> None:
    categories = [
        {"id": 3, "name": "cat"},
        {"id": 4, "name": "a\nb"},
        {"id": "x y", "name": "dog"},
        None,
        {"name": "q"},
    ]
    shape = {"segmentation": square(1, 2, 4, 7)}
    source = write(tmp_path, [shape, shape | {"category_id": "x y"}], categories=categories)
    content = json.loads(source.read_text())
    content["annotations"].append([1])
    source.write_text(json.dumps(content))
    done = convert(tmp_path)
    assert len(done.problems) == 4
    assert done.objects == 2
    write(tmp_path, [shape], categories=[{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}])
    with pytest.raises(DatasetError, match="category 3 is both 'cat' and 'dog'"):
        convert(tmp_path)


@pytest.mark.parametrize("tag", ["EXIF", "XMP"])
def test_an_image_annotated_as_it_is_stored_gets_a_mask_turned_like_it(tag: str, tmp_path: Path) -> None:
    source = write(tmp_path, [{"segmentation": square(1, 2, 4, 7)}], ("a.jpg",))
    exif = Image.Exif()
    exif[0x0112] = 6
    block = {"exif": exif} if tag == "EXIF" else {"xmp": b'<x:xmpmeta><r:D tiff:Orientation="6"/></x:xmpmeta>'}
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "photos/a.jpg", **block)
    done = write_masks(read_annotations(source), tmp_path / "out")
    assert any("EXIF" in note for note in done.notes)
    stored = np.zeros(SIZE, int)
    stored[1:4, 2:7] = 1
    # Orientation 6: the stored rows are the upright image's columns, from right to left.
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/masks/a.png")), np.rot90(stored, -1))
    assert inspect(find_dataset(tmp_path / "out/pairs.txt")).problems == []


def test_a_folder_with_other_lists_or_masks_is_not_written_to(tmp_path: Path) -> None:
    write(tmp_path, [{"segmentation": square(1, 2, 4, 7)}])
    convert(tmp_path)
    convert(tmp_path)  # its own may be written again
    for theirs in ("masks/x.png", "labels.json", "pairs.txt", "train.txt"):
        place = tmp_path / theirs.replace("/", "_") / theirs
        place.parent.mkdir(parents=True)
        place.write_text("mine")
        with pytest.raises(DatasetError, match="did not write it"):
            write_masks(read_annotations(tmp_path / "coco.json"), tmp_path / theirs.replace("/", "_"))
        assert place.read_text() == "mine"


def test_500_objects_take_the_memory_of_a_mask(tmp_path: Path) -> None:
    size = (3000, 4000)
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 2000, (500, 2)).tolist()
    write(tmp_path, [{"segmentation": square(y, x, y + 90, x + 120)} for y, x in corners], ("a.png",), size)
    tracemalloc.start()
    assert convert(tmp_path).objects == 500
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * size[0] * size[1]  # 6 GB as bitmaps; runs are 10 MB, the mask and its PNG 12 each


def test_70000_categories_are_counted_before_anything_else(tmp_path: Path) -> None:
    write(tmp_path, [], categories=[{"id": i, "name": f"c{i}"} for i in range(70_000)])
    with pytest.raises(DatasetError, match="70,001 classes.* 65,535"):
        convert(tmp_path)


def test_files_that_are_not_coco_are_one_sentence(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", "[" * 100_000, '{"images": 1, "categories": 2, "annotations": 3}', "9" * 9999):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(DatasetError, match=r"a\.json: not") as error:
            read_annotations(tmp_path / "a.json")
        assert "\n" not in str(error.value)
    with pytest.raises(DatasetError, match="no such file"):
        read_annotations(tmp_path / "absent.json")


def test_a_file_without_a_usable_image_or_object_is_an_error(tmp_path: Path) -> None:
    source = write(tmp_path, [])
    with pytest.raises(DatasetError, match="no object with an area"):
        convert(tmp_path)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DatasetError, match="none of its 1 images"):
        (tmp_path / "empty").mkdir()
        write_masks(read_annotations(source, tmp_path / "empty"), tmp_path / "new")
    with pytest.raises(DatasetError, match="does not exist"):
        read_annotations(source, tmp_path / "absent")


def test_an_interrupted_conversion_can_be_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [{"segmentation": square(1, 2, 4, 7)}], ("a.png", "b.png"))

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path, progress=interrupt)
    with pytest.raises(DatasetError):
        find_dataset(tmp_path / "out")
    assert convert(tmp_path).pairs == 2
    (tmp_path / "coco.json").rename(tmp_path / "train.json")
    write_masks(read_annotations(tmp_path / "train.json", tmp_path / "photos"), tmp_path / "out")
    assert list(find_dataset(tmp_path / "out").splits) == ["train"]  # the list of the earlier conversion is gone


def test_an_image_of_the_same_name_in_another_folder_is_not_taken(tmp_path: Path) -> None:
    write(tmp_path, [{"segmentation": square(1, 2, 4, 7)}], ("cam2/0001.png", "b.png"))
    content = json.loads((tmp_path / "coco.json").read_text())
    content["images"][0]["file_name"] = "cam1/0001.png"
    (tmp_path / "coco.json").write_text(json.dumps(content))
    assert [image.file is None for image in read_annotations(tmp_path / "coco.json").images] == [True, False]


def test_names_with_commas_quotes_and_hashes_come_through_the_list(tmp_path: Path) -> None:
    names = ("a, b.png", "#c.png", '"d".png', " e .png", "f'g.png", "Ü/ü.png")
    write(tmp_path, [{"segmentation": square(1, 2, 4, 7)}], names)
    assert convert(tmp_path).pairs == 6
    dataset = find_dataset(tmp_path / "out")
    assert [pair.image.name for pair in dataset.pairs()] == [Path(name).name for name in names]
    assert inspect(dataset).problems == []


def test_data_in_a_folder_whose_name_is_not_text_works(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"n\xff")
    try:
        folder.mkdir()
    except OSError as error:
        if error.errno not in (errno.EILSEQ, errno.EINVAL):
            raise
        pytest.skip("this file system takes only names that are text")
    write(folder, [{"segmentation": square(1, 2, 4, 7)}])
    (folder / "coco.json").rename(folder / os.fsdecode(b"\xfe.json"))
    source = folder / os.fsdecode(b"\xfe.json")
    run = CliRunner().invoke(app, ["convert", str(source), "--out", str(folder / "out")])
    assert run.exit_code == 0, run.output
    assert inspect(find_dataset(folder / "out")).problems == []


def test_thousands_of_images_of_one_name_take_work_in_proportion_to_them() -> None:
    names = mask_names(["image.png"] * 2000)
    assert len(set(names)) == 2000
    assert names[:2] == ["image.png.png", "image.png_2.png"]

    def read(count: int) -> None:
        found = Annotations("COCO annotations", Path("x.json"), [], [])
        entries = [{"id": i, "file_name": f"{i // 2}.png", "height": 8, "width": 8} for i in range(count)]
        assert images_of(entries, found) == []
        assert len(found.problems) == count // 2

    for work in (lambda count: mask_names(["image.png"] * count), read):
        few, many = (lines_run(work, count) for count in (200, 2000))
        assert many < 11 * few  # comparing each with each runs a hundred times as many lines


@pytest.mark.parametrize(
    "name", ["/home/ana/set/a.png", "C:\\Users\\ana\\a.png", "../../media/upload/1/a.png", "D:/a.png"]
)
def test_paths_of_another_machine_lead_to_the_image_here(name: str, tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": name, "height": SIZE[0], "width": SIZE[1]}]
    write(tmp_path, [{"segmentation": square(1, 2, 4, 7)}], ("a.png",), images=images)
    done = convert(tmp_path)
    assert done.problems == ()
    assert [p.name for p in (tmp_path / "out/masks").iterdir()] == ["a.png"]


def test_two_paths_that_end_alike_share_no_image(tmp_path: Path) -> None:
    size = {"height": SIZE[0], "width": SIZE[1]}
    images = [{"id": i, "file_name": f"/{folder}/a.png"} | size for i, folder in ((7, "x"), (8, "y"))]
    write(
        tmp_path,
        [{"segmentation": square(1, 2, 4, 7)}],
        ("a.png", "b.png"),
        images=[*images, {"id": 9, "file_name": "b.png"} | size],
    )
    assert any(
        "images 7, 8 are all a.png" in problem
        for problem in read_annotations(tmp_path / "coco.json", tmp_path / "photos").problems
    )
