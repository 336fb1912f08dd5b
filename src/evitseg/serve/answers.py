"""The kinds of answers to an image: what each contains, and how it is encoded."""

from __future__ import annotations

import base64
import io
import json
import string
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from evitseg.data.annotations.regions import compress_run_lengths
from evitseg.image import Mask
from evitseg.labels import LabelSpace
from evitseg.raster.files import MAX_JPEG_SIDE
from evitseg.raster.png import mask_png
from evitseg.runtime.segmenter import Prediction
from evitseg.serve.parameters import AnswerOptions
from evitseg.serve.problems import ProblemError

_MAX_WEBP_SIDE = 16_383
_LEAST_FRACTION, _LONGEST_HEADER = 1e-4, 3000
"""Smallest fraction in a header, and its most characters: many proxies limit all headers together to 4 KiB."""


_PLAIN = string.punctuation.replace("%", "")


@dataclass(frozen=True)
class ModelIdentity:
    """The model that answers, as JSON answers name it."""

    name: str
    sha256: str

    @property
    def header(self) -> str:
        """The name for a header: spaces and all characters beyond ASCII are percent-encoded."""
        return quote(self.name, safe=_PLAIN)


@dataclass(frozen=True)
class Answer:
    """The body of an answer, and the headers that belong to it."""

    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Segmented:
    """An image that has been segmented, with what an answer may say about it.

    Attributes:
        prediction: its mask has the classes that were asked for, and ignored pixels.
        timing_ms: milliseconds per stage so far.
        warnings: sentences about how the file was read.
    """

    prediction: Prediction
    model: ModelIdentity
    timing_ms: dict[str, float]
    warnings: list[str]


@dataclass(frozen=True)
class AnswerKind:
    """A kind of answer.

    Attributes:
        media_type: the type by which a client asks for it.
        encode: makes the answer.
        description: what it is, in a sentence.
        schema: the JSON schema of the body, if it is JSON.
    """

    media_type: str
    encode: Callable[[Segmented, AnswerOptions], Answer]
    description: str
    schema: dict[str, Any] | None = None


def only(mask: Mask, labels: LabelSpace, classes: tuple[str, ...]) -> Mask:
    """The mask with only these classes; pixels of the others are ignored ones. All classes for none."""
    if not classes:
        return mask
    table = np.full(np.iinfo(mask.dtype).max + 1, labels.ignore_index, mask.dtype)
    for name in classes:
        table[labels.names.index(name)] = labels.names.index(name)
    return np.asarray(table[mask])


def counted(mask: Mask, labels: LabelSpace) -> list[tuple[int, int]]:
    """Class index and number of pixels of every class that occurs, the largest first."""
    if mask.dtype == np.uint8:
        counts = np.array(Image.fromarray(mask).histogram())
    else:
        counts = np.bincount(mask.ravel(), minlength=len(labels.classes))
    counts = counts[: len(labels.classes)]
    return [(int(i), int(counts[i])) for i in np.argsort(-counts, kind="stable") if counts[i]]


def _png(segmented: Segmented, options: AnswerOptions) -> Answer:
    prediction = segmented.prediction
    return Answer(mask_png(prediction.mask, prediction.labels, options.mask_format), _fractions(segmented))


def _fractions(segmented: Segmented) -> dict[str, str]:
    parts: list[str] = []
    left = _LONGEST_HEADER
    for name, fraction in segmented.prediction.fractions().items():  # the largest first
        part = f"{json.dumps(name)}: {round(fraction, 4)}"
        left -= len(part) + 2
        if fraction < _LEAST_FRACTION or left < 0:
            break
        parts.append(part)
    return {"X-Evitseg-Fractions": f"{{{', '.join(parts)}}}"}


def _json(segmented: Segmented, options: AnswerOptions) -> Answer:
    content = roboflow(segmented) if options.compat else described(segmented, options)
    return Answer(json.dumps(content, ensure_ascii=False).encode())


def described(segmented: Segmented, options: AnswerOptions) -> dict[str, Any]:
    """The JSON answer: image, model, classes that occur, mask, timings and warnings."""
    prediction = segmented.prediction
    mask, labels = prediction.mask, prediction.labels
    classes = [
        {
            "id": index,
            "name": labels.names[index],
            "color": list(labels.classes[index].color),
            "fraction": pixels / mask.size,
            "pixels": pixels,
        }
        for index, pixels in counted(mask, labels)
    ]
    encoded: dict[str, Any] | None = None
    if options.mask == "png":
        encoded = {"encoding": "png", "data": base64.b64encode(mask_png(mask, labels)).decode()}
    elif options.mask == "rle":
        counts = {str(entry["id"]): compress_run_lengths(mask == entry["id"]) for entry in classes}
        encoded = {"encoding": "coco_rle", "size": list(mask.shape), "counts": counts}
    return {
        "image": {"width": mask.shape[1], "height": mask.shape[0]},
        "model": {"name": segmented.model.name, "sha256": segmented.model.sha256},
        "classes": classes,
        "mask": encoded,
        "timing_ms": {name: round(value, 2) for name, value in segmented.timing_ms.items()},
        "warnings": segmented.warnings,
    }


def roboflow(segmented: Segmented) -> dict[str, Any]:
    """The JSON answer of Roboflow's inference server to a semantic segmentation."""
    prediction = segmented.prediction
    mask, labels = prediction.mask, prediction.labels
    return {
        "time": sum(segmented.timing_ms.values()) / 1000,
        "image": {"width": mask.shape[1], "height": mask.shape[0]},
        "segmentation_mask": base64.b64encode(mask_png(mask, labels, "gray")).decode(),
        "class_map": {str(index): name for index, name in enumerate(labels.names)},
    }


def _overlay(format_name: str, longest: int) -> Callable[[Segmented, AnswerOptions], Answer]:
    def encode(segmented: Segmented, options: AnswerOptions) -> Answer:
        drawn = segmented.prediction.overlay(options.legend, options.opacity)
        if max(drawn.size) > longest:
            raise ProblemError(
                "not-acceptable",
                f"a side of a {format_name} has at most {longest:,} pixels, and this overlay is "
                f"{drawn.width}×{drawn.height}.",
                "Ask for the mask (image/png), or shrink the image.",
            )
        content = io.BytesIO()
        drawn.save(content, format_name, quality=90)
        return Answer(content.getvalue(), _fractions(segmented))

    return encode


def _geojson(segmented: Segmented, options: AnswerOptions) -> Answer:
    features = segmented.prediction.polygons(options.min_pixels)
    return Answer(json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False).encode())


def _logits(segmented: Segmented, options: AnswerOptions) -> Answer:
    logits = segmented.prediction.logits
    assert logits is not None
    shape = ", ".join(map(str, logits.shape))
    return Answer(logits.astype("<f4", copy=False).tobytes(), {"X-Evitseg-Shape": shape, "X-Evitseg-Dtype": "float32"})


_CLASS = {
    "type": "object",
    "required": ["id", "name", "color", "fraction", "pixels"],
    "properties": {
        "id": {"type": "integer", "minimum": 0},
        "name": {"type": "string"},
        "color": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 255},
            "minItems": 3,
            "maxItems": 3,
        },
        "fraction": {"type": "number", "minimum": 0, "maximum": 1},
        "pixels": {"type": "integer", "minimum": 1},
    },
}
_IMAGE = {
    "type": "object",
    "required": ["width", "height"],
    "properties": {"width": {"type": "integer", "minimum": 1}, "height": {"type": "integer", "minimum": 1}},
}
DESCRIBED_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["image", "model", "classes", "mask", "timing_ms", "warnings"],
    "properties": {
        "image": _IMAGE,
        "model": {
            "type": "object",
            "required": ["name", "sha256"],
            "properties": {"name": {"type": "string"}, "sha256": {"type": "string"}},
        },
        "classes": {"type": "array", "items": _CLASS},
        "mask": {
            "oneOf": [
                {"type": "null"},
                {
                    "type": "object",
                    "required": ["encoding", "data"],
                    "properties": {
                        "encoding": {"const": "png"},
                        "data": {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"},
                    },
                },
                {
                    "type": "object",
                    "required": ["encoding", "size", "counts"],
                    "properties": {
                        "encoding": {"const": "coco_rle"},
                        "size": {"type": "array", "items": {"type": "integer"}, "description": "Height and width."},
                        "counts": {
                            "type": "object",
                            "additionalProperties": {"type": "string"},
                            "description": "COCO's compressed run lengths by class id.",
                        },
                    },
                },
            ]
        },
        "timing_ms": {"type": "object", "additionalProperties": {"type": "number"}},
        "warnings": {"type": "array", "items": {"type": "string"}},
    },
}
_ROBOFLOW_SCHEMA = {
    "type": "object",
    "required": ["time", "image", "segmentation_mask", "class_map"],
    "properties": {
        "time": {"type": "number"},
        "image": _IMAGE,
        "segmentation_mask": {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"},
        "class_map": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
ANSWERS = {
    "png": AnswerKind("image/png", _png, "The mask as a PNG of class indices, at the size of the image."),
    "json": AnswerKind(
        "application/json",
        _json,
        "Sizes, classes with fractions and pixels, timings, and the mask.",
        {"anyOf": [DESCRIBED_SCHEMA, _ROBOFLOW_SCHEMA]},
    ),
    "jpeg": AnswerKind("image/jpeg", _overlay("JPEG", MAX_JPEG_SIDE), "The image with its classes in colour."),
    "webp": AnswerKind("image/webp", _overlay("WEBP", _MAX_WEBP_SIDE), "The image with its classes in colour."),
    "geojson": AnswerKind(
        "application/geo+json",
        _geojson,
        "The regions as polygons, in pixels from the upper left corner of the image.",
        {
            "type": "object",
            "required": ["type", "features"],
            "properties": {"type": {"const": "FeatureCollection"}, "features": {"type": "array"}},
        },
    ),
    "logits": AnswerKind(
        "application/octet-stream",
        _logits,
        "The logits as float32, little-endian; the header X-Evitseg-Shape has their shape: classes, height, width.",
    ),
}
"""Every kind of answer by its short name, the default first."""
ANSWER_OF = {kind.media_type: name for name, kind in ANSWERS.items()}


def with_classes(prediction: Prediction, classes: tuple[str, ...]) -> Prediction:
    """The prediction with only these classes; all for none."""
    return replace(prediction, mask=only(prediction.mask, prediction.labels, classes)) if classes else prediction
