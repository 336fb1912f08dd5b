"""What the numbers of a set of masks mean, and what of it is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evitseg.data.dataset import infer_labels
from evitseg.data.inspect import inspect
from evitseg.data.layouts import find_dataset
from evitseg.errors import DatasetError, EvitsegError
from evitseg.evaluation.evaluate import evaluate
from evitseg.labels import LabelSpace, by_index, numbered
from evitseg.raster.masks import read_mask_file, read_truth
from evitseg.raster.png import save_mask

Palette = Sequence[tuple[int, int, int]]
BLACK, RED, GREEN, WHITE = (0, 0, 0), (128, 0, 0), (0, 128, 0), (255, 255, 255)


def data(folder: Path, masks: Sequence[Image.Image], **files: str) -> Path:
    """Images and masks 0, 1, ..., with classes_txt, labels_json and so on beside them."""
    for number, mask in enumerate(masks):
        for place in ("images", "masks"):
            (folder / place).mkdir(parents=True, exist_ok=True)
        Image.effect_noise(mask.size, 50 + number).save(folder / f"images/{number}.png")
        options = {"bits": mask.info["bits"]} if "bits" in mask.info else {}
        mask.save(folder / f"masks/{number}.png", **options)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return folder


def gray(*levels: int, dtype: Any = np.uint8) -> Image.Image:
    """A mask with a column of each level."""
    return Image.fromarray(np.tile(np.array(levels, dtype), (4, 1)))


def white(*shown: bool) -> Image.Image:
    return Image.fromarray(np.tile(np.array(shown), (4, 1)))


def indexed(palette: Palette, *indices: int, bits: int | None = None) -> Image.Image:
    image = gray(*indices)
    image.putpalette([level for color in palette for level in color])
    if bits:
        image.info["bits"] = bits
    return image


def colored(*colors: tuple[int, int, int]) -> Image.Image:
    return Image.fromarray(np.tile(np.array(colors, np.uint8), (4, 1, 1)))


def space(*classes: dict[str, Any], **more: Any) -> str:
    return json.dumps({"name": "x", "classes": list(classes), **more})


def truths(folder: Path) -> list[list[int]]:
    """The first row of every mask, in class indices, by the classes that `inspect` settles on."""
    inspection = inspect(find_dataset(folder), 0)
    assert not [finding.problem for finding in inspection.findings if finding.problem]
    for finding in inspection.findings:  # counted without reading the file again
        truth = read_truth(finding.pair.mask, inspection.labels)
        counted = truth[truth != inspection.labels.ignore_index]
        assert finding.counts == tuple(np.bincount(counted, minlength=len(inspection.labels.classes)))
    return [read_truth(f.pair.mask, inspection.labels)[0].tolist() for f in inspection.findings]


NAMES = {"two": "bg\nfg\n", "three": "bg\na\nb\n"}
COLORS = space({"name": "bg", "color": BLACK}, {"name": "a", "color": RED}, {"name": "b", "color": GREEN})


def test_masks_of_0_and_255_with_two_names_are_background_and_foreground(tmp_path: Path) -> None:
    assert truths(data(tmp_path / "a", [gray(0, 255), gray(0, 0)], classes_txt=NAMES["two"])) == [[0, 1], [0, 0]]
    bare = space({"name": "bg"}, {"name": "fg"})
    assert truths(data(tmp_path / "b", [gray(0, 255), gray(255, 0)], labels_json=bare)) == [[0, 1], [1, 0]]
    stated = space({"name": "bg", "raw_ids": [0]}, {"name": "fg", "raw_ids": [255]})
    assert truths(data(tmp_path / "c", [gray(0, 255), gray(255, 0)], labels_json=stated)) == [[0, 1], [1, 0]]


def test_255_is_ignored_where_the_masks_or_the_label_space_say_so(tmp_path: Path) -> None:
    assert truths(data(tmp_path / "a", [gray(0, 1, 255), gray(0, 1, 1)], classes_txt=NAMES["two"])) == [
        [0, 1, 255], [0, 1, 1],
    ]  # fmt: skip
    void = space({"name": "bg"}, {"name": "fg"}, ignored_ids=[255])
    assert truths(data(tmp_path / "b", [gray(0, 255), gray(0, 1)], labels_json=void)) == [[0, 255], [0, 1]]
    assert truths(data(tmp_path / "c", [gray(0, 255), gray(2, 1)], classes_txt=NAMES["three"])) == [[0, 255], [2, 1]]


@pytest.mark.parametrize(
    ("masks", "files", "reason"),
    [
        ([gray(0, 1), gray(0, 255)], {"classes_txt": NAMES["two"]}, "contains 1, .* contains 255, and no mask"),
        (
            [gray(0, 255)] * 2,
            {"labels_json": space({"name": "bg", "raw_ids": [0]}, {"name": "fg", "raw_ids": [1]})},
            "contain 255 and never 1, the id of 'fg'",
        ),
        (
            [gray(0, 255)] * 2,
            {"classes_txt": "fg\n"},
            "contain 0 and 255, but 'fg' is the only class; name two classes",
        ),
        ([gray(0, 1)] * 2, {"classes_txt": "fg\n"}, "contain 0 and 1, but 'fg' is the only class; name two classes"),
        ([colored(BLACK, RED)] * 2, {"labels_json": space({"name": "fg", "color": RED})}, "several colours, but 'fg'"),
        ([white(False, True), gray(0, 1, 255)], {"classes_txt": NAMES["two"]}, "stores 1 in 1 bits.* like 255"),
        ([white(False, True)] * 2, {"classes_txt": NAMES["three"]}, "white could be id 1 or 255"),
        (
            [indexed([BLACK, RED, GREEN], 0, 1, 2), indexed([GREEN, BLACK, RED], 0, 1, 2)],
            {"classes_txt": NAMES["three"]},
            r"masks/1.png and .*masks/0.png: their palettes differ",
        ),
        (
            [indexed([BLACK, RED, GREEN], 0, 1, 2), indexed([BLACK, GREEN], 0, 1)],
            {},
            r"masks/1.png and .*masks/0.png: their palettes differ",
        ),
    ],
)
def test_masks_that_could_mean_two_things_are_refused(
    masks: list[Image.Image], files: dict[str, str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=reason):
        inspect(find_dataset(data(tmp_path, masks, **files)), 0)


def test_palettes_in_any_order_are_matched_by_the_classes_colours(tmp_path: Path) -> None:
    masks = [
        indexed([BLACK, RED, GREEN], 0, 1, 2),
        indexed([GREEN, BLACK, RED], 1, 2, 0),
        indexed([RED, GREEN], 0, 1, 0, bits=1),
        indexed([BLACK], 0, 0, 0, bits=1),
        colored(BLACK, RED, GREEN),
    ]
    assert truths(data(tmp_path, masks, labels_json=COLORS)) == [[0, 1, 2], [0, 1, 2], [1, 2, 1], [0, 0, 0], [0, 1, 2]]


def test_a_palette_of_other_colours_gives_its_indices(tmp_path: Path) -> None:
    # PASCAL VOC's palette has a grey entry; a file of it and of black alone is not grey.
    voc = [(0, 0, 0), (128, 0, 0), (128, 128, 128), (0, 128, 0)]
    masks = [indexed(voc, 0, 1, 3), indexed(voc, 0, 2, 0)]
    assert truths(data(tmp_path, masks, classes_txt="bg\na\nb\nc\n")) == [[0, 1, 3], [0, 2, 0]]


def test_palettes_without_colours_give_their_indices(tmp_path: Path) -> None:
    masks = [indexed([BLACK] * 256, 0, 1, 2), indexed([BLACK] * 256, 2, 1, 0)]
    assert truths(data(tmp_path, masks, classes_txt=NAMES["three"])) == [[0, 1, 2], [2, 1, 0]]


def test_gray_masks_rewritten_by_an_optimiser_keep_their_numbers(tmp_path: Path) -> None:
    """What optipng and zopflipng make of masks of 0, 1, 2 and 255: small palettes, and 1 bit for black and white."""

    def ramp(*levels: int) -> Palette:
        return [(level, level, level) for level in levels]

    masks = [
        gray(0, 1, 2),
        indexed(ramp(0, 2), 0, 1, 0, bits=1),
        indexed(ramp(2, 0, 255), 1, 0, 2, bits=2),
        indexed(ramp(1), 0, 0, 0, bits=1),
        white(False, True, False),
        colored((0, 0, 0), (2, 2, 2), (1, 1, 1)),
    ]
    expected = [[0, 1, 2], [0, 2, 0], [0, 2, 255], [1, 1, 1], [0, 255, 0], [0, 2, 1]]
    assert truths(data(tmp_path / "a", masks, classes_txt=NAMES["three"])) == expected
    binary = [gray(0, 255), white(False, True), indexed(ramp(255, 0), 1, 0, bits=1), white(True, True)]
    assert truths(data(tmp_path / "b", binary, classes_txt=NAMES["two"])) == [[0, 1], [0, 1], [0, 1], [1, 1]]
    assert truths(data(tmp_path / "c", binary)) == [[0, 1], [0, 1], [0, 1], [1, 1]]


def test_a_colour_mask_that_became_gray_is_read_as_the_others(tmp_path: Path) -> None:
    # Black is no class here: it is ignored in coloured masks, and so in those that hold nothing else.
    labels = space({"name": "a", "color": RED}, {"name": "b", "color": GREEN})
    masks = [colored(BLACK, RED, GREEN), gray(0, 0, 0), indexed([BLACK, WHITE, RED], 0, 1, 2)]
    folder = data(tmp_path, masks, labels_json=labels)
    inspection = inspect(find_dataset(folder), 0)
    rows = [read_truth(f.pair.mask, inspection.labels)[0].tolist() for f in inspection.findings]
    assert rows == [[255, 0, 1], [255, 255, 255], [255, 255, 0]]
    assert "every pixel is ignored" in inspection.findings[1].problem


def test_gray_numbers_beside_coloured_masks_stay_numbers(tmp_path: Path) -> None:
    labels = space({"name": "a", "color": RED}, {"name": "b", "color": GREEN})
    masks = [indexed([RED, GREEN], 0, 1), gray(0, 0), gray(0, 1), colored(GREEN, RED)]
    assert truths(data(tmp_path / "a", masks, labels_json=labels)) == [[0, 1], [0, 0], [0, 1], [1, 0]]
    masks = [indexed([RED, GREEN], 0, 1), gray(0, 0)]  # no coloured mask has black
    assert truths(data(tmp_path / "b", masks, labels_json=labels)) == [[0, 1], [0, 0]]


def test_a_palette_that_contradicts_the_classes_colours_is_refused(tmp_path: Path) -> None:
    folder = data(tmp_path, [indexed([RED, (9, 8, 7)], 0, 1)] * 2, labels_json=COLORS)
    (problem, _) = inspect(find_dataset(folder), 0).problems
    assert "palette index 0 has the colour of 'a' but is the id of 'bg'" in problem
    folder = data(tmp_path / "b", [indexed([(9, 8, 7)] * 5, 4, 4)] * 2, labels_json=COLORS)
    assert "palette index 4 of colour (9, 8, 7) is neither" in inspect(find_dataset(folder), 0).problems[0]
    numbered = space({"name": "a"}, {"name": "b"})
    folder = data(tmp_path / "c", [indexed([(9, 8, 7)] * 6, 0, 5)] * 2, labels_json=numbered)
    assert "palette index 5 of colour (9, 8, 7) is neither" in inspect(find_dataset(folder), 0).problems[0]


def test_one_class_everywhere_is_nothing_to_train_on(tmp_path: Path) -> None:
    inspection = inspect(find_dataset(data(tmp_path, [gray(0, 255)] * 3, classes_txt=NAMES["three"])), 0)
    assert not inspection.trains
    assert "every counted pixel is 'bg'" in inspection.obstacle


def test_unnamed_masks_of_mixed_depths_are_refused_where_a_number_may_have_changed(tmp_path: Path) -> None:
    levels = np.array([[0, 85, 170]], np.uint8)
    Image.fromarray(levels).save(tmp_path / "two.png", bits=2)
    folder = data(tmp_path, [gray(0, 1, 2)])
    (tmp_path / "two.png").rename(folder / "masks/1.png")
    Image.effect_noise((3, 1), 50).save(folder / "images/1.png")
    with pytest.raises(DatasetError, match="stores 2 in 2 bits, which looks like 170, while"):
        infer_labels(find_dataset(folder).pairs())


def test_own_masks_of_gray_classes_are_read_by_colour(tmp_path: Path) -> None:
    # As of ADE20K: the first class is grey 120, and 120 is the id of another class.
    grays = tuple(replace(c, color=(120 + i,) * 3) if i < 2 else c for i, c in enumerate(numbered(150).classes))
    labels = LabelSpace("grays", grays, ignored_ids=())
    save_mask(np.array([[0, 1, 0]], np.uint8), tmp_path / "m.png", labels)
    indexed([(121,) * 3, (120,) * 3], 1, 0, 1, bits=1).save(tmp_path / "optimised.png", bits=1)
    for name in ("m.png", "optimised.png"):
        assert read_mask_file(tmp_path / name).classes(by_index(labels))[0].tolist() == [0, 1, 0]


@pytest.mark.parametrize(("name", "content"), [
    ("classes.txt", "a\nb\na\n"), ("labels.json", '{"name": "x", "classes": [{"name": "a"}, {"name": "a"}]}'),
    ("labels.json", '{"name": "x", "name": "y", "classes": [{"name": "a"}]}'),
    ("labels.json", "[" * 100_000), ("labels.json", '{"name": "x", "classes": [{"name": "a", "raw_ids": [1e400]}]}'),
    ("labels.json", '{"name": "x", "classes": [{"name": "a", "raw_ids": [' + "9" * 5000 + "]}]}"),
])  # fmt: skip
def test_a_bad_file_of_classes_is_named(name: str, content: str, tmp_path: Path) -> None:
    folder = data(tmp_path, [gray(0, 1)] * 2)
    (folder / name).write_text(content)
    with pytest.raises(EvitsegError, match=name) as error:
        find_dataset(folder)
    assert len(str(error.value)) < 700


def test_files_of_classes_that_windows_wrote_are_read(tmp_path: Path) -> None:
    folder = data(tmp_path, [gray(0, 1)] * 2)
    (folder / "classes.txt").write_bytes("\ufeffgröße\r\n b \r\n".encode())
    labels = find_dataset(folder).labels
    assert labels is not None
    assert labels.names == ("größe", "b")
    (folder / "labels.json").write_text(space({"name": "größe"}, {"name": "b"}), encoding="utf-8-sig")
    assert find_dataset(folder).labels == LabelSpace("x", labels.classes)


def test_the_border_of_pascal_voc_is_ignored_in_any_order(tmp_path: Path) -> None:
    border = (224, 224, 192)
    masks = [indexed([border, RED, BLACK], 2, 1, 0), colored(BLACK, GREEN, border)]
    assert truths(data(tmp_path, masks, labels_json=COLORS)) == [[0, 1, 255], [0, 2, 255]]


def test_eval_reads_masks_as_check_does(tmp_path: Path) -> None:
    white_is_1 = lambda image: (image[..., 0] * 0 + 1).astype(np.uint8)  # noqa: E731
    report = evaluate(white_is_1, data(tmp_path / "a", [gray(0, 255, 255)] * 2, classes_txt=NAMES["two"]))
    assert report.counts.confusion.tolist() == [[0, 8], [0, 16]]
    masks = [indexed([GREEN, BLACK, RED], 1, 2, 0), indexed([RED, GREEN], 0, 1, 1, bits=1)]
    report = evaluate(white_is_1, data(tmp_path / "b", masks, labels_json=COLORS))
    assert report.counts.confusion[:, 1].tolist() == [4, 8, 12]
    with pytest.raises(DatasetError, match="name two classes"):
        evaluate(white_is_1, data(tmp_path / "c", [gray(0, 255)] * 2, classes_txt="fg\n"))
    with pytest.raises(DatasetError, match="their palettes differ"):
        evaluate(white_is_1, data(tmp_path / "d", masks, classes_txt=NAMES["three"]))


LEVELS = space(
    {"name": "bg", "color": BLACK}, {"name": "edge", "color": (128, 128, 128)}, {"name": "fg", "color": WHITE}
)


def test_grey_masks_of_classes_with_grey_colours_are_read_alike(tmp_path: Path) -> None:
    masks = [gray(0, 128, 255), gray(0, 255), gray(0, 0)]
    assert truths(data(tmp_path / "a", masks, labels_json=LEVELS)) == [[0, 1, 2], [0, 2], [0, 0]]
    assert truths(data(tmp_path / "b", [gray(0, 1, 255), gray(2, 2, 2)], labels_json=LEVELS)) == [[0, 1, 255], [2] * 3]


def test_data_without_names_is_read_as_the_masks_that_a_model_knows(tmp_path: Path) -> None:
    def scores(folder: str, masks: list[Image.Image], model: LabelSpace) -> list[float | None]:
        def predict(image: Any) -> Any:
            return np.zeros(image.shape[:2], np.uint8)

        predict.labels = model  # type: ignore[attr-defined]
        found = evaluate(predict, data(tmp_path / folder, masks))
        return [None if np.isnan(value) else round(float(value), 2) for value in found.iou]

    two, ids = numbered(2), replace(numbered(2), classes=tuple(
        replace(c, raw_ids=(i + 7,)) for i, c in enumerate(numbered(2).classes)
    ))  # fmt: skip
    assert scores("a", [gray(0, 255), gray(0, 0)], two) == [0.75, 0]  # 255 is the second class, not ignored
    assert scores("b", [gray(0, 1), gray(255, 1)], two) == [pytest.approx(1 / 3, abs=0.01), 0]
    assert scores("c", [gray(7, 8)], ids) == [0.5, 0]
    assert scores("d", [gray(0, 1)], ids) == [0.5, 0]  # by index
    nine = numbered(9)
    shifted = replace(nine, classes=tuple(replace(c, raw_ids=(i + 1,)) for i, c in enumerate(nine.classes)))
    with pytest.raises(DatasetError, match=r"0\.png: its numbers could be class indices, or ids"):
        scores("e", [gray(1, 2)], shifted)
    assert scores("f", [gray(0, 2)], shifted)[0] == 0.5
    assert scores("g", [gray(1, 9)], shifted)[0] == 0.5
