"""Which bands of a file are red, green and blue.

The rule, the same for every format:

1. `--bands` decides.
2. Else names decide, if exactly one band each is called red, green and blue: GDAL's band descriptions, OME's channel
   names, OME-Zarr's labels ("red", "Band 4 (Red)", "R" beside "G" and "B"; never "B04", which other sensors count
   otherwise, nor "red edge"). Names go before colour interpretation, which writers often set by default.
3. Else the colour interpretation: TIFF's photometric interpretation, GDAL's, OME's and OME-Zarr's channel colours.
4. Else a single band is grey, three are red, green and blue, and of more the first three are taken, with a warning.

A band is alpha, and is left out, only if the file says so (TIFF's ExtraSamples 1 or 2, GDAL's colour interpretation).
Two bands that are not grey and alpha are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from evitseg.errors import ImageError, warn
from evitseg.image import ReadOptions

_COLORS = ("red", "green", "blue")
_SPECTRUM = re.compile(r"(band|channel|ch|color|colour|nm|um|µm|[0-9.]+(nm|um|µm)?)", re.IGNORECASE)
"""What may stand beside a colour in a band's name."""


@dataclass(frozen=True)
class Band:
    """What a file says about a band.

    Attributes:
        color: "red", "green", "blue", "grey", "alpha", "palette", another interpretation, or "" for none.
        name: its description.
    """

    color: str = ""
    name: str = ""


def choose_bands(name: str, bands: Sequence[Band], options: ReadOptions) -> tuple[int, ...]:
    """Places of the one or three bands to read, from 0. Raises: ImageError."""
    if options.bands is not None:
        if max(options.bands) > len(bands):
            raise ImageError(
                f"{name}: there is no band {max(options.bands)} (--bands); it has {len(bands)} "
                f"band{'s' * (len(bands) > 1)}."
            )
        return tuple(number - 1 for number in options.bands)
    stated = _each_once([band.color if band.color in _COLORS else "" for band in bands])
    named = _each_once([_color_in(band.name) for band in bands]) or _each_once([_letter(band.name) for band in bands])
    if named is not None:
        if stated is not None and stated != named:
            warn(
                f"{name}: bands {_numbers(named)} are named red, green and blue, but its colour interpretation says "
                f"{_numbers(stated)}; the names are followed (--bands chooses).",
            )
        return named
    if stated is not None:
        _warn_of_other_names(name, bands, stated)
        return stated
    strange = [band.color for band in bands if band.color in ("cyan", "hue", "lab", "ycbcr")]
    if strange:
        raise ImageError(f"{name}: its bands are {', '.join(band.color for band in bands)}; convert it to RGB first.")
    colors = [place for place, band in enumerate(bands) if band.color != "alpha"]
    if not colors:
        raise ImageError(f"{name}: has an alpha band only; there is no image in it.")
    if len(colors) == 2:
        raise ImageError(
            f"{name}: 2 bands are neither grey nor RGB, and the file does not say that one is alpha; choose with "
            "--bands 1 or --bands 2."
        )
    if len(colors) > 3:
        first = tuple(colors[:3])
        warn(
            f"{name}: bands {_numbers(first)} of {len(bands)} are read as red, green and blue, because the file does "
            "not say which they are (--bands chooses).",
        )
        return first
    _warn_of_other_names(name, bands, colors)
    return tuple(colors)


def _warn_of_other_names(name: str, bands: Sequence[Band], places: Sequence[int]) -> None:
    """Of an infrared composite, say, whose bands are called nir, red and green."""
    called = [bands[place].name for place in places]
    if len(places) == 3 and any(
        _color_in(each) not in ("", color) for each, color in zip(called, _COLORS, strict=True)
    ):
        warn(
            f"{name}: bands {_numbers(places)} are read as red, green and blue, but are called {', '.join(called)} "
            "(--bands chooses).",
            stacklevel=3,
        )


def _numbers(places: Sequence[int]) -> str:
    numbers = [str(place + 1) for place in places]
    return f"{', '.join(numbers[:-1])} and {numbers[-1]}"


def _each_once(colors: Sequence[str]) -> tuple[int, int, int] | None:
    """Places of red, green and blue, where each is there once."""
    if any(colors.count(color) != 1 for color in _COLORS):
        return None
    red, green, blue = (colors.index(color) for color in _COLORS)
    return red, green, blue


def _color_in(name: str) -> str:
    words = [word for word in re.split(r"[^\w.µ]+|_", name.strip().casefold()) if word.strip(".")]
    found = [word for word in words if word in _COLORS]
    others = [word for word in words if word not in _COLORS and not _SPECTRUM.fullmatch(word)]
    return found[0] if len(found) == 1 and not others else ""


def _letter(name: str) -> str:
    return {"r": "red", "g": "green", "b": "blue"}.get(name.strip().casefold(), "")
