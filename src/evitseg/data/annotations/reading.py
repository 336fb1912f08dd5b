"""Which tool wrote a file or folder of annotations, and its objects."""

from __future__ import annotations

import atexit
import itertools
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from evitseg.data.annotations import cvat, label_studio, labelme, via, yolo
from evitseg.data.annotations.coco import is_coco, read_coco
from evitseg.data.annotations.conversion import write_masks
from evitseg.data.annotations.objects import ALL, Annotations, files_below, read_json, split_of, text_lines
from evitseg.data.annotations.panoptic import TOOL, is_panoptic, read_panoptic
from evitseg.data.dataset import Dataset
from evitseg.errors import DatasetError, EvitsegError
from evitseg.labels import LabelSpace

Reader = Callable[[Path | None], Annotations]
"""Reads the source that it was recognised from; given the folder of its images, or None to look for them."""

_PNG_EXPORT = re.compile(r"task-\d+-annotation-\d+-by-.*-tag-.*-\d+\.(png|npy)")
_KNOWN_BUT_UNREAD = (
    ("meta.json", "a Supervisely project", "COCO"),
    ("classes/classes.json", "a SuperAnnotate project", "COCO"),
)
"""A file that tells the tool, its name, and the format it can export that is read here."""
MOST_DRAWN = 2_000
"""Images whose masks are drawn for every run; it takes some 20 s."""
TOOLS = "COCO, CVAT for images, Labelme, Label Studio, VGG Image Annotator, YOLO segmentation"


def read_annotations(source: str | os.PathLike[str], images: str | os.PathLike[str] | None = None) -> Annotations:
    """The objects in a file or folder that an annotation tool exported.

    Args:
        images: the folder that the names of images start from; None to look near the annotations.

    Raises: DatasetError for what no known tool writes, with what was looked for.
    """
    source = Path(source)
    if not source.exists():
        raise DatasetError(f"{source}: cannot be read (no such file or folder).")
    recognised = recognise(source)
    if recognised is None:
        from evitseg.data.annotations.layouts import mask_layout, read_masks

        masks = mask_layout(source) if source.is_dir() else None
        if masks is None or not masks.pairs():
            raise DatasetError(f"{source}: {_unknown(source)}")
        return read_masks(masks)
    return recognised[1](Path(images) if images is not None else None)


def drawn_dataset(source: Path, labels: LabelSpace | None) -> Dataset | None:
    """The images of a tool's annotations, with masks that are drawn now and deleted when the process ends.

    Args:
        labels: the classes; None for those of the annotations.

    Returns: None for what no known tool writes.

    Raises: DatasetError for annotations that cannot be used, for a tool whose files are not read, and for so many
    images that drawing them for each run would be waste.
    """
    recognised = recognise(source)
    if recognised is None:
        named = _named_only(source)
        if named:
            raise DatasetError(f"{source}: {named}")
        return None
    tool, read = recognised
    found = read(None)
    command = f"evitseg convert {shlex.quote(str(source))} --out DATA"
    if len(found.images) > MOST_DRAWN:
        raise DatasetError(
            f"{source}: {tool} for {len(found.images):,} images. Masks are drawn for every run only for up to "
            f"{MOST_DRAWN:,}; draw them once with: {command}, and use DATA."
        )
    folder = _temporary_folder()
    try:
        done = write_masks(found, folder, labels=labels)
    except EvitsegError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    note = f"masks were drawn from the annotations, for this run only; to keep them: {command}"
    return Dataset(source, tool, done.splits, done.labels, (), done.problems, (*done.notes, note))


def _temporary_folder() -> Path:
    """A new folder that is removed when this process ends."""
    folder = tempfile.mkdtemp(prefix="evitseg-masks-")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not a process that was forked from it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)


def recognise(source: Path) -> tuple[str, Reader] | None:
    """The tool, in words, and what reads the source. Raises: DatasetError for a source that is damaged."""
    return _recognise_folder(source) if source.is_dir() else _recognise_file(source)


def _recognise_file(path: Path) -> tuple[str, Reader] | None:
    kind = path.suffix.lower()
    if kind in (".yaml", ".yml"):
        return (yolo.TOOL, partial(yolo.read_yolo, path)) if yolo.is_yolo_yaml(path) else None
    if kind == ".xml":
        return (cvat.TOOL, partial(cvat.read_cvat, path)) if cvat.is_cvat(path) else None
    if kind == ".zip":
        raise DatasetError(f"{path}: an archive; unpack it and give the folder.")
    if kind != ".json":
        return None
    content = read_json(path)
    if is_coco(content):
        return (
            (TOOL, partial(read_panoptic, content, path))
            if is_panoptic(content)
            else (
                "COCO annotations",
                partial(read_coco, content, path),
            )
        )
    if labelme.is_labelme(content):
        return labelme.TOOL, partial(labelme.read_labelme, [path], path)
    if label_studio.is_label_studio(content):
        return label_studio.TOOL, partial(label_studio.read_label_studio, content, path)
    if via.is_via(content):
        return via.TOOL, partial(via.read_via, content, path)
    return None


def _recognise_folder(root: Path) -> tuple[str, Reader] | None:
    for path in sorted(root.glob("*.xml")):
        if cvat.is_cvat(path):
            return cvat.TOOL, partial(cvat.read_cvat, path)
    if yolo.find_yaml(root) is not None or yolo.is_yolo_folder(root):
        return yolo.TOOL, partial(yolo.read_yolo, root)
    coco = _coco_files(root)
    if coco:
        return "COCO annotations", partial(_read_coco_files, coco, root)
    for path in sorted(root.glob("*.json")):
        content = _json_or_none(path)
        if label_studio.is_label_studio(content):
            return label_studio.TOOL, partial(label_studio.read_label_studio, content, path)
        if via.is_via(content):
            return via.TOOL, partial(via.read_via, content, path)
    files = files_below(root, (".json",))
    if any(labelme.is_labelme(_json_or_none(path)) for path in files[:50]):
        return labelme.TOOL, partial(labelme.read_labelme, files, root)
    return None


def _coco_files(root: Path) -> list[tuple[Path, Any]]:
    """COCO's files in a folder: beside the images, in annotations/, or one in each split's folder."""
    places = [*root.glob("*.json"), *root.glob("annotations/*.json"), *root.glob("*/_annotations.coco.json")]
    found = [(path, content) for path in sorted(places) if is_coco(content := _json_or_none(path))]
    # COCO's key points and captions lie beside its instances.
    return [f for f in found if f[0].stem.startswith("instances")] or found


def _json_or_none(path: Path) -> Any:
    try:
        return read_json(path)
    except DatasetError:
        return None


def _read_coco_files(files: list[tuple[Path, Any]], root: Path, images: Path | None) -> Annotations:
    """Several files are one dataset, a split each."""
    whole: Annotations | None = None
    splits: dict[str, Path] = {}
    for path, content in files:
        split = split_of(path.stem)
        if split == ALL and path.parent != root:
            split = split_of(path.parent.name)
        if split in splits:
            raise DatasetError(
                f"{root}: {splits[split].name} and {path.name} are both COCO annotations of "
                f"{'no split' if split == ALL else split}; give one of the files."
            )
        splits[split] = path
        panoptic = is_panoptic(content)
        part = read_panoptic(content, path, images) if panoptic else read_coco(content, path, images, split)
        if whole is None:
            whole = part
            continue
        whole.names += [name for name in part.names if name not in set(whole.names)]
        whole.images += part.images
        whole.problems += part.problems
        whole.notes += part.notes
    assert whole is not None
    if len(files) > 1:  # images of two splits may share a name
        whole.images = [replace(image, name=f"{image.split}/{image.name}") for image in whole.images]
    whole.source = root
    return whole


def _named_only(source: Path) -> str | None:
    """A sentence about a tool that is recognised, but not read."""
    if not source.is_dir():
        return None
    if any(_PNG_EXPORT.fullmatch(p.name) for p in source.iterdir()):
        return (
            "Label Studio's export of brush labels as images, which does not tell the images' names; export JSON "
            "instead and give that file to evitseg convert."
        )
    if any(_is_yolo_line(path) for path in itertools.islice((source / "labels").rglob("*.txt"), 5)):
        return (
            "YOLO label files without the names of their classes; write them, a name on each line, to classes.txt "
            "beside labels/, or give the dataset's data.yaml."
        )
    for name, tool, other in _KNOWN_BUT_UNREAD:
        if (source / name).is_file():
            return f"{tool}, whose own format is not read; export {other} from it and give that to evitseg convert."
    return None


def _is_yolo_line(path: Path) -> bool:
    try:
        parts = next((line for line in text_lines(path) if line), "").split()
        return len(parts) >= 5 and parts[0].isdecimal() and all(float(part) <= 1.5 for part in parts[1:])
    except (DatasetError, ValueError):
        return False


def _unknown(source: Path) -> str:
    named = _named_only(source)
    if named:
        return named
    return f"not an export of a known tool; read are {TOOLS}. docs/reference/annotations.md shows what each one writes."
