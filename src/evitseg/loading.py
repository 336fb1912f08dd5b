"""Load models by name or file."""

from __future__ import annotations

import copy
import logging
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evitseg.architecture import PUBLISHED_SEGMENTATION, SegmentationHead, cost, short_name
from evitseg.bundled import DEFAULT_MODEL, bundled_models
from evitseg.engine import Engine, Precision
from evitseg.errors import ConfigError, EngineError, EvitsegError, FileError, MissingPackageError, WeightsError, unknown
from evitseg.image import ReadOptions, Size
from evitseg.system.files import file_sha256
from evitseg.system.hub import is_hub_name, meant_hub_name, parse_hub_name

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
    model: str | os.PathLike[str] | EfficientViT | None = None,
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
        model: the name of a bundled or a published model (`list_models`); the path of a checkpoint (.safetensors, .pt,
            .pth) or an exported model (.onnx, .xml, .evit, .tflite, .pte, .param); a model on the Hugging Face Hub,
            "hf://owner/name", with "@revision" or "/file" if needed; or a network from `build` or `load_official`,
            which is copied. None for the bundled default. A published model is downloaded on first use, one on the hub
            if there is a newer revision than in the cache. The first use of a published model and every use of a .pt or
            .pth file need PyTorch.
        engine: "native", evitseg's own (the default), or "torch" for a checkpoint; "native" (the default), "openvino"
            or "onnxruntime" for an ONNX file; every other kind of file has one engine.
        device: "cpu" (the default); "cuda", "cuda:1" or "mps" for a checkpoint in PyTorch; "auto" for a GPU in PyTorch
            if there is one, else the CPU.
        threads: maximum number of threads; None for one per physical core.
        precision: numerical precision: "float32", "float16", "bfloat16", or "auto" for the engine's own choice.
        size: the short side, in pixels, at which images go through the network; "native" for each image's own size;
            None for the rule in the model's manifest.
        streams: images that may run at the same time when several threads call, if the engine can do that (native,
            OpenVINO). Together they finish sooner; each one takes longer.
        reading: how image files are read; None for the model's manifest.

    Raises: ConfigError, WeightsError, EngineError, MissingPackageError.
    """
    from evitseg.runtime.segmenter import Segmenter

    source = None
    if isinstance(model, str):
        model, source = located(model)
    elif model is not None and not isinstance(model, os.PathLike):
        model = copy.deepcopy(model)  # the segmenter and its pickles stay what they are when training goes on
    opened = _engine(model, engine, device, threads, precision, streams)
    segment = Segmenter(opened, size, reading)
    _LOG.info("model %s runs in %s", segment.manifest.name, segment.info)
    segment.source = source
    is_file = isinstance(model, (str, os.PathLike)) and Path(model).is_file()
    again = source or (os.path.abspath(model) if is_file else model)  # type: ignore[arg-type]
    segment.loaded_by = partial(
        load, again, engine=engine, device=device, threads=threads, precision=precision, size=size, streams=streams,
        reading=reading,
    )  # fmt: skip
    return segment


def _engine(
    model: str | os.PathLike[str] | EfficientViT | None,
    engine: str | None,
    device: str | None,
    threads: int | None,
    precision: Precision,
    streams: int,
) -> Engine:
    from evitseg.runtime.engines import ENGINES, check_request, open_engine

    if engine not in (None, "torch", *ENGINES):
        raise unknown("engine", engine, ["torch", *ENGINES])
    model = model or DEFAULT_MODEL
    named = model if isinstance(model, (str, os.PathLike)) else "the network"
    file = model_file(named) if named is model else None
    is_exported = file is not None and file.suffix in EXPORTED_ENDINGS
    if device not in (None, "auto", "cpu") and (is_exported or engine not in (None, "torch")):
        raise EngineError(
            f"{named}: only the torch engine runs on {device}; use a checkpoint or a published model, or leave the "
            "device out."
        )
    if is_exported and engine == "torch":
        raise EngineError(f"{named}: torch runs checkpoints, not exported models; leave out the engine.")
    if engine == "torch" or (engine is None and not is_exported and _wants_gpu(device)):
        from evitseg.model.engine import TorchEngine

        return TorchEngine(*network_of(model), precision, threads, device or "cpu")
    is_published = named is model and short_name(str(named)) in PUBLISHED_SEGMENTATION
    if not is_exported and engine is not None and (named is not model or is_published or _is_checkpoint(named)):
        able = [name for name, kind in ENGINES.items() if ".safetensors" in kind.endings]
        able = able if is_published or file is not None else ["native"]
        if engine not in able:
            raise EngineError(
                f"{named}: runs in {', '.join(able)} or torch; for {engine}, export it first (evitseg export)."
            )
    if is_published:
        file = _published_checkpoint(short_name(str(named)))
    if file is not None:
        from evitseg.runtime.checkpoint import NoManifestError

        try:
            return open_engine(file, engine, precision, threads, streams)
        except NoManifestError:
            if engine not in (None, "native"):
                raise
    # PyTorch recognises the network of a file without a manifest.
    network, manifest = network_of(model)
    check_request(precision, threads, streams)
    from evitseg.model.fold import folded_weights
    from evitseg.runtime.native import NativeEngine
    from evitseg.runtime.program import compile_program
    from evitseg.runtime.weights import Weights

    weights = [Weights(*own) for own in folded_weights(network)]
    program = compile_program(manifest.model, manifest.preprocess, weights)
    return NativeEngine(manifest, program, precision, threads, streams)


def _wants_gpu(device: str | None) -> bool:
    if device != "auto":
        return device not in (None, "cpu")
    try:
        from evitseg.model.engine import has_gpu
    except ImportError:
        return False
    return has_gpu()


def located(model: str) -> tuple[str, str | None]:
    """For a model on the hub (hf://...) the path of its file in the cache, or the name that it is published by, and its
    hub name with the commit and the file. For any other model the model itself, and None.

    Raises: ConfigError, WeightsError, MissingPackageError.
    """
    if not is_hub_name(model):
        return model, None
    from evitseg.model.published import published_in

    name = parse_hub_name(model)
    if published := published_in(name.repository):
        if name.file not in published:
            raise WeightsError(
                f"{model}: evitseg knows these weights by name; give one of {', '.join(sorted(published.values()))}."
            )
        if name.revision is not None:
            raise WeightsError(
                f"{model}: published weights come in the repository's current revision; leave out the revision."
            )
        return published[name.file], None
    from evitseg.runtime.hub_models import find_hub_model

    found = find_hub_model(name)
    return str(found.file), str(found.name)


def model_file(model: str | os.PathLike[str] | None) -> Path | None:
    """The file that an engine opens without PyTorch, if a name or path means one: a bundled or an exported model, or a
    checkpoint (.safetensors). The file may not exist, or have no manifest. One on the hub is downloaded.

    Raises: WeightsError, MissingPackageError for a model on the hub.
    """
    if isinstance(model, str):
        model, _ = located(model)
    path = bundled_models().get(str(model or DEFAULT_MODEL), Path(model or DEFAULT_MODEL))
    return path if path.suffix in (".safetensors", *EXPORTED_ENDINGS) else None


def engine_file(model: str | os.PathLike[str] | None) -> Path | None:
    """As `model_file`, and for a published model the file into which it was converted, downloading it on first use.

    Raises: WeightsError, MissingPackageError.
    """
    if isinstance(model, str):
        model, _ = located(model)
    name = short_name(str(model))
    return _published_checkpoint(name) if name in PUBLISHED_SEGMENTATION else model_file(model)


def model_stem(model: str | os.PathLike[str]) -> Path:
    """The beginning of the names of files made from a model: its path without ending, its name, or its repository's."""
    if isinstance(model, str) and is_hub_name(model):
        return Path(parse_hub_name(model).repository.rpartition("/")[2])
    path = Path(model)
    return path.with_suffix("") if path.suffix in (*CHECKPOINT_ENDINGS, *EXPORTED_ENDINGS) else path


def _is_checkpoint(model: str | os.PathLike[str]) -> bool:
    return (model_file(model) or Path(model)).suffix in CHECKPOINT_ENDINGS


def _published_checkpoint(name: str) -> Path | None:
    """A published network as a checkpoint of ours, downloaded and converted on first use.

    None if it cannot be stored. Raises: WeightsError, MissingPackageError.
    """
    from evitseg.model.published import cached_conversion, converted_file, download

    if (found := cached_conversion(name)) is not None:
        _LOG.info("%s is in the cache: %s", name, found)
        return found
    network, manifest = network_of(name)
    from evitseg.model.checkpoints import save_checkpoint

    path = converted_file(download(name))
    try:
        save_checkpoint(network, manifest, path)
    except FileError as error:
        _LOG.warning("%s cannot be stored as a checkpoint, so it needs PyTorch every time: %s", name, error)
        return None
    return path


def network_of(model: str | os.PathLike[str] | EfficientViT, extra: str = "torch") -> tuple[EfficientViT, Manifest]:
    """A network in PyTorch with its manifest.

    Args:
        model: a checkpoint, an exported .onnx file, the name of a model (also hf://owner/name), or a network, which
            gets a new manifest.
        extra: the package's extra that the caller needs, for the message if PyTorch is missing.

    Raises: ConfigError for an unknown name, WeightsError, MissingPackageError.
    """
    if not isinstance(model, (str, os.PathLike)):
        return _network_with_manifest(model)
    if isinstance(model, str):
        model, _ = located(model)
    name = short_name(str(model))
    path, published = bundled_models().get(name, Path(model)), name in PUBLISHED_SEGMENTATION
    if path.suffix not in CHECKPOINT_ENDINGS and not published and path.suffix != ".onnx":
        raise _no_checkpoint(model, path)
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
        from evitseg.runtime.onnx_weights import read_onnx

        manifest, weights = read_onnx(path)
        return network_of_folded(manifest.model, [(own.kernel, own.bias) for own in weights]), manifest
    if not published:
        return checkpoints.load_checkpoint(path)
    full = table.published_name(name)
    file = table.download(full)
    network = checkpoints.load_official(full, file)
    return network, table.published_manifest(full, network, file_sha256(file))


def checkpoint_file(model: str) -> Path:
    """The file of a checkpoint: its path, the name of a bundled model, or hf://owner/name.

    Raises: WeightsError for anything else, ConfigError for an unknown name.
    """
    name = located(model)[0]
    path = bundled_models().get(name, Path(name))
    if path.suffix not in CHECKPOINT_ENDINGS:
        raise _no_checkpoint(model, path, "")
    return path


def _no_checkpoint(model: str | os.PathLike[str], path: Path, also: str = " or .onnx") -> EvitsegError:
    """The error for what is neither a checkpoint nor a name."""
    if path.suffix in EXPORTED_ENDINGS:
        return WeightsError(
            f"{model}: an exported model; this needs a checkpoint ({', '.join(CHECKPOINT_ENDINGS)}){also}."
        )
    if (path / "best.safetensors").is_file():
        return WeightsError(f"{model}: the folder of a run, not a model; give {path / 'best.safetensors'}.")
    if path.suffix or path.exists():
        endings = ", ".join((*EXPORTED_ENDINGS, *CHECKPOINT_ENDINGS))
        return WeightsError(f"{model}: not a model; models end in {endings}.")
    if len(path.parts) > 1:
        meant = "" if path.parent.is_dir() else meant_hub_name(str(model))
        return WeightsError(f"{model}: no such file{f'; a model on the hub is written {meant}' * bool(meant)}.")
    return unknown("model", short_name(str(model)), [*bundled_models(), *PUBLISHED_SEGMENTATION])


def _network_with_manifest(model: EfficientViT) -> tuple[EfficientViT, Manifest]:
    """Raises: ConfigError for anything but a segmentation network."""
    try:
        from evitseg.model.network import EfficientViT as Network
    except ImportError as error:
        raise MissingPackageError("loading a network", "torch") from error
    if not isinstance(model, Network) or not isinstance(model.config.head, SegmentationHead):
        kind = "a classifier" if isinstance(model, Network) else f"a {type(model).__name__}"
        raise ConfigError(
            f"{kind} cannot be loaded; give a name, a path, or a segmentation network from evitseg.build or "
            "evitseg.load_official."
        )
    from evitseg.model.checkpoints import manifest_of

    return model, manifest_of(model, model.config.variant)
