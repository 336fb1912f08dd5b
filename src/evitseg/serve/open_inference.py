"""The Open Inference Protocol (KServe's V2), in JSON and with its binary extension: pixels in, logits and mask out.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from evitseg._version import __version__
from evitseg.image import ImageArray
from evitseg.serve.endpoints import Endpoint, route, service_of
from evitseg.serve.exchange import exchange_of
from evitseg.serve.problems import ProblemError
from evitseg.serve.service import Service, Stages
from evitseg.serve.uploads import uploading

INPUT = "image"
_VERSION = "1"
_HEADER_LENGTH = "Inference-Header-Content-Length"
_MAX_JSON_BYTES = 16 * 2**20
"""Most bytes of JSON: parsing it stops every other thread of Python."""
_NAMES = {np.dtype(np.uint8): "UINT8", np.dtype(np.uint16): "UINT16", np.dtype(np.float32): "FP32"}


@dataclass(frozen=True)
class InferRequest:
    """A request for an inference.

    Attributes:
        request_id: the client's, returned as it came; None if there is none.
        image: (H, W, 3) pixels.
        outputs: name of each output, and whether it is returned as bytes.
    """

    request_id: str | None
    image: ImageArray
    outputs: dict[str, bool]


def _malformed(detail: str) -> ProblemError:
    return ProblemError("malformed-request", detail)


def read_request(body: bytes, header_length: str | None, max_pixels: int) -> InferRequest:
    """The request in a body.

    Args:
        header_length: the header Inference-Header-Content-Length; None if the body is JSON without bytes after it.

    Raises: ProblemError.
    """
    end = len(body)
    if header_length is not None:
        if not re.fullmatch(r"[0-9]{1,12}", header_length) or int(header_length) > len(body):
            raise _malformed(f"{_HEADER_LENGTH} is {header_length[:40]!r}, but the body has {len(body):,} bytes.")
        end = int(header_length)
    if end > _MAX_JSON_BYTES:
        raise ProblemError(
            "too-many-bytes",
            f"the JSON has {end:,} bytes; at most {_MAX_JSON_BYTES:,} are accepted.",
            "Send the pixels as bytes, with the protocol's binary extension.",
        )
    try:
        content: Any = json.loads(body[:end])
    except (ValueError, RecursionError) as error:
        raise _malformed("the request is not JSON.") from error
    if not isinstance(content, dict):
        raise _malformed("the request is not a JSON object.")
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _malformed("inputs must be a list with one tensor.")
    request_id = content.get("id")
    if "id" in content and not isinstance(request_id, str):
        raise _malformed("id must be a string.")
    image = _pixels(inputs[0], body[end:], max_pixels)
    return InferRequest(request_id, image, _outputs(content))


def _parameters(holder: dict[str, Any]) -> dict[str, Any]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _malformed("parameters must be an object.")
    return parameters


def _outputs(content: dict[str, Any]) -> dict[str, bool]:
    all_binary = _flag(_parameters(content), "binary_data_output", False)
    if "outputs" not in content:
        return {"mask": all_binary, "logits": all_binary}
    outputs = content["outputs"]
    if not isinstance(outputs, list) or not outputs or not all(isinstance(entry, dict) for entry in outputs):
        raise _malformed("outputs must be a list of objects with names.")
    wanted = {}
    for entry in outputs:
        name = entry.get("name")
        if name not in ("mask", "logits"):
            raise _malformed(f"there is no output {str(name)[:40]!r}; the outputs are mask and logits.")
        wanted[str(name)] = _flag(_parameters(entry), "binary_data", all_binary)
    return wanted


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise _malformed(f"{name} must be true or false.")
    return value


def _pixels(tensor: dict[str, Any], binary: bytes, max_pixels: int) -> ImageArray:
    if tensor.get("name") != INPUT:
        raise _malformed(f"the input is {str(tensor.get('name'))[:40]!r}; its name must be {INPUT!r}.")
    if tensor.get("datatype") != "UINT8":
        raise _malformed(f"the input's datatype is {str(tensor.get('datatype'))[:20]!r}; it must be UINT8.")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(side) is int and 0 < side < 2**31 for side in shape):
        raise _malformed("the input's shape must be a list of positive whole numbers.")
    if len(shape) == 3:
        shape = [1, *shape]
    if len(shape) != 4 or shape[0] != 1 or shape[3] != 3:
        raise _malformed(f"the input's shape is {str(shape)[:60]}; it must be [1, height, width, 3].")
    _, height, width, _ = shape
    if height * width > max_pixels:
        raise ProblemError(
            "too-many-pixels", f"the image has {width}×{height} pixels; at most {max_pixels:,} are accepted."
        )
    size = _parameters(tensor).get("binary_data_size")
    if size is not None:
        if type(size) is not int or size != len(binary) or size != math.prod(shape):
            raise _malformed(
                f"binary_data_size is {str(size)[:20]}, {len(binary):,} bytes follow the JSON, and the shape needs "
                f"{math.prod(shape):,}."
            )
        return np.frombuffer(binary, np.uint8).reshape(height, width, 3)
    if binary:
        raise _malformed("bytes follow the JSON, but the input has no binary_data_size.")
    return _from_json(tensor.get("data"), math.prod(shape)).reshape(height, width, 3)


def _from_json(data: Any, count: int) -> NDArray[np.uint8]:
    if not isinstance(data, list):
        raise _malformed("the input's data must be a list.")
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError) as error:
        raise _malformed("the input's data must be whole numbers, flat or nested like the shape.") from error
    if values.dtype.kind not in "iu" or values.size != count or values.min() < 0 or values.max() > 255:
        raise _malformed(f"the input's data must be {count:,} whole numbers from 0 to 255.")
    return values.astype(np.uint8).ravel()


def _answer(
    service: Service, body: bytes, header_length: str | None, model: str, stages: Stages
) -> tuple[bytes, str | None]:
    """The answer's body and the length of its JSON if bytes follow; in a thread of the queue."""
    with service.translated():
        with stages("decode"):
            request = read_request(body, header_length, service.limits.max_pixels)
            service.check_pixels(request.image.shape[:2], service.segment)
        with stages("network"):
            logits = service.segment.logits(request.image)
        tensors: dict[str, NDArray[Any]] = {"logits": logits[None]}
        if "mask" in request.outputs:
            with stages("mask"):
                tensors["mask"] = service.segment.mask_of(logits, request.image.shape[:2])[None]
        service.instruments.pixels.inc(request.image.shape[0] * request.image.shape[1])
        with stages("encode"):
            return _encoded(request, tensors, model)


def _encoded(request: InferRequest, tensors: dict[str, NDArray[Any]], model: str) -> tuple[bytes, str | None]:
    outputs, parts = [], []
    for name, is_binary in request.outputs.items():
        tensor = tensors[name]
        about: dict[str, Any] = {"name": name, "shape": list(tensor.shape), "datatype": _NAMES[tensor.dtype]}
        if is_binary:
            parts.append(tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes())
            about["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            about["data"] = tensor.ravel().tolist()
        outputs.append(about)
    content: dict[str, Any] = {"model_name": model, "model_version": _VERSION, "outputs": outputs}
    if request.request_id is not None:
        content["id"] = request.request_id
    text = json.dumps(content).encode()
    return b"".join([text, *parts]), str(len(text)) if parts else None


def _checked_model(request: Request) -> Service:
    service = service_of(request)
    asked = request.path_params["model"]
    if asked != service.model.name:
        raise ProblemError("unknown-model", f"there is no model {asked[:100]!r}; it is {service.model.name!r}.")
    return service


def _with_error(endpoint: Endpoint) -> Endpoint:
    """The endpoint with the protocol's member `error` in its problems."""

    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ProblemError as problem:
            exchange = exchange_of(request)
            exchange.problem = problem.name
            return problem.response(exchange.request_id, request.scope.get("root_path", ""), error=problem.detail)

    return answered


async def _infer(request: Request) -> Response:
    service, exchange = _checked_model(request), exchange_of(request)
    service.check_open()
    async with uploading(request, service.uploads, service.upload_limits) as upload:
        if upload.kind not in ("", "application/json", "application/octet-stream"):
            raise ProblemError(
                "unsupported-type", f"the body is {upload.kind[:60]!r}.", "Send application/json or octet-stream."
            )
        body = await upload.body()
        work = partial(_answer, service, body, request.headers.get(_HEADER_LENGTH), service.model.name, exchange.stages)
        del body
        content, length = await service.run(work, exchange.stages, request)
    if length is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={_HEADER_LENGTH: length}, media_type="application/octet-stream")


async def _server(request: Request) -> Response:
    return JSONResponse({"name": "evitseg", "version": __version__, "extensions": ["binary_tensor_data"]})


async def _model(request: Request) -> Response:
    service = _checked_model(request)
    mask = _NAMES[np.dtype(service.labels.dtype)]
    return JSONResponse(
        {
            "name": service.model.name,
            "versions": [_VERSION],
            "platform": "evitseg",
            "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [1, -1, -1, 3]}],
            "outputs": [
                {"name": "mask", "datatype": mask, "shape": [1, -1, -1]},
                {"name": "logits", "datatype": "FP32", "shape": [1, len(service.labels.classes), -1, -1]},
            ],
        }
    )


async def _live(request: Request) -> Response:
    return JSONResponse({"live": True})


async def _ready(request: Request) -> Response:
    is_ready = service_of(request).is_ready
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


async def _model_ready(request: Request) -> Response:
    service = _checked_model(request)
    return JSONResponse({"name": service.model.name, "ready": service.is_ready}, 200 if service.is_ready else 503)


ROUTES = [
    route("/v2", _server, "GET"),
    route("/v2/health/live", _live, "GET"),
    route("/v2/health/ready", _ready, "GET"),
    route("/v2/models/{model}", _with_error(_model), "GET"),
    route("/v2/models/{model}/ready", _with_error(_model_ready), "GET"),
    route("/v2/models/{model}/infer", _with_error(_infer), "POST"),
]
