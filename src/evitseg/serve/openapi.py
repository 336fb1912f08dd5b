"""The OpenAPI description of the service, made from the tables of answers, parameters and problems."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from evitseg._version import __version__
from evitseg.serve.answers import ANSWERS, DESCRIBED_SCHEMA
from evitseg.serve.endpoints import NDJSON
from evitseg.serve.parameters import PARAMETERS
from evitseg.serve.problems import MEDIA_TYPE, PROBLEMS
from evitseg.serve.tile_layers import FORMATS, MEDIA_TYPES

_EVERYWHERE = ("no-key", "wrong-host", "header-too-large", "internal-error")
_UPLOADS = (
    "malformed-request", "not-an-image", "not-acceptable", "upload-too-slow", "too-many-bytes", "too-many-pixels",
    "unsupported-type", "bad-parameter", "not-installed", "busy", "draining", "timeout",
)  # fmt: skip
_OF_LISTS = ("bad-parameter", "no-images", "busy", "draining", "timeout")
_OF_TILES = (
    *_OF_LISTS, "no-such-image", "no-such-tile", "no-mask", "no-place", "not-rendered", "not-installed",
)  # fmt: skip
_BINARY = {"type": "string", "format": "binary"}
_IMAGE = {
    "name": "image",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "examples": ["street.jpg"]},
    "description": "Path of the image below the service's folder, as /v1/images lists it.",
}
_EXACT = {
    "name": "exact",
    "in": "query",
    "required": False,
    "schema": {"type": "boolean"},
    "description": "Refuse previews of the mask, which are shown until all of it is rendered. Not for images.",
}
_OBJECT = {"type": "object"}
_READINESS = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _problems(names: Iterable[str], public: bool = False) -> dict[str, Any]:
    by_status: dict[str, list[str]] = {}
    for name in (*names, *(each for each in _EVERYWHERE if each != "no-key" or not public)):
        by_status.setdefault(str(PROBLEMS[name].status), []).append(PROBLEMS[name].title)
    return {
        status: {
            "description": "; or ".join(titles) + ".",
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, titles in sorted(by_status.items())
    }


def _parameters(classes: Sequence[str], *answers: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, parameter in PARAMETERS.items():
        if not set(parameter.answers) & set(answers):
            continue
        kinds = [ANSWERS[answer].media_type for answer in answers if answer in parameter.answers]
        scope = f" Only for {', '.join(kinds)}." if len(kinds) < len(answers) else ""
        found.append(
            {
                "name": name,
                "in": "query",
                "required": False,
                "schema": parameter.schema,
                "description": parameter.description + scope,
            }
        )
        if name == "classes":
            names = {"type": "array", "items": {"enum": list(classes)}, "minItems": 1}
            found[-1] |= {"style": "form", "explode": False, "schema": names}
    return found


def _operation(
    name: str, summary: str, ok: dict[str, Any], problems: Iterable[str] = (), public: bool = False, **more: Any
) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        **({"security": [{}]} if public else {}),
        **more,
        "responses": {"200": ok, **_problems(problems, public)},
    }


def _image_body() -> dict[str, Any]:
    form = {"type": "object", "required": ["file"], "properties": {"file": _BINARY}, "additionalProperties": False}
    return {
        "required": True,
        "description": "The image file as the body, or as the one file of a form.",
        "content": {
            "image/*": {"schema": _BINARY},
            "application/octet-stream": {"schema": _BINARY},
            "multipart/form-data": {"schema": form},
        },
    }


def _batch_body() -> dict[str, Any]:
    files = {"type": "array", "items": _BINARY, "minItems": 1}
    form = {"type": "object", "required": ["file"], "properties": {"file": files}, "additionalProperties": False}
    return {"required": True, "content": {"multipart/form-data": {"schema": form}}}


def _segment(classes: Sequence[str]) -> dict[str, Any]:
    content = {
        kind.media_type: {"schema": (kind.schema or _BINARY) | {"description": kind.description}}
        for kind in ANSWERS.values()
    }
    return _operation(
        "segment",
        "Segment an image",
        {
            "description": "The answer that the header Accept chose.",
            "headers": {
                "X-Evitseg-Model": {
                    "schema": {"type": "string"},
                    "description": "The model's name, percent-encoded where it is not plain ASCII.",
                },
                "X-Evitseg-Fractions": {
                    "schema": {"type": "string"},
                    "description": "Of a mask or an overlay: fractions of the pixels by class, the largest, as JSON.",
                },
                "Server-Timing": {"schema": {"type": "string"}},
            },
            "content": content,
        },
        _UPLOADS,
        description="The header Accept chooses the answer; a mask as PNG is the default.",
        parameters=_parameters(classes, *ANSWERS),
        requestBody=_image_body(),
    )


def _tensor(name: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"const": name} if name else {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
            "datatype": {"const": "UINT8"} if name else {"type": "string"},
            "data": {"type": "array"},
        },
    }


def _infer(model: str) -> dict[str, Any]:
    request = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": _tensor("image"), "minItems": 1, "maxItems": 1},
            "outputs": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"enum": ["mask", "logits"]}},
                },
            },
        },
    }
    pixel = {"name": "image", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [90, 120, 60]}
    answer = {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {"model_name": {"type": "string"}, "outputs": {"type": "array", "items": _tensor("")}},
    }
    ok = _json("The outputs; with the binary extension, JSON and then bytes.", answer)
    ok["content"]["application/octet-stream"] = {"schema": _BINARY}
    body = {
        "required": True,
        "content": {
            "application/json": {"schema": request, "example": {"inputs": [pixel]}},
            "application/octet-stream": {"schema": _BINARY},
        },
    }
    return _operation(
        "infer",
        "Run the network on pixels",
        ok,
        ("unknown-model", *_UPLOADS),
        parameters=[_model(model)],
        requestBody=body,
    )


def _model(name: str) -> dict[str, Any]:
    return {"name": "model", "in": "path", "required": True, "schema": {"enum": [name]}}


def _in_path(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": description}


def _tile(name: str, summary: str, *numbers: tuple[str, str]) -> dict[str, Any]:
    """The description of tiles; `numbers` are the names of their coordinates, each with its meaning."""
    endings = sorted({ending for each in FORMATS.values() for ending in each})
    parameters = [
        _in_path("layer", {"enum": list(FORMATS)}, "What the tiles show."),
        _IMAGE,
        *(_in_path(number, {"type": "integer", "minimum": 0}, meaning) for number, meaning in numbers),
        _in_path("ending", {"enum": endings}, "Format; masks are PNG files of class indices with a palette."),
        _EXACT,
        {"name": "opacity", "in": "query", "required": False, "schema": PARAMETERS["opacity"].schema,
         "description": PARAMETERS["opacity"].description + " Only for overlays."},
    ]  # fmt: skip
    ok = {
        "description": "The tile.",
        "headers": {
            "X-Evitseg-Mask": {
                "schema": {"enum": ["exact", "preview"]},
                "description": "Whether the mask is that of the whole image, or a preview.",
            }
        },
        "content": {media_type: {"schema": _BINARY} for media_type in MEDIA_TYPES.values()},
    }
    return _operation(name, summary, ok, _OF_TILES, parameters=parameters)


def _images() -> dict[str, Any]:
    """The addresses of the images below the service's folder."""
    images = {
        "type": "object",
        "required": ["images"],
        "properties": {
            "images": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "has_mask"],
                    "properties": {"name": {"type": "string"}, "has_mask": {"type": "boolean"}},
                },
            }
        },
    }
    descriptor = {"description": "The descriptor.", "content": {"application/xml": {"schema": {"type": "string"}}}}
    layer = _in_path("layer", {"enum": list(FORMATS)}, "What the tiles show.")
    deep = (("level", "0 is a single pixel."), ("column", "From the left."), ("row", "From the top."))
    place = (("z", "Zoom."), ("x", "From the west."), ("y", "From the north."))
    return {
        "/v1/images": {
            "get": _operation("images", "The images of the service's folder", _json("The images.", images), _OF_LISTS)
        },
        "/v1/images/info/{image}": {
            "get": _operation(
                "imageInfo", "An image's size, classes and the addresses of its tiles",
                _json("The image.", _OBJECT), _OF_TILES, parameters=[_IMAGE],
            )
        },
        "/v1/images/dzi/{layer}/{image}.dzi": {
            "get": _operation(
                "deepZoom", "The Deep Zoom descriptor of an image, for viewers such as OpenSeadragon", descriptor,
                _OF_TILES, parameters=[layer, _IMAGE, _EXACT],
            )
        },
        "/v1/images/dzi/{layer}/{image}_files/{level}/{column}_{row}.{ending}": {
            "get": _tile("deepZoomTile", "A tile of a Deep Zoom image", *deep)
        },
        "/v1/images/xyz/{layer}/{image}/{z}/{x}/{y}.{ending}": {
            "get": _tile("mapTile", "A tile of 256 pixels of a web map (EPSG:3857)", *place)
        },
    }  # fmt: skip


def description(model: str, classes: Sequence[str], needs_key: bool, root: str = "") -> dict[str, Any]:
    """The OpenAPI 3.1 description of a service with this model and these classes.

    Args:
        root: the path under which a proxy mounts the service.
    """
    ready = _operation("ready", "Whether requests are accepted", _json("Ready.", _READINESS), public=True)
    ready["responses"]["503"] = _json("Starting, or shutting down.", _READINESS)
    v2_ready = _operation("v2Ready", "Whether requests are accepted", _json("Ready.", _OBJECT), public=True)
    v2_ready["responses"]["503"] = _json("Not ready.", _OBJECT)
    model_ready = _operation(
        "v2ModelReady",
        "Whether the model is ready",
        _json("Ready.", _OBJECT),
        ["unknown-model"],
        parameters=[_model(model)],
    )
    model_ready["responses"]["503"] = _json("Not ready.", _OBJECT)
    text = {"description": "Metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    lines = {
        "description": "A line of JSON for each image, as it is done: `index`, `file`, and what /v1/segment answers "
        "as JSON, or `error`.",
        "content": {NDJSON: {"schema": DESCRIBED_SCHEMA | {"required": ["index", "file"]}}},
    }
    paths = {
        "/v1/segment": {"post": _segment(classes)},
        "/v1/segment/batch": {
            "post": _operation(
                "segmentBatch",
                "Segment several images",
                lines,
                _UPLOADS,
                parameters=_parameters(classes, "json"),
                requestBody=_batch_body(),
            )
        },
        "/v1/model": {"get": _operation("model", "The model, its classes, the limits", _json("The model.", _OBJECT))},
        "/healthz": {"get": _operation("live", "Whether the process lives", _json("Yes.", _READINESS), public=True)},
        "/readyz": {"get": ready},
        "/metrics": {"get": _operation("metrics", "Metrics for Prometheus", text)},
        "/v2": {"get": _operation("v2Server", "The server", _json("The server.", _OBJECT))},
        "/v2/health/live": {
            "get": _operation("v2Live", "Whether the process lives", _json("It does.", _OBJECT), public=True)
        },
        "/v2/health/ready": {"get": v2_ready},
        "/v2/models/{model}": {
            "get": _operation(
                "v2Model", "The model's tensors", _json("Inputs and outputs.", _OBJECT), ["unknown-model"],
                parameters=[_model(model)],
            )
        },
        "/v2/models/{model}/ready": {"get": model_ready},
        "/v2/models/{model}/infer": {"post": _infer(model)},
        **_images(),
    }  # fmt: skip
    problem = {
        "type": "object",
        "required": ["type", "title", "status", "detail", "remedy", "request_id"],
        "properties": {
            "type": {"type": "string", "format": "uri-reference"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "What is wrong with this request."},
            "remedy": {"type": "string", "description": "What the client can do."},
            "request_id": {"type": "string"},
        },
    }
    bearer = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if needs_key else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "evitseg",
            "version": __version__,
            "description": f"Semantic segmentation with the model {model}.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": root or "/"}],
        **({"security": [{"key": []}]} if needs_key else {}),
        "paths": paths,
        "components": {"schemas": {"Problem": problem}, **bearer},
    }
