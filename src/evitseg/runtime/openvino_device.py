"""Run models in OpenVINO on any of its devices."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evitseg.engine import EngineInfo, Precision
from evitseg.errors import EngineError
from evitseg.runtime.mobile_engines import one_by_one
from evitseg.runtime.model_file import first_line
from evitseg.runtime.openvino_core import openvino_core
from evitseg.runtime.openvino_engine import PRECISION_HINTS, for_size, read_openvino

_COMPOSED = ("AUTO", "HETERO", "MULTI", "BATCH")
"""Devices that distribute the work over others, such as HETERO:NPU,CPU."""


class OpenVinoDevice:
    """An exported model in OpenVINO on a device, for images of one size.

    Args:
        device: OpenVINO's name, such as "NPU", "GPU.1", "AUTO" or "HETERO:NPU,CPU".
        size: (height, width) of the images; NPUs need to know it.

    Raises: EngineError for a device that this machine does not have, or that cannot run the network.
    """

    def __init__(self, model_file: Path, device: str, size: tuple[int, int], precision: Precision = "auto") -> None:
        core = openvino_core()
        import openvino

        _check_device(device, core.available_devices)
        model, self.manifest = read_openvino(model_file)
        graph = for_size(model, size)
        kinds = {node.friendly_name: node.get_type_name() for node in graph.get_ops()}
        hints = {name: {"INFERENCE_PRECISION_HINT": hint} for hint, name in PRECISION_HINTS.items()}
        try:
            placed = core.query_model(graph, device) if device != "AUTO" else {}
            compiled = core.compile_model(graph, device, hints.get(precision, {}))
        except (RuntimeError, ValueError) as error:
            raise EngineError(
                f"{model_file}: OpenVINO cannot run it on {device} ({first_line(error)}); HETERO:{device},CPU runs the "
                "operators that it lacks on the CPU."
            ) from error
        self._device, self._kinds, self._placed, self._compiled = device, kinds, placed, compiled
        try:
            hint = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
        except RuntimeError:  # devices that distribute the work do not have it
            hint = "chosen by the device"
        self._request = compiled.create_infer_request()
        self.info = EngineInfo(
            "OpenVINO", openvino.__version__.split("-")[0], PRECISION_HINTS.get(hint, hint), 1, device
        )

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return one_by_one(self._run, images)

    def _run(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = np.array(self._request.infer([image])[0], np.float32)
        return logits

    def devices(self) -> list[str]:
        """The devices that run the network, as OpenVINO reports them; AUTO decides during the first image."""
        return [name.strip("()") for name in self._compiled.get_property("EXECUTION_DEVICES")]

    def elsewhere(self) -> Counter[str] | None:
        """Kinds and numbers of the operators that do not run on the device asked for; None if OpenVINO hides it."""
        return elsewhere(self._kinds, self._placed, self._device, self.devices())


def elsewhere(kinds: Mapping[str, str], placed: Mapping[str, str], device: str, ran: list[str]) -> Counter[str] | None:
    """Kinds and numbers of the operators that do not run on the device that was asked for.

    Args:
        kinds: kind of every operator, by its name.
        placed: the device that OpenVINO would place each operator on, by the operator's name.
        device: as it was asked for.
        ran: the devices that run the network.
    """
    composed, _, members = device.partition(":")
    if composed in ("AUTO", "MULTI"):
        return Counter() if len(ran) == 1 else None  # each runs whole images, never a part of the network
    first = (members or device).split(",")[0].partition("(")[0]
    inner = {"Constant", "Parameter", "Result"}

    def runs_there(name: str) -> bool:
        return placed.get(name, "").split(".")[0] == first.split(".")[0]

    return Counter(kind for name, kind in kinds.items() if kind not in inner and not runs_there(name))


def _check_device(device: str, available: list[str]) -> None:
    """Raises: EngineError for a device that this machine does not have."""
    known = {name for each in available for name in (each, each.partition(".")[0])}
    for name in re.split(r"[:,]", device):
        if name.partition("(")[0] not in {*known, *_COMPOSED}:
            raise EngineError(
                f"OpenVINO finds no device {name[:40]} on this machine; it has {', '.join(available)}. A device needs "
                "its driver, and in a container access to it."
            )
