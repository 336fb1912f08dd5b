"""evitseg compare."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evitseg.cli.command import option, verb
from evitseg.cli.options import DEVICE, ENGINE, LABELS, PRECISION, SIZE, THREADS, report_option
from evitseg.cli.output import Output
from evitseg.errors import EvitsegError

if TYPE_CHECKING:
    from evitseg.engine import Precision
    from evitseg.evaluation.comparison import Comparison, Interval, Scores
    from evitseg.image import Size
    from evitseg.profiling.contestants import Contestant

_Times = list[tuple[float, float]]


@verb(
    "compare",
    ("evitseg compare runs/old runs/new --data data/", "Is the new run better, and in which classes?"),
    (
        "evitseg compare best.safetensors int8.onnx --data data/ --report compare.html",
        "What 8-bit weights cost, with images of where the masks differ.",
    ),
)
@click.argument(
    "runs",
    nargs=-1,
    required=True,
    metavar="RUN RUN...",
    help="Folders of training runs, checkpoints, exported models, or names of models. The others are compared with the "
    "first.",
)
@option(
    "--data",
    required=True,
    metavar="DATA",
    panel="Input",
    help="A folder of images and masks, a list of pairs (.txt, .csv), or a .yaml file.",
)
@option(
    "--split",
    metavar="NAME",
    panel="Input",
    help="Split to measure on. Default: val if there is one, else test, else all.",
)
@LABELS
@SIZE
@ENGINE
@DEVICE
@PRECISION
@THREADS
@option(
    "--resamples",
    type=click.IntRange(min=100),
    default=2000,
    metavar="N",
    panel="Measurement",
    help="Number of bootstrap resamples for the confidence intervals, at least 100. Default: 2000.",
)
@report_option("Also write an HTML page with the classes and the images in which the models differ most.")
def compare_command(
    output: Output,
    runs: tuple[str, ...],
    data: str,
    split: str | None,
    labels: str | None,
    size: Size,
    engine: str | None,
    device: str | None,
    precision: Precision,
    threads: int | None,
    resamples: int,
    report: Path | None,
) -> None:
    """Compare runs, checkpoints or exported models on the same images.

    Prints the mIoU of every model, the time of its network, the size of its file and its number of parameters. For each
    class it prints the difference from the first model, with 95 % confidence intervals over the images.
    """
    if len(runs) < 2:
        raise click.BadParameter("needs at least two models", param_hint="RUN")
    from evitseg.data.layouts import find_dataset
    from evitseg.evaluation.comparison import compare_models
    from evitseg.evaluation.evaluate import default_split, settled_split
    from evitseg.labels import load_labels
    from evitseg.profiling.contestants import load_contestants, predictor, take_times
    from evitseg.raster.files import read_image

    contestants = load_contestants(runs, engine=engine, device=device, precision=precision, threads=threads, size=size)
    for each in contestants:
        if each.segment.source is not None:
            output.note(f"{each.source} is {each.segment.source}")
    first = contestants[0].segment
    dataset = find_dataset(data, load_labels(labels) if labels else None, first.reading)
    for problem in dataset.problems:
        output.warning(problem)
    if dataset.left_out:
        output.note(dataset.left_out)
    split = split or default_split(dataset)
    pairs = dataset.pairs(split)
    space = settled_split(dataset, pairs, dataset.labels, first.labels)
    predictors = [predictor(each, space) for each in contestants]
    settings = [{"model": each.segment.manifest.name, "engine": str(each.segment.info)} for each in contestants]
    with output.progress("comparing", len(pairs), unit="images") as advance:
        found = compare_models(predictors, pairs, space, resamples=resamples, settings=settings, progress=advance)
    sample = found.different[0][0]
    times = take_times(contestants, read_image(sample.image, sample.reading))
    output.content = {
        "data": str(dataset.root),
        "split": split or "all",
        "images": len(found.different),
        "confidence": 0.95,
        "resamples": resamples,
        "runs": [
            _entry(each, scores, took, found, is_first=each is contestants[0])
            for each, scores, took in zip(contestants, found.scores, times, strict=True)
        ],
        "most_different": [
            {"image": str(pair.image), "different_pixels": fraction} for pair, fraction in found.most_different(8)
        ],
        "skipped": list(found.skipped),
    }
    _show(output, contestants, found, times, split or "all")
    if report is not None:
        from evitseg.evaluation.comparison_html import write_comparison

        names = [each.name for each in contestants]
        facts = [_facts(each, took) for each, took in zip(contestants, times, strict=True)]
        title = f"{', '.join(names)} on {dataset.root.resolve().name}"
        write_comparison(found, names, facts, report, predictors, title)
        output.note(f"wrote {report}")
    for sentence in found.skipped:
        output.error(sentence)
    if found.skipped:
        raise EvitsegError(f"{len(found.skipped)} of {len(pairs)} pairs were skipped; the results leave them out.")


def _entry(
    contestant: Contestant, scores: Scores, took: tuple[float, float], found: Comparison, is_first: bool
) -> dict[str, Any]:
    def limits(interval: Interval) -> dict[str, float | None] | None:
        if math.isnan(interval.value):
            return None
        numbers = {"value": interval.value, "low": interval.low, "high": interval.high}
        return {key: None if math.isnan(number) else number for key, number in numbers.items()}

    def by_class(intervals: tuple[Interval, ...]) -> dict[str, dict[str, float | None] | None]:
        return dict(zip(found.labels.names, map(limits, intervals), strict=True))

    report, segment = scores.report, contestant.segment
    return {
        "run": contestant.source,
        "name": contestant.name,
        "model": segment.manifest.name,
        "source": segment.source,
        "engine": str(segment.info),
        "miou": limits(scores.miou),
        "iou": by_class(scores.iou),
        "miou_difference": None if is_first else limits(scores.miou_difference),
        "iou_difference": None if is_first else by_class(scores.iou_difference),
        "mean_boundary_iou": None if math.isnan(report.mean_boundary_iou) else report.mean_boundary_iou,
        "pixel_accuracy": report.pixel_accuracy,
        "network_ms": took[0],
        "network_p90_ms": took[1],
        "size_bytes": contestant.size_bytes,
        "parameters": segment.manifest.cost.parameters,
    }


def _facts(contestant: Contestant, took: tuple[float, float]) -> dict[str, str]:
    size = contestant.size_bytes
    return {
        "network ms": f"{took[0]:.1f}",
        "file MB": "–" if size is None else f"{size / 1e6:.1f}",
        "parameters": f"{contestant.segment.manifest.cost.parameters / 1e6:.1f} M",
        "engine": str(contestant.segment.info),
    }


def _show(output: Output, contestants: list[Contestant], found: Comparison, times: _Times, split: str) -> None:
    from rich.table import Table
    from rich.text import Text

    from evitseg.evaluation.comparison_html import points

    def percent(value: float) -> str:
        return "–" if math.isnan(value) else f"{100 * value:.2f}"

    models, classes = (Table(box=None, padding=(0, 1)) for _ in range(2))
    for column in ("model", "mIoU %", "difference", "network ms", "MB", "parameters"):
        models.add_column(column, justify="left" if column == "model" else "right")
    for number, (each, scores, took) in enumerate(zip(contestants, found.scores, times, strict=True)):
        difference = points(scores.miou_difference) if number else ""
        facts = list(_facts(each, took).values())[:3]
        models.add_row(Text(each.name), percent(scores.miou.value), Text(difference, no_wrap=True), *facts)
    output.show(models)
    classes.add_column("class")
    classes.add_column("IoU %", justify="right")
    for each in contestants[1:]:
        classes.add_column(Text(each.name), justify="right")
    for index, name in enumerate(found.labels.names):
        differences = [scores.iou_difference[index] for scores in found.scores[1:]]
        marked = [Text(points(each), style="bold" if each.excludes_zero else "", no_wrap=True) for each in differences]
        classes.add_row(Text(name), percent(found.scores[0].iou[index].value), *marked)
    output.show(classes)
    count = len(found.different)
    intervals = "95 % confidence intervals over the images" if count > 1 else "no intervals, which need more images"
    output.result(
        f"{count} image{'s' * (count != 1)}, split {split}; differences from {contestants[0].name} in points, with "
        f"{intervals}"
    )
