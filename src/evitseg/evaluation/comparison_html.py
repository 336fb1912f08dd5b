"""Write a comparison of models as one self-contained HTML file."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable, Sequence

from PIL import Image

from evitseg.data.lists import Pair
from evitseg.errors import ImageError
from evitseg.evaluation.comparison import CONFIDENCE, Comparison, Interval
from evitseg.evaluation.evaluate import Predictor, pair_predictor
from evitseg.evaluation.html import WORST, embedded, percent, swatch, write_page
from evitseg.image import Mask
from evitseg.labels import LabelSpace
from evitseg.raster.files import read_image
from evitseg.raster.masks import read_truth
from evitseg.visualize import difference_map

_STYLE = """
td.text, th.text { text-align: left; } .wide td { white-space: nowrap; }
.wide td.last { white-space: normal; text-align: left; min-width: 13rem; font-size: .8rem; }
th:last-child { text-align: left; }
.up { color: #17803a; font-weight: 600; } .down { color: #c02a1a; font-weight: 600; }
small { color: #666; } td.chart { padding: 0 .8rem; } svg { display: block; }
.pictures { display: grid; gap: 1.6rem; } .pictures section { display: grid; gap: .6rem;
grid-template-columns: repeat(auto-fit, minmax(17rem, 26rem)); }
.pictures figure { margin: 0; } .pictures img { width: 100%; }
.pictures h3 { font-size: .95rem; margin: 0; grid-column: 1 / -1; overflow-wrap: anywhere; font-weight: 600; }
.key i { display: inline-block; width: .8em; height: .8em; margin: 0 .35em 0 .9em; }
"""
_COLORS = ("#3a6ea5", "#c8702a", "#6a4c93", "#2a8c82", "#a33b5e", "#6b7a1f")
_CHART, _ROW = 300, 14
"""Width of the chart of differences, and height of a model's line in it, in pixels."""


def write_comparison(
    comparison: Comparison,
    names: Sequence[str],
    facts: Sequence[dict[str, str]],
    path: str | os.PathLike[str],
    models: Sequence[Predictor],
    title: str,
) -> None:
    """Write a comparison as an HTML page.

    Args:
        names: of the models, in the order of the scores.
        facts: further columns of the table of models, such as time and size, at least one; the same keys for all. The
            last one may be long.
        models: those that were measured; they predict the drawn images once more.
    """
    count, first = len(comparison.different), html.escape(names[0])
    skipped = f", {len(comparison.skipped)} skipped" if comparison.skipped else ""
    confidence = (
        f"those in colour are not 0 with {CONFIDENCE:.0%} confidence (paired bootstrap over the images, "
        f"{comparison.resamples} resamples)"
        if count > 1
        else "confidence intervals need more than one image"
    )
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{count} image{'s' * (count != 1)}{skipped}. Differences are in points, compared with {first}; "
        f"{confidence}.</p>",
        "<h2>Models</h2>",
        _model_table(comparison, names, facts),
        "<h2>IoU per class, in percent</h2>",
        _class_table(comparison, names),
        _pictures(comparison, names, models),
    ]
    if comparison.skipped:
        sentences = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in comparison.skipped)
        parts.append(f"<h2>Skipped</h2><ul>{sentences}</ul>")
    write_page(path, title, parts, _STYLE)


def points(interval: Interval) -> str:
    """A difference with its interval, in points: "+1.25 [+0.3, +2.1]", or "+1.25" if it has none."""
    if math.isnan(interval.value):
        return "–"
    if math.isnan(interval.low):
        return f"{100 * interval.value:+.2f}"
    return f"{100 * interval.value:+.2f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _difference(interval: Interval) -> str:
    way = "" if not interval.excludes_zero else " class=up" if interval.value > 0 else " class=down"
    value, _, limits = points(interval).replace("-", "−").partition(" ")
    return f"<span{way}>{value}</span> <small>{limits}</small>"


def _model_table(comparison: Comparison, names: Sequence[str], facts: Sequence[dict[str, str]]) -> str:
    rows = []
    for number, (name, scores, further) in enumerate(zip(names, comparison.scores, facts, strict=True)):
        miou, report = scores.miou, scores.report
        cells = [
            percent(miou.value)
            + ("" if math.isnan(miou.low) else f" <small>[{percent(miou.low)}, {percent(miou.high)}]</small>"),
            _difference(scores.miou_difference) if number else "",
            percent(report.mean_boundary_iou),
            percent(report.pixel_accuracy),
        ]
        *middle, last = map(html.escape, further.values())
        row = "".join(f"<td>{cell}" for cell in (*cells, *middle))
        rows.append(f"<tr><td>{_dot(number)} {html.escape(name)}{row}<td class=last>{last}")
    head = ("model", "mIoU %", "difference", "boundary mIoU %", "pixel accuracy %", *facts[0])
    header = "".join(f"<th>{html.escape(cell)}" for cell in head)
    return f"<div class=wide><table><tr>{header}{''.join(rows)}</table></div>"


def _color(number: int) -> str:
    return "#555" if not number else _COLORS[(number - 1) % len(_COLORS)]


def _dot(number: int) -> str:
    return f'<span class=swatch style="background:{_color(number)};border-radius:50%"></span>'


def _class_table(comparison: Comparison, names: Sequence[str]) -> str:
    others = comparison.scores[1:]
    limits = (
        abs(limit) for scores in others for each in scores.iou_difference for limit in (each.low, each.value, each.high)
    )
    reach = max((limit for limit in limits if not math.isnan(limit)), default=0.0) or 0.01
    rows = []
    for index in range(len(comparison.labels.classes)):
        values = "".join(f"<td>{percent(scores.iou[index].value)}" for scores in comparison.scores)
        differences = [scores.iou_difference[index] for scores in others]
        cells = "".join(f"<td>{_difference(each)}" for each in differences)
        rows.append(
            f"<tr><td>{swatch(comparison.labels, index)}{values}{cells}<td class=chart>{_chart(differences, reach)}"
        )
    escaped = [html.escape(name) for name in names]
    header = "".join(f"<th>{_dot(number)}{name}" for number, name in enumerate(escaped))
    header += "".join(f"<th>{name} − {escaped[0]}" for name in escaped[1:])
    scale = f"<th class=text>−{100 * reach:.1f} to +{100 * reach:.1f} points"
    return f"<div class=wide><table><tr><th>class{header}{scale}{''.join(rows)}</table></div>"


def _chart(differences: Sequence[Interval], reach: float) -> str:
    """Every difference as a dot on a line from the lower to the upper limit; the vertical line is 0."""

    def x(value: float) -> str:
        return f"{_CHART / 2 * (1 + 0.97 * value / reach):.1f}"

    height, marks = _ROW * len(differences) + 4, []
    for number, each in enumerate(differences, 1):
        if math.isnan(each.value):
            continue
        y, color = 2 + _ROW * (number - 0.5), _color(number)
        strength = 1 if each.excludes_zero else 0.45
        low, high = (each.low, each.high) if not math.isnan(each.low) else (each.value, each.value)
        marks.append(
            f'<g stroke="{color}" fill="{color}" opacity="{strength}"><line x1="{x(low)}" x2="{x(high)}" '
            f'y1="{y}" y2="{y}" stroke-width="2.5"/><circle cx="{x(each.value)}" cy="{y}" r="4.5" stroke="none"/></g>'
        )
    zero = f'<line x1="{_CHART / 2}" x2="{_CHART / 2}" y1="0" y2="{height}" stroke="#999" stroke-dasharray="2 2"/>'
    return f'<svg width="{_CHART}" height="{height}" role="img">{zero}{"".join(marks)}</svg>'


def _pictures(comparison: Comparison, names: Sequence[str], models: Sequence[Predictor]) -> str:
    predictors = [pair_predictor(model) for model in models]
    sections = []
    for pair, fraction in comparison.most_different(WORST):
        try:
            figures = _figures(pair, comparison.labels, names, predictors)
        except ImageError:
            continue  # predicted masks can be compared without their images, but not drawn
        title = f"{html.escape(str(pair.image))}: {percent(fraction)} % of the pixels differ"
        sections.append(f"<section><h3>{title}</h3>{figures}</section>")
    if not sections:
        return "<p>No pixel differs.</p>" if not comparison.most_different(1) else ""
    key = (
        "<p class=key>Where a model differs from the first:<i style='background:rgb(30,170,60)'></i>only this model is "
        "right<i style='background:rgb(230,30,20)'></i>only the first is right<i style='background:rgb(240,190,0)'></i>"
        "both are wrong</p>"
    )
    return f"<h2>Where they differ most</h2>{key}<div class=pictures>{''.join(sections)}</div>"


def _figures(pair: Pair, labels: LabelSpace, names: Sequence[str], predictors: Sequence[Callable[[Pair], Mask]]) -> str:
    image, truth = read_image(pair.image, pair.reading), read_truth(pair.mask, labels)
    if image.shape[:2] != truth.shape:
        raise ImageError(f"{pair.image}: its mask has another size.")
    first, *others = (predict(pair) for predict in predictors)
    counted = truth != labels.ignore_index
    figures = [f"<figure>{embedded(Image.fromarray(image))}</figure>"]
    for name, mask in zip(names[1:], others, strict=True):
        differ = (first != mask) & counted
        better, worse = ((differ & (right == truth)).sum() / max(counted.sum(), 1) for right in (mask, first))
        caption = f"{html.escape(name)}: better in {percent(float(better))} %, worse in {percent(float(worse))} %"
        drawn = embedded(difference_map(image, truth, first, mask, labels))
        figures.append(f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>")
    return "".join(figures)
