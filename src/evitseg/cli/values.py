"""How the values of options are read: names from tables, sizes, bytes, regions and devices."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from evitseg.errors import ConfigError
from evitseg.system.files import is_folder

if TYPE_CHECKING:
    from evitseg.image import Size
    from evitseg.tiling.windows import Window


class Names(click.ParamType[str]):
    """One of the names of a table, which is read only when the option is given or its help is shown."""

    name = "name"

    def __init__(self, kind: str, known: Callable[[], Iterable[str]]) -> None:
        self.kind = kind
        self.known = known

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "|".join(self.known())

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from evitseg.errors import unknown

        if value not in list(self.known()):
            self.fail(str(unknown(self.kind, value, self.known())), param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in self.known() if name.startswith(incomplete)]


class Parsed(click.ParamType[Any]):
    """A value that a function makes of the text; its ConfigError or ValueError becomes a usage error."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except (ConfigError, ValueError) as error:
            self.fail(str(error), param, ctx)


class OutputFile(click.ParamType[Path]):
    """A file to write, whose ending says its kind; what cannot be written is refused before the work begins."""

    name = "file"

    def __init__(self, *endings: str) -> None:
        self.endings = endings

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(value)
        if path.suffix.lower() not in self.endings:
            self.fail(f"{path} must end in {' or '.join(self.endings)}", param, ctx)
        if is_folder(path):
            self.fail(f"{path} is a folder; give another name", param, ctx)
        return path


class Number(click.FloatRange):
    """A number in a range; nan and infinity, which Python reads as numbers too, are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value is not None and not math.isfinite(number := click.FLOAT.convert(value, param, ctx)):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return super().convert(value, param, ctx)


def whole_number(text: str) -> int:
    """A number of up to ten digits 0 to 9; `int` also reads other scripts' digits, and fails at thousands of them.

    Raises: ValueError.
    """
    if not re.fullmatch(r"[0-9]{1,10}", text.strip()):
        raise ValueError(f"{text[:40]!r} is not a whole number")
    return int(text)


def parse_size(text: str, forms: str = "'native'") -> Size:
    """The short side in pixels, or "native". Raises: ConfigError."""
    from evitseg.preprocess import check_size

    if text == "native":
        return "native"
    try:
        return check_size(whole_number(text))
    except ValueError:
        raise ConfigError(f"{text[:40]!r} is neither a number of pixels nor {forms}.") from None


def parse_sides(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH. Raises: ConfigError."""
    from evitseg.preprocess import check_sides

    try:
        height, width = map(whole_number, text.lower().replace("×", "x").split("x"))
    except ValueError:
        raise ConfigError(f"{text[:40]!r} is not HEIGHTxWIDTH, such as 512x1024.") from None
    return check_sides((height, width))


def parse_export_size(text: str) -> Size | tuple[int, int]:
    """HEIGHTxWIDTH, the short side in pixels, or "native". Raises: ConfigError."""
    if "x" in text.lower().replace("×", "x"):
        return parse_sides(text)
    return parse_size(text, "'native' nor HEIGHTxWIDTH")


def parse_bytes(text: str) -> int:
    """A number of bytes, such as 800MiB or 1.5GB. Raises: ConfigError."""
    units = {"": 1, "k": 10**3, "ki": 2**10, "m": 10**6, "mi": 2**20, "g": 10**9, "gi": 2**30, "t": 10**12, "ti": 2**40}
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([kmgt]i?)?b?", text.strip().lower())
    if found is None:
        raise ConfigError(f"{text[:40]!r} is not a size in bytes, such as 1GiB.")
    count = int(float(found[1]) * units[found[2] or ""])
    if count == 0:
        raise ConfigError("0 bytes is not enough memory; give a size such as 1GiB.")
    return count


def parse_region(text: str) -> Window:
    """X,Y,WIDTH,HEIGHT in pixels. Raises: ConfigError."""
    from evitseg.tiling.windows import Window

    try:
        x, y, width, height = map(whole_number, text.split(","))
    except ValueError:
        raise ConfigError(f"{text[:60]!r} is not X,Y,WIDTH,HEIGHT in pixels.") from None
    if not width or not height:
        raise ConfigError(f"{text[:60]!r} has no pixels.")
    return Window(y, x, height, width)


_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?|mps")


def parse_device(text: str) -> str:
    """A device's name for `evitseg.load`. Raises: ConfigError."""
    if not _DEVICE.fullmatch(text):
        raise ConfigError(f"{text[:40]!r} is not a device; give auto, cpu, cuda, cuda:1 or mps.")
    return text


def not_empty(text: str) -> str:
    if not text:  # a shell variable that is not set, never a wish for the default
        raise ConfigError("the value is empty; give a name or a file, or leave the option out.")
    return text
