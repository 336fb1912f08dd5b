"""evitseg eval."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evitseg.cli.app import plain_errors
from evitseg.cli.console import complain, fail, progress_bar
from evitseg.cli.options import (
    AsJson,
    Bands,
    Data,
    Engine,
    Labels,
    Model,
    Page,
    Precision,
    PrecisionName,
    Threads,
    ValueRange,
    WorkingSize,
    parse_size,
    read_options,
)

if TYPE_CHECKING:
    from evitseg.evaluation.evaluate import Report
    from evitseg.image import ReadOptions, Size
    from evitseg.labels import LabelSpace
    from evitseg.runtime.segmenter import Segmenter


@plain_errors
def evaluate(
    data: Data,
    model: Model = None,
    masks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Measure these predicted masks instead of a model.", show_default=False),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Which split. (default: val, else test, else all there is)", show_default=False),
    ] = None,
    labels: Labels = None,
    size: WorkingSize = None,
    tta: Annotated[bool, typer.Option("--tta", help="Look at three scales and the mirrored image.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write an HTML page with the worst images.", show_default=False),
    ] = None,
    engine: Engine = None,
    precision: Precision = PrecisionName.auto,
    threads: Threads = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    bands: Bands = None,
    value_range: ValueRange = None,
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model, or masks that were predicted before, on images with masks."""
    if masks is not None and (model is not None or tta):
        raise typer.BadParameter("predicted masks need neither a model nor --tta", param_hint="--masks")
    if masks is not None:
        runs = {"--size": size, "--engine": engine, "--threads": threads}
        runs |= {"--precision": None if precision is PrecisionName.auto else precision}
        for option, value in runs.items():
            if value is not None:
                raise typer.BadParameter("is for a model, not for predicted masks; leave it out", param_hint=option)
    working_size = parse_size(size) if size is not None else None
    reading = read_options(bands, value_range, page)
    if masks is not None and reading is not None and report is None:
        raise typer.BadParameter(
            "predicted masks are measured without reading images", param_hint="--bands, --range, --page"
        )
    from functools import partial

    from rich.console import Console
    from rich.text import Text

    from evitseg.data.layouts import find_dataset
    from evitseg.evaluation.evaluate import default_split, evaluate_in_processes, settled_split
    from evitseg.evaluation.evaluate import evaluate as measure
    from evitseg.image import AS_STATED
    from evitseg.labels import load_labels
    from evitseg.raster.files import read_image

    space_given = load_labels(labels) if labels else None
    dataset = find_dataset(data, space_given, reading or AS_STATED)
    for problem in dataset.problems:
        complain(problem)
    split = split or default_split(dataset)
    pairs = dataset.pairs(split)
    settings = {"data": str(dataset.root), "split": split or "all"}
    make: Callable[[], tuple[Callable[[Any], Any], bool]]
    if masks is not None:
        space = settled_split(dataset, pairs, dataset.labels, None)
        make = partial(_masks_to_measure, masks, space)
        settings["masks"] = str(masks)
    else:
        choice = (model, engine.value if engine else None, threads, precision.value, working_size, reading, tta)
        segment = _segmenter(*choice[:-1])
        if segment.reading != AS_STATED:
            dataset = find_dataset(data, space_given, segment.reading)
            pairs = dataset.pairs(split)
        space = settled_split(dataset, pairs, dataset.labels, segment.labels)
        make = partial(_model_to_measure, *choice)
        if dataset.labels is None:
            settings["classes"] = "the model's, by number: the data names none"
        settings |= {
            "model": segment.manifest.name,
            "runs": str(segment.info),
            "size": str(working_size or "the model's rule"),
            **_reading_settings(segment.reading),
            "tta": "three scales and mirrored" if tta else "no",
        }

    console = Console(stderr=as_json, highlight=False)
    with progress_bar("measuring", len(pairs), console) as advance:
        if workers > 1:
            result = evaluate_in_processes(make, pairs, space, workers, settings=settings, progress=advance)
        else:
            mask_of, by_pair = make()
            result = measure(mask_of, pairs, space, settings=settings, by_pair=by_pair, progress=advance)
    if as_json:
        print(result.to_json())
    else:
        _tell_report(console, result)
    if report is not None:
        from evitseg.evaluation.html import write_html

        mask_of, by_pair = make()
        of_pair = mask_of if by_pair else (lambda pair: mask_of(read_image(pair.image, pair.reading)))
        title = f"{settings.get('model', masks)} on {dataset.root.resolve().name}"
        write_html(result, report, of_pair, title)
        console.print(Text(f"wrote {report}"), soft_wrap=True)
    for sentence in result.skipped:
        complain(sentence)
    if result.skipped:
        fail(f"{len(result.skipped)} of {len(pairs)} pairs could not be measured; the numbers are without them.")


def _reading_settings(reading: ReadOptions) -> dict[str, str]:
    """Only what was chosen, for the report."""
    chosen = {"bands": reading.bands, "range": reading.value_range, "page": reading.page}
    return {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in chosen.items()
        if value is not None
    }


def _segmenter(
    model: str | None,
    engine: str | None,
    threads: int | None,
    precision: Any,
    size: Size,
    reading: ReadOptions | None,
) -> Segmenter:
    from evitseg.loading import load

    return load(model, engine=engine, threads=threads, precision=precision, size=size, reading=reading)


def _model_to_measure(
    model: str | None,
    engine: str | None,
    threads: int | None,
    precision: str,
    size: Size,
    reading: ReadOptions | None,
    tta: bool,
) -> tuple[Callable[[Any], Any], bool]:
    segment = _segmenter(model, engine, threads, precision, size, reading)
    if tta:
        return segment.mask_tta, False
    return (lambda pair: segment(pair.image).mask), True  # from the file, as predict does it


def _masks_to_measure(folder: Path, labels: LabelSpace) -> tuple[Callable[[Any], Any], bool]:
    from evitseg.evaluation.evaluate import PredictedMasks

    return PredictedMasks(folder, labels), True


def _tell_report(console: Any, result: Report) -> None:
    from rich.table import Table
    from rich.text import Text

    def percent(value: float) -> str:
        return "–" if value != value else f"{100 * value:.2f}"

    console.print(
        Text(", ".join(f"{key}: {value}" for key, value in result.settings.items()), style="dim"), soft_wrap=True
    )
    table = Table(box=None, padding=(0, 1))
    for column in ("class", "IoU %", "found %", "boundary IoU %"):
        table.add_column(column, justify="left" if column == "class" else "right")
    rows = zip(result.labels.names, result.iou, result.accuracy, result.boundary_iou, strict=True)
    for name, *values in rows:
        table.add_row(Text(name), *map(percent, values))
    table.add_row("mean", percent(result.miou), "", percent(result.mean_boundary_iou), style="bold")
    console.print(table)
    console.print(
        f"{len(result.images)} images, pixel accuracy {percent(result.pixel_accuracy)} %, "
        f"frequency-weighted IoU {percent(result.frequency_weighted_iou)} %"
    )
