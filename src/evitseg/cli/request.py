"""The command line of `predict`, checked: an option that the chosen mode does not use is an error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evitseg.system.files import is_folder

if TYPE_CHECKING:
    from evitseg.cli.polygons_command import Limits
    from evitseg.engine import Precision
    from evitseg.image import ReadOptions, Size
    from evitseg.raster.png import MaskFormat
    from evitseg.tiling.windows import Window


class Mode(str, Enum):
    """How one input is segmented; the value is the `mode` in JSON."""

    whole = "whole"
    bands = "tiles"  # the value is in JSON, from when images went in tiles
    sliding_window = "sliding_window"
    region = "region"
    ray = "ray"
    video = "video"


_IMAGES = frozenset(set(Mode) - {Mode.video})
_WHOLE_IMAGES = _IMAGES - {Mode.region}
_ALL = frozenset(Mode)

HONOURED: dict[str, frozenset[Mode]] = {
    "--example": _IMAGES,
    "--model": _ALL,
    "--out": _ALL,
    "--size": _ALL,
    "--overlay": _ALL,
    "--no-overlay": _ALL,
    "--legend": _ALL,
    "--no-legend": _ALL,
    "--skip-existing": _ALL,
    "--overwrite": _ALL,
    "--video": frozenset({Mode.video}),
    "--duration": frozenset({Mode.video}),
    "--engine": _ALL,
    "--device": _ALL,
    "--precision": _ALL,
    "--threads": _ALL,
    "--exact": frozenset({Mode.bands, Mode.region, Mode.ray}),
    "--memory": _IMAGES,
    "--scratch": _IMAGES,
    "--polygons": _IMAGES,
    "--as": _WHOLE_IMAGES,
    "--simplify": _IMAGES,
    "--minimum-pixels": _IMAGES,
    "--save-context": frozenset({Mode.bands, Mode.ray}),
    "--context": frozenset({Mode.region}),
    "--region": frozenset({Mode.region}),
    "--context-window": frozenset({Mode.bands, Mode.ray}),
    "--sliding-window": frozenset({Mode.sliding_window}),
    "--verify": frozenset({Mode.bands}),
    "--ray": frozenset({Mode.ray}),
    "--bands": _IMAGES,
    "--range": _IMAGES,
    "--page": _IMAGES,
    "--mask-format": _IMAGES,
}
"""The modes that use an option. Every option of predict is here; any other pair of option and mode is an error."""

CHOSEN_BY = {
    Mode.bands: "--exact",
    Mode.sliding_window: "--sliding-window",
    Mode.region: "--region",
    Mode.ray: "--ray",
}
"""The option that a message names for a mode."""
ONE_IMAGE = ("--polygons", "--save-context", "--context")
"""Options that name a file of one image."""
MASK_ENDINGS = (".png", ".tif", ".tiff", ".zarr")
VIDEO_ENDINGS = (".mp4", ".mov", ".mkv")


@dataclass(frozen=True)
class Request:
    """A command line of predict.

    Attributes:
        method: how images are segmented; images that do not fit in memory whole go in bands all the same.
        given: the options that were given, by name.
        reading: how image files are read; None for the model's rule.
        overlay, legend: None where neither the option nor its opposite was given.
        videos: what videos are written as; empty for the default.
        annotations: the tool for whose format annotations are written.
        is_file: `out` is the name of one mask or video, not of a folder.
        to_stdout: the mask goes to standard output.
    """

    inputs: tuple[str, ...]
    out: Path
    method: Mode = Mode.whole
    given: frozenset[str] = frozenset()
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
    device: str | None = None
    precision: Precision = "auto"
    threads: int | None = None
    memory: int | None = None
    scratch: Path | None = None
    polygons: Path | None = None
    annotations: str | None = None
    simplify: float = 0.0
    minimum_pixels: int = 1
    save_context: Path | None = None
    context: Path | None = None
    region: Window | None = None
    context_window: int | None = None
    sliding_window: int | None = None
    verify: bool = False
    ray: str | None = None
    mask_format: MaskFormat = "palette"
    is_file: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_file", _names_a_file(self.out))
        check_honoured(self.given, self.method)
        if self.method is not Mode.whole and self.engine not in (None, "native"):
            raise click.BadParameter(
                f"{CHOSEN_BY[self.method]} needs the native engine; leave --engine out", param_hint="--engine"
            )
        if (self.context is None) != (self.region is None):
            raise click.BadParameter("--context and --region must be given together", param_hint="--region")
        if self.skip_existing and self.verify:
            raise click.BadParameter(
                "verifies what is segmented now; leave --skip-existing or --verify out", param_hint="--verify"
            )
        if self.legend and self.overlay is False and "overlay" not in self.videos:
            raise click.BadParameter("legends belong to overlays; leave --no-overlay out", param_hint="--legend")
        if self.polygons is None and self.annotations is None:
            for option in sorted({"--simplify", "--minimum-pixels"} & self.given):
                raise click.BadParameter("shapes polygons; add --polygons or --as, or leave it out", param_hint=option)
        if self.duration is not None and not (math.isfinite(self.duration) and self.duration > 0):
            raise click.BadParameter("give a number of seconds above 0", param_hint="--duration")
        if self.sliding_window is not None:
            _check_window(self.sliding_window)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What a video is written as."""
        return self.videos or (("mask",) if self.overlay is False else ("overlay",))

    @property
    def limits(self) -> Limits:
        """Which regions become polygons, and how exact these are."""
        return {"min_pixels": self.minimum_pixels, "simplify": self.simplify}

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return self.out.parent if self.is_file else self.out

    @property
    def draws(self) -> bool:
        """Whether images get an overlay."""
        return self.overlay is not False


def method_of(exact: bool, given: frozenset[str]) -> Mode:
    """How images are segmented, according to the options."""
    for option, mode in (
        ("--sliding-window", Mode.sliding_window),
        ("--ray", Mode.ray),
        ("--context", Mode.region),
        ("--region", Mode.region),
        ("--save-context", Mode.bands),
        ("--context-window", Mode.bands),
        ("--verify", Mode.bands),
    ):
        if option in given:
            return mode
    return Mode.bands if exact else Mode.whole


def check_honoured(given: frozenset[str], method: Mode) -> None:
    """Raises: BadParameter for an option that neither this method nor, if there may be videos, videos use."""
    modes = {method, Mode.video} if method is Mode.whole else {method}
    for option in sorted(given & HONOURED.keys()):
        if not modes & HONOURED[option]:
            chooser = CHOSEN_BY.get(method)
            reason = f"cannot be combined with {chooser}" if chooser else "has no effect here"
            raise click.BadParameter(f"{reason}; leave one of them out", param_hint=option)


def check_used(given: frozenset[str], modes: frozenset[Mode]) -> None:
    """Raises: BadParameter for an option that none of the inputs' modes uses."""
    for option in sorted(given & HONOURED.keys()):
        if not modes & HONOURED[option]:
            needed = "a video" if HONOURED[option] == {Mode.video} else "an image"
            raise click.BadParameter(f"none of the inputs is {needed}; leave {option} out", param_hint=option)


def _names_a_file(out: Path) -> bool:
    """Whether this is the name of a mask or of a video; any other name is that of a folder."""
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
        raise click.BadParameter(str(error), param_hint="--sliding-window") from None
