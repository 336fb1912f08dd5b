"""Options that several verbs share, and how their values are read."""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from evitseg.image import ReadOptions, Size
    from evitseg.tiling.windows import Window


class EngineName(str, Enum):
    openvino = "openvino"
    onnxruntime = "onnxruntime"
    native = "native"
    litert = "litert"
    executorch = "executorch"
    ncnn = "ncnn"
    torch = "torch"


class PrecisionName(str, Enum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class FormatName(str, Enum):
    onnx = "onnx"
    openvino = "openvino"
    litert = "litert"
    executorch = "executorch"
    ncnn = "ncnn"
    coreml = "coreml"
    best = "best"


class VideoName(str, Enum):
    overlay = "overlay"
    mask = "mask"
    frames = "frames"


class MaskFormatName(str, Enum):
    palette = "palette"
    gray = "gray"


class DeviceName(str, Enum):
    here = "here"


class WeightsName(str, Enum):
    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


def given_options(context: typer.Context) -> frozenset[str]:
    """The options of a verb that were given, as they are typed: of a pair such as --overlay/--no-overlay, the one."""
    found = set()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is None or source.name in ("DEFAULT", "DEFAULT_MAP") or not parameter.opts[0].startswith("-"):
            continue
        off = context.params.get(parameter.name or "") is False and parameter.secondary_opts
        names = parameter.secondary_opts if off else parameter.opts
        found.add(next(name for name in names if name.startswith("--")))
    return frozenset(found)


def whole_number(text: str) -> int:
    """Of up to ten of the digits 0 to 9; Python's own reading takes other scripts' and fails at thousands of digits.

    Raises: ValueError.
    """
    if not re.fullmatch(r"[0-9]{1,10}", text.strip()):
        raise ValueError(f"{text[:40]!r} is not a whole number")
    return int(text)


def parse_size(text: str, forms: str = "'native'") -> Size:
    from evitseg.errors import ConfigError
    from evitseg.preprocess import check_size

    if text == "native":
        return "native"
    try:
        return check_size(whole_number(text))
    except ValueError:
        raise typer.BadParameter(f"{text[:40]!r} is neither a number of pixels nor {forms}") from None
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def parse_export_size(text: str) -> Size | tuple[int, int]:
    """As `parse_size`, and HEIGHTxWIDTH."""
    from evitseg.errors import ConfigError
    from evitseg.preprocess import check_sides

    sides = text.lower().replace("×", "x").split("x")
    try:
        height, width = map(whole_number, sides)
    except ValueError:
        return parse_size(text, "'native' nor HEIGHTxWIDTH")
    try:
        return check_sides((height, width))
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def _not_empty(value: str | None) -> str | None:
    """An empty value is a shell variable that is not set, never a wish for the default."""
    if value == "":
        raise typer.BadParameter("is empty; give a name or a file, or leave the option out")
    return value


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        callback=_not_empty,
        help="An artefact (.onnx, .xml, .tflite, .pte, .param), a checkpoint (.safetensors, .pt), or "
        "a bundled or published model's name; "
        "evitseg info lists the names. (default: the bundled model)",
        show_default=False,
    ),
]


WorkingSize = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="PIXELS|native",
        help="Short side at which images go through the network, or 'native' for their own size. "
        "(default: the model's rule)",
        show_default=False,
    ),
]


Labels = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Classes, where data or checkpoint do not say: camvid, cityscapes, ade20k, or a .json file.",
        show_default=False,
    ),
]


Threads = Annotated[int | None, typer.Option(min=1, help="At most. (default: every physical core)", show_default=False)]


Engine = Annotated[
    EngineName | None,
    typer.Option(
        help="What runs the model, where several could: openvino, onnxruntime or native. (default: openvino)",
        show_default=False,
    ),
]


Precision = Annotated[
    PrecisionName, typer.Option(help="Of the arithmetic; auto takes bfloat16 where the processor has it.")
]


MaskFormat = Annotated[
    MaskFormatName,
    typer.Option(
        help="How a mask keeps its class indices: with the classes' colours as a palette, or as plain grey levels, for "
        "programs such as OpenCV that turn a palette into colours."
    ),
]


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def parse_bytes(text: str) -> int:
    """A number of bytes, as 800MiB or 1.5GB."""
    units = {"": 1, "k": 10**3, "ki": 2**10, "m": 10**6, "mi": 2**20, "g": 10**9, "gi": 2**30, "t": 10**12, "ti": 2**40}
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([kmgt]i?)?b?", text.strip().lower())
    if found is None:
        raise typer.BadParameter(f"{text[:40]!r} is not a size in bytes, such as 1GiB", param_hint="--memory")
    count = int(float(found[1]) * units[found[2] or ""])
    if count == 0:
        raise typer.BadParameter("0 bytes are no memory; give a size such as 1GiB", param_hint="--memory")
    return count


def parse_region(text: str) -> Window:
    from evitseg.tiling.windows import Window

    try:
        x, y, width, height = map(whole_number, text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text[:60]!r} is not X,Y,WIDTH,HEIGHT in pixels", param_hint="--region") from None
    if not width or not height:
        raise typer.BadParameter(f"{text[:60]!r} has no pixels", param_hint="--region")
    return Window(y, x, height, width)


Data = Annotated[
    str,
    typer.Argument(metavar="DATA", help="A folder of images and masks, a list of pairs (.txt), or a .yaml file."),
]


Workers = Annotated[int | None, typer.Option(min=1, help="Processes. (default: one a core)", show_default=False)]


Bands = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B|N",
        help="Numbers of the bands to read as red, green and blue, or of one to read as grey, starting at 1. "
        "(default: what the file says)",
        show_default=False,
    ),
]


ValueRange = Annotated[
    str | None,
    typer.Option(
        "--range",
        metavar="LOW,HIGH|auto|percentile",
        help="Stored values that become black and white: two numbers; auto, the file's smallest and largest value; "
        "percentile, its 2nd and 98th percentile. (default: the range that the file states)",
        show_default=False,
    ),
]


Page = Annotated[
    int | None,
    typer.Option(min=1, help="Page of files that hold several images, starting at 1.", show_default=False),
]


def read_options(bands: str | None, value_range: str | None, page: int | None = None) -> ReadOptions | None:
    """The options --bands, --range and --page; None if none is given."""
    from evitseg.errors import ConfigError
    from evitseg.image import ReadOptions

    if bands is None and value_range is None and page is None:
        return None
    for name, text in (("--bands", bands), ("--range", value_range)):
        if text is not None and not text.strip():
            raise typer.BadParameter("is empty", param_hint=name)
    try:
        ReadOptions.parse(bands=bands or "")
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--bands") from None
    try:
        return ReadOptions.parse(bands or "", value_range or "", page)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--range") from None
