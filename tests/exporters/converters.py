"""What each export format needs to be written and run."""

from __future__ import annotations

from tests.optional import is_installed, needs

PACKAGES: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("onnx",),
    "native": ("torch",),
    "litert": ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
    "executorch": ("executorch",),
    "ncnn": ("ncnn", "pnnx"),
    "coreml": ("coremltools",),
}


def needs_format(*formats: str) -> None:
    """Skips the test that calls it unless the packages of all these formats are installed."""
    for name in formats:
        needs(*PACKAGES[name])


def can_convert(name: str) -> bool:
    return all(map(is_installed, PACKAGES[name]))
