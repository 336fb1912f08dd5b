"""From a model's name or file to a segmenter."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from evitseg.architecture import PUBLISHED_SEGMENTATION, short_name
from evitseg.bundled import DEFAULT_MODEL, bundled_models
from evitseg.engine import Engine, Precision
from evitseg.errors import EngineError, MissingPackageError, WeightsError, unknown
from evitseg.image import ReadOptions, Size

if TYPE_CHECKING:
    from evitseg.manifest import Manifest
    from evitseg.model.network import EfficientViT
    from evitseg.runtime.segmenter import Segmenter

_LOG = logging.getLogger(__name__)
CHECKPOINT_ENDINGS = (".safetensors", ".pt", ".pth")
ARTEFACT_ENDINGS = (".onnx", ".xml", ".tflite", ".pte", ".param", ".mlpackage")


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    engine: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    precision: Precision = "auto",
    size: Size = None,
    streams: int = 1,
    reading: ReadOptions | None = None,
) -> Segmenter:
    """A segmenter: give it an image, it gives the mask.

    Args:
        model: None for the bundled model; a bundled model's name; the path of an artefact (.onnx, .xml, .tflite,
            .pte, .param) or a checkpoint (.safetensors, .pt, .pth); or a published model's name, such as
            "b0-cityscapes", which is downloaded on first use.
        engine: "openvino" (the default), "onnxruntime" or "native" for an ONNX file; "torch" (the default) or "native"
            for a checkpoint; every other kind of file has one engine.
        device: for the torch engine "cpu" (the default), "cuda", "cuda:1", "mps", or "auto" for the fastest that is
            there; every other engine runs on the CPU.
        threads: at most; None for every physical core.
        precision: of the arithmetic: "auto", "float32", "float16" or "bfloat16".
        size: the short side at which images go through the network, in pixels; "native" for their own; None for
            the rule in the model's manifest.
        streams: images that may be under way at the same time when several threads ask, where the engine can do that
            (OpenVINO, native); together they are done sooner, each alone takes longer.
        reading: how image files are read; None for what the model's manifest says.

    Raises: ConfigError, WeightsError, EngineError, MissingPackageError.
    """
    from evitseg.runtime.segmenter import Segmenter

    segment = Segmenter(_engine(model, engine, device, threads, precision, streams), size, reading)
    _LOG.info("model %s runs in %s", segment.manifest.name, segment.info)
    source = os.path.abspath(model) if model is not None and Path(model).is_file() else model
    segment.loaded_by = partial(
        load,
        source,
        engine=engine,
        device=device,
        threads=threads,
        precision=precision,
        size=size,
        streams=streams,
        reading=reading,
    )
    return segment


def _engine(
    model: str | os.PathLike[str] | None,
    engine: str | None,
    device: str | None,
    threads: int | None,
    precision: Precision,
    streams: int,
) -> Engine:
    path = artefact_of(model)
    if device not in (None, "auto", "cpu") and (path is not None or engine not in (None, "torch")):
        raise EngineError(
            f"{model or DEFAULT_MODEL}: only the torch engine runs on {device}; use a checkpoint or a published model, "
            "or leave the device out."
        )
    if path is not None:
        from evitseg.runtime.engines import open_engine

        if engine == "torch":
            raise EngineError(f"{path}: torch runs checkpoints, not artefacts; leave out the engine.")
        return open_engine(path, engine, precision, threads, streams)
    if engine == "native" and Path(model or DEFAULT_MODEL).suffix == ".safetensors":
        from evitseg.runtime.engines import open_engine

        return open_engine(Path(str(model)), engine, precision, threads, streams)
    if engine not in (None, "torch") and _is_checkpoint(model or DEFAULT_MODEL):
        raise EngineError(
            f"{model}: a checkpoint runs in torch or, as .safetensors, in native; for {engine}, export it first."
        )
    network, manifest = network_of(model or DEFAULT_MODEL)
    from evitseg.model.engine import TorchEngine

    return TorchEngine(network, manifest, precision, threads, device or "cpu")


def artefact_of(model: str | os.PathLike[str] | None) -> Path | None:
    """The artefact's path, where a name or path given to `load` means one; there may be no file."""
    path = bundled_models().get(str(model or DEFAULT_MODEL), Path(model or DEFAULT_MODEL))
    return path if path.suffix in ARTEFACT_ENDINGS else None


def _is_checkpoint(model: str | os.PathLike[str]) -> bool:
    return short_name(str(model)) in PUBLISHED_SEGMENTATION or Path(model).suffix in CHECKPOINT_ENDINGS


def network_of(model: str | os.PathLike[str], extra: str = "torch") -> tuple[EfficientViT, Manifest]:
    """The network in PyTorch, with its manifest, of a checkpoint, an .onnx artefact, a bundled or a published model.

    Args:
        extra: which of the package's extras the caller needs, for the message where PyTorch is missing.

    Raises: ConfigError for a name that is unknown, WeightsError, MissingPackageError.
    """
    name = short_name(str(model))
    path, published = bundled_models().get(name, Path(model)), name in PUBLISHED_SEGMENTATION
    if path.suffix not in CHECKPOINT_ENDINGS and not published and path.suffix != ".onnx":
        if path.suffix in ARTEFACT_ENDINGS:
            raise WeightsError(
                f"{model}: an artefact; this needs a checkpoint ({', '.join(CHECKPOINT_ENDINGS)}) or .onnx."
            )
        if path.suffix or path.exists():
            endings = ", ".join((*ARTEFACT_ENDINGS, *CHECKPOINT_ENDINGS))
            raise WeightsError(f"{model}: not a model; models end in {endings}.")
        raise unknown("model", name, [*bundled_models(), *PUBLISHED_SEGMENTATION])
    if not published and not path.is_file():
        raise WeightsError(f"{model}: no such file.")
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(f"{model} in PyTorch" if extra == "torch" else f"export of {model}", extra) from error
    from evitseg.model import checkpoints
    from evitseg.model import published as table

    if path.suffix == ".onnx":
        from evitseg.model.fold import network_of_folded
        from evitseg.runtime.openvino_engine import openvino_weights

        manifest, weights = openvino_weights(path)
        return network_of_folded(manifest.model, [(own.kernel, own.bias) for own in weights]), manifest
    if not published:
        return checkpoints.load_checkpoint(path)
    full = table.published_name(name)
    file = table.download(full)
    network = checkpoints.load_official(full, file)
    return network, table.published_manifest(full, network, table.file_sha256(file))
