"""Recognise the tool that wrote a file or folder of annotations, and read its objects."""

from __future__ import annotations

import atexit
import itertools
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from evitseg.data.annotations import cvat, label_studio, labelme, via, yolo
from evitseg.data.annotations.coco import is_coco, read_coco
from evitseg.data.annotations.conversion import write_masks
from evitseg.data.annotations.objects import Annotations, files_below, read_json, split_of, text_lines
from evitseg.data.annotations.panoptic import TOOL, is_panoptic, read_panoptic
from evitseg.data.dataset import ALL, Dataset
from evitseg.errors import DatasetError, EvitsegError
from evitseg.labels import LabelSpace

Reader = Callable[[Path | None], Annotations]
"""Reads a recognised source. Its argument is the folder of the images, or None to look for them."""

_PNG_EXPORT = re.compile(r"task-\d+-annotation-\d+-by-.*-tag-.*-\d+\.(png|npy)")
_KNOWN_BUT_UNREAD = (
    ("meta.json", "a Supervisely project", "COCO"),
    ("classes/classes.json", "a SuperAnnotate project", "COCO"),
)
"""A file by which a tool is recognised, the tool, and one of its export formats that can be read."""
MOST_DRAWN = 2_000
"""Most images whose masks are drawn for every run; drawing them takes about 20 s."""
TOOLS = "COCO, CVAT for images, Labelme, Label Studio, VGG Image Annotator, YOLO segmentation"


def read_annotations(source: str | os.PathLike[str], images: str | os.PathLike[str] | None = None) -> Annotations:
    """Read the objects in a file or folder exported by an annotation tool.

    Args:
        images: the folder that image names are relative to; None to look near the annotations.

    Raises: DatasetError for a source that is not recognised.
    """
    source = Path(source)
    if not source.exists():
        raise DatasetError(f"{source}: no such file or folder.")
    recognised = recognise(source)
    if recognised is None:
        from evitseg.data.annotations.mask_folders import mask_layout, read_masks

        masks = mask_layout(source) if source.is_dir() else None
        if masks is None or not masks.pairs():
            raise DatasetError(f"{source}: {_unknown(source)}")
        return read_masks(masks)
    return recognised[1](Path(images) if images is not None else None)


def drawn_dataset(source: Path, labels: LabelSpace | None) -> Dataset | None:
    """The dataset of a tool's annotations, with masks that are drawn now and deleted when the process ends.

    Args:
        labels: the classes; None for those of the annotations.

    Returns: None for a source that is not recognised.

    Raises: DatasetError for damaged annotations, for a tool whose files cannot be read, and for more than `MOST_DRAWN`
    images, which should be drawn once and kept.
    """
    recognised = recognise(source)
    if recognised is None:
        reason = _known_but_unread(source)
        if reason:
            raise DatasetError(f"{source}: {reason}")
        return None
    tool, read = recognised
    found = read(None)
    command = f"evitseg convert {shlex.quote(str(source))} --out DATA"
    if len(found.images) > MOST_DRAWN:
        raise DatasetError(
            f"{source}: {tool} for {len(found.images):,} images. evitseg draws masks for every run only up to "
            f"{MOST_DRAWN:,} images; draw them once with: {command}, and use DATA."
        )
    folder = _temporary_folder()
    try:
        done = write_masks(found, folder, labels=labels)
    except EvitsegError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    note = f"masks were drawn from the annotations, for this run only; {command} keeps them"
    return Dataset(source, tool, done.splits, done.labels, (), done.problems, (*done.notes, note))


def _temporary_folder() -> Path:
    """A new folder that is removed when this process ends."""
    folder = tempfile.mkdtemp(prefix="evitseg-masks-")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked process runs this, too
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)


def recognise(source: Path) -> tuple[str, Reader] | None:
    """The tool in words, and a reader of the source; None if no tool is recognised. Raises: DatasetError."""
    return _recognise_folder(source) if source.is_dir() else _recognise_file(source)


def _recognise_file(path: Path) -> tuple[str, Reader] | None:
    kind = path.suffix.lower()
    if kind in (".yaml", ".yml"):
        return (yolo.TOOL, partial(yolo.read_yolo, path)) if yolo.is_yolo_yaml(path) else None
    if kind == ".xml":
        return (cvat.TOOL, partial(cvat.read_cvat, path)) if cvat.is_cvat(path) else None
    if kind == ".zip":
        raise DatasetError(f"{path}: is an archive; unpack it and pass the folder.")
    if kind != ".json":
        return None
    content = read_json(path)
    if is_coco(content):
        if is_panoptic(content):
            return TOOL, partial(read_panoptic, content, path)
        return "COCO annotations", partial(read_coco, content, path)
    if labelme.is_labelme(content):
        return labelme.TOOL, partial(labelme.read_labelme, [path], path)
    if label_studio.is_label_studio(content):
        return label_studio.TOOL, partial(label_studio.read_label_studio, content, path)
    if via.is_via(content):
        return via.TOOL, partial(via.read_via, content, path)
    return None


def _recognise_folder(root: Path) -> tuple[str, Reader] | None:
    if path := _only([path for path in sorted(root.glob("*.xml")) if cvat.is_cvat(path)], cvat.TOOL):
        return cvat.TOOL, partial(cvat.read_cvat, path)
    if yolo.find_yaml(root) is not None or yolo.is_yolo_folder(root):
        return yolo.TOOL, partial(yolo.read_yolo, root)
    coco = _coco_files(root)
    if coco:
        return "COCO annotations", partial(_read_coco_files, coco, root)
    contents = {path: _json_or_none(path) for path in sorted(root.glob("*.json"))}
    if path := _only([p for p, c in contents.items() if label_studio.is_label_studio(c)], label_studio.TOOL):
        return label_studio.TOOL, partial(label_studio.read_label_studio, contents[path], path)
    if path := _only([p for p, c in contents.items() if via.is_via(c)], via.TOOL):
        return via.TOOL, partial(via.read_via, contents[path], path)
    files = files_below(root, (".json",))
    if any(labelme.is_labelme(_json_or_none(path)) for path in files[:50]):
        return labelme.TOOL, partial(labelme.read_labelme, files, root)
    return None


def _only(files: Sequence[Path], tool: str) -> Path | None:
    """The file, or None without one. Raises: DatasetError for several, of which one would be read alone."""
    if len(files) > 1:
        raise DatasetError(
            f"{files[0].parent}: {files[0].name} and {files[1].name} are both {tool}; pass only one of the files."
        )
    return files[0] if files else None


def _coco_files(root: Path) -> list[tuple[Path, Any]]:
    """COCO files in a folder: next to the images, in annotations/, or one in the folder of each split."""
    places = [*root.glob("*.json"), *root.glob("annotations/*.json"), *root.glob("*/_annotations.coco.json")]
    found = [(path, content) for path in sorted(places) if is_coco(content := _json_or_none(path))]
    # COCO puts files with key points and captions next to those with instances.
    return [f for f in found if f[0].stem.startswith("instances")] or found


def _json_or_none(path: Path) -> Any:
    try:
        return read_json(path)
    except DatasetError:
        return None


def _read_coco_files(files: list[tuple[Path, Any]], root: Path, images: Path | None) -> Annotations:
    """One dataset from several files, one per split."""
    whole: Annotations | None = None
    splits: dict[str, Path] = {}
    for path, content in files:
        split = split_of(path.stem)
        if split == ALL and path.parent != root:
            split = split_of(path.parent.name)
        if split in splits:
            raise DatasetError(
                f"{root}: {splits[split].name} and {path.name} are both COCO annotations of "
                f"{'no split' if split == ALL else split}; pass only one of the files."
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


def _known_but_unread(source: Path) -> str | None:
    """A sentence about a source of a known tool that cannot be read; None for other sources."""
    if not source.is_dir():
        return None
    if any(_PNG_EXPORT.fullmatch(p.name) for p in source.iterdir()):
        return (
            "Label Studio's export of brush labels as PNG or NPY does not include the image names; export JSON "
            "instead and pass that file to evitseg convert."
        )
    if any(_is_yolo_line(path) for path in itertools.islice((source / "labels").rglob("*.txt"), 5)):
        return (
            "YOLO label files without class names; write the names, one per line, to classes.txt next to labels/, or "
            "pass the dataset's data.yaml."
        )
    for name, tool, other in _KNOWN_BUT_UNREAD:
        if (source / name).is_file():
            return f"{tool}, whose own format cannot be read; export {other} and pass that to evitseg convert."
    return None


def _is_yolo_line(path: Path) -> bool:
    try:
        parts = next((line for line in text_lines(path) if line), "").split()
        return len(parts) >= 5 and parts[0].isdecimal() and all(float(part) <= 1.5 for part in parts[1:])
    except (DatasetError, ValueError):
        return False


def _unknown(source: Path) -> str:
    reason = _known_but_unread(source)
    if reason:
        return reason
    return f"not an export of a known tool ({TOOLS}); docs/reference/annotations.md shows what each one writes."
