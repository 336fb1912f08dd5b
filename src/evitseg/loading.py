"""Load models by name or file."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evitseg.architecture import PUBLISHED_SEGMENTATION, cost, short_name
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
EXPORTED_ENDINGS = (".onnx", ".xml", ".evit", ".tflite", ".pte", ".param", ".mlpackage")


@dataclass(frozen=True)
class ModelInfo:
    """A model that `load` finds by its name.

    Attributes:
        name: such as "b0-camvid".
        origin: "bundled" models ship with the package, "published" ones are downloaded on first use.
        variant: the network's variant, "b0" to "l3".
        dataset: name of the data set that the model was trained on, which defines its classes.
        parameters: number of trained parameters.
        is_default: whether `load()` without a name loads it.
    """

    name: str
    origin: Literal["bundled", "published"]
    variant: str
    dataset: str
    parameters: int
    is_default: bool = False


def list_models() -> list[ModelInfo]:
    """Every model that `load` knows by name: the bundled models, then those published by the network's authors."""
    from evitseg.architecture import model_config
    from evitseg.labels import load_labels

    models = []
    for name in bundled_models():
        variant, dataset = name.split("-", 1)
        config = model_config(variant, len(load_labels(dataset).classes))
        models.append(
            ModelInfo(name, "bundled", variant, dataset, cost(config).parameters, is_default=name == DEFAULT_MODEL)
        )
    for name, config in PUBLISHED_SEGMENTATION.items():
        variant, dataset = name.split("-", 1)
        models.append(ModelInfo(name, "published", variant, dataset, cost(config).parameters))
    return models


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
    """Load a model as a segmenter, which is called with an image and returns its mask.

    Args:
        model: the name of a bundled or a published model (`list_models`), or the path of an exported model (.onnx,
            .xml, .evit, .tflite, .pte, .param) or a checkpoint (.safetensors, .pt, .pth). None for the bundled
            default. A published model is downloaded on first use.
        engine: "openvino" (the default), "onnxruntime" or "native" for an ONNX file; "torch" (the default) or "native"
            for a checkpoint; every other kind of file has one engine.
        device: for the torch engine "cpu" (the default), "cuda", "cuda:1", "mps", or "auto" for the fastest that this
            machine has; every other engine runs on the CPU.
        threads: maximum number of threads; None for one per physical core.
        precision: of the arithmetic: "auto", "float32", "float16" or "bfloat16".
        size: the short side, in pixels, at which images go through the network; "native" for each image's own size;
            None for the rule in the model's manifest.
        streams: images that may run at the same time when several threads call, if the engine can do that (OpenVINO,
            native). Together they finish sooner; each one takes longer.
        reading: how image files are read; None for the model's manifest.

    Raises: ConfigError, WeightsError, EngineError, MissingPackageError.
    """
    from evitseg.runtime.segmenter import Segmenter

    segment = Segmenter(_engine(model, engine, device, threads, precision, streams), size, reading)
    _LOG.info("model %s runs in %s", segment.manifest.name, segment.info)
    source = os.path.abspath(model) if model is not None and Path(model).is_file() else model
    segment.loaded_by = partial(
        load, source, engine=engine, device=device, threads=threads, precision=precision, size=size, streams=streams,
        reading=reading,
    )  # fmt: skip
    return segment


def _engine(
    model: str | os.PathLike[str] | None,
    engine: str | None,
    device: str | None,
    threads: int | None,
    precision: Precision,
    streams: int,
) -> Engine:
    path = exported_path(model)
    if device not in (None, "auto", "cpu") and (path is not None or engine not in (None, "torch")):
        raise EngineError(
            f"{model or DEFAULT_MODEL}: only the torch engine runs on {device}; use a checkpoint or a published model, "
            "or leave the device out."
        )
    if path is not None and engine == "torch":
        raise EngineError(f"{path}: torch runs checkpoints, not exported models; leave out the engine.")
    if path is None and engine == "native" and Path(model or DEFAULT_MODEL).suffix == ".safetensors":
        path = Path(str(model))
    if path is not None:
        from evitseg.runtime.engines import open_engine

        return open_engine(path, engine, precision, threads, streams)
    if engine not in (None, "torch") and _is_checkpoint(model or DEFAULT_MODEL):
        raise EngineError(
            f"{model}: a checkpoint runs in torch or, as .safetensors, in native; for {engine}, export it first."
        )
    network, manifest = network_of(model or DEFAULT_MODEL)
    from evitseg.model.engine import TorchEngine

    return TorchEngine(network, manifest, precision, threads, device or "cpu")


def exported_path(model: str | os.PathLike[str] | None) -> Path | None:
    """The exported model's path, if a name or path given to `load` means one; the file may not exist."""
    path = bundled_models().get(str(model or DEFAULT_MODEL), Path(model or DEFAULT_MODEL))
    return path if path.suffix in EXPORTED_ENDINGS else None


def _is_checkpoint(model: str | os.PathLike[str]) -> bool:
    return short_name(str(model)) in PUBLISHED_SEGMENTATION or Path(model).suffix in CHECKPOINT_ENDINGS


def network_of(model: str | os.PathLike[str], extra: str = "torch") -> tuple[EfficientViT, Manifest]:
    """A network in PyTorch with its manifest, from a checkpoint, an exported .onnx file, or a model that has a name.

    Args:
        extra: the package's extra that the caller needs, for the message if PyTorch is missing.

    Raises: ConfigError for an unknown name, WeightsError, MissingPackageError.
    """
    name = short_name(str(model))
    path, published = bundled_models().get(name, Path(model)), name in PUBLISHED_SEGMENTATION
    if path.suffix not in CHECKPOINT_ENDINGS and not published and path.suffix != ".onnx":
        if path.suffix in EXPORTED_ENDINGS:
            raise WeightsError(
                f"{model}: an exported model; this needs a checkpoint ({', '.join(CHECKPOINT_ENDINGS)}) or .onnx."
            )
        if path.suffix or path.exists():
            endings = ", ".join((*EXPORTED_ENDINGS, *CHECKPOINT_ENDINGS))
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
