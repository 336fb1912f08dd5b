"""Options that several verbs share. Choices come from the tables that define them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from evitseg.cli.command import option
from evitseg.cli.values import Names, OutputFile, Parsed, not_empty, parse_device, parse_size
from evitseg.errors import ConfigError

if TYPE_CHECKING:
    from evitseg.cli.output import Output
    from evitseg.image import ReadOptions

FILE = click.Path(path_type=Path)
AT_LEAST_1 = click.IntRange(min=1)


def given_options(context: click.Context) -> frozenset[str]:
    """The options that were given, by name; of a pair such as --overlay/--no-overlay, the one that was typed."""
    found = set()
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if not isinstance(parameter, click.Option) or name not in context.params:
            continue
        off = context.params[name] is False and parameter.secondary_opts
        names = parameter.secondary_opts if off else parameter.opts
        found.add(next(each for each in names if each.startswith("--")))
    return frozenset(found)


def engine_names() -> list[str]:
    from evitseg.runtime.engines import ENGINES

    return [*ENGINES, "torch"]


def precision_names() -> list[str]:
    from evitseg.engine import PRECISIONS

    return list(PRECISIONS)


def video_kinds() -> list[str]:
    from evitseg.video import VideoKind

    return list(get_args(VideoKind))


def annotation_formats() -> list[str]:
    from evitseg.data.annotations.pre_annotations import PRE_ANNOTATION_FORMATS

    return list(PRE_ANNOTATION_FORMATS)


def _mask_formats() -> list[str]:
    from evitseg.raster.png import MaskFormat

    return list(get_args(MaskFormat))


MODEL = option(
    "--model",
    "-m",
    metavar="MODEL",
    type=Parsed("model", not_empty),
    panel="Model",
    help="A model's name (`evitseg models` lists them), a checkpoint (.safetensors, .pt), an exported model (.onnx, "
    ".xml, .evit, .tflite, .pte, .param), or a model on the Hugging Face Hub (hf://owner/name). Default: the bundled "
    "model.",
)
SIZE = option(
    "--size",
    metavar="PIXELS|native",
    type=Parsed("size", parse_size),
    panel="Model",
    help="Resize images so that their short side has this many pixels before the network sees them; 'native' keeps "
    "their own size. Default: the model's rule.",
)
ENGINE = option(
    "--engine",
    type=Names("engine", engine_names),
    panel="Engine",
    help="Inference engine. Default: native for checkpoints and .onnx files, otherwise the engine of the format.",
)
DEVICE = option(
    "--device",
    type=Parsed("device", parse_device),
    metavar="auto|cpu|cuda[:N]|mps",
    panel="Engine",
    help="Device. A GPU runs checkpoints in PyTorch; 'auto' uses one if PyTorch finds it. Default: cpu.",
)
PRECISION = option(
    "--precision",
    type=Names("precision", precision_names),
    default="auto",
    panel="Engine",
    help="Numerical precision. 'auto' leaves the choice to the engine; native uses float16 or bfloat16 if the CPU "
    "supports it. Default: auto.",
)
THREADS = option(
    "--threads",
    type=AT_LEAST_1,
    metavar="N",
    panel="Engine",
    help="Maximum number of threads. Default: one per physical core.",
)
LABELS = option(
    "--labels",
    metavar="NAME|FILE",
    panel="Input",
    help="Classes, if the data or the checkpoint does not define them: camvid, cityscapes, ade20k, a .json file, or a "
    ".txt file with one name per line.",
)
BANDS = option(
    "--bands",
    metavar="R,G,B|N",
    panel="Input",
    help="Bands to read as red, green and blue, or one band to read as grey; the first band is 1. Default: as the file "
    "states.",
)
VALUE_RANGE = option(
    "--range",
    "value_range",
    metavar="LOW,HIGH|auto|percentile",
    panel="Input",
    help="Pixel values to map to black and white: two numbers; 'auto' for the file's minimum and maximum; 'percentile' "
    "for its 2nd and 98th percentiles. Default: the range that the file states.",
)
PAGE = option(
    "--page",
    type=AT_LEAST_1,
    metavar="N",
    panel="Input",
    help="Page to read from a file with several images; the first page is 1.",
)
MASK_FORMAT = option(
    "--mask-format",
    type=Names("mask format", _mask_formats),
    default="palette",
    panel="Output",
    help="How masks store class indices: with the class colours as a palette, or as plain grey levels for programs "
    "such as OpenCV that would convert a palette to colours. Default: palette.",
)
DATA = click.argument(
    "data",
    metavar="DATA",
    help="A folder of images and masks, a list of pairs (.txt, .csv), or a .yaml file.",
)


def pinned_model(model: str | None, output: Output) -> str | None:
    """A model on the hub with its commit, which is downloaded and reported; any other model unchanged.

    A verb resolves the name once, so that it works with one revision to its end.

    Raises: ConfigError, WeightsError, MissingPackageError.
    """
    from evitseg.system.hub import is_hub_name

    if model is None or not is_hub_name(model):
        return model
    from evitseg.loading import located

    name, source = located(model)
    output.note(f"{model} is {source or name}")
    return source or name


def report_option(help: str) -> Callable[[Any], Any]:  # noqa: A002  # Click's name
    return option("--report", type=OutputFile(".html", ".htm"), metavar="FILE", panel="Output", help=help)


def workers_option(help: str, minimum: int = 1) -> Callable[[Any], Any]:  # noqa: A002  # Click's name
    return option("--workers", type=click.IntRange(min=minimum), metavar="N", panel="Engine", help=help)


def read_options(bands: str | None, value_range: str | None, page: int | None = None) -> ReadOptions | None:
    """What --bands, --range and --page ask for; None if none is given. Raises: UsageError."""
    from evitseg.image import ReadOptions

    if bands is None and value_range is None and page is None:
        return None
    for name, text in (("--bands", bands), ("--range", value_range)):
        if text is not None and not text.strip():
            raise click.BadParameter("the value is empty", param_hint=name)
    try:
        ReadOptions.parse(bands=bands or "")
    except ConfigError as error:
        raise click.BadParameter(str(error), param_hint="--bands") from None
    try:
        return ReadOptions.parse(bands or "", value_range or "", page)
    except ConfigError as error:
        raise click.BadParameter(str(error), param_hint="--range") from None
