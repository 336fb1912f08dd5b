"""evitseg eval."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evitseg.cli.command import option, verb
from evitseg.cli.options import (
    BANDS,
    DATA,
    DEVICE,
    ENGINE,
    FILE,
    LABELS,
    MODEL,
    PAGE,
    PRECISION,
    SIZE,
    THREADS,
    VALUE_RANGE,
    given_options,
    pinned_model,
    read_options,
    report_option,
    workers_option,
)
from evitseg.cli.output import Output
from evitseg.errors import EvitsegError

if TYPE_CHECKING:
    from evitseg.engine import Precision
    from evitseg.evaluation.evaluate import Predictor, Report
    from evitseg.image import ReadOptions, Size
    from evitseg.runtime.segmenter import Segmenter


@verb(
    "eval",
    ("evitseg eval data/", "mIoU of the bundled model on the validation images."),
    ("evitseg eval data/ --model runs/train/best.safetensors --report report.html", "Also write a page to look at."),
    ("evitseg eval data/ --masks predictions/ --json", "Measure masks that any program wrote."),
)
@DATA
@option("--masks", type=FILE, metavar="DIR", panel="Input", help="Evaluate these predicted masks instead of a model.")
@option(
    "--split",
    metavar="NAME",
    panel="Input",
    help="Split to evaluate. Default: val if there is one, else test, else all.",
)
@LABELS
@BANDS
@VALUE_RANGE
@PAGE
@MODEL
@SIZE
@option(
    "--tta", is_flag=True, panel="Model", help="Test-time augmentation: average three scales and a horizontal flip."
)
@ENGINE
@DEVICE
@PRECISION
@THREADS
@workers_option("Number of processes. Default: 1.")
@report_option("Also write an HTML page with the largest errors.")
def eval_command(
    output: Output,
    data: str,
    masks: Path | None,
    split: str | None,
    labels: str | None,
    bands: str | None,
    value_range: str | None,
    page: int | None,
    report: Path | None,
    workers: int | None,
    **model: Any,
) -> None:
    """Measure the accuracy of a model, or of predicted masks, on labelled images."""
    reading = read_options(bands, value_range, page)
    if masks is not None:
        _check_masks(given_options(click.get_current_context()), reading is not None and report is None)
    from evitseg.data.layouts import find_dataset
    from evitseg.evaluation.evaluate import PredictedMasks, default_split, evaluate, settled_split
    from evitseg.image import AS_STATED
    from evitseg.labels import load_labels

    given_labels = load_labels(labels) if labels else None
    dataset = find_dataset(data, given_labels, reading or AS_STATED)
    for problem in dataset.problems:
        output.warning(problem)
    if dataset.left_out:
        output.note(dataset.left_out)
    split = split or default_split(dataset)
    pairs = dataset.pairs(split)
    settings = {"data": str(dataset.root), "split": split or "all"}
    predictor: Predictor
    if masks is not None:
        space = settled_split(dataset, pairs, dataset.labels, None)
        predictor = PredictedMasks(masks, space)
        settings["masks"] = str(masks)
    else:
        chosen = _Model(reading=reading, **model)
        chosen = replace(chosen, model=pinned_model(chosen.model, output))
        segment = chosen.load()
        predictor = segment.mask_tta if chosen.tta else segment
        if segment.reading != AS_STATED:
            dataset = find_dataset(data, given_labels, segment.reading)
            pairs = dataset.pairs(split)
        space = settled_split(dataset, pairs, dataset.labels, segment.labels)
        if dataset.labels is None:
            settings["classes"] = "the model's: the data does not name its classes"
        settings |= chosen.settings(segment)
    with output.progress("evaluating", len(pairs), unit="images") as advance:
        result = evaluate(predictor, pairs, space, workers=workers or 1, settings=settings, progress=advance)
    output.content = {**result.to_dict()}
    _show(result, output)
    if report is not None:
        from evitseg.evaluation.html import write_html

        write_html(result, report, predictor, f"{settings.get('model', masks)} on {dataset.root.resolve().name}")
        output.note(f"wrote {report}")
    for sentence in result.skipped:
        output.error(sentence)
    if result.skipped:
        raise EvitsegError(f"{len(result.skipped)} of {len(pairs)} pairs were skipped; the results leave them out.")


@dataclass(frozen=True)
class _Model:
    """A model and how it runs."""

    model: str | None
    size: Size
    tta: bool
    engine: str | None
    device: str | None
    precision: Precision
    threads: int | None
    reading: ReadOptions | None

    def load(self) -> Segmenter:
        from evitseg.loading import load

        return load(
            self.model,
            engine=self.engine,
            device=self.device,
            threads=self.threads,
            precision=self.precision,
            size=self.size,
            reading=self.reading,
        )

    def settings(self, segment: Segmenter) -> dict[str, str]:
        """What the report says about the model; of the reading only what was chosen."""
        reading = segment.reading
        chosen = {"bands": reading.bands, "range": reading.value_range, "page": reading.page}
        return {
            "model": segment.manifest.name,
            **({"source": segment.source} if segment.source else {}),
            "engine": str(segment.info),
            "size": str(self.size or "the model's rule"),
            **{
                name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                for name, value in chosen.items()
                if value is not None
            },
            "tta": "three scales and a horizontal flip" if self.tta else "no",
        }


def _check_masks(given: frozenset[str], reads_for_nothing: bool) -> None:
    """Raises: BadParameter for an option that predicted masks have no use for."""
    for name in ("--model", "--tta", "--size", "--engine", "--device", "--threads", "--precision"):
        if name in given:
            raise click.BadParameter("needs a model, and --masks evaluates predicted masks", param_hint=name)
    if reads_for_nothing:
        raise click.BadParameter(
            "predicted masks are evaluated without reading the images", param_hint="--bands, --range, --page"
        )


def _show(result: Report, output: Output) -> None:
    from rich.table import Table
    from rich.text import Text

    from evitseg.data.annotations.objects import count

    def percent(value: float) -> str:
        return "–" if value != value else f"{100 * value:.2f}"

    output.result(", ".join(f"{key}: {value}" for key, value in result.settings.items()), style="dim")
    table = Table(box=None, padding=(0, 1))
    for column in ("class", "IoU %", "recall %", "boundary IoU %"):
        table.add_column(column, justify="left" if column == "class" else "right")
    rows = zip(result.labels.names, result.iou, result.accuracy, result.boundary_iou, strict=True)
    for name, *values in rows:
        table.add_row(Text(name), *map(percent, values))
    table.add_row("mean", percent(result.miou), "", percent(result.mean_boundary_iou), style="bold")
    output.show(table)
    output.result(
        f"{count(len(result.images), 'image')}, pixel accuracy {percent(result.pixel_accuracy)} %, "
        f"frequency-weighted IoU {percent(result.frequency_weighted_iou)} %"
    )
