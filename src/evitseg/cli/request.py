"""What a command line of predict asks for, checked: every option is honoured by the mode it meets, or is an error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from evitseg.system.files import is_folder

if TYPE_CHECKING:
    from evitseg.image import ReadOptions, Size
    from evitseg.raster.masks import MaskFormat
    from evitseg.tiling.windows import Window


class Mode(str, Enum):
    """How one input becomes its results."""

    whole = "whole"
    exact = "exact"
    blend = "blend"
    region = "region"
    ray = "ray"
    video = "video"


_IMAGES = frozenset(set(Mode) - {Mode.video})
_ALL = frozenset(Mode)

HONOURED: dict[str, frozenset[Mode]] = {
    "--example": _IMAGES,
    "--model": _ALL,
    "--out": _ALL,
    "--size": _ALL,
    "--overlay": frozenset({Mode.whole, Mode.video}),
    "--no-overlay": _ALL,
    "--legend": frozenset({Mode.whole, Mode.video}),
    "--no-legend": frozenset({Mode.whole, Mode.video}),
    "--skip-existing": _ALL,
    "--overwrite": _ALL,
    "--video": frozenset({Mode.video}),
    "--duration": frozenset({Mode.video}),
    "--engine": _ALL,
    "--precision": _ALL,
    "--threads": _ALL,
    "--exact": frozenset({Mode.exact, Mode.region, Mode.ray}),
    "--memory": _IMAGES,
    "--scratch": _IMAGES,
    "--polygons": _IMAGES,
    "--save-context": frozenset({Mode.exact, Mode.ray}),
    "--context": frozenset({Mode.region}),
    "--region": frozenset({Mode.region}),
    "--context-window": frozenset({Mode.exact, Mode.ray}),
    "--blend": frozenset({Mode.blend}),
    "--verify": frozenset({Mode.exact}),
    "--ray": frozenset({Mode.ray}),
    "--bands": _IMAGES,
    "--range": _IMAGES,
    "--page": _IMAGES,
    "--mask-format": _IMAGES,
    "--json": _ALL,
}
"""Which modes honour an option. Every option of predict is here; any other pair of option and mode is an error."""

DESCRIBED = {
    Mode.whole: "images that go through the network whole",
    Mode.exact: "images in tiles",
    Mode.blend: "windows that are blended",
    Mode.region: "a region from a context",
    Mode.ray: "images on a Ray cluster",
    Mode.video: "videos",
}
ONE_IMAGE = ("--polygons", "--save-context", "--context")
"""Options that name one image's file."""
MASK_ENDINGS = (".png", ".tif", ".tiff", ".zarr")
VIDEO_ENDINGS = (".mp4", ".mov", ".mkv")


@dataclass(frozen=True)
class Request:
    """A command line of predict.

    Attributes:
        method: how images are segmented; those that do not fit in memory whole go in tiles all the same.
        overlay, legend: None where neither the option nor its opposite was given.
        is_file: `out` is the name of one mask or video, not a folder.
        reading: how image files are read; None for what the model says.
        given: the options that were given, as they are typed.
    """

    inputs: tuple[str, ...]
    out: Path
    method: Mode
    given: frozenset[str]
    reading: ReadOptions | None = None
    model: str | None = None
    size: Size = None
    overlay: bool | None = None
    legend: bool | None = None
    skip_existing: bool = False
    overwrite: bool = False
    videos: tuple[str, ...] = ()
    duration: float | None = None
    engine: str | None = None
    precision: str = "auto"
    threads: int | None = None
    memory: int | None = None
    scratch: Path | None = None
    polygons: Path | None = None
    save_context: Path | None = None
    context: Path | None = None
    region: Window | None = None
    context_window: int | None = None
    blend: int | None = None
    verify: bool = False
    ray: str | None = None
    mask_format: MaskFormat = "palette"
    as_json: bool = False
    is_file: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_file", _names_a_file(self.out))
        check_honoured(self.given, self.method)
        if self.method is not Mode.whole and self.engine not in (None, "openvino"):
            raise typer.BadParameter("images in tiles run in openvino", param_hint="--engine")
        if (self.context is None) != (self.region is None):
            raise typer.BadParameter("--context and --region go together", param_hint="--region")
        if self.legend and self.overlay is False and "overlay" not in self.videos:
            raise typer.BadParameter("is for overlays, and --no-overlay is given", param_hint="--legend")
        if self.duration is not None and not (math.isfinite(self.duration) and self.duration > 0):
            raise typer.BadParameter("give a number of seconds above 0", param_hint="--duration")
        if self.blend is not None:
            _check_window(self.blend)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What videos become."""
        return self.videos or (("mask",) if self.overlay is False else ("overlay",))

    @property
    def draws(self) -> bool:
        """Whether an image that goes through whole gets an overlay."""
        return self.overlay is not False


def method_of(exact: bool, given: frozenset[str]) -> Mode:
    """How images are segmented, from the options alone."""
    for option, mode in (
        ("--blend", Mode.blend),
        ("--ray", Mode.ray),
        ("--context", Mode.region),
        ("--region", Mode.region),
        ("--save-context", Mode.exact),
        ("--context-window", Mode.exact),
        ("--verify", Mode.exact),
    ):
        if option in given:
            return mode
    return Mode.exact if exact else Mode.whole


def check_honoured(given: frozenset[str], method: Mode) -> None:
    """Raises: BadParameter for an option that neither this method nor, beside it, videos honour."""
    modes = {method, Mode.video} if method is Mode.whole else {method}
    for option in sorted(given & HONOURED.keys()):
        if not modes & HONOURED[option]:
            raise typer.BadParameter(
                f"{DESCRIBED[method]} do without {option}; leave one of them out", param_hint=f"--{method.value}"
            )


def check_used(given: frozenset[str], modes: frozenset[Mode]) -> None:
    """Raises: BadParameter for an option that none of the inputs' modes honours."""
    for option in sorted(given & HONOURED.keys()):
        if not modes & HONOURED[option]:
            needed = "a video" if HONOURED[option] == {Mode.video} else "an image"
            raise typer.BadParameter(f"none of the inputs is {needed}; leave {option} out", param_hint=option)


def _names_a_file(out: Path) -> bool:
    """Whether this is the name of a mask or of a video; any other name is a folder's."""
    ending = out.suffix.lower()
    if ending not in (*MASK_ENDINGS, *VIDEO_ENDINGS):
        return False
    return ending == ".zarr" or not is_folder(out)


def _check_window(window: int) -> None:
    from evitseg.errors import ConfigError
    from evitseg.tiling.sliding_window import check_window

    try:
        check_window(window)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--blend") from None
