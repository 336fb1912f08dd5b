"""Choose the bands of a file that are read as red, green and blue.

One rule holds for every format:

1. `--bands` decides.
2. Otherwise band names decide, if exactly one band each is called red, green and blue: GDAL's band descriptions, OME's
   channel names, OME-Zarr's labels. "red", "Band 4 (Red)" and "R" next to "G" and "B" count; "B04", whose meaning
   depends on the sensor, and "red edge" do not. Names win over the colour interpretation, because writers often set
   the latter by default.
3. Otherwise the colour interpretation decides: TIFF's PhotometricInterpretation, GDAL's, OME's and OME-Zarr's channel
   colours.
4. Otherwise one band is grey, three bands are red, green and blue, and the first three of more bands are used, with a
   warning.

A band is alpha, and is ignored, only if the file says so (TIFF's ExtraSamples 1 or 2, or GDAL's colour interpretation).
Two bands other than grey and alpha are an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from evitseg.errors import ImageError, warn
from evitseg.image import ReadOptions

_COLORS = ("red", "green", "blue")
_SPECTRUM = re.compile(r"(band|channel|ch|color|colour|nm|um|µm|[0-9.]+(nm|um|µm)?)", re.IGNORECASE)
"""Words that may accompany a colour in a band's name."""


@dataclass(frozen=True)
class Band:
    """A file's metadata of a band.

    Attributes:
        color: "red", "green", "blue", "grey", "alpha", "palette", another interpretation, or "" if none is stated.
        name: the band's description.
    """

    color: str = ""
    name: str = ""


def choose_bands(name: str, bands: Sequence[Band], options: ReadOptions) -> tuple[int, ...]:
    """Indices of the one or three bands to read, counted from 0. Raises: ImageError."""
    if options.bands is not None:
        if max(options.bands) > len(bands):
            raise ImageError(
                f"{name}: --bands asks for band {max(options.bands)}, but the file has {len(bands)} "
                f"band{'s' * (len(bands) > 1)}."
            )
        return tuple(number - 1 for number in options.bands)
    stated = _each_once([band.color if band.color in _COLORS else "" for band in bands])
    named = _each_once([_color_in(band.name) for band in bands]) or _each_once([_letter(band.name) for band in bands])
    if named is not None:
        if stated is not None and stated != named:
            warn(
                f"{name}: using bands {_numbers(named)}, whose names are red, green and blue, although the colour "
                f"interpretation says {_numbers(stated)}; --bands chooses others.",
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
        raise ImageError(f"{name}: has only an alpha band, so there is no image in it.")
    if len(colors) == 2:
        raise ImageError(
            f"{name}: 2 bands are neither grey nor RGB, and the file does not declare one as alpha; choose one with "
            "--bands 1 or --bands 2."
        )
    if len(colors) > 3:
        first = tuple(colors[:3])
        warn(
            f"{name}: using bands {_numbers(first)} of {len(bands)} as red, green and blue, because the file does "
            "not name them; --bands chooses others.",
        )
        return first
    _warn_of_other_names(name, bands, colors)
    return tuple(colors)


def _warn_of_other_names(name: str, bands: Sequence[Band], places: Sequence[int]) -> None:
    """Warn if band names contradict the choice, as in an infrared composite of nir, red and green."""
    called = [bands[place].name for place in places]
    if len(places) == 3 and any(
        _color_in(each) not in ("", color) for each, color in zip(called, _COLORS, strict=True)
    ):
        warn(
            f"{name}: using bands {_numbers(places)} as red, green and blue, although their names are "
            f"{', '.join(called)}; --bands chooses others.",
            stacklevel=3,
        )


def _numbers(places: Sequence[int]) -> str:
    numbers = [str(place + 1) for place in places]
    return f"{', '.join(numbers[:-1])} and {numbers[-1]}"


def _each_once(colors: Sequence[str]) -> tuple[int, int, int] | None:
    """Indices of red, green and blue, if each occurs exactly once."""
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
