"""The query parameters of requests for masks: one table for parsing and for the OpenAPI description."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from evitseg.errors import ConfigError, unknown
from evitseg.image import Size
from evitseg.labels import LabelSpace
from evitseg.preprocess import check_size
from evitseg.raster.png import MaskFormat
from evitseg.serve.problems import ProblemError
from evitseg.visualize import OPACITY

MaskEncoding = Literal["png", "rle", "none"]
"""How a JSON answer holds the mask."""


@dataclass(frozen=True)
class AnswerOptions:
    """What the query asks for.

    Attributes:
        size: the working size, as in `evitseg.load`.
        classes: names of the classes to keep; pixels of others become ignored ones. Empty for all.
        mask_format: of a PNG.
        mask: how a JSON answer holds the mask.
        compat: "roboflow" for a JSON answer in Roboflow's shape.
        min_pixels: area of the smallest polygon.
        opacity: of the classes' colours in an overlay.
        legend: whether an overlay has one.
    """

    size: Size = None
    classes: tuple[str, ...] = ()
    mask_format: MaskFormat = "palette"
    mask: MaskEncoding = "png"
    compat: str = ""
    min_pixels: int = 1
    opacity: float = OPACITY
    legend: bool = True


@dataclass(frozen=True)
class QueryParameter:
    """A query parameter: a field of `AnswerOptions`.

    Attributes:
        parse: the value of a text, for a model with these classes. Raises: ConfigError, ValueError.
        answers: the kinds of answers that have the parameter.
        schema: the JSON schema of its values.
        description: one sentence or two.
    """

    parse: Callable[[str, LabelSpace], Any]
    answers: tuple[str, ...]
    schema: dict[str, Any] = field(default_factory=dict)
    description: str = ""


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ConfigError(f"{text[:40]!r} is not a whole number.")
    return int(text)


def _size(text: str, labels: LabelSpace) -> Size:
    return "native" if text == "native" else check_size(_number(text))


def _classes(text: str, labels: LabelSpace) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in labels.names:
            raise unknown("class", name[:100], labels.names)
    return names


def _one_of(*known: str) -> Callable[[str, LabelSpace], str]:
    def parse(text: str, labels: LabelSpace) -> str:
        if text not in known:
            raise ConfigError(f"{text[:40]!r} is none of {', '.join(known)}.")
        return text

    return parse


def _min_pixels(text: str, labels: LabelSpace) -> int:
    if (number := _number(text)) < 1:
        raise ConfigError("it must be 1 or more.")
    return number


def _opacity(text: str, labels: LabelSpace) -> float:
    if not re.fullmatch(r"(0(\.[0-9]{1,9})?|1(\.0{1,9})?)", text):
        raise ConfigError(f"{text[:40]!r} is not a number from 0 to 1.")
    return float(text)


def _yes(text: str, labels: LabelSpace) -> bool:
    return _one_of("true", "false")(text, labels) == "true"


MASKS = ("png", "json", "jpeg", "webp", "geojson")
PARAMETERS = {
    "size": QueryParameter(
        _size,
        (*MASKS, "logits"),
        {"oneOf": [{"type": "integer", "minimum": 32, "maximum": 16_384}, {"const": "native"}]},
        "Short side, in pixels, at which the image goes through the network; 'native' for its own size. Default: the "
        "model's rule.",
    ),
    "classes": QueryParameter(
        _classes,
        MASKS,
        {},  # the model's classes
        "Names of classes; pixels of other classes become 255, which means ignored.",
    ),
    "mask_format": QueryParameter(
        _one_of("palette", "gray"),
        ("png",),
        {"enum": ["palette", "gray"]},
        "Class indices with the classes' colours as a palette, or as grey levels. Default: palette.",
    ),
    "mask": QueryParameter(
        _one_of("png", "rle", "none"),
        ("json",),
        {"enum": ["png", "rle", "none"]},
        "How the JSON holds the mask: a PNG in base64, COCO's run lengths, or not at all. Default: png.",
    ),
    "compat": QueryParameter(
        _one_of("roboflow"), ("json",), {"enum": ["roboflow"]}, "JSON in the shape of Roboflow's inference server."
    ),
    "min_pixels": QueryParameter(
        _min_pixels,
        ("geojson",),
        {"type": "integer", "minimum": 1, "maximum": 999_999_999},
        "Area of the smallest polygon. Default: 1.",
    ),
    "opacity": QueryParameter(
        _opacity,
        ("jpeg", "webp"),
        {"type": "number", "minimum": 0, "maximum": 1},
        f"Opacity of the classes' colours. Default: {OPACITY}.",
    ),
    "legend": QueryParameter(
        _yes, ("jpeg", "webp"), {"type": "boolean"}, "Whether a legend is drawn below the image. Default: true."
    ),
}
"""Every query parameter by name."""


def parsed(query: Sequence[tuple[str, str]], answer: str, labels: LabelSpace) -> AnswerOptions:
    """The options in a query for a kind of answer.

    Raises: ProblemError for an unknown or repeated parameter, for a wrong value, and for one that this kind of answer
    does not have.
    """
    options = AnswerOptions()
    seen = set[str]()
    for name, text in query:
        if name not in PARAMETERS:
            raise ProblemError("bad-parameter", str(unknown("parameter", name[:100], PARAMETERS)))
        parameter = PARAMETERS[name]
        if name in seen:
            raise ProblemError("bad-parameter", f"{name} is given twice; give it once.")
        if answer not in parameter.answers:
            raise ProblemError(
                "bad-parameter",
                f"{name} does not apply to this answer, which the header Accept chooses; it applies to "
                f"{', '.join(parameter.answers)}.",
            )
        seen.add(name)
        try:
            value = parameter.parse(text, labels)
        except ConfigError as error:
            raise ProblemError("bad-parameter", f"{name}: {error}") from error
        options = replace(options, **{name: value})
    if options.compat and "mask" in seen:
        raise ProblemError("bad-parameter", "mask does not apply with compat=roboflow, which states the shape.")
    return options
