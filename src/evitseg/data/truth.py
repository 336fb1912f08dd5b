"""Decide what the numbers in a set of masks mean, once for all files, so that all are read alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evitseg.errors import ConfigError, DatasetError, ImageError
from evitseg.labels import LabelClass, LabelSpace, by_index, distinct_color, numbered
from evitseg.raster.mask_values import VOID_COLORS, DistinctValues, class_indices, color_of, colors_of
from evitseg.raster.masks import is_plain, read_mask_file

_EXAMPLE = '{"name": "fields", "classes": [{"name": "wheat", "color": [200, 180, 60]}]}'


@dataclass(frozen=True)
class Survey:
    """A mask file and its distinct values."""

    path: Path
    distinct: DistinctValues


def survey(paths: Iterable[Path], progress: Callable[[int], None] = lambda done: None) -> list[Survey]:
    """Read the distinct values of all masks that can be read; the others are reported when they are used."""
    found = []
    for path in paths:
        with contextlib.suppress(ImageError):
            found.append(Survey(path, read_mask_file(path).distinct))
        progress(1)
    return found


def settled_labels(surveys: Sequence[Survey], labels: LabelSpace | None) -> LabelSpace:
    """The label space with which `class_indices` reads every mask of the set.

    Args:
        labels: the classes; None numbers them from the values that occur.

    Raises: DatasetError with the files if masks contradict each other or are ambiguous.
    """
    if labels is None:
        return _inferred(surveys)
    _refuse_single_name(surveys, labels)
    _refuse_mixed_depths(surveys, labels)
    labels = _binary(surveys, labels)
    labels = _by_level(surveys, _by_color(surveys, labels))
    _refuse_contradicting_palettes(
        [s for s in surveys if s.distinct.kind == "palette" and _is_by_index(s.distinct, labels)]
    )
    return replace(labels, assumed=frozenset())


def _is_by_index(distinct: DistinctValues, labels: LabelSpace) -> bool:
    by_color = colors_of(labels)
    known = {*by_color, *VOID_COLORS}
    is_by_color = set(distinct.colors) <= known and any(color in by_color for color in distinct.colors)
    return not distinct.is_gray and not is_by_color


def _refuse_single_name(surveys: Sequence[Survey], labels: LabelSpace) -> None:
    if len(labels.classes) > 1 or "ignored_ids" not in labels.assumed:
        return
    levels: set[int] = set()
    colors: set[int] = set()
    for each in surveys:
        if each.distinct.kind == "colors" and not each.distinct.is_gray:
            colors |= set(each.distinct.colors)
        else:
            levels |= set(each.distinct.levels if each.distinct.is_gray else each.distinct.values)
        if len(levels) + len(colors) > 1:
            numbers = " and ".join(map(str, sorted(levels)[:2]))
            raise DatasetError(
                f"{each.path}: masks contain {numbers if len(levels) > 1 else 'several colours'}, but "
                f"{labels.names[0]!r} is the only class; name two classes, the background first (background, "
                f"{labels.names[0]})."
            )


def _refuse_mixed_depths(surveys: Sequence[Survey], labels: LabelSpace | None) -> None:
    """Refuse masks whose numbers an image optimiser may have changed.

    Optimisers store grey levels in fewer bits if they look the same: 255 in 8 bits becomes 3 in 2 bits. If all masks
    have the same depth, the stored numbers are used. In a set of several depths, a file with two possible readings is
    refused.
    """
    levels = [each for each in surveys if each.distinct.kind == "levels"]
    if len({each.distinct.depth for each in levels}) < 2:
        if labels is not None and levels and levels[0].distinct.depth == 1 and len(levels) == len(surveys):
            ids = {raw for c in labels.classes for raw in c.raw_ids}
            both = next((each for each in levels if 1 in each.distinct.values), None)
            if len(labels.classes) > 2 and both and 1 in ids and 255 in {*ids, *labels.ignored_ids}:
                raise DatasetError(
                    f"{both.path}: masks of 1 bit have two values, but label space {labels.name!r} has "
                    f"{len(labels.classes)} classes, so white could be id 1 or 255; save the masks with 8 bits."
                )
        return
    for each in levels:
        distinct = each.distinct
        if distinct.depth >= 8 or distinct.values == distinct.shown_levels:
            continue
        other = next(e for e in levels if e.distinct.depth != distinct.depth)
        if distinct.depth == 1:
            wide = {value for e in levels if e.distinct.depth >= 8 for value in e.distinct.values}
            if labels is not None and (len(labels.classes) > 2 or not {1, 255} <= wide):
                continue  # white in 1 bit is 255, or the second of two classes
            if labels is None and 1 not in wide:
                continue
        if labels is not None:
            ids = {*labels.ignored_ids, *(raw for c in labels.classes for raw in c.raw_ids)}
            if not (set(distinct.values) <= ids and set(distinct.shown_levels) <= ids):
                continue  # only one of the two readings is possible
        value, shown = max(zip(distinct.values, distinct.shown_levels, strict=True))
        raise DatasetError(
            f"{each.path}: stores {value} in {distinct.depth} bits, which looks like {shown}, while {other.path} has "
            f"{other.distinct.depth} bits; an image optimiser may have changed the number; save all masks with 8 bits."
        )


def _gray_levels(surveys: Sequence[Survey]) -> list[tuple[Survey, set[int]]]:
    """Files of grey levels with their levels, except files of 1 bit, whose white `class_indices` interprets."""
    return [(s, set(s.distinct.levels)) for s in surveys if s.distinct.is_gray and s.distinct.depth != 1]


def _binary(surveys: Sequence[Survey], labels: LabelSpace) -> LabelSpace:
    """Two classes with the default ids 0 and 1 get 0 and 255 if the masks contain nothing else."""
    by_place = len(labels.classes) == 2 and [c.raw_ids for c in labels.classes] == [(0,), (1,)]
    if not by_place or 255 not in labels.ignored_ids or "ignored_ids" not in labels.assumed:
        return labels
    files = _gray_levels(surveys)
    with_white = next((s for s, levels in files if 255 in levels), None)
    with_one = next((s for s, levels in files if 1 in levels), None)
    if with_white is None:
        return labels
    first, second = labels.classes
    if with_one is not None:
        if not any({1, 255} <= levels for _, levels in files):
            raise DatasetError(
                f"{with_one.path} contains 1, {with_white.path} contains 255, and no mask contains both: "
                f'either could be {second.name!r}. Choose in a labels.json: "raw_ids": [1, 255] or '
                '"ignored_ids": [255].'
            )
        return labels
    if "raw_ids" not in labels.assumed:
        raise DatasetError(
            f"{with_white.path}: masks contain 255 and never 1, the id of {second.name!r} in label space "
            f'{labels.name!r}; set its "raw_ids": [255], or "ignored_ids": [255].'
        )
    return LabelSpace(labels.name, (first, replace(second, raw_ids=(255,))), ())


def _by_color(surveys: Sequence[Survey], labels: LabelSpace) -> LabelSpace:
    """Read grey files in a set of coloured masks as black and white if these are colours of the set.

    An image optimiser stores a colour mask that is all black as grey.
    """
    by_color = colors_of(labels)
    colored = [
        s for s in surveys
        if s.distinct.kind != "levels" and not s.distinct.is_gray
        and set(s.distinct.colors) <= {*by_color, *VOID_COLORS}
        and not _is_by_index(s.distinct, labels)
    ]  # fmt: skip
    gray = [s for s in surveys if s.distinct.is_gray]
    if not colored or not gray:
        return labels
    meaning = dict.fromkeys(VOID_COLORS, labels.ignore_index) | by_color
    shown = {color for s in gray for color in s.distinct.colors}
    used = {color for s in colored for color in s.distinct.colors}
    if not shown <= set(meaning) or not shown & VOID_COLORS <= used | set(by_color):
        return labels  # the levels are ids
    if all(_means(s.distinct, labels) == [meaning[color] for color in s.distinct.colors] for s in gray):
        return labels
    return _with_levels_of_colors(labels)


def _by_level(surveys: Sequence[Survey], labels: LabelSpace) -> LabelSpace:
    """Read grey masks by the classes' grey colours if one of them has such levels that are no ids."""
    if not _has_levels_of_colors(labels):
        return labels
    ids = {*labels.ignored_ids, *(raw for c in labels.classes for raw in c.raw_ids)}
    by_level = _with_levels_of_colors(labels)
    levels = {*by_level.ignored_ids, *(raw for c in by_level.classes for raw in c.raw_ids)}
    needed = any(not found <= ids and found <= levels for _, found in _gray_levels(surveys))
    return by_level if needed else labels


def _has_levels_of_colors(labels: LabelSpace) -> bool:
    """Whether the grey levels of masks may be colours of classes, because no ids were stated."""
    ids = {*labels.ignored_ids, *(raw for c in labels.classes for raw in c.raw_ids)}
    return "raw_ids" in labels.assumed and any(len({*c.color}) == 1 and c.color[0] not in ids for c in labels.classes)


def _with_levels_of_colors(labels: LabelSpace) -> LabelSpace:
    by_color = colors_of(labels)
    levels = {index: code & 255 for code, index in by_color.items() if len(set(color_of(code))) == 1}
    classes = tuple(
        replace(c, raw_ids=(levels[index],) if index in levels else ()) for index, c in enumerate(labels.classes)
    )
    return LabelSpace(labels.name, classes, tuple(sorted({0, 255} - set(levels.values()))))


def _means(distinct: DistinctValues, labels: LabelSpace) -> list[int] | None:
    try:
        return [int(index) for index in class_indices(distinct, labels)]
    except ConfigError:
        return None


def _refuse_contradicting_palettes(surveys: Sequence[Survey]) -> None:
    colors: dict[int, tuple[int, Survey]] = {}
    indices: dict[int, tuple[int, Survey]] = {}
    for each in surveys:
        has_unique_colors = len(set(each.distinct.colors)) == len(each.distinct.colors)
        for index, color in zip(each.distinct.values, each.distinct.colors, strict=True):
            other_color, first = colors.setdefault(index, (color, each))
            other_index, second = indices.setdefault(color, (index, each)) if has_unique_colors else (index, each)
            other = first if other_color != color else second if other_index != index else None
            if other is not None:
                names = ", ".join(f'{{"name": ..., "color": {list(color_of(code))}}}' for code in sorted(indices)[:3])
                raise DatasetError(
                    f"{each.path} and {other.path}: their palettes differ (index {index} is {color_of(color)} in the "
                    "first), so that indices do not identify classes; define classes by colour in a labels.json: "
                    f'{{"name": "mine", "classes": [{names}, ...]}}.'
                )


def _inferred(surveys: Sequence[Survey]) -> LabelSpace:
    """Numbered classes for masks without class names.

    Masks that contain only 0 and 255 have the classes background and foreground. Otherwise there is a class for every
    id from 0 to the largest below 255, and 255 is ignored.
    """
    if not surveys:
        raise DatasetError("no mask can be read.")
    _refuse_mixed_depths(surveys, None)
    ids: set[int] = set()
    for each in surveys:
        if each.distinct.kind == "colors" and not each.distinct.is_gray:
            raise DatasetError(
                f"{each.path}: a mask in colours; define the colour of each class in a .json file, --labels FILE: "
                f"{_EXAMPLE}."
            )
        ids |= set(each.distinct.levels if each.distinct.is_gray else each.distinct.values)
    _refuse_contradicting_palettes([s for s in surveys if s.distinct.kind == "palette" and not s.distinct.is_gray])
    wide = {level for _, levels in _gray_levels(surveys) for level in levels}
    if 255 in wide and 1 not in wide and any(s.distinct.depth == 1 for s in surveys):
        ids.discard(1)  # white in 1 bit
    if ids == {0, 255}:
        names = (LabelClass("background", (0,), (40, 40, 40)), LabelClass("foreground", (255,), distinct_color(0)))
        return LabelSpace("binary", names, ignored_ids=())
    classes = max([i for i in ids if i != 255], default=0) + 1
    if classes > max(8, 3 * len(ids)):
        found = ", ".join(map(str, sorted(ids)[:12])) + ", ..." * (len(ids) > 12)
        raise DatasetError(
            f"{surveys[0].path.parent}: masks contain the ids {found}, which do not look like class numbers; define "
            'them in a .json file, --labels FILE: {"name": "mine", "classes": [{"name": "wheat", "raw_ids": [128]}]}.'
        )
    return numbered(classes)


def class_counts(distinct: DistinctValues, labels: LabelSpace) -> tuple[int, ...]:
    """Number of pixels per class. Raises: ConfigError for a value without a class."""
    indices = class_indices(distinct, labels)
    counts = np.zeros(len(labels.classes), np.int64)
    counted = indices != labels.ignore_index
    np.add.at(counts, indices[counted], np.array(distinct.counts)[counted])
    return tuple(counts.tolist())


def labels_of_model(paths: Sequence[Path], labels: LabelSpace) -> LabelSpace:
    """A model's classes, for data that names none: by index, or by the ids of the masks that it was trained on.

    Raises: DatasetError if the masks could be read in both ways.
    """
    indexed = replace(
        by_index(labels), ignored_ids=(labels.ignore_index,), assumed=frozenset({"raw_ids", "ignored_ids"})
    )
    if labels.classes == indexed.classes:
        return replace(labels, assumed=indexed.assumed)
    by_id = dict.fromkeys(labels.ignored_ids, labels.ignore_index)
    by_id |= {raw: index for index, c in enumerate(labels.classes) for raw in c.raw_ids}
    ignored = set(indexed.ignored_ids) - set(by_id)
    disagreeing: Survey | None = None
    are_indices = are_ids = True
    for each in survey(paths):
        if each.distinct.kind == "colors" and not each.distinct.is_gray:
            continue
        values = set(each.distinct.levels if each.distinct.is_gray else each.distinct.values) - ignored
        are_indices &= max(values, default=0) < len(labels.classes)
        are_ids &= values <= set(by_id)
        if any(by_id.get(value) != value for value in values):
            disagreeing = each
    if are_indices and are_ids and disagreeing is not None:
        raise DatasetError(
            f"{disagreeing.path}: its numbers could be class indices, or ids of the masks that the model was trained "
            "on; name the classes with --labels, or in a classes.txt or labels.json next to the data."
        )
    return indexed if are_indices and not are_ids else labels


def settled_for(paths: Sequence[Path], labels: LabelSpace | None) -> LabelSpace:
    """`settled_labels` for mask files, which are read only if their headers leave room for doubt.

    Raises: DatasetError.
    """
    certain = labels is not None and len(labels.classes) > 2 and not _has_levels_of_colors(labels)
    if labels is not None and certain and all(map(is_plain, paths)):
        return replace(labels, assumed=frozenset())
    surveys = survey(paths)
    if not surveys and labels is not None:
        return replace(labels, assumed=frozenset())
    if not surveys:
        try:
            for path in paths[:1]:
                read_mask_file(path)
        except ImageError as error:
            raise DatasetError(f"no mask can be read: {error}") from error
    return settled_labels(surveys, labels)
