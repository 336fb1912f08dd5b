"""Write an evaluation as one self-contained HTML file: scores, confusion matrix and the worst images."""

from __future__ import annotations

import base64
import html
import io
import math
import os
from collections.abc import Iterable

import numpy as np
from PIL import Image

from evitseg.errors import ImageError
from evitseg.evaluation.evaluate import Predictor, Report, pair_predictor
from evitseg.labels import LabelSpace
from evitseg.raster.files import read_image
from evitseg.raster.masks import read_truth
from evitseg.system.files import replacing
from evitseg.visualize import error_map

WORST = 8
"""Number of images shown: those with the lowest mIoU."""
_WIDTH = 420
"""Width of an image in the report, in pixels."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; color: #1c1c1c; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .6rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr:nth-child(even) { background: #f5f5f3; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em; border: 1px solid #0004; }
.bar { display: inline-block; height: .7em; background: #3a6ea5; vertical-align: middle; }
.wide { overflow-x: auto; } .confusion td, .confusion th { padding: .15rem .3rem; font-size: .8rem; min-width: 2.4em; }
.confusion th.top { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; }
.worst { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1.2rem; }
.worst figure { margin: 0; } .worst img { width: 100%; } figcaption { font-size: .85rem; overflow-wrap: anywhere; }
.numbers { display: flex; gap: 2.5rem; flex-wrap: wrap; } .numbers b { display: block; font-size: 1.7rem; }
"""


def write_html(report: Report, path: str | os.PathLike[str], model: Predictor, title: str = "evitseg") -> None:
    """Write the report as an HTML page.

    Args:
        model: the model that was measured; it predicts the drawn images once more.
    """
    numbers = {
        "mIoU": report.miou,
        "boundary mIoU": report.mean_boundary_iou,
        "pixel accuracy": report.pixel_accuracy,
        "frequency-weighted IoU": report.frequency_weighted_iou,
    }
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        "<p>" + ", ".join(f"{html.escape(k)}: {html.escape(v)}" for k, v in report.settings.items()) + "</p>",
        "<div class=numbers>"
        + "".join(f"<div><b>{percent(value)}</b>{name}</div>" for name, value in numbers.items())
        + f"<div><b>{len(report.images)}</b>images</div>"
        + (f"<div><b>{len(report.skipped)}</b>skipped</div>" if report.skipped else "")
        + "</div>",
        "<h2>Classes</h2>",
        _class_table(report),
        "<h2>Confusion matrix</h2><p>Each row shows how the pixels of one true class were predicted, in percent.</p>",
        _confusion_table(report),
        f"<h2>The {min(WORST, len(report.images))} images with the lowest mIoU</h2>"
        "<p>Each image, and below it an error map: wrong pixels are red, ignored pixels light grey.</p>",
        _worst(report, model),
    ]
    if report.skipped:
        sentences = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in report.skipped)
        parts.append(f"<h2>Skipped</h2><ul>{sentences}</ul>")
    write_page(path, title, parts)


def write_page(path: str | os.PathLike[str], title: str, parts: Iterable[str], style: str = "") -> None:
    """Write a report's page. `style` is added to the style of all reports."""
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}{style}</style>{''.join(parts)}</html>"
    )
    with replacing(path) as file:
        file.write(page.encode(errors="replace"))  # a file name may not be UTF-8


def percent(value: float) -> str:
    """A fraction as a number of percent; a dash for nan."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def swatch(labels: LabelSpace, index: int) -> str:
    """A class's colour and name."""
    label = labels.classes[index]
    color = ",".join(map(str, label.color))
    return f'<span class=swatch style="background:rgb({color})"></span>{html.escape(label.name)}'


def _class_table(report: Report) -> str:
    frequencies = report.counts.confusion.sum(1) / max(report.counts.confusion.sum(), 1)
    rows = "".join(
        f"<tr><td>{swatch(report.labels, i)}<td>{percent(report.iou[i])}"
        f'<td style="text-align:left"><span class=bar style="width:{10 * np.nan_to_num(report.iou[i]):.2f}em">'
        f"</span><td>{percent(report.accuracy[i])}<td>{percent(report.boundary_iou[i])}<td>{percent(frequencies[i])}"
        for i in range(len(report.labels.classes))
    )
    header = "<tr><th>class<th>IoU %<th><th>recall %<th>boundary IoU %<th>pixels %"
    return f"<div class=wide><table>{header}{rows}</table></div>"


def _confusion_table(report: Report) -> str:
    confusion = report.counts.confusion
    names = report.labels.names
    rows = []
    header = "".join(f"<th class=top>{html.escape(name)}" for name in names)
    for i, name in enumerate(names):
        total = confusion[i].sum()
        cells = []
        for j in range(len(names)):
            fraction = confusion[i, j] / total if total else 0.0
            # Square roots keep a confusion of a few percent visible next to the diagonal.
            color = ("58,110,165" if i == j else "200,60,40") + f",{math.sqrt(fraction):.2f}"
            text = f"{100 * fraction:.0f}" if fraction >= 0.005 else ""
            cells.append(f'<td style="background:rgba({color})">{text}')
        rows.append(f"<tr><th>{html.escape(name)}{''.join(cells)}")
    return f"<div class=wide><table class=confusion><tr><th>{header}{''.join(rows)}</table></div>"


def _worst(report: Report, model: Predictor) -> str:
    predict, figures = pair_predictor(model), []
    scored = (result for result in report.images if not math.isnan(result.miou))
    for result in sorted(scored, key=lambda r: r.miou)[:WORST]:
        try:
            image, truth = (
                read_image(result.pair.image, result.pair.reading),
                read_truth(result.pair.mask, report.labels),
            )
            prediction = predict(result.pair)
        except ImageError:
            continue  # predicted masks can be measured without their images, but not drawn
        if image.shape[:2] != truth.shape:
            continue
        errors = error_map(image, truth, prediction, report.labels)
        name = html.escape(str(result.pair.image))
        caption = f"{name}: mIoU {percent(result.miou)}, {percent(result.accuracy)} % of the pixels right"
        figures.append(
            f"<figure>{embedded(Image.fromarray(image))}{embedded(errors)}<figcaption>{caption}</figcaption></figure>"
        )
    return f"<div class=worst>{''.join(figures)}</div>"


def embedded(image: Image.Image) -> str:
    """An image of the width of all images in reports, inside the page."""
    image = image.resize((_WIDTH, max(1, image.height * _WIDTH // image.width)))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'
