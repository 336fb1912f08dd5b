"""predict --as: the masks of all images as annotations to correct in Labelme, CVAT or another tool."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from evitseg.cli.jobs import PredictJob
from evitseg.cli.outcome import Outcome
from evitseg.cli.request import Mode, Request
from evitseg.errors import FileError, ImageError
from evitseg.system.files import is_there

if TYPE_CHECKING:
    from evitseg.data.annotations.outlines import OutlinedImage
    from evitseg.data.annotations.pre_annotations import PreAnnotations
    from evitseg.labels import LabelSpace

LABELME, CVAT, COCO = "labelme", "cvat", "coco"
_NEXT = {
    LABELME: "next: correct them with Labelme, then evitseg check {place} --labels {place}/labels.txt",
    CVAT: "next: upload {place} to a CVAT task of the images, in the format CVAT 1.1",
    COCO: "next: import {place} and the images into an annotation tool, in the format COCO 1.0",
}


def check_annotations(jobs: list[PredictJob], request: Request) -> None:
    """Refuse to replace annotations, which may hold somebody's corrections, before anything is computed.

    Raises: FileError, MissingPackageError.
    """
    from evitseg.raster.gdal import import_rasterio

    import_rasterio()
    if request.overwrite:
        return
    if request.annotations == LABELME:
        files = [] if request.skip_existing else [_of_image(job) for job in jobs]
    else:
        files = [_of_all(request)]
    for file in files:
        if is_there(file):
            raise FileError(
                f"{file}: exists, and may hold corrections; choose another --out, or add --overwrite to replace it."
            )


def write_annotations(jobs: list[PredictJob], request: Request, outcome: Outcome) -> None:
    """Write the annotations of every image that has a complete mask, also if it is from an earlier run."""
    from evitseg.data.annotations import pre_annotations

    masks = {job: mask for job in jobs if (mask := _mask(job, request, outcome)) is not None}
    if not masks:
        return
    labels, model = outcome.labels or _labels(request), outcome.output.content["model"] or request.model
    one, names = _of_all(request), _names(list(masks), request)
    with outcome.output.progress("writing annotations", len(masks), unit="images") as advance:

        def outlined() -> Iterator[tuple[PredictJob, OutlinedImage]]:
            for job, mask in masks.items():
                with outcome.attempt(job.source):
                    yield job, _outlined(names[job], mask, labels, request)
                advance(1)

        images = (image for _, image in outlined())
        if request.annotations == LABELME:
            written = pre_annotations.PreAnnotations(0, 0)
            for job, image in outlined():
                written += pre_annotations.write_labelme(image, _of_image(job))
            listed = request.folder / "labels.txt"
            if request.overwrite or not is_there(listed):
                pre_annotations.write_label_list(labels, listed)
        elif request.annotations == CVAT:
            written = pre_annotations.write_cvat(images, one, labels)
        else:
            written = pre_annotations.write_coco(images, one, labels, str(model), request.minimum_pixels)
    place = request.folder if request.annotations == LABELME else one
    _report(written, place, request, outcome)


def _report(written: PreAnnotations, place: Path, request: Request, outcome: Outcome) -> None:
    assert request.annotations is not None
    about = {"format": request.annotations, "written": str(place)}
    outcome.output.content["annotations"] = about | {"images": written.images, "regions": written.regions}
    of = f"{written.regions:,} region{'s' * (written.regions != 1)} in {written.images:,} image"
    where = f"JSON files in {place}" if request.annotations == LABELME else str(place)
    outcome.output.result(f"wrote {where}: {of}{'s' * (written.images != 1)}")
    outcome.output.result(_NEXT[request.annotations].format(place=place))


def places_of(jobs: list[PredictJob], request: Request) -> list[Path]:
    """The files of annotations that a request writes."""
    if request.annotations == LABELME:
        return [*(_of_image(job) for job in jobs), request.folder / "labels.txt"]
    return [_of_all(request)]


def _of_image(job: PredictJob) -> Path:
    """The file of one image's annotations."""
    return job.stem.with_name(f"{job.stem.name}.json")


def _of_all(request: Request) -> Path:
    """The file of all images' annotations."""
    return request.folder / f"annotations.{'xml' if request.annotations == CVAT else 'json'}"


def _mask(job: PredictJob, request: Request, outcome: Outcome) -> Path | None:
    """The mask of an image that needs annotations; None for an input that failed or has annotations already."""
    if job.mode is Mode.video or outcome.has_failed(job.source):
        return None
    if request.annotations == LABELME and request.skip_existing and is_there(_of_image(job)):
        return None
    there = [mask for mask in job.masks if is_there(mask)]
    return max(there, key=lambda mask: mask.stat().st_mtime) if there else None


def _labels(request: Request) -> LabelSpace:
    """The model's classes, if every image had a mask already and no model was loaded."""
    from evitseg.loading import load

    return load(request.model, engine=request.engine).labels


def _names(jobs: list[PredictJob], request: Request) -> dict[PredictJob, str]:
    """What annotations call their images: for Labelme the path from the JSON file, else from the folder of inputs.

    Where images of several folders would have one name, it is the path from the folder that holds them all.
    """
    sources = {job: os.path.abspath(job.source) for job in jobs}
    if request.annotations == LABELME:
        return {job: _relative(source, os.path.abspath(job.stem.parent)) for job, source in sources.items()}
    places = {job: job.place.as_posix() for job in jobs}
    if len(set(places.values())) == len(jobs):
        return places
    above = os.path.commonpath([os.path.dirname(source) for source in sources.values()])  # noqa: PTH120
    return {job: _relative(source, above) for job, source in sources.items()}


def _relative(path: str, folder: str) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return Path(path).as_posix()


def _outlined(name: str, mask: Path, labels: LabelSpace, request: Request) -> OutlinedImage:
    """Raises: ImageError, ConfigError."""
    if not name.isprintable():  # XML has no control characters, and JSON in UTF-8 no bytes that are not UTF-8
        raise ImageError(f"{name}: annotations cannot hold a name with these characters; rename the image.")
    from evitseg.data.annotations.outlines import OutlinedImage, stacked
    from evitseg.raster.polygons import read_regions

    size, regions = read_regions(mask, labels, request.minimum_pixels, request.simplify)
    return OutlinedImage(name, size, stacked(regions, size, labels))
